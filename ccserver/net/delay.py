"""The delay: packets that come more quickly than a rate lets them through wait, or are dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

from ccserver.core.limits import RateAction
from ccserver.core.session import CloseReason

if TYPE_CHECKING:
    from ccserver.net.protocol import PacketProtocol


log = Logger()


def exceed(connection: PacketProtocol) -> None:
    """More packets of C{connection} have come than its rate lets through."""
    if connection.factory.limits.rate_action is RateAction.DROP:
        _drop(connection)
    elif connection.delay is None:
        connection.delay = Delay(connection)


def _drop(connection: PacketProtocol) -> None:
    count = len(connection.session.take_excess())
    if not count:
        return  # there were only some with a wrong checksum
    connections = connection.factory.connections
    connections.counts.refused[CloseReason.RATE] += count
    more = connections.admit_line("rate dropped")
    if more is not None:
        log.warn(
            "refused rate: {count} packets dropped{more}",
            count=count,
            more=more,
            session=connection.session,
        )


class Delay:
    """A connection of which packets wait for their rate; nothing more is read of it meanwhile."""

    __slots__ = ("_connection", "_ended", "_origin")

    def __init__(self, connection: PacketProtocol) -> None:
        self._connection = connection
        self._ended = False
        self._origin = connection.session.origin
        if self._origin is not None:
            self._origin.waiting += 1
        connection.transport.pauseProducing()
        self._wait()

    def go_on(self) -> None:
        """The rate lets packets through again, if this has not ended in the same turn."""
        connection, session = self._connection, self._connection.session
        if self._ended:
            return
        if session.close_reason is not None:  # it was closed in another way
            connection.end_delay()
            return
        connection.take(session.release(connection.factory.clock.seconds()))
        if session.excess is not None:
            self._wait()
        elif session.close_reason is not None:  # that was to come behind them
            connection.end_in_order()
        else:
            connection.end_delay()
            if not connection.lane.paused:
                connection.transport.resumeProducing()

    def end(self) -> None:
        """Wait no more, whatever the rate lets through; to be called once."""
        self._ended = True
        self._connection.factory.turnstile.remove(self)
        if self._origin is not None:
            self._origin.waiting -= 1

    def _wait(self) -> None:
        factory = self._connection.factory
        factory.turnstile.wait(self, self._connection.session.wait(factory.clock.seconds()))
