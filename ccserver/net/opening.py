"""Opening: a connection that is no session yet: a proxy's header or a handshake comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from ccserver.core.addresses import Origin
from ccserver.core.session import CloseReason

if TYPE_CHECKING:
    from ccserver.net.front import Front


class Opening(Protocol):
    """A connection that is no session yet, for a bounded time.

    It counts as one of the worker's connections. What it is refused for is counted and logged.

    @cvar refusal: the reason under which it is refused.
    @cvar admitted: its client is known, and may connect, which is asked only once.
    @ivar client: whose connection it is, as far as is known.
    @ivar origin: what is known of the client's address, where something is asked of that.
    @ivar first: what came of it before it had this protocol.
    """

    refusal: ClassVar[CloseReason]
    admitted: ClassVar[bool]

    transport: Any
    origin: Origin | None = None
    first = b""

    _deadline: IDelayedCall | None = None
    _reason: CloseReason | None = None
    _settled = False

    def __init__(self, front: Front, client: Any, timeout: float) -> None:
        """@param timeout: seconds after which it is cut."""
        self.client = client
        self._front = front
        self._timeout = timeout

    def connectionMade(self) -> None:
        sessions = self._front.sessions
        sessions.connections.enter(self, self.client.host if self.admitted else None)
        self._deadline = sessions.clock.callLater(self._timeout, self._time_out)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._settled:
            return
        self.settle()
        closed = reason.check(ConnectionDone) is not None
        why = CloseReason.CLIENT_CLOSED if closed else CloseReason.CLIENT_RESET
        counts = self._front.sessions.connections.counts
        if not self.admitted:
            counts.accepted += 1
        counts.closed[self._reason or why] += 1

    @property
    def refused(self) -> bool:
        """Whether it only waits for its end."""
        return self._reason is not None

    def settle(self) -> None:
        """It is a session now, or gone, and no deadline holds any more."""
        self._settled = True
        self._front.sessions.connections.leave(self)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def refuse(self, why: str) -> None:
        """Close, behind what is to be sent still; the deadline holds for that too."""
        if not self.refused:
            self._reason = self.refusal
            self._front.tell(self.refusal, self.client, why)
            self.transport.loseConnection()

    def finish(self) -> None:
        """Close, for the worker drains, and has nothing to answer here."""
        self._reason = self._reason or CloseReason.DRAIN
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once, for the worker stops."""
        self._reason = self._reason or CloseReason.SHUTDOWN
        self.transport.abortConnection()

    def _time_out(self) -> None:
        self.refuse(f"nothing complete within {self._timeout:g} s")
        self.transport.abortConnection()
