"""The delay: packets that came more quickly than a rate lets them through wait for their time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ccserver.net.protocol import PacketProtocol


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
        else:
            connection.go_on()

    def end(self) -> None:
        """Wait no more, whatever the rate lets through; to be called once."""
        self._ended = True
        self._connection.factory.turnstile.remove(self)
        if self._origin is not None:
            self._origin.waiting -= 1

    def _wait(self) -> None:
        factory = self._connection.factory
        factory.turnstile.wait(self, self._connection.session.wait(factory.clock.seconds()))
