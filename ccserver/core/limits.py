"""Limits: what a connection may do, as rules over the times of its packets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from ccserver.core.framing import LENGTH_LIMIT
from ccserver.core.rates import Rate

T = TypeVar("T")

PING = 0
"""The code of the family's heartbeat packet (PROTOCOL.md 3)."""


@dataclass(frozen=True)
class FloodLimit:
    """The family's flood rule (PROTOCOL.md 4).

    @ivar interval: seconds; a packet sooner than this after the one before is a quick one.
    @ivar count: at this many quick packets in a row the connection is closed.
    """

    interval: float
    count: int


@dataclass(frozen=True)
class Heartbeat:
    """The family's heartbeat rule (PROTOCOL.md 4).

    @ivar interval: whole seconds from one check of a connection to the next.
    @ivar kick: close at the first check, whatever the client sent.
    """

    interval: int
    kick: bool = False

    @property
    def silence(self) -> float:
        """Seconds without a sign of life behind which a check closes the connection."""
        return 3 * self.interval + 10

    def expired(self, heard: float, now: float) -> bool:
        """Whether a check at C{now} closes a connection that was last heard at C{heard}."""
        return self.kick or now - heard > self.silence


class RateAction(StrEnum):
    """What meets the packets that are more than a rate lets through."""

    DELAY = "delay"
    DROP = "drop"
    KICK = "kick"


SMALL_READ = 512
"""Bytes below which a read that completes no packet counts as an empty one. TCP sends at least 536
at once of what is long: who sends long packets over whatever line has no such reads in a row."""


@dataclass(frozen=True)
class SessionLimits:
    """What one connection may do.

    @ivar max_packet_length: bytes, header included.
    @ivar stranger_packet_length: the same, where it is less, of a client that the application does
        not know.
    @ivar close_on_bad_checksum: close, instead of dropping the packet.
    @ivar flood: the flood rule, None where it is off.
    @ivar heartbeat: the heartbeat rule, None where it is off.
    @ivar ping_only: only a ping is a sign of life, as in the family; else any packet.
    @ivar rate: how many packets are let through, None: any number.
    @ivar address_rate: the client's address has a rate as well.
    @ivar rate_action: what meets the others.
    @ivar empty_reads: how many reads of a few bytes may complete no packet, in a second; 0: any
        number.
    @ivar first_packet_timeout: seconds that the first packet may take, 0: any time.
    @ivar packet_timeout: seconds that a packet may take from its first byte, 0: any time.
    @ivar login_timeout: seconds until the application has to know the client, 0: any time.
    """

    max_packet_length: int = 29000
    close_on_bad_checksum: bool = False
    flood: FloodLimit | None = None
    heartbeat: Heartbeat | None = None
    ping_only: bool = False
    rate: Rate | None = None
    address_rate: bool = False
    rate_action: RateAction = RateAction.DELAY
    empty_reads: int = 0
    first_packet_timeout: float = 0.0
    packet_timeout: float = 0.0
    stranger_packet_length: int = LENGTH_LIMIT
    login_timeout: float = 0.0

    def packet_length(self, known: bool) -> int:
        """Bytes of the longest packet of a client that the application knows, or not."""
        longest = self.max_packet_length
        return longest if known else min(longest, self.stranger_packet_length)

    @property
    def timed(self) -> bool:
        """Whether the time of a packet matters."""
        return (
            self.flood is not None
            or self.heartbeat is not None
            or self.rate is not None
            or self.address_rate
        )


class FloodCount:
    """How many packets of one connection came too quickly, one after the other."""

    __slots__ = ("_last", "_limit", "_quick")

    def __init__(self, limit: FloodLimit) -> None:
        self._limit = limit
        self._last: float | None = None
        self._quick = 0

    def admit(self, packets: int, now: float) -> int:
        """How many of C{packets} complete packets, all come at C{now}, are let through.

        Fewer than C{packets}: the next one is the flood, and the connection is to be closed.
        O(1) in their number: packets of one read have no time between them.
        """
        if not packets:
            return 0
        interval, count = self._limit.interval, self._limit.count
        quick = self._last is not None and now - self._last < interval
        first = self._quick + 1 if quick else 0
        step = 1 if interval > 0 else 0
        self._last = now
        self._quick = first + (packets - 1) * step
        if self._quick < count:
            return packets
        return max(0, count - first)

    def save(self) -> tuple[float | None, int]:
        """What L{restore} goes on with."""
        return self._last, self._quick

    def restore(self, saved: tuple[float | None, int]) -> None:
        """Go on where another count, of whatever limit, was."""
        self._last, self._quick = saved


class HeartbeatWheel(Generic[T]):
    """Which connections to check in which second: one spoke for each second of the interval.

    A tick looks only at the connections whose turn it is, so its work is their share of all.
    """

    def __init__(self, heartbeat: Heartbeat, now: float) -> None:
        self._heartbeat = heartbeat
        # with the second it was added in: its spoke's first turn is over right behind that
        self._spokes: list[dict[T, int]] = [{} for _ in range(heartbeat.interval)]
        self._turn = int(now)
        self._second = 0  # the last one that somebody was added in: all of it share one number

    def add(self, connection: T, started: float) -> None:
        """Check C{connection} every interval seconds from C{started} on."""
        second = int(started)
        if second != self._second:
            self._second = second
        self._spokes[second % len(self._spokes)][connection] = self._second

    def remove(self, connection: T, started: float) -> None:
        """Check C{connection}, added with the same C{started}, no more."""
        self._spokes[int(started) % len(self._spokes)].pop(connection, None)

    def due(self, now: float) -> list[T]:
        """The connections whose check has come since the last call."""
        due: list[T] = []
        # a second's connections wait until it is over, so that no check comes early
        last = int(now) - 1
        for second in range(max(self._turn, last - len(self._spokes) + 1), last + 1):
            spoke = self._spokes[second % len(self._spokes)]
            due.extend(connection for connection, added in spoke.items() if added < second)
        self._turn = last + 1
        return due
