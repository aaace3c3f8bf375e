"""Bytes as choices: what a fuzzer's input makes a target do."""

from __future__ import annotations

from collections.abc import Iterator

from ccserver.core.framing import HEADER, encode

PIECES = 64


class Choices:
    """Takes decisions from bytes; at their end all are zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def byte(self) -> int:
        """A number below 256."""
        return int.from_bytes(self.take(1), "big")

    def short(self) -> int:
        """A number below 65536."""
        return int.from_bytes(self.take(2), "big")

    def take(self, size: int) -> bytes:
        """So many bytes, or those that are left."""
        data = self._data[self._place : self._place + size]
        self._place += len(data)
        return data

    def rest(self) -> bytes:
        return self.take(len(self._data))

    @property
    def left(self) -> bool:
        return self._place < len(self._data)


def stream(choices: Choices) -> bytes:
    """A stream of bytes: as it stands, or made of good packets and those that are nearly good.

    Chance finds no checksum.
    """
    if choices.byte() % 4 == 0:
        return choices.rest()
    pieces: list[bytes] = []
    while choices.left and len(pieces) < PIECES:
        kind = choices.byte() % 8
        if kind < 4:
            pieces.append(encode(choices.byte(), choices.take(choices.byte())))
        elif kind == 4:
            size, code = choices.short(), choices.short()
            size = min(size, 0xFFFF - HEADER.size) if len(pieces) < 3 else size & 0x3FF
            pieces.append(encode(code, bytes([code & 255]) * size))
        elif kind == 5:
            packet = bytearray(encode(choices.byte(), choices.take(choices.byte())))
            packet[choices.byte() % len(packet)] ^= choices.byte()
            pieces.append(bytes(packet))
        elif kind == 6:
            pieces.append(HEADER.pack(choices.short(), choices.short(), choices.short()))
        else:
            pieces.append(choices.take(choices.byte()))
    return b"".join(pieces)


def pieces(data: bytes, cuts: bytes) -> Iterator[bytes]:
    """C{data} in pieces; each byte of C{cuts} is a size, 0 is all, 255 thousands; they repeat.

    What is left behind the first L{PIECES} comes in one.
    """
    place = number = 0
    while place < len(data):
        size = cuts[number % len(cuts)] if cuts and number < PIECES else 0
        number += 1
        size = {0: len(data), 255: 5000}.get(size, size)
        yield data[place : place + size]
        place += size
