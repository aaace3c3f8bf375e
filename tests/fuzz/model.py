"""The simplest decoder there can be: what the real ones must agree with."""

from __future__ import annotations

from binascii import crc32
from dataclasses import dataclass, field

from ccserver.core.framing import Packet


@dataclass
class Decoded:
    """What a whole stream comes to.

    @ivar refused: reason and code of the packets that are not good, and how many complete packets
        came before each.
    @ivar rest: what is left of an incomplete packet.
    @ivar closed: nothing behind the last refusal counts.
    """

    packets: list[Packet] = field(default_factory=list)
    refused: list[tuple[str, int, int]] = field(default_factory=list)
    rest: bytes = b""
    closed: bool = False


def decode(stream: bytes, longest: int, close_on_bad_checksum: bool) -> Decoded:
    """Decode a stream that has come in one piece."""
    result = Decoded()
    complete = 0
    while len(stream) >= 8:
        length = stream[0] * 256 + stream[1]
        code = stream[2] * 256 + stream[3]
        if length < 8 or length > longest:
            result.refused.append(("bad_length", code, complete))
            result.closed = True
            return result
        if length > len(stream):
            break
        body = stream[8:length]
        if stream[4:8] == crc32(body).to_bytes(4, "big"):
            result.packets.append((code, body))
        else:
            result.refused.append(("bad_crc", code, complete))
            if close_on_bad_checksum:
                result.closed = True
                return result
        complete += 1
        stream = stream[length:]
    result.rest = stream
    return result
