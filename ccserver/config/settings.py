"""What a setting is: a dataclass field that is key, type, default, bounds and doc in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ccserver.config.values import Kind

T = TypeVar("T")


@dataclass(frozen=True)
class Setting(Generic[T]):
    """One key of the file.

    @ivar default: the text that stands for it when a file does not have it; C{None}: nothing does.
    @ivar reloadable: a reload applies a new value; else it needs a restart.
    @ivar secret: its value may hold a password and is never quoted.
    """

    section: str
    key: str
    kind: Kind[T]
    default: str | None
    doc: str
    reloadable: bool = True
    secret: bool = False


def setting(
    section: str,
    key: str,
    kind: Kind[T],
    default: str,
    doc: str,
    *,
    reloadable: bool = True,
    secret: bool = False,
) -> T:
    """A dataclass field that is read from C{key}; its L{Setting} stands in the metadata."""
    made = Setting(section, key, kind, default, doc, reloadable, secret)
    value: T = dataclasses.field(
        default=kind.parse(default, ""), metadata={"setting": made}, repr=not secret
    )
    return value


@dataclass(frozen=True)
class Settings:
    """The root of the parts."""

    @classmethod
    def fields(cls) -> Iterator[tuple[str, Setting[Any]]]:
        """The attributes of the part, and what each is read from."""
        for field in dataclasses.fields(cls):
            yield field.name, field.metadata["setting"]
