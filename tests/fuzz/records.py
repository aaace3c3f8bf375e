"""Targets that read what comes from another process: a value, an error, and never anything else."""

from __future__ import annotations

import array
import os
import socket
from dataclasses import fields
from typing import Any

from twisted.internet.task import Clock

from ccserver.core import plain
from ccserver.core.carried import Carried
from ccserver.core.counts import Counts
from ccserver.core.limits import FloodLimit, Heartbeat, SessionLimits
from ccserver.core.rates import Rate
from ccserver.core.session import CloseReason, Session
from ccserver.errors import NotCarried
from ccserver.net.connections import Connections
from ccserver.net.departure import MAGIC, RECORD
from ccserver.net.giver import NOT_TAKEN, TAKEN
from ccserver.net.taker import Taker
from tests.fuzz.choices import Choices, pieces

LIMITS = (
    SessionLimits(),
    SessionLimits(
        max_packet_length=64,
        flood=FloodLimit(0.1, 10),
        heartbeat=Heartbeat(5),
        rate=Rate(10.0, 20.0),
        empty_reads=10,
        packet_timeout=5.0,
    ),
)
BIG = 1 << 24


def values(data: bytes) -> None:
    """L{plain}: what can be read can be written, and is the same when read again."""
    try:
        value = plain.load(data)
    except ValueError:
        return
    written = plain.dump(value, "it", BIG)
    assert same(plain.load(written), value), (value, written)


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are alike in type and content; a float may be no number."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        return len(one) == len(other) and sorted(map(_key, one)) == sorted(map(_key, other))
    return bool(one == other or (one != one and other != other))


def _key(value: object) -> bytes:
    """Something to sort the members of a set by."""
    if isinstance(value, frozenset):
        return b"z" + b"".join(sorted(map(_key, value)))
    if isinstance(value, tuple):
        return b"t" + b"".join(map(_key, value))
    return b"p" + plain.dump(value, "it", BIG)


class Member:
    """A connection, as its table knows it."""

    idle = True
    deaf = paused = False

    def __init__(self, session: Session) -> None:
        self.session = session

    def close(self, reason: CloseReason) -> None:
        assert reason in CloseReason

    def finish(self) -> None:
        """Nothing: nobody drains it."""

    abort = finish


def carried(data: bytes) -> None:
    """L{Carried}, and the L{Session} that goes on with it and can be carried on."""
    choices = Choices(data)
    limits = LIMITS[choices.byte() & 1]
    try:
        there = Carried.load(choices.rest())
        session = Session.adopt(there, limits, 1000.0)
    except ValueError:
        return
    session.take_refused()
    now = [1000.0]
    table = Connections(
        9, 0, Counts(), lambda: now[0], Heartbeat(5), first_packet_timeout=5.0, packet_timeout=5.0
    )
    member = Member(session)
    table.add(member)
    for now[0] in (1001.0, 1007.0):
        table.check_heartbeats()
        table.check_deadlines()
    table.take_out(member)
    assert not len(table)
    try:
        further = session.carry(there.pending, session.dump_state())
        again = Carried.load(further.dump())
    except NotCarried:
        return
    for field in fields(Carried):
        assert same(getattr(again, field.name), getattr(further, field.name)), field.name
    assert again.id == there.id
    assert (again.bytes_in, again.packets_out) == (there.bytes_in, there.packets_out)
    if session.close_reason is None:
        assert again.incomplete == there.incomplete


class Channel:
    """The other end of a giver: pieces of bytes, some with a descriptor."""

    def __init__(self, reads: list[tuple[bytes, bool]], source: int, room: int) -> None:
        self.reads = reads
        self.answers = b""
        self.closed = False
        self._source = source
        self._room = room

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def recvmsg(self, size: int, rights: int, flags: int) -> tuple[bytes, Any, int, None]:
        if not self.reads:
            return b"", [], 0, None
        data, right = self.reads.pop(0)
        if not data:
            raise BlockingIOError
        if len(data) > size:
            self.reads.insert(0, (data[size:], False))
        if not right:
            return data[:size], [], 0, None
        descriptor = array.array("i", [os.dup(self._source)]).tobytes()
        return data[:size], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)], 0, None

    def send(self, answers: bytes) -> int:
        taken = answers[: self._room or 1]
        self._room = 8 - self._room
        self.answers += taken
        return len(taken)

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def fileno(self) -> int:
        return -1


class Reactor(Clock):
    """Remembers who is to be called."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[object] = set()
        self.writers: set[object] = set()

    def addReader(self, reader: object) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: object) -> None:
        self.readers.discard(reader)

    def addWriter(self, writer: object) -> None:
        self.writers.add(writer)

    def removeWriter(self, writer: object) -> None:
        self.writers.discard(writer)


def taker(data: bytes) -> None:
    """L{Taker}: every descriptor is adopted or closed, and every record answered once."""
    choices = Choices(data)
    options = choices.byte()
    cuts = choices.take(options & 3)
    received = b"".join(_records(choices)) if options & 4 else choices.rest()
    adopted: list[tuple[bool, int]] = []

    def adopt(sock: socket.socket, carried: Carried, unsent: list[bytes]) -> None:
        Session.adopt(carried, LIMITS[0], 1000.0)
        adopted.append((True, sum(map(len, unsent))))
        sock.close()  # as if the client were gone at once

    source, other = socket.socketpair()
    lowest = os.dup(source.fileno())
    os.close(lowest)
    try:
        reads = [(piece, True) for piece in pieces(received, cuts)]
        channel = Channel(reads, source.fileno(), options >> 5)
        reactor = Reactor()
        taking: Any = Taker(reactor, channel, adopt)  # type: ignore[arg-type]
        counts: list[int] = []
        taking.take().addCallback(counts.append)
        while taking in reactor.readers:
            taking.doRead()
            while taking in reactor.writers:
                taking.doWrite()
        assert channel.closed
        assert counts == [len(adopted)], (counts, adopted)
        assert set(channel.answers) <= {TAKEN, NOT_TAKEN}, channel.answers
        assert channel.answers.count(TAKEN) <= len(adopted)
        assert sum(size for _, size in adopted) <= len(received)
        assert not reactor.writers
        now = os.dup(source.fileno())
        os.close(now)
        assert now == lowest, "a descriptor was left open"
    finally:
        source.close()
        other.close()


def _records(choices: Choices) -> list[bytes]:
    """Records whose frames are right, whatever is in them."""
    records = []
    while choices.left:
        unsent, size = choices.byte(), choices.short()
        head = choices.take(size)
        records.append(RECORD.pack(MAGIC, len(head), unsent) + head + choices.take(unsent))
    return records
