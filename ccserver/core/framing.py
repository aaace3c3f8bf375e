"""The packet: bytes into packets and back (PROTOCOL.md 1 and 2)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from ccserver.core import checksum
from ccserver.core.checksum import crc32
from ccserver.errors import BadChecksum, BadLength, PacketTooLong, ProtocolError, Truncated
from ccserver.native import native

HEADER = struct.Struct(">HHI")
"""pkgLen (header and body), msgCode, CRC-32 of the body (0 without one): 8 bytes, big-endian."""

HEADER_LENGTH = HEADER.size
LENGTH_LIMIT = 0xFFFF
"""The longest packet that pkgLen, 16 bits wide, can name."""

CHECKSUM = "pclmul" if getattr(native, "carryless", False) else checksum.NAME
"""Who computes the CRC-32 of long bodies: C{pclmul} is the compiled part with that instruction."""

Packet = tuple[int, bytes]
"""Message code and body. A plain tuple, the cheapest, for one is made per packet."""

pack_header = HEADER.pack


def encode(code: int, body: bytes = b"") -> bytes:
    """The packet that carries C{body} under C{code}.

    @raise PacketTooLong: header and body exceed 65535 bytes.
    @raise ValueError: no such code.
    """
    return header(code, body) + body


def header_in_python(code: int, body: bytes) -> bytes:
    """The header of the packet that carries C{body} under C{code}; raises as L{encode}."""
    length = HEADER_LENGTH + len(body)
    if length > LENGTH_LIMIT:
        raise PacketTooLong(f"a body of {len(body)} bytes does not fit into a packet of 65535")
    try:
        return pack_header(length, code, crc32(body))
    except struct.error:
        raise ValueError(f"{code} is no message code") from None


class Refusal(NamedTuple):
    """A packet that was not accepted.

    @ivar code: its message code.
    @ivar position: how many complete packets, good or refused, the same feed had before it.
    @ivar length: its pkgLen.
    @ivar checksum: the one that came with it.
    @ivar fatal: why nothing behind it is decoded and the connection is to be closed; None: its
        checksum is wrong, and it alone is dropped.
    """

    code: int
    position: int
    length: int
    checksum: int
    fatal: ProtocolError | None = None

    @property
    def error(self) -> ProtocolError:
        """What is wrong with it."""
        if self.fatal is not None:
            return self.fatal
        return bad_checksum(self.length, self.checksum)


def bad_checksum(length: int, checksum: int) -> BadChecksum:
    """What is wrong with a packet of C{length} bytes that has come with that C{checksum}."""
    return BadChecksum(f"{checksum:#010x} for a body of {length - HEADER_LENGTH} bytes")


def cut_in_python(
    data: bytes,
    start: int,
    max_length: int,
    packets: list[Packet],
    refused: list[Refusal] | None,
    _unpack: Callable[..., tuple[Any, ...]] = HEADER.unpack_from,
    _crc32: Callable[[bytes], int] = crc32,
) -> int:
    """Append the good packets of C{data}, from C{start} on, to C{packets}.

    @param refused: those with a wrong checksum are appended to it; None: it stops at the first.
    @return: where that stopped: at the end, or at a packet that is incomplete or not good.
    """
    push = packets.append
    size = len(data)
    last = size - HEADER_LENGTH
    while start <= last:
        length, code, checksum = _unpack(data, start)
        end = start + length
        if not HEADER_LENGTH <= length <= max_length or end > size:
            break
        body = data[start + HEADER_LENGTH : end]
        if _crc32(body) == checksum:
            push((code, body))
        elif refused is None:
            break
        else:
            refused.append(Refusal(code, len(packets) + len(refused), length, checksum))
        start = end
    return start


header: Callable[[int, bytes], bytes] = native.header if native else header_in_python
cut: Callable[[bytes, int, int, list[Packet], list[Refusal] | None], int] = (
    native.cut if native else cut_in_python
)

MOST_CHUNKS = 64
"""Chunks of an incomplete packet. Kept apart for ever, a packet of 29,000 bytes that comes in
segments of two costs 614 KiB; so it costs 2.5 KiB more than its bytes."""


FULL = 65536
"""Bytes of a feed that says whether packets are long."""

LONG = 256
"""Bytes of a packet, on average, from which on they are long."""


class FrameDecoder:
    """Cuts a stream of bytes, in whatever segments it comes, into packets.

    Holds at most the bytes of one incomplete packet. An incomplete packet's chunks are kept
    apart, at most L{MOST_CHUNKS} of them, and joined once.

    @ivar refused: what L{feed} refused; the caller takes it away. Behind a fatal refusal
        nothing is decoded any more.
    @ivar noted: something was refused, or an incomplete packet has begun; the caller sets it back.
    @ivar closed: nothing is decoded any more.
    @ivar bytes: how many were fed.
    @ivar packets: how many were complete, the refused ones too.
    @ivar fed: the bytes of the last feed.
    @ivar long: the packets of the last feed of L{FULL} bytes, or more, were, the refused ones too.
    """

    __slots__ = (
        "_chunks",
        "_close_on_bad_checksum",
        "_have",
        "_max_length",
        "_need",
        "bytes",
        "closed",
        "fed",
        "long",
        "noted",
        "packets",
        "refused",
    )

    def __init__(self, max_length: int, close_on_bad_checksum: bool = False) -> None:
        """@param max_length: bytes, header included, 8 to 65535."""
        self._max_length = max_length
        self._close_on_bad_checksum = close_on_bad_checksum
        self._chunks: list[bytes] | None = None
        self._have = 0
        self._need = HEADER_LENGTH
        self.closed = self.noted = self.long = False
        self.refused: list[Refusal] | tuple[()] = ()  # an empty list costs 56 bytes
        self.bytes = 0
        self.packets = 0
        self.fed = 0

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete packet that wait for the rest of it."""
        return self._have if self._chunks is not None else 0

    @property
    def incomplete(self) -> bytes:
        """The bytes of an incomplete packet that wait for the rest of it."""
        return b"".join(self._chunks or ())

    def restore(self, incomplete: bytes, bytes: int, packets: int) -> None:
        """Go on where another decoder was, which has counted all of this.

        A packet that this one does not accept is refused as L{feed} does.

        @raise ValueError: C{incomplete} has a complete packet.
        """
        longest = self._max_length
        if cut(incomplete, 0, longest, [], []):
            raise ValueError("a complete packet is none that is incomplete")
        self._examine(incomplete, 0, longest, [])
        self.bytes = bytes
        self.packets = packets + self.packets

    def feed(self, data: bytes) -> list[Packet]:
        """The good packets that C{data} completes, in order; refusals are left in C{refused}."""
        self.fed = size = len(data)
        if self.closed:
            return []
        self.bytes += size
        chunks = self._chunks
        if chunks is not None:
            chunks.append(data)
            self._have = size = self._have + size
            if size < self._need:
                if len(chunks) >= MOST_CHUNKS:
                    chunks[:] = [b"".join(chunks)]
                return []
            data = b"".join(chunks)
            self._chunks = None
        packets: list[Packet] = []
        before = self.packets
        longest = self._max_length  # a thread may change it meanwhile
        start = cut(data, 0, longest, packets, None)
        if start < size:
            self._examine(data, start, longest, packets, chunks is not None)
        self.packets += len(packets)
        if self.fed >= FULL:
            self.long = self.fed > LONG * (self.packets - before)
        return packets

    def behind_long(self, stream: bytes | bytearray, start: int, part: int) -> int | None:
        """Where the next packet of C{stream} begins behind those that end in its last bytes.

        @param start: where the first one does that did not end before.
        @param part: how many the last bytes are.
        @return: None if those are not long, or one of them has a bad length.
        """
        count, size, longest = 0, len(stream), self._max_length
        while size - start >= HEADER_LENGTH:
            length = _length(stream, start)
            if not HEADER_LENGTH <= length <= longest:
                return None
            if length > size - start:
                break
            start += length
            count += 1
            if part <= LONG * count:
                return None
        return start

    def end(self) -> Truncated | None:
        """The stream is over: the refusal of an incomplete packet, if there is one."""
        if self._chunks is None:
            return None
        return Truncated(f"{self._have} bytes of an incomplete packet")

    def limit(self, max_length: int) -> None:
        """From now on accept packets of C{max_length} bytes at most; from any thread."""
        self._max_length = max_length

    def stop(self) -> None:
        """Decode no more and hold nothing: from now on L{feed} returns no packet."""
        self.closed = True
        self._chunks = None

    def _examine(
        self, data: bytes, start: int, longest: int, packets: list[Packet], goes_on: bool = False
    ) -> None:
        """See why cutting stopped at C{start}, and go on as far as it goes.

        @param longest: the L{limit} that it was cut with.
        @param goes_on: the first packet of C{data} had begun before.
        """
        refused: list[Refusal] = []
        error = _fault(data, start, longest)
        if error is not None and not (error.fatal or self._close_on_bad_checksum):
            start = cut(data, start, longest, packets, refused)
            error = _fault(data, start, longest)
        if error is not None:
            length, code, checksum = HEADER.unpack_from(data, start)
            refused.append(Refusal(code, len(packets) + len(refused), length, checksum, error))
            self.stop()
        elif start < len(data):
            self._chunks = [data[start:]]
            self._have = known = len(data) - start
            self._need = HEADER_LENGTH if known < HEADER_LENGTH else _length(data, start)
            if start or not goes_on:
                self.noted = True
        if refused:
            self.noted = True
            self.packets += len(refused)
            self.refused = [*self.refused, *refused]


def _length(data: bytes | bytearray, start: int) -> int:
    """The pkgLen of the packet that begins at C{start}."""
    return data[start] << 8 | data[start + 1]


def _fault(data: bytes, start: int, longest: int) -> ProtocolError | None:
    """What is wrong with the packet that cutting stopped at; None: it is incomplete."""
    known = len(data) - start
    if known < HEADER_LENGTH:
        return None
    length = _length(data, start)
    if not HEADER_LENGTH <= length <= longest:
        return BadLength(f"pkgLen {length}, allowed {HEADER_LENGTH} to {longest}")
    if length > known:
        return None
    return bad_checksum(length, HEADER.unpack_from(data, start)[2])
