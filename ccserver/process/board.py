"""The board: where a worker writes how it is, for its master to look at when it wants to know.

A file in memory that both have: nothing is sent, and nobody wakes up for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from struct import Struct
from time import monotonic
from typing import Any
from zlib import crc32

HEAD = Struct("=dII")
"""What stands before the figures: when they were written (C{CLOCK_MONOTONIC}, which is the same in
all processes), their length, and their CRC-32, for they may be read while others are written."""

LONGEST = 1 << 24
"""Bytes of figures that are read, whatever stands in the head."""


class Board:
    """One worker's figures, as JSON in the file C{fd}, which belongs to this object.

    One process writes, another reads.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._read = b""  # the head of what was read last
        self._figures: dict[str, Any] = {}

    @classmethod
    def made(cls) -> Board:
        """A new one, with nothing on it.

        @raise OSError: there is no file descriptor, or no memory.
        """
        return cls(os.memfd_create("board"))

    def fileno(self) -> int:
        """The descriptor of its file."""
        return self._fd

    def close(self) -> None:
        """Close the file; what was written last can still be read."""
        if self._fd >= 0:
            self._figures = self.figures
            os.close(self._fd)
            self._fd = -1

    def write(self, figures: Mapping[str, Any]) -> None:
        """Put C{figures} in the place of those before.

        @raise OSError: there is no memory.
        """
        text = json.dumps(figures).encode()
        os.pwrite(self._fd, HEAD.pack(monotonic(), len(text), crc32(text)) + text, 0)

    @property
    def written(self) -> float | None:
        """When something was written last, by the clock C{monotonic}; None: never."""
        head = self._pread(HEAD.size, 0)
        return HEAD.unpack(head)[0] if len(head) == HEAD.size else None

    @property
    def age(self) -> float | None:
        """Seconds since something was written; None: never was."""
        written = self.written
        return None if written is None else max(0.0, monotonic() - written)

    @property
    def figures(self) -> dict[str, Any]:
        """What was written last; what was so before, if that cannot be read just now."""
        head = self._pread(HEAD.size, 0)
        if len(head) == HEAD.size and head != self._read:
            _, length, checksum = HEAD.unpack(head)
            text = self._pread(min(length, LONGEST), HEAD.size)
            if crc32(text) == checksum:
                with suppress(ValueError):  # no board has written it
                    self._read, self._figures = head, json.loads(text)
        return self._figures

    def _pread(self, length: int, place: int) -> bytes:
        return os.pread(self._fd, length, place) if self._fd >= 0 else b""
