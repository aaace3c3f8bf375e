"""The giver: moves connections out of this process, through a channel to another one.

The channel is one end of a UNIX stream socketpair. For each connection a record goes in, its
descriptor with the first byte, and one byte comes back: L{TAKEN} or L{NOT_TAKEN}.

A connection is served by nobody between the moment it is packed and the one the other side has its
record. It goes on here only where the other side cannot have it: it was not sent to its last byte,
or the other side says so.
"""

from __future__ import annotations

import array
import errno
import socket
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.net.departure import Departure
from ccserver.net.protocol import PacketProtocol

TAKEN, NOT_TAKEN = b"+-"
"""What the other side says to a record."""

WINDOW = 32
"""How many connections may be sent and not acknowledged, or ready to be sent."""

STEP = 8
"""Connections that are begun or packed in one turn: what other connections wait for."""

RETRY = 0.01
"""Seconds to the next try where the kernel has too many descriptors on their way."""

BUSY = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)

GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
"""What the kernel says where there is no other side."""

MOST_BUFFERS = 64
"""Buffers of one C{sendmsg}; the kernel takes at most 1024."""


class Report(NamedTuple):
    """What became of connections that were to move.

    @ivar moved: how many the other side has.
    @ivar left: how many it does not have, by reason: C{tls}, C{closing}; C{handler}, not at rest
        in time; C{refused}, by the application; C{state}, not plain; C{channel}, no way to the
        other side; C{target}, it could not take it; C{lost}, nobody knows, so it was closed.
    """

    moved: int
    left: dict[str, int]


@implementer(IReadWriteDescriptor)
class Giver:
    """Moves connections to the L{Taker} at the other end of a channel."""

    log = Logger()

    def __init__(self, reactor: Any, channel: socket.socket, timeout: float) -> None:
        """
        @param channel: belongs to the giver, which closes it.
        @param timeout: seconds that a connection may take to come to rest, and the other side
            to take anything.
        """
        channel.setblocking(False)
        self._reactor = reactor
        self._channel = channel
        self._timeout = timeout
        self._open = True
        self._connections: Iterator[PacketProtocol] = iter(())
        self._exhausted = False  # there are no more of them
        self._holding: dict[Departure, IDelayedCall | None] = {}
        self._ready: deque[Departure] = deque()
        self._sending: tuple[Departure, deque[memoryview]] | None = None
        self._sent: deque[Departure] = deque()
        self._moved = 0
        self._left: Counter[str] = Counter()
        self._progress = 0.0
        self._turn_call: IDelayedCall | None = None
        self._stall_call: IDelayedCall | None = None
        self._done: Deferred[Report] | None = None

    def give(self, connections: Iterable[PacketProtocol]) -> Deferred[Report]:
        """Move C{connections}; fires when each has moved, or has not. Never fails; call it once.

        What stays, and is not closing or lost, is served here as before.
        """
        self._connections = iter(connections)
        done = self._done = Deferred[Report]()
        self._reactor.addReader(self)
        self._watch()
        self._turn()
        return done

    def stop(self) -> None:
        """Begin no more; fires when those that were sent have been answered."""
        self._leave_the_rest()
        self._turn_later(0)

    def fileno(self) -> int:
        return self._channel.fileno()

    def logPrefix(self) -> str:
        return "giver"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor cannot go on with the channel."""
        self._lose_channel()

    def doRead(self) -> None:
        if self._read_answers():
            self._turn()
        else:
            self._lose_channel()

    def doWrite(self) -> None:
        self._reactor.removeWriter(self)
        self._turn()

    def _turn(self) -> None:
        """Do a bounded part of what can be done now, and see to it that the rest is done."""
        if not self._open:
            return
        try:
            for _ in range(STEP):
                if not (self._write() if self._sending is not None else self._step()):
                    break
            else:
                self._turn_later(0)
        except Exception:
            self.log.failure("hand-over")
            self._lose_channel()
        if self._exhausted and not (self._holding or self._ready or self._sending or self._sent):
            self._finish()

    def _turn_later(self, seconds: float) -> None:
        if self._open and self._turn_call is None:
            self._turn_call = self._reactor.callLater(seconds, self._turn_again)

    def _turn_again(self) -> None:
        self._turn_call = None
        self._turn()

    def _step(self) -> bool:
        """Pack a connection that is ready, or begin with one; whether there was one."""
        if len(self._sent) < WINDOW and self._ready:
            departure = self._ready.popleft()
            record = departure.pack() if departure.reason is None else None
            if record is not None:
                self._sending = departure, record
                self._progress = self._reactor.seconds()
            return True
        if self._exhausted or len(self._ready) + len(self._sent) >= WINDOW:
            return False
        connection = next(self._connections, None)
        if connection is None:
            self._exhausted = True
            return False
        departure = Departure(connection, self._told)
        self._holding[departure] = None
        departure.begin()
        if departure in self._holding:
            self._holding[departure] = self._reactor.callLater(
                self._timeout, departure.cancel, "handler"
            )
        return True

    def _told(self, departure: Departure) -> None:
        """A connection is ready, or stays."""
        timer = self._holding.pop(departure, None)
        if timer is not None and timer.active():
            timer.cancel()
        if departure.reason is None:
            self._ready.append(departure)
        else:
            self._left[departure.reason] += 1
        self._turn_later(0)

    def _write(self) -> bool:
        """Send a part of the record that is on its way; whether that went."""
        assert self._sending is not None
        departure, chunks = self._sending
        rights = []
        if departure.fd >= 0:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [departure.fd]))]
        try:
            sent = self._channel.sendmsg(list(islice(chunks, MOST_BUFFERS)), rights)
        except BlockingIOError:
            self._reactor.addWriter(self)
            return False
        except OSError as error:
            if error.errno in BUSY:
                self._turn_later(RETRY)
            elif error.errno in GONE or departure.fd < 0:
                self._lose_channel()
            else:  # nothing of it went, so the next one can
                self._sending = None
                departure.refuse(error)
                return True
            return False
        departure.fd = -1  # it has gone with the first byte
        self._progress = self._reactor.seconds()
        while chunks and sent >= len(chunks[0]):
            sent -= len(chunks.popleft())
        if chunks:
            chunks[0] = chunks[0][sent:]
        else:
            self._sending = None
            self._sent.append(departure)
        return True

    def _read_answers(self) -> bool:
        """Take what the other side says; whether it can say more."""
        while True:
            try:
                answers = self._channel.recv(WINDOW)
            except BlockingIOError:
                return True
            except OSError:
                return False
            for answer in answers:
                if not self._sent or answer not in (TAKEN, NOT_TAKEN):
                    self.log.error("hand-over: {answers!r} is no answer", answers=answers)
                    return False
                departure = self._sent.popleft()
                if answer == TAKEN:
                    self._moved += 1
                    departure.arrived()
                else:
                    departure.unpack("target")
            if not answers:
                return False
            self._progress = self._reactor.seconds()

    def _watch(self) -> None:
        """Give up where the other side takes nothing and answers nothing."""
        left = self._timeout
        if self._sending is not None or self._sent:
            left += self._progress - self._reactor.seconds()
            if left <= 0:
                self.log.warn("hand-over: the other side does nothing")
                self._lose_channel()
                return
        self._stall_call = self._reactor.callLater(left, self._watch)

    def _leave_the_rest(self) -> None:
        """All that has not been packed stays."""
        if not self._exhausted:
            self._exhausted = True
            left = sum(1 for _ in self._connections)
            self._left.update({"channel": left} if left else {})
        for departure in [*self._ready, *self._holding]:
            departure.cancel("channel")
        self._ready.clear()

    def _lose_channel(self) -> None:
        """There is no way to the other side any more."""
        if not self._open:
            return
        self._open = False
        self._read_answers()  # what it has said before counts
        sending, self._sending = self._sending, None
        if sending is not None:
            sending[0].unpack("channel")
        while self._sent:
            self._sent.popleft().lose()
        self._leave_the_rest()
        self._finish()

    def _finish(self) -> None:
        self._open = False
        for call in (self._turn_call, self._stall_call):
            if call is not None and call.active():
                call.cancel()
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._channel.close()
        done, self._done = self._done, None
        if done is not None:
            done.callback(Report(self._moved, dict(self._left)))
