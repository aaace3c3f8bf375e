"""What goes with a connection that moves from one process to another."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from math import isfinite
from typing import Any

from ccserver.core import plain
from ccserver.core.framing import LENGTH_LIMIT, Packet, cut, encode

HEAD_LIMIT = 64 << 20
"""Bytes of a carried connection without its unsent ones: a bound, far above what is usual."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A connection, without its socket and its unsent bytes.

    The times are of the machine's monotonic clock, which all processes share.

    @ivar id: its id, which it keeps.
    @ivar peer: the client's address, C{host:port}.
    @ivar server: the address the client connected to, C{host:port}.
    @ivar started: the time it began.
    @ivar heard: the time of the last sign of life; None where nobody looked.
    @ivar flood: the last packet's time, and how many quick ones there were; None without limit.
    @ivar bytes_in: bytes received, those of C{incomplete} too.
    @ivar packets_in: complete packets received, those of C{pending} too.
    @ivar bytes_out: bytes sent, the unsent ones too.
    @ivar packets_out: packets sent.
    @ivar incomplete: what was received of a packet that is not complete.
    @ivar pending: packets that were received and not handled.
    @ivar state: the application's values, see L{plain}.
    @ivar rate: the tokens for its packets, and when there were so many; None without a rate.
    @ivar known: the application knows the client; who did not say so, had no limits for others.
    @ivar begun: the time at which C{incomplete} began, None where nobody looked.
    """

    id: int
    peer: str
    server: str
    started: float
    heard: float | None
    flood: tuple[float | None, int] | None
    bytes_in: int
    packets_in: int
    bytes_out: int
    packets_out: int
    incomplete: bytes
    pending: list[Packet]
    state: bytes
    rate: tuple[float, float] | None = None
    begun: float | None = None
    known: bool = True

    def dump(self) -> bytes:
        """As bytes; C{pending} as on the wire, for value by value 8,000 pings take 0.3 s.

        @raise NotCarried: it is too big.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["pending"] = b"".join([encode(code, body) for code, body in self.pending])
        return plain.dump(values, "connection", HEAD_LIMIT)

    @classmethod
    def load(cls, data: bytes) -> Carried:
        """What L{dump} made C{data} of; fields that we do not know are left out.

        Those that have a default may be missing: an older version did not know them.

        @raise ValueError: it was made by nobody.
        """
        values = plain.load(data)
        if not isinstance(values, dict):
            raise ValueError("no carried connection")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise ValueError(f"no carried connection: {missing[0]} is missing")
        values["pending"] = _packets(values["pending"])
        carried = cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        wrong = carried._wrong()
        if wrong:
            raise ValueError(f"no carried connection: {wrong[0]} is not one")
        return carried

    def _wrong(self) -> list[str]:
        """The fields whose values are none."""
        counts = ("id", "bytes_in", "packets_in", "bytes_out", "packets_out")
        right = {name: _is_count(getattr(self, name)) for name in counts}
        right["peer"] = isinstance(self.peer, str)
        right["server"] = isinstance(self.server, str)
        right["started"] = _is_time(self.started)
        right["heard"] = self.heard is None or _is_time(self.heard)
        right["flood"] = self.flood is None or _is_flood(self.flood)
        right["rate"] = self.rate is None or _is_bucket(self.rate)
        right["begun"] = self.begun is None or _is_time(self.begun)
        right["known"] = isinstance(self.known, bool)
        right["incomplete"] = isinstance(self.incomplete, bytes)
        right["state"] = isinstance(self.state, bytes)
        return [name for name, is_right in right.items() if not is_right]


def _is_count(value: object) -> bool:
    return value.__class__ is int and value >= 0


def _is_time(value: object) -> bool:
    return isinstance(value, float) and isfinite(value)


def _is_flood(value: object) -> bool:
    match value:
        case (last, int()):
            return last is None or _is_time(last)
    return False


def _is_bucket(value: object) -> bool:
    match value:
        case (tokens, since):
            return _is_time(tokens) and _is_time(since)
    return False


def _packets(value: Any) -> list[Packet]:
    """The packets of a stream, which ends with one."""
    packets: list[Packet] = []
    if not isinstance(value, bytes) or cut(value, 0, LENGTH_LIMIT, packets, None) != len(value):
        raise ValueError("no carried connection: pending is not one")
    return packets
