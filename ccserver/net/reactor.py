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
"""Events of one turn. What a turn writes is sent at its end, so this bounds how long the first
reply waits for the others; it also keeps the poll's buffer small."""


def poll_in_python(poller: Any, timeout: float | None, waking: int) -> list[tuple[int, int]]:
    """What is ready, behind a write to the eventfd C{waking}, if it is one.

    @param timeout: seconds; None: any time.
    """
    if waking != NOBODY:
        os.eventfd_write(waking, 1)
    events: list[tuple[int, int]] = poller.poll(-1 if timeout is None else timeout, TURN)
    return events


poll: Callable[[Any, float | None, int], list[tuple[int, int]]] = (
    native.poll if native else poll_in_python
)


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

serve: Callable[..., None] | None = native.serve if native else None
"""serve(events, selectables, kind, unflushed, reactor) takes away the events of transports of that
class that have a decoder, for it has served them. C{unflushed} is given what is to be flushed at
the end of the turn; a transport that is to be disconnected is told to C{reactor.lose}."""


class DirectReactor(WatchingReactor):
    """A L{WatchingReactor} that calls a readable descriptor directly, and sends once a turn.

    The stock one wraps every event into C{log.callWithLogger}; here only an event that is more
    than "readable", and the report of an exception, have that log context (DESIGN 2). What the
    events of a turn write is sent behind the last of them (docs/design/data-path.md). C{seconds}
    is the monotonic clock, so that a change of the system's time moves no timer. All else is
    inherited.

    @ivar flush_later: flush a transport at the end of this turn, before the reactor sleeps.
    @ivar waking: an eventfd to write to when it goes to sleep, for a thread that will need the
        interpreter lock by then. Only where there is a C{nap}.
    @ivar nap: how many seconds it may sleep this time at most; None: as long as nothing is due.
    """

    seconds = staticmethod(time.monotonic)

    _disconnectSelectable: Any

    def __init__(self) -> None:
        self.nap: float | None = None
        self.waking = NOBODY
        self._unflushed: list[Flushable] = []
        self.flush_later: Callable[[Flushable], None] = self._unflushed.append
        WatchingReactor.__init__(self)

    def doPoll(self, timeout: float | None) -> None:
        unflushed = self._unflushed
        if unflushed:
            if flush is not None:
                flush(unflushed, DirectServer)
            if unflushed:
                self._flush(unflushed)
        nap, waking = self.nap, NOBODY
        if nap is not None:
            self.nap = None
            waking, self.waking = self.waking, NOBODY
            if timeout is None or timeout > nap:
                timeout = nap
        try:
            events = poll(self._poller, timeout, waking)
        except OSError as error:
            if error.errno == errno.EINTR:
                return
            raise
        selectables = self._selectables
        if serve is not None:
            serve(events, selectables, DirectServer, unflushed, self)
        for fd, event in events:
            selectable = selectables.get(fd)
            if selectable is None:
                continue
            if event != EPOLLIN:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, fd, event)
                continue
            try:
                why = selectable.doRead()
            except BaseException as error:
                self.lose(selectable, error, True)
            else:
                if why:
                    self.lose(selectable, why, False)

    def _flush(self, unflushed: list[Flushable]) -> None:
        """Flush what was gathered in this turn."""
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

    doIteration = doPoll

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
                    self.doPoll(wait)
            except BaseException:
                log.err(None, "Unexpected error in the main loop.")

    def _run_due(self) -> float | None:
        """Run what is due; the seconds until the next timed call, None if there is none."""
        self.runUntilCurrent()
        return self.timeout() if self.running else 0
