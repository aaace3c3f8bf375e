"""Targets that decode: the same packets and refusals as the model, in whatever pieces, however
often the connection moves, in Python and compiled."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from ccserver.core import framing
from ccserver.core.framing import FrameDecoder, Packet, cut_in_python, header_in_python
from ccserver.errors import BadChecksum, BadLength, PacketTooLong
from ccserver.native import native
from ccserver.net.transport import READ_SIZE
from tests.fuzz.choices import Choices, pieces, stream
from tests.fuzz.model import Decoded, decode

OURS, THEIRS = socket.socketpair()
"""A connection, for the compiled part receives by itself."""

Feed = Callable[[FrameDecoder, bytes], list[Packet]]

LONGEST = (29000, 8, 9, 64, 300, 4096, 65535, 29000)


def decoder(data: bytes) -> None:
    """L{FrameDecoder} on both ways to cut, against the model."""
    ways = [cut_in_python] if native is None else [cut_in_python, native.cut]
    before = framing.cut
    try:
        for framing.cut in ways:
            _decode(data, FrameDecoder.feed)
    finally:
        framing.cut = before


def receiver(data: bytes) -> None:
    """The same where the compiled part receives and feeds."""
    if native is not None:
        _decode(data, _feed_from)


def _decode(data: bytes, feed: Feed) -> None:
    """Have a decoder fed with what C{data} says, and compare with the model."""
    choices = Choices(data)
    options = choices.byte()
    longest, close, moves = LONGEST[options & 7], bool(options & 8), bool(options & 16)
    cuts = choices.take(options >> 5)
    received = stream(choices)
    expected = decode(received, longest, close)
    got = _decoded(received, cuts, longest, close, moves, feed)
    assert got == expected, (framing.cut, feed, got, expected)


def _feed_from(decoder: FrameDecoder, data: bytes) -> list[Packet]:
    """Like L{FrameDecoder.feed}, by way of a connection."""
    if not 0 < len(data) <= READ_SIZE:
        return decoder.feed(data)
    THEIRS.sendall(data)
    packets: list[Packet] = native.feed_from(OURS, decoder, READ_SIZE)  # type: ignore[union-attr]
    return packets


def _decoded(
    stream: bytes, cuts: bytes, longest: int, close: bool, moves: bool, feed: Feed
) -> Decoded:
    """What a decoder, or one for each piece that goes on where the last was, makes of it."""
    result = Decoded()
    decoder = FrameDecoder(longest, close)
    fed = complete = 0
    for piece in pieces(stream, cuts):
        if moves and not decoder.closed:
            here, decoder = decoder, FrameDecoder(longest, close)
            decoder.restore(here.incomplete, here.bytes, here.packets)
            assert not decoder.refused, decoder.refused
        closed = decoder.closed
        packets = feed(decoder, piece)
        result.packets += packets
        refused, decoder.refused = decoder.refused, []
        assert not (closed and (packets or refused)), "decoded behind the end"
        for refusal in refused:
            error = refusal.error
            assert isinstance(error, BadLength | BadChecksum), error
            assert bool(refusal.fatal) == (close or isinstance(error, BadLength)), error
            result.refused.append((error.reason, refusal.code, complete + refusal.position))
        fed += 0 if closed else len(piece)
        complete += len(packets) + len(refused)
        assert decoder.packets == complete, (decoder.packets, complete)
        assert decoder.bytes == fed, (decoder.bytes, fed)
        assert decoder.buffered == len(decoder.incomplete) < max(longest, framing.HEADER_LENGTH)
    result.rest, result.closed = decoder.incomplete, decoder.closed
    assert (decoder.end() is None) == (not result.rest)
    return result


def cutter(data: bytes) -> None:
    """Both ways to cut a piece of bytes, from any place of it, with any greatest length."""
    if native is None:
        return
    choices = Choices(data)
    longest, start = choices.short(), choices.short()
    received = stream(choices)
    start %= len(received) + 2
    for refused in ([], None):
        here: list[Any] = []
        there: list[Any] = []
        refused_there = None if refused is None else []
        stopped = cut_in_python(received, start, longest, here, refused)
        assert native.cut(received, start, longest, there, refused_there) == stopped
        assert (here, refused) == (there, refused_there)


def header(data: bytes) -> None:
    """Both ways to make a header."""
    if native is None:
        return
    choices = Choices(data)
    body = bytes(choices.short()) if choices.byte() & 1 else b""
    code = int.from_bytes(choices.take(4), "big", signed=True)
    body += choices.rest()
    made = []
    for make in (header_in_python, native.header):
        try:
            made.append(make(code, body))
        except (PacketTooLong, ValueError) as error:
            made.append((type(error), str(error)))
    assert made[0] == made[1], made
