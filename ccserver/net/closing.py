"""Closing: how long the end of a connection may take, and what cuts it short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

if TYPE_CHECKING:
    from ccserver.net.protocol import PacketProtocol

TICK = 1.0
"""Seconds between two looks at how far a connection that is to end has come."""

FIRST_TICK = 0.05
"""The same behind our end of stream, at first: a client confirms that within 40 ms as a rule."""

RENEWALS = 10
"""How many times its timeout a flush may take in all, for a client that reads a byte at a time."""


@dataclass(frozen=True)
class CloseTimeouts:
    """How long the parts of an end may take, in seconds.

    @ivar flush: without a byte taken by a client that has something to read, be it only in our
        kernel.
    @ivar linger: when it has taken all, for the client to close its side. Closing with input
        unread would be a reset that destroys replies on their way, so what comes is read and
        thrown away.
    @ivar handler: for the handler that waits for something; 0: as long as it likes.
    """

    flush: float = 10.0
    linger: float = 2.0
    handler: float = 60.0


class Closing:
    """The end of one connection, from the moment it is asked for.

    ::

        ending: its handlers are let end ─▶ flushing ─▶ lingering ─▶ gone

    While it is flushing bytes wait in this process, while it is lingering in the kernel at first.
    Both last as long as the client takes some; a reset would destroy the others.
    """

    log = Logger()

    def __init__(
        self, connection: PacketProtocol, clock: IReactorTime, timeouts: CloseTimeouts
    ) -> None:
        self.flushing = False
        self._connection = connection
        self._clock = clock
        self._timeouts = timeouts
        self._lingering = False
        self._tick = min(TICK, timeouts.flush)
        self._began = self._flush_began = self._progress = clock.seconds()
        self._taken = connection.lane.taken
        self._call: IDelayedCall | None = clock.callLater(self._tick, self._look)

    def flush(self) -> None:
        """All is handled: what is left is to be taken by the client, and no handler waits."""
        self.flushing = True
        self._flush_began = self._progress = self._clock.seconds()
        self._taken = self._connection.lane.taken

    def linger(self) -> None:
        """Our kernel has all, our end of stream too: the client takes it, then closes its side."""
        self.stop()
        self._lingering = True
        self._tick = FIRST_TICK
        self._look()

    def stop(self) -> None:
        """There is nothing more to wait for."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _look(self) -> None:
        connection, now = self._connection, self._clock.seconds()
        lane = connection.lane
        if self._lingering and not lane.unacknowledged:
            leave = connection.transport.loseConnection
            self._call = self._clock.callLater(self._timeouts.linger, leave)
            return
        before, self._taken = self._taken, lane.taken
        if connection.lost or not (self.flushing or lane.outbox is not None):
            self._flush_began = self._progress = now
        elif self._taken > before:
            self._progress = now
        flush, handler = self._timeouts.flush, self._timeouts.handler
        cut = min(self._progress + flush, self._flush_began + RENEWALS * flush)
        if now >= cut:
            self.stop()
            self.log.debug("cut off in its end", session=connection.session)
            connection.transport.abortConnection()
            return
        self._call = self._clock.callLater(min(self._tick, cut - now), self._look)
        self._tick = min(2 * self._tick, TICK, flush)
        if handler and lane.awaiting and now - self._began >= handler:
            self.log.error(
                "a handler has waited for {seconds:.1f} s since the end of its connection",
                seconds=now - self._began,
                session=connection.session,
            )
            self._began = now
            lane.expire()
