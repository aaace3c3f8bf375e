"""What a value may look like: text as a file has it to a typed, bounded value, and back."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import Decimal
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


def cpu_count() -> int:
    """The CPUs this process may run on; all there are, where that cannot be asked."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def whole_number(text: str) -> int:
    """C{text} as an integer of plain decimal digits with an optional sign.

    @raise ValueError: it is none, or has more digits than any number that makes sense.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,400}", text):
        raise ValueError("not a number")
    return int(text)


class Kind(ABC, Generic[T]):
    """One manner of writing values; C{allowed} says in words what it takes.

    @cvar longest: how many characters a text may have.
    """

    longest = 4096

    @property
    @abstractmethod
    def allowed(self) -> str:
        """What may be written, for error messages and documentation."""

    @abstractmethod
    def parse(self, text: str, base: str) -> T:
        """The value that C{text} writes; relative paths begin at C{base}.

        @raise ValueError: it writes none; the exception's text says why.
        """

    def show(self, value: T) -> str:
        """The text that L{parse} would read as C{value}."""
        return str(value)


def _bounded(value: T, inside: bool) -> T:
    if not inside:
        raise ValueError("out of bounds")
    return value


@dataclass(frozen=True)
class Whole(Kind[int]):
    """An integer from C{low} to C{high}."""

    low: int
    high: int

    @property
    def allowed(self) -> str:
        return f"{self.low} to {self.high}"

    def parse(self, text: str, base: str) -> int:
        value = whole_number(text)
        return _bounded(value, self.low <= value <= self.high)


@dataclass(frozen=True)
class Workers(Whole):
    """An integer, or C{auto} for the number of CPUs."""

    @property
    def allowed(self) -> str:
        return f"auto or {self.low} to {self.high}"

    def parse(self, text: str, base: str) -> int:
        return min(cpu_count(), self.high) if text.lower() == "auto" else super().parse(text, base)


_UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}


def _seconds(text: str, unit: str) -> Decimal:
    match = re.fullmatch(r"([+-]?[0-9]{1,400}(?:\.[0-9]{1,400})?)(ms|s|m|h)?", text.lower())
    if match is None:
        raise ValueError("not a duration")
    return Decimal(match[1]) * _UNITS[match[2] or unit]


@dataclass(frozen=True)
class Seconds(Kind[float]):
    """A duration in seconds; C{unit} is that of C{low}, C{high} and of a number without one."""

    low: int
    high: int
    unit: str = "s"

    @property
    def allowed(self) -> str:
        name = {"s": "seconds", "ms": "milliseconds"}[self.unit]
        return f"{self.low} to {self.high} {name}, also written like 500ms, 1.5s, 5m, 1h"

    def parse(self, text: str, base: str) -> float:
        value = _seconds(text, self.unit)
        scale = _UNITS[self.unit]
        return float(_bounded(value, self.low * scale <= value <= self.high * scale))

    def show(self, value: float) -> str:
        digits = format(Decimal(repr(value)) / _UNITS[self.unit], "f")
        return digits.rstrip("0").rstrip(".") if "." in digits else digits


@dataclass(frozen=True)
class WholeSeconds(Kind[int]):
    """A duration of whole seconds; one below C{least} counts as C{least}."""

    low: int
    high: int
    least: int = 0

    @property
    def allowed(self) -> str:
        return f"{self.low} to {self.high} whole seconds, also written like 30s, 5m, 1h"

    def parse(self, text: str, base: str) -> int:
        value = _seconds(text, "s")
        _bounded(value, self.low <= value <= self.high)
        if value != int(value):
            raise ValueError("not whole seconds")
        return max(int(value), self.least)


_SIZES = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@dataclass(frozen=True)
class Size(Kind[int]):
    """A number of bytes."""

    low: int
    high: int

    @property
    def allowed(self) -> str:
        return f"{self.show(self.low)} to {self.show(self.high)}: bytes, or with KiB, MiB, GiB"

    def parse(self, text: str, base: str) -> int:
        match = re.fullmatch(r"([+-]?[0-9]{1,400})(kib|mib|gib)?", text.lower())
        if match is None:
            raise ValueError("not a size")
        value = int(match[1]) * _SIZES[match[2] or ""]
        return _bounded(value, self.low <= value <= self.high)

    def show(self, value: int) -> str:
        for unit in ("GiB", "MiB", "KiB"):
            if value and value % _SIZES[unit.lower()] == 0:
                return f"{value // _SIZES[unit.lower()]}{unit}"
        return str(value)


class SendQueue(NamedTuple):
    """Bytes that may wait for a client: C{hard}, and C{soft} for C{seconds}; 0: any."""

    hard: int
    soft: int
    seconds: float


class SendQueues(Kind[SendQueue]):
    """Two sizes and a duration."""

    allowed = (
        "a size, a smaller one and seconds, such as 4MiB 1MiB 30s; "
        "the sizes 0 (no limit) or 64KiB to 1GiB"
    )

    def parse(self, text: str, base: str) -> SendQueue:
        words = text.split()
        if len(words) != 3:
            raise ValueError("not three values")
        hard, soft = (Size(0, 1 << 30).parse(word, base) for word in words[:2])
        seconds = Seconds(0, 86400).parse(words[2], base)
        if any(0 < size < 65536 for size in (hard, soft)):
            raise ValueError("a packet may be longer than that")
        if hard and soft > hard:
            raise ValueError("the second is more than the first")
        return SendQueue(hard, soft, seconds)

    def show(self, value: SendQueue) -> str:
        size = Size(0, 1 << 30)
        seconds = Seconds(0, 86400).show(value.seconds)
        return f"{size.show(value.hard)} {size.show(value.soft)} {seconds}"


class Switch(Kind[bool]):
    """On or off."""

    allowed = "0 or 1, also on, off, yes, no, true, false"

    def parse(self, text: str, base: str) -> bool:
        if text.lower() in ("1", "on", "yes", "true"):
            return True
        if text.lower() in ("0", "off", "no", "false"):
            return False
        raise ValueError("not a switch")

    def show(self, value: bool) -> str:
        return str(int(value))


class Choice(Kind[str]):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    @property
    def allowed(self) -> str:
        return " or ".join(self.words)

    def parse(self, text: str, base: str) -> str:
        if text.lower() not in self.words:
            raise ValueError("unknown word")
        return text.lower()


class Text(Kind[str]):
    """Any text, kept as it stands."""

    allowed = "any text"

    def parse(self, text: str, base: str) -> str:
        return text


class DatabaseInfo(Text):
    """Where a database is; L{show} puts C{***} in the place of its password."""

    allowed = "a URL or host;port;user;password;database"

    def show(self, value: str) -> str:
        if "://" in value:
            shown = re.sub(r"(://[^:/@]*:).*@", r"\1***@", value)
            return re.sub(r"(?i)([?&][^=&]*(?:passw|pwd)[^=&]*=)[^&]*", r"\1***", shown)
        parts = value.split(";")
        if len(parts) >= 5:
            return ";".join([*parts[:3], "***", parts[-1]])
        return f"{parts[0]};***" if len(parts) > 1 else value

    def is_bare(self, value: str) -> bool:
        """Whether it is a mere address, so that it names no database."""
        is_path = "/" in value or value.endswith((".db", ".sqlite", ".sqlite3"))
        return bool(value) and ";" not in value and not is_path


class FilePath(Kind[str]):
    """A file or folder, made absolute."""

    allowed = "the path of a file"

    def parse(self, text: str, base: str) -> str:
        if not text:
            raise ValueError("empty")
        return os.path.normpath(os.path.join(base, text))


class FolderPaths(Kind[tuple[str, ...]]):
    """Folders, made absolute."""

    allowed = "paths of folders, separated by :"

    def parse(self, text: str, base: str) -> tuple[str, ...]:
        return tuple(FilePath().parse(part.strip(), base) for part in text.split(":"))

    def show(self, value: tuple[str, ...]) -> str:
        return ":".join(value)


class AppName(Kind[str]):
    """The name of an application: a module and an attribute of it."""

    allowed = "module.path:attribute"

    def parse(self, text: str, base: str) -> str:
        module, _, attribute = text.partition(":")
        if not all(name.isidentifier() for name in [*module.split("."), attribute]):
            raise ValueError("not an application's name")
        return text


class FilePaths(Kind[tuple[str, ...]]):
    """Files, made absolute; there may be none."""

    allowed = "paths of files, separated by commas"

    def parse(self, text: str, base: str) -> tuple[str, ...]:
        return tuple(FilePath().parse(part.strip(), base) for part in text.split(",") if text)

    def show(self, value: tuple[str, ...]) -> str:
        return ", ".join(value)
