"""The configuration as a whole: what holds, where it comes from, and how it is told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ccserver.config.application import AccountsSettings, AppSettings, DatabaseSettings
from ccserver.config.conffile import Entry, printable, read_text, shortened
from ccserver.config.connections import NetSettings
from ccserver.config.keys import SECTIONS
from ccserver.config.listening import ListenSettings, TlsSettings
from ccserver.config.processes import ControlSettings, LogSettings, ProcessSettings
from ccserver.config.reading import Reading
from ccserver.config.security import SecuritySettings
from ccserver.config.settings import Settings
from ccserver.config.values import whole_number
from ccserver.errors import ConfigError

THREAD_GROWTH = 2
"""As many times its threads a pool may have, each with a descriptor of its own."""

SPARE_DESCRIPTORS = 64
"""File descriptors that a worker needs besides its connections and listening sockets."""


class Described(NamedTuple):
    """One setting in force; C{value} is printable and holds no password.

    @ivar reloadable: a reload applies another value; else it needs a restart.
    """

    section: str
    key: str
    value: str
    is_default: bool
    reloadable: bool


@dataclass(frozen=True)
class Config:
    """All the settings of a server, by part.

    @ivar path: the file as its user named it.
    @ivar base: the absolute folder that relative paths begin at.
    @ivar text: what the file says; with C{path} and C{base} it makes an equal L{Config} elsewhere.
        Bytes that are not UTF-8 are in it as surrogates: encode with C{surrogateescape}.
    @ivar warnings: what is allowed but likely a slip, one line of text each.
    """

    path: str
    base: str
    text: str = field(repr=False)
    listen: ListenSettings
    log: LogSettings
    process: ProcessSettings
    net: NetSettings
    security: SecuritySettings
    app: AppSettings
    database: DatabaseSettings
    accounts: AccountsSettings
    tls: TlsSettings
    control: ControlSettings
    warnings: tuple[str, ...] = ()
    _entries: Mapping[str, Entry] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str], base: str | None = None) -> Config:
        """Read a file; C{base} is the current folder unless given.

        @raise ConfigError: the first of what L{check} would report.
        """
        return _first_error_raised(*check(path, base))

    @classmethod
    def parse(cls, text: str, path: str = "<text>", base: str | None = None) -> Config:
        """Like L{load}, of a text that was read from C{path}."""
        return _first_error_raised(*_built(text, path, base))

    @classmethod
    def defaults(cls, base: str | None = None) -> Config:
        """What an empty file gives."""
        return cls.parse("", "<defaults>", base)

    def get_string(self, name: str, default: str | None = None) -> str | None:
        """The value of any key of the file, an application's own too, whatever its section."""
        entry = self._entries.get(name.lower())
        return default if entry is None else entry.value

    def get_int(self, name: str, default: int = 0) -> int:
        """Like L{get_string}, of a number.

        @raise ConfigError: the value is none.
        """
        entry = self._entries.get(name.lower())
        if entry is None:
            return default
        try:
            return whole_number(entry.value)
        except ValueError as error:
            value = shortened(entry.value) or '""'
            raise self.refusal(entry.key, f"{shortened(entry.key)} = {value}: {error}") from None

    def refusal(self, key: str, text: str) -> ConfigError:
        """The error that says C{text} of C{key}, with its line in the file, if it has one there."""
        entry = self._entries.get(key.lower())
        line = None if entry is None else entry.line
        return ConfigError(text, printable(self.path), line, key)

    @property
    def descriptors(self) -> int:
        """How many files a worker may have to have open."""
        listeners, threads = len(self.listen.listeners), THREAD_GROWTH * self.process.threads
        return self.net.worker_connections + SPARE_DESCRIPTORS + listeners + threads

    def few_descriptors(self, limit: float) -> str | None:
        """What to say of a hard limit of file descriptors, if it is too low for a worker."""
        if limit >= self.descriptors:
            return None
        return (
            f"worker_connections = {self.net.worker_connections} needs {self.descriptors} file "
            f"descriptors, the hard limit is {limit}: raise that (ulimit -n, LimitNOFILE of "
            "systemd), or lower worker_connections"
        )

    def describe(self) -> list[Described]:
        """The settings in force, by section; C{ListenPort...} are told as C{Listen}."""
        mine, usual = self._parts(), Config.defaults(self.base)._parts()
        told = [line for pair in zip(mine, usual, strict=True) for line in _described(*pair)]
        return sorted(told, key=lambda line: SECTIONS.index(line.section))

    def _parts(self) -> tuple[Settings, ...]:
        return (
            *(self.listen, self.log, self.process, self.net),
            *(self.security, self.app, self.database, self.accounts, self.tls, self.control),
        )


def check(
    path: str | os.PathLike[str], base: str | None = None
) -> tuple[Config | None, list[ConfigError]]:
    """Read a file and tell all that is wrong with it; without errors there is a L{Config}."""
    name = os.fspath(path)
    try:
        text = read_text(name)
    except ConfigError as error:
        return None, [error]
    return _built(text, name, base)


def _built(text: str, path: str, base: str | None) -> tuple[Config | None, list[ConfigError]]:
    folder = os.path.abspath(base or os.getcwd())
    reading = Reading(text, path, folder)
    listen = reading.listen()
    config = Config(
        path=path,
        base=folder,
        text=text,
        listen=listen,
        log=reading.part(LogSettings),
        process=reading.process(),
        net=reading.part(NetSettings),
        security=reading.part(SecuritySettings),
        app=reading.part(AppSettings),
        database=reading.database(),
        tls=reading.tls(listen),
        accounts=reading.part(AccountsSettings),
        control=reading.part(ControlSettings),
        warnings=reading.warnings,
        _entries=reading.entries,
    )
    return (None, reading.errors) if reading.errors else (config, [])


def _first_error_raised(config: Config | None, errors: list[ConfigError]) -> Config:
    if config is None:
        raise errors[0]
    return config


def _described(part: Settings, usual: Settings) -> Iterator[Described]:
    for name, setting in part.fields():
        value = getattr(part, name)
        shown = printable(setting.kind.show(value))
        usually = value == getattr(usual, name)
        yield Described(setting.section, setting.key, shown, usually, setting.reloadable)
