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

RENEWALS = 10
"""How many times its timeout a flush may take in all, for a client that reads a byte at a time."""


@dataclass(frozen=True)
class CloseTimeouts:
    """How long the parts of an end may take, in seconds.

    @ivar flush: without a byte taken by a client that has something to read.
    @ivar linger: behind our end of stream, for the client to read and to close its side. Closing
        with input unread would be a reset that destroys replies on their way, so what comes is
        read and thrown away.
    @ivar handler: for the handler that waits for something; 0: as long as it likes.
    """

    flush: float = 10.0
    linger: float = 2.0
    handler: float = 60.0


class Closing:
    """The end of one connection, from the moment it is asked for.

    ::

        ending: its handlers are let end ─▶ flushing ─▶ lingering ─▶ gone
    """

    log = Logger()

    def __init__(
        self, connection: PacketProtocol, clock: IReactorTime, timeouts: CloseTimeouts
    ) -> None:
        self.flushing = False
        self._connection = connection
        self._clock = clock
        self._timeouts = timeouts
        self._began = self._flush_began = self._progress = clock.seconds()
        self._sent = self._bytes_sent
        self._call: IDelayedCall | None = clock.callLater(self._tick, self._look)

    def flush(self) -> None:
        """All is handled: what is left is to be taken by the client, and no handler waits."""
        self.flushing = True
        self._flush_began = self._progress = self._clock.seconds()
        self._sent = self._bytes_sent

    def linger(self) -> None:
        """Our end of stream is on its way: the client has a moment to close its side."""
        self.stop()
        transport = self._connection.transport
        self._call = self._clock.callLater(self._timeouts.linger, transport.abortConnection)

    def stop(self) -> None:
        """There is nothing more to wait for."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    @property
    def _bytes_sent(self) -> int:
        connection = self._connection
        left: int = getattr(connection.transport, "unsent", 0)
        return connection.session.bytes_out - left - connection.lane.unsent

    @property
    def _tick(self) -> float:
        return min(TICK, self._timeouts.flush)

    def _look(self) -> None:
        connection, now = self._connection, self._clock.seconds()
        lane = connection.lane
        sent, before, self._sent = self._bytes_sent, self._sent, self._bytes_sent
        if connection.lost or not (self.flushing or lane.outbox is not None):
            self._flush_began = self._progress = now
        elif sent > before:
            self._progress = now
        flush, handler = self._timeouts.flush, self._timeouts.handler
        cut = min(self._progress + flush, self._flush_began + RENEWALS * flush)
        if now >= cut:
            self.stop()
            self.log.debug("cut off in its end", session=connection.session)
            connection.transport.abortConnection()
            return
        self._call = self._clock.callLater(min(self._tick, cut - now), self._look)
        if handler and lane.awaiting and now - self._began >= handler:
            self.log.error(
                "a handler has waited for {seconds:.1f} s since the end of its connection",
                seconds=now - self._began,
                session=connection.session,
            )
            self._began = now
            lane.expire()
