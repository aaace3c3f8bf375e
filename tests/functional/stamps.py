"""What the bodies of the traffic begin with: whose they are, and so what has to be in them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

STAMP = struct.Struct(">IIH")
"""The connection, its request, and which of the replies to it this is; 0: the last, or only one."""

LENGTH = STAMP.size
NAP = struct.Struct(">H")
"""Behind the stamp of a request to sleep: milliseconds."""

COUNT = struct.Struct(">I")
"""Behind the stamp of a tally's reply: how many there have been."""

SERIES = struct.Struct(">HH")
"""Behind the stamp of a request for several replies: how many before the last, and how long."""

_NOISE = random.Random(3).randbytes(0x10000 + 1024)


def filler(connection: int, request: int, place: int, size: int) -> bytes:
    """So many bytes that differ from one stamp to the next."""
    start = (connection * 31 + request * 7 + place) % 1021
    return _NOISE[start : start + size]


def stamped(connection: int, request: int, place: int, size: int) -> bytes:
    """A body with its stamp and C{size} bytes of filler."""
    return STAMP.pack(connection, request, place) + filler(connection, request, place, size)


def series(request: bytes) -> Iterator[bytes]:
    """The bodies that a request for several replies asks for, but for the last: the request."""
    connection, number, _ = STAMP.unpack_from(request)
    count, size = SERIES.unpack_from(request, LENGTH)
    return (stamped(connection, number, place, size) for place in range(1, count + 1))
