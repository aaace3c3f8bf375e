"""The syntax of a configuration file: bytes to lines of key and value, knowing no key."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import NamedTuple

from ccserver.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_ERRORS = 100
BLANK = " \t\r"


class Entry(NamedTuple):
    """One C{key = value}; C{section} is the name of the section above it, if there is one."""

    line: int
    section: str | None
    key: str
    value: str


@dataclass(frozen=True)
class ConfFile:
    """What a file says, in its order, and which of its lines say nothing that can be read."""

    path: str
    entries: list[Entry] = field(default_factory=list)
    sections: list[tuple[int, str]] = field(default_factory=list)
    indented: list[Entry] = field(default_factory=list)
    errors: list[ConfigError] = field(default_factory=list)

    def refuse(self, text: str, line: int | None = None, key: str | None = None) -> None:
        """Note an error; the first L{MAX_ERRORS} are kept."""
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(ConfigError(text, printable(self.path), line, key))

    def first(self) -> dict[str, Entry]:
        """The entries by their key in lower case: of two equal keys, the first wins."""
        return {entry.key.lower(): entry for entry in reversed(self.entries)}


def printable(text: str) -> str:
    """C{text} on one line: what would not print, or is not UTF-8, is escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def shortened(text: str, limit: int = 80) -> str:
    """C{text} as a message quotes it: printable, and cut behind C{limit} characters."""
    return printable(text if len(text) <= limit else text[: limit - 3] + "...")


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def read_text(path: str) -> str:
    """The text of the file; bytes that are not UTF-8 (GBK in a comment) come as surrogates.

    @raise ConfigError: it is missing, unreadable, no file, larger than L{MAX_BYTES}, or a file
        that any user may write: whoever names the application runs code as the server.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        text = f"cannot read the configuration: {why or error}"
        raise ConfigError(printable(text), printable(path)) from error
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        text = f"mode {stat.S_IMODE(mode):04o}: any user may write it; allowed: chmod o-w"
        raise ConfigError(text, printable(path))
    if len(data) > MAX_BYTES:
        raise ConfigError(_TOO_LARGE, printable(path))
    return data.decode("utf-8", "surrogateescape")


_TOO_LARGE = f"too large for a configuration; allowed: {MAX_BYTES} bytes"


def scan(text: str, path: str) -> ConfFile:
    """Take C{text} apart; what can't be taken apart is in the result's C{errors}."""
    found = ConfFile(path)
    if len(text) > MAX_BYTES:
        found.refuse(_TOO_LARGE)
        return found
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        found.refuse("a NUL byte; allowed: text in UTF-8 (not in UTF-16)", line)
        return found
    section: str | None = None
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line_text = raw.rstrip(BLANK)
        if "\r" in line_text:
            found.refuse("a carriage return within the line; lines end in LF or CRLF", number)
        elif line_text.startswith("["):
            section = line_text[1:].partition("]")[0].strip(BLANK)
            found.sections.append((number, section))
        elif line_text.startswith((" ", "\t")):
            key, _, value = line_text.partition("=")
            found.indented.append(Entry(number, section, key.strip(BLANK), value.strip(BLANK)))
        elif line_text and not line_text.startswith((";", "#")):
            key, equals, value = (part.strip(BLANK) for part in line_text.partition("="))
            if equals and key:
                found.entries.append(Entry(number, section, key, value))
            else:
                found.refuse('not a setting; allowed: "key = value", a comment, [section]', number)
    return found
