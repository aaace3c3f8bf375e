"""The worker's reactor: Twisted's epoll reactor with less to do for an event."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from select import EPOLLIN
from typing import Any, Protocol

from twisted.internet.main import CONNECTION_DONE
from twisted.python import log
from twisted.python.failure import Failure

from ccserver.native import native
from ccserver.net.jobqueue import NOBODY
from ccserver.net.transport import DirectServer
from ccserver.net.watching import WatchingReactor

CLOSED = Failure(CONNECTION_DONE)

TURN = 128
"""Events of one turn. This bounds how long pushes and jobs for threads wait for the others; it also
keeps the poll's buffer small."""

PART = 4
"""So many events, the first of which was answered, and the replies are sent. One by one a packet
costs 5 % more at 64 x 1, all behind the turn as much as by fours; where the kernel holds the core
up for 1.5 ms, which 64 clients have then waited for, their p99 is 1.52 ms one by one, 1.56 by
fours and 1.81 behind the turn."""


def poll_in_python(poller: Any, timeout: float | None, waking: int) -> list[tuple[int, int]]:
    """What is ready, behind a write to the eventfd C{waking}, if it is one.

    @param timeout: seconds; None: any time.
    """
    if waking != NOBODY:
        os.eventfd_write(waking, 1)
    events: list[tuple[int, int]] = poller.poll(-1 if timeout is None else timeout, TURN)
    return events


FAR = 2147483
"""Seconds that are more than the kernel can wait."""


class Flushable(Protocol):
    """Something that gathers work during a turn."""

    def flush(self) -> None:
        """Do it; never calls a protocol back."""

    def flush_failed(self) -> None:
        """L{flush} has raised, which it does only where there is no memory."""


def flush_failed(flushable: Flushable, error: BaseException) -> None:
    """Log what a flush has raised, and tell whose it was."""
    log.err(Failure(error), "Unexpected error in a flush.")
    flushable.flush_failed()


flush: Callable[[list[Flushable], type], None] | None = native.flush if native else None
"""flush(flushables, kind) takes away those, transports of that class, that have nothing left to
flush."""

turn: Callable[..., list[tuple[int, int]]] | None = native.turn if native else None
"""turn(reactor, kind, timeout, waking, more) waits as L{poll_in_python} does, serves the events of
transports of that class that have a decoder, sends the replies, and returns the other events. If
there are none and C{more} is true, it flushes and goes on with the next turn, until something else
is to be done. A transport that is to be disconnected is told to C{reactor.lose}."""


class DirectReactor(WatchingReactor):
    """A L{WatchingReactor} that calls a readable descriptor directly, and joins what it sends.

    The stock one wraps every event into C{log.callWithLogger}; here only an event that is more
    than "readable", and the report of an exception, have that log context. Replies are
    sent behind L{PART} events, or the last; what else the events of a turn write is sent behind
    all of them (docs/design/data-path.md). C{seconds} is the monotonic clock, so that a change of
    the system's time moves no timer. All else is inherited.

    @ivar flush_later: flush a transport, or a pool, at the end of this turn, before the reactor
        sleeps.
    @ivar reply_later: flush a transport that has a reply to what it has read, with the next ones.
    @ivar waking: an eventfd to write to when it goes to sleep, for a thread that will need the
        interpreter lock by then. Only where there is a C{nap}.
    @ivar nap: how many seconds it may sleep this time at most; None: as long as nothing is due.
    """

    __slots__ = (  # what each turn looks at: the compiled part finds it there
        "_justStopped",
        "_newTimedCalls",
        "_pendingTimedCalls",
        "_poller",
        "_replying",
        "_selectables",
        "_started",
        "_unflushed",
        "threadCallQueue",
    )

    seconds = staticmethod(time.monotonic)

    _disconnectSelectable: Any

    def __init__(self) -> None:
        self.nap: float | None = None
        self.waking = NOBODY
        self._unflushed: list[Flushable] = []
        self._replying: list[Flushable] = []
        self.flush_later: Callable[[Flushable], None] = self._unflushed.append
        self.reply_later: Callable[[Flushable], None] = self._replying.append
        WatchingReactor.__init__(self)

    def doPoll(self, timeout: float | None) -> None:
        self._turn(timeout, more=False)

    doIteration = doPoll

    def _turn(self, timeout: float | None, more: bool) -> None:
        """Flush what was gathered, sleep, and call what is ready.

        @param timeout: seconds; None: any time.
        @param more: it may be several turns, as long as L{mainLoop} has nothing to do.
        """
        replying = self._replying
        if replying:
            self._send(replying)
        if self._unflushed:
            self._send(self._unflushed)
        nap, waking = self.nap, NOBODY
        if nap is not None:
            self.nap = None
            waking, self.waking = self.waking, NOBODY
            if timeout is None or timeout > nap:
                timeout = nap
        try:
            if turn is None:
                events = poll_in_python(self._poller, timeout, waking)
            else:
                events = turn(self, DirectServer, timeout, waking, more)
        except OSError as error:
            if error.errno == errno.EINTR:
                return
            raise
        selectables, waited = self._selectables, 0
        for fd, event in events:
            selectable = selectables.get(fd)
            if selectable is None:
                continue
            if event != EPOLLIN:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, fd, event)
            else:
                try:
                    why = selectable.doRead()
                except BaseException as error:
                    self.lose(selectable, error, True)
                else:
                    if why:
                        self.lose(selectable, why, False)
            if replying:
                waited += 1
                if waited == PART:
                    waited = 0
                    self._send(replying)
            else:
                waited = 0
        if replying:
            self._send(replying)

    def _send(self, unflushed: list[Flushable]) -> None:
        """Flush what was gathered there."""
        if flush is not None:
            flush(unflushed, DirectServer)
        if unflushed:
            self._flush(unflushed)

    def _flush(self, unflushed: list[Flushable]) -> None:
        """The same in Python."""
        gathered = iter(unflushed.copy())  # nothing fails behind that, or they would be lost
        unflushed.clear()
        for flushable in gathered:
            try:
                flushable.flush()
            except Exception as error:  # no memory; what is behind it is flushed all the same
                flush_failed(flushable, error)

    def lose(self, selectable: Any, why: BaseException, fault: bool) -> None:
        """Disconnect C{selectable}, whose reading has come to an end, or has failed."""
        try:
            if why is CONNECTION_DONE and isinstance(selectable, DirectServer):
                # as below, here for the sake of speed; what the protocol ends is watched no more
                selectable.readConnectionLost(CLOSED)
                if selectable.connected:
                    self.removeReader(selectable)
                return
            if fault:
                log.callWithLogger(selectable, log.err, why)
            self._disconnectSelectable(selectable, why, True)
        except Exception:  # the other events of the turn are not to wait for the next one
            log.callWithLogger(selectable, log.err, None, "Unexpected error in an end.")

    def mainLoop(self) -> None:
        """As inherited, but looks for due calls only where there can be one."""
        while self._started:
            try:
                while self._started:
                    wait: float | None = None
                    if self.threadCallQueue or self._newTimedCalls or self._justStopped:
                        wait = self._run_due()
                    elif self._pendingTimedCalls:
                        wait = self._pendingTimedCalls[0].time - self.seconds()
                        if not 0 < wait < FAR:
                            wait = self._run_due()
                    self._turn(wait, more=True)
            except BaseException:
                log.err(None, "Unexpected error in the main loop.")

    def _run_due(self) -> float | None:
        """Run what is due; the seconds until the next timed call, None if there is none."""
        self.runUntilCurrent()
        return self.timeout() if self.running else 0
