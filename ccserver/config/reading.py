"""A file's lines held against the keys there are: typed values, errors and warnings."""

from __future__ import annotations

import dataclasses
import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, TypeVar

from ccserver.config.addresses import Address, Listener
from ccserver.config.application import DatabaseSettings
from ccserver.config.conffile import Entry, printable, scan, shortened
from ccserver.config.keys import (
    KNOWN,
    LISTEN_PORT,
    LISTEN_PORT_COUNT,
    SECTIONS,
    known_key,
    port_number,
)
from ccserver.config.listening import ListenSettings, TlsSettings
from ccserver.config.processes import ProcessSettings
from ccserver.config.settings import Setting, Settings
from ccserver.config.values import DatabaseInfo, FilePath, FilePaths, FolderPaths
from ccserver.errors import ConfigError

T = TypeVar("T")
P = TypeVar("P", bound=Settings)

MAX_WARNINGS = 100
LANE_BYTES = 8 << 10
"""What argon2 needs for each lane of a hash."""

_OUR_SECTIONS = {name.lower(): name for name in SECTIONS}


class Reading:
    """One file while it is read; relative paths in it begin at C{base}."""

    def __init__(self, text: str, path: str, base: str) -> None:
        self._base = base
        self._file = scan(text, path)
        self._warnings: list[tuple[int, str]] = []
        self.entries = self._file.first()
        self._look_at_keys()
        self._look_at_sections()

    @property
    def errors(self) -> list[ConfigError]:
        """What was found wrong so far, in the order of the lines."""
        return sorted(self._file.errors, key=lambda error: error.line or 0)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is likely a slip, a line of text each, in the order of the lines."""
        path = printable(self._file.path)
        return tuple(f"{path}:{line}: {text}" for line, text in sorted(self._warnings))

    def part(self, part: type[P], **known: Any) -> P:
        """The settings of one part, C{known} ones aside; what is wrong or missing has a default."""
        values = {name: self._value(each) for name, each in part.fields() if name not in known}
        return dataclasses.replace(part(), **values, **known)

    def listen(self) -> ListenSettings:
        """The part whose addresses are united from several keys."""
        given = [*self._one_port(), *self._numbered_ports(), *self._listed()]
        taken: list[tuple[Listener, Entry]] = []
        for listener, entry in given:
            for other, where in taken:
                if listener.address.collides(other.address):
                    self._refuse_duplicate(listener.address, entry, other.address, where)
                    break
            else:
                taken.append((listener, entry))
        listeners = tuple(listener for listener, _ in taken) or ListenSettings().listeners
        part = self.part(ListenSettings, listeners=listeners)
        if any(each.proxy for each in listeners) and not part.proxy_from:
            self._refuse(
                self.entries["listen"],
                "nobody may tell the addresses of clients",
                "proxy, where ProxyFrom says who the proxies are",
            )
        return part

    def tls(self, listen: ListenSettings) -> TlsSettings:
        """The part that has to fit C{listen}, and itself."""
        part = self.part(TlsSettings)
        if any(each.tls for each in listen.listeners) and not part.certificates:
            self._refuse(
                self.entries["listen"],
                "there is no certificate",
                "tls, where TlsCertificate names one",
            )
        for key, files in (("tlskey", part.keys), ("tlschain", part.chains)):
            if files and len(files) != len(part.certificates):
                self._refuse(
                    self.entries[key],
                    f"{len(files)} of them for {len(part.certificates)} certificates",
                    "as many as in TlsCertificate, or none",
                )
        if part.client_certificates != "off" and not part.client_ca:
            self._refuse(
                self.entries["tlsclientcertificates"],
                "no certificate of a client could be believed",
                "off, or TlsClientCa says whose are",
            )
        return part

    def process(self) -> ProcessSettings:
        """The part whose CPUs should be as many as its workers, and whose group needs a user."""
        part = self.part(ProcessSettings)
        for key, asks in (
            ("worker_cpu_affinity", part.affinity != ProcessSettings().affinity),
            ("workerscheduling", part.scheduling == "batch"),
        ):
            if part.workers == 0 and asks:
                given = self.entries[key]
                self._warn(given.line, f"{given.key} is ignored: there are no workers")
        entry, masks = self.entries.get("worker_cpu_affinity"), len(part.affinity.sets)
        if entry is not None and part.workers and masks > 1 and masks != part.workers:
            rest = "the last is for the rest" if masks < part.workers else "the rest is nobody's"
            self._warn(entry.line, f"{entry.key}: {masks} masks for {part.workers} workers: {rest}")
        if part.group and not part.user:
            self._refuse(self.entries["group"], "there is no User", "a group, beside a User")
        return part

    def database(self) -> DatabaseSettings:
        """The part whose hash settings bound each other."""
        part = self.part(DatabaseSettings)
        least = part.hash_parallelism * LANE_BYTES
        entry = self.entries.get("hashmemory") or self.entries.get("hashparallelism")
        if part.hash_memory < least and entry is not None:
            self._refuse(
                entry,
                f"{part.hash_memory} bytes are too few for {part.hash_parallelism} lanes",
                f"HashMemory of at least {LANE_BYTES} bytes for each of HashParallelism",
            )
        return part

    def _value(self, setting: Setting[T]) -> T:
        entry = self.entries.get(setting.key.lower())
        value = None if entry is None else self._parsed(setting, entry)
        if value is None:
            assert setting.default is not None
            return setting.kind.parse(setting.default, self._base)
        return value

    def _parsed(self, setting: Setting[T], entry: Entry) -> T | None:
        kind = setting.kind
        try:
            _check_text(entry.value, kind.longest)
            value = kind.parse(entry.value, self._base)
        except ValueError as error:
            self._refuse(entry, shortened(str(error), 200), kind.allowed, setting)
            return None
        if isinstance(kind, FilePath | FilePaths | FolderPaths) and _has_comment(entry.value):
            self._warn(entry.line, f"{entry.key}: what looks like a comment is part of the value")
        if isinstance(kind, DatabaseInfo) and kind.is_bare(entry.value):
            self._warn(entry.line, f"{entry.key} names no database; allowed: {kind.allowed}")
        return value

    def _one_port(self) -> Iterable[tuple[Listener, Entry]]:
        entry = self.entries.get("listenport")
        if entry is not None:
            yield from self._port(entry)

    def _numbered_ports(self) -> Iterable[tuple[Listener, Entry]]:
        found = {
            number: entry
            for entry in self.entries.values()
            if (number := port_number(entry.key)) is not None
        }
        counted = self.entries.get("listenportcount")
        count = None if counted is None else self._parsed(LISTEN_PORT_COUNT, counted)
        for number, entry in sorted(found.items()):
            if count is None or number < count:
                yield from self._port(entry)
            else:
                self._warn(entry.line, f"{entry.key} is ignored: ListenPortCount is {count}")
        missing = next((n for n in range(count or 0) if n not in found), None)
        if missing is not None and counted is not None:
            allowed = "as many as there are of ListenPort0, ListenPort1, ..."
            self._refuse(counted, f"ListenPort{missing} is missing", allowed)

    def _listed(self) -> Iterable[tuple[Listener, Entry]]:
        entry = self.entries.get("listen")
        if entry is not None:
            for listener in self._parsed(KNOWN["listen"], entry) or ():
                yield listener, entry

    def _port(self, entry: Entry) -> Iterable[tuple[Listener, Entry]]:
        port = self._parsed(LISTEN_PORT, entry)
        if port is not None:
            yield Listener(Address("0.0.0.0", port)), entry

    def _look_at_keys(self) -> None:
        for entry in self._file.entries:
            key = known_key(entry.key)
            first = self.entries[entry.key.lower()]
            if key is None:
                self._look_at_unknown(entry)
            elif first is not entry:
                text = f"{key} is given again: the one in line {first.line} counts"
                self._warn(entry.line, text)
            elif entry.section is not None and entry.section.lower() not in _OUR_SECTIONS:
                where = shortened(entry.section)
                self._warn(entry.line, f"{key} in [{where}] is ccserver's key, not the app's own")
        for entry in self._file.indented:
            key = known_key(entry.key)
            if key is not None:
                self._warn(entry.line, f"{key} is ignored: an indented line is a comment")

    def _look_at_unknown(self, entry: Entry) -> None:
        key = shortened(entry.key)
        if entry.section is None:
            text = f'unknown key "{key}" before any section'
            self._file.refuse(text + _remedy(entry.key, None), entry.line, entry.key)
        elif entry.section.lower() in _OUR_SECTIONS:
            section = _OUR_SECTIONS[entry.section.lower()]
            text = f'unknown key "{key}" in [{section}]'
            self._file.refuse(text + _remedy(entry.key, section), entry.line, entry.key)
        elif len(entry.key) >= 5:
            near = _nearest(entry.key, (known.key for known in KNOWN.values()), 0.8)
            if near is not None:
                where = shortened(entry.section)
                self._warn(entry.line, f'"{key}" in [{where}]: did you mean "{near}"?')

    def _look_at_sections(self) -> None:
        for line, name in self._file.sections:
            near = None if name.lower() in _OUR_SECTIONS else _nearest(name, SECTIONS, 0.8)
            if near is not None:
                text = f"unknown section [{shortened(name)}]; did you mean [{near}]?"
                text += " One of the application's needs a name less like it"
                self._file.refuse(text, line)

    def _refuse(
        self, entry: Entry, problem: str, allowed: str, setting: Setting[Any] | None = None
    ) -> None:
        value = "***" if setting is not None and setting.secret else shortened(entry.value) or '""'
        hint = "; comments stand on lines of their own" if _has_comment(entry.value) else ""
        text = f"{entry.key} = {value}: {problem}; allowed: {allowed}{hint}"
        self._file.refuse(text, entry.line, known_key(entry.key))

    def _refuse_duplicate(
        self, address: Address, entry: Entry, other: Address, where: Entry
    ) -> None:
        taken = f"{other} of {where.key} in line {where.line}"
        if address == other:
            problem = f"duplicate port: {address} is given already, as {taken}"
        else:
            problem = f"duplicate port: {address} collides with {taken}"
        self._refuse(entry, problem, "each address and port once")

    def _warn(self, line: int, text: str) -> None:
        if len(self._warnings) < MAX_WARNINGS:
            self._warnings.append((line, text))


def _check_text(value: str, longest: int) -> None:
    if len(value) > longest:
        raise ValueError(f"longer than {longest} characters")
    categories = set(map(unicodedata.category, value.replace("\t", " ")))
    if "Cs" in categories:
        raise ValueError("not in UTF-8")
    if categories & {"Cc", "Zl", "Zp"}:
        raise ValueError("has a control character")


def _has_comment(value: str) -> bool:
    return re.search(r"\s[#;]", value) is not None


def _nearest(word: str, words: Iterable[str], cutoff: float) -> str | None:
    spelled = {known.lower(): known for known in words}
    found = difflib.get_close_matches(word.lower(), spelled, 1, cutoff)
    return spelled[found[0]] if found else None


def _remedy(key: str, section: str | None) -> str:
    if re.fullmatch(r"listenport[0-9]+", key.lower()):
        return "; allowed: ListenPort0 to ListenPort255"
    near = _nearest(key, (known.key for known in KNOWN.values()), 0.6)
    if near is not None:
        return f'; did you mean "{near}"?'
    if section is None:
        return "; the keys of an application stand in a section of its own"
    keys = ", ".join(known.key for known in KNOWN.values() if known.section == section)
    return f"; allowed: {keys}"
