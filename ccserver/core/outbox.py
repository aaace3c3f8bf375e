"""The outbox: what waits for a client that is behind, and what gives way at its bounds."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from ccserver.core.framing import LENGTH_LIMIT

ROOM = 65536
"""Bytes that wait at most where there is room for who can wait for it."""

JOINED = 4096
"""Bytes up to which replies that follow each other wait as one: 8 bytes cost 228 by themselves."""


class Overflow(StrEnum):
    """What a packet is worth that finds no room: the policy of a send."""

    CLOSE = "close"
    DROP_NEW = "drop_new"
    DROP_OLD = "drop_old"
    LATEST = "latest"


@dataclass(frozen=True)
class SendLimits:
    """How much may wait to be sent; 0: any.

    @ivar hard: bytes of one connection; above them it is closed.
    @ivar soft: bytes of one connection; above them for more than C{seconds} it is closed.
    @ivar messages: packets of one connection, replies not counted; above them it is closed.
    @ivar total: bytes of all connections of the worker.
    @ivar total_messages: packets of all of them, replies not counted.
    @ivar stall: seconds that a client who is behind may take not one byte; 0: any time.
    """

    hard: int = 4 << 20
    soft: int = 1 << 20
    seconds: float = 30.0
    messages: int = 400
    total: int = 64 << 20
    total_messages: int = 50_000
    stall: float = 0.0

    @property
    def droppable(self) -> tuple[int, int]:
        """The bytes and packets that what may be dropped fills at most.

        So it neither closes a connection nor takes the room of what may not be dropped.
        """
        return self.soft or self.hard, (self.messages + 1) // 2


@dataclass(slots=True)
class Waiting:
    """What all outboxes of a worker hold together.

    @ivar dropped: packets that were not sent, by the policy that let them go.
    """

    bytes: int = 0
    messages: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


class _Key:
    """A key of the application's, found again by what it was, whatever becomes of it."""

    __slots__ = ("_hash", "_key")

    def __init__(self, key: Hashable) -> None:
        self._hash = hash(key)
        self._key = key

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Key):
            return NotImplemented
        try:
            return bool(self._key == other._key)
        except Exception:
            return False


class _Entry(NamedTuple):
    """What waits: bytes that are sent together, and whether and how they may be dropped."""

    data: bytes
    overflow: Overflow | None  # None: replies, which are not refused, for they bound themselves
    key: Hashable


class Outbox:
    """What waits to be sent to one client, in order: whole packets, which are dropped as such.

    @ivar bytes: how many wait.
    @ivar messages: how many packets wait, replies not counted.
    @ivar replies: how many of C{bytes} are replies.
    """

    __slots__ = (
        "_above_since",
        "_droppable",
        "_entries",
        "_latest",
        "_limits",
        "_number",
        "_stalled_since",
        "_taken",
        "_waiting",
        "bytes",
        "messages",
        "replies",
    )

    def __init__(self, limits: SendLimits, waiting: Waiting) -> None:
        self.bytes = self.messages = self.replies = 0
        self._limits = limits
        self._waiting = waiting
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._droppable: OrderedDict[int, None] = OrderedDict()  # the one to go first is first
        self._latest: dict[Hashable, int] = {}
        self._number = 0
        self._above_since: float | None = None
        self._taken = 0
        self._stalled_since: float | None = None  # nobody has looked yet

    @property
    def has_room(self) -> bool:
        """Whether so little waits that who can wait may add a packet, of any length."""
        most = (self._limits.messages + 1) // 2  # not 0 where there is a limit
        return self.bytes <= ROOM and self._fits(LENGTH_LIMIT, self._limits.hard, most)

    def reply(self, data: bytes) -> None:
        """Add C{data}, replies or what else must not be missing, whatever the limits."""
        entry = _Entry(data, None, None)
        number = next(reversed(self._entries), -1)
        last = self._entries.get(number)
        if last is None or last.overflow is not None or len(last.data) + len(data) > JOINED:
            self._add(entry)
        else:
            self._entries[number] = _Entry(last.data + data, None, None)
            self._count(entry, 1)

    def push(self, packet: bytes, overflow: Overflow, key: Hashable = None) -> bool:
        """Add C{packet}, or let it, or others, go as its policy says.

        @param key: of C{LATEST}: what waits under the same key is replaced, where it stands.
        @return: False: there is no room and it must not be missing, so the client is to go.
        """
        key = _Key(key) if overflow is Overflow.LATEST else None
        entry = _Entry(packet, overflow, key)
        if overflow is Overflow.CLOSE:
            fits = self._fits(len(packet), self._limits.hard, self._limits.messages)
            if fits:
                self._add(entry)
            return fits
        number = self._latest.get(key) if overflow is Overflow.LATEST else None
        if number is not None:
            self._waiting.dropped[overflow] += 1
            self._take_out(number)
        while not self._fits(len(packet), *self._limits.droppable):
            if overflow is Overflow.DROP_NEW or not self._droppable:
                self._waiting.dropped[overflow] += 1
                if number is not None:
                    del self._entries[number]
                return True
            oldest = next(iter(self._droppable))
            self._waiting.dropped[self._entries[oldest].overflow or ""] += 1
            self._take_out(oldest)
            del self._entries[oldest]
        self._add(entry, number)
        return True

    def take(self, size: int) -> list[bytes]:
        """Take what is to be sent first away, until that is C{size} bytes or nothing is left."""
        taken = []
        while self._entries and size > 0:
            number = next(iter(self._entries))
            self._take_out(number)
            entry = self._entries.pop(number)
            taken.append(entry.data)
            size -= len(entry.data)
        if self.bytes <= self._limits.soft:
            self._above_since = None
        return taken

    def check(self, now: float) -> bool:
        """Whether it has been above the soft limit for too long; to be asked about each second."""
        if not self._limits.soft or self.bytes <= self._limits.soft:
            self._above_since = None
        elif self._above_since is None:
            self._above_since = now
        else:
            return now - self._above_since > self._limits.seconds
        return False

    def stalled(self, taken: int, now: float) -> bool:
        """Whether the client, of whose bytes C{taken} are gone, has taken none for too long.

        To be asked about each second.
        """
        # less than before is no progress: TLS has added something of its own to what waits
        if self._stalled_since is None or taken > self._taken:
            self._stalled_since = now
        self._taken = taken
        stall = self._limits.stall
        return bool(stall) and now - self._stalled_since > stall

    def contents(self) -> list[bytes]:
        """What waits, which stays here."""
        return [entry.data for entry in self._entries.values()]

    def clear(self) -> None:
        """Drop all: the connection is gone."""
        self._waiting.bytes -= self.bytes
        self._waiting.messages -= self.messages
        self.bytes = self.messages = self.replies = 0
        self._entries.clear()
        self._droppable.clear()
        self._latest.clear()

    def _fits(self, size: int, most_bytes: int, most_messages: int) -> bool:
        limits, waiting = self._limits, self._waiting
        return (
            (not most_bytes or self.bytes + size <= most_bytes)
            and (not most_messages or self.messages < most_messages)
            and (not limits.total or waiting.bytes + size <= limits.total)
            and (not limits.total_messages or waiting.messages < limits.total_messages)
        )

    def _add(self, entry: _Entry, number: int | None = None) -> None:
        """Add C{entry}, at the end or in the place of what has C{number}."""
        if number is None:
            number = self._number
            self._number += 1
        self._entries[number] = entry
        self._count(entry, 1)
        if entry.overflow in (Overflow.DROP_OLD, Overflow.LATEST):
            self._droppable[number] = None
        if entry.overflow is Overflow.LATEST:
            self._latest[entry.key] = number

    def _take_out(self, number: int) -> None:
        """Count what has C{number} no more; its place is the caller's."""
        entry = self._entries[number]
        self._count(entry, -1)
        self._droppable.pop(number, None)
        if entry.overflow is Overflow.LATEST:
            del self._latest[entry.key]

    def _count(self, entry: _Entry, sign: int) -> None:
        size = sign * len(entry.data)
        self.bytes += size
        self._waiting.bytes += size
        if entry.overflow is None:
            self.replies += size
        else:
            self.messages += sign
            self._waiting.messages += sign
