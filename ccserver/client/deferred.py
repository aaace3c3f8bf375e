"""connect: requests whose answers are Deferreds, on any of Twisted's client endpoints."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple, TypeVar, overload

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import (
    IDelayedCall,
    IPushProducer,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.client.exchange import Answered, Body, Exchange, Pushed, packet
from ccserver.errors import (
    CcserverError,
    ConnectionClosed,
    ProtocolError,
    RequestTimeout,
    TooMuchWaiting,
)
from ccserver.message import Message

__all__ = ["Connection", "connect"]

M = TypeVar("M", bound=Message)

MAX_UNSENT = 1 << 20
"""Bytes that may wait for a server that does not read, beyond what the transport takes."""


def connect(
    reactor: IReactorTime,
    endpoint: IStreamClientEndpoint,
    timeout: float = 10.0,
    max_waiting: int = 1000,
) -> Deferred[Connection]:
    """Connect to a server.

    @param reactor: tells the time; C{endpoint} knows by itself how it connects.
    @param timeout: seconds for the connection, and for each answer that is given no other
        time; C{math.inf}: no limit.
    @param max_waiting: how many requests may wait for their answers.
    @return: fires with the L{Connection}, or fails with L{ConnectionClosed}.
    """
    made = endpoint.connect(_ConnectionFactory(reactor, timeout, max_waiting))
    if timeout != inf:
        made.addTimeout(timeout, reactor)

    def not_made(failure: Failure) -> Failure:
        if isinstance(failure.value, CancelledError):
            return failure
        raise ConnectionClosed(f"cannot connect: {failure.getErrorMessage()}") from failure.value

    made.addErrback(not_made)
    return made  # type: ignore[return-value]  # the factory makes nothing else


class _Request(NamedTuple):
    """Who waits for an answer; cancelled, the Deferred swallows what it is called with."""

    deferred: Deferred[Any]
    reply: type[Message] | None


@implementer(IPushProducer)
class Connection(Protocol):
    """A connection to a server, made by L{connect}.

    Any number of requests up to C{max_waiting} may be under way; nobody has to wait for an
    answer before sending the next request. A request whose Deferred is cancelled keeps its
    place: its answer is dropped when it comes. An answer that does not come in time closes the
    connection, for a late one could be mistaken, and so does what is no packet.

    @ivar on_push: called with code and body of each packet that the server sends of its own
        accord; None drops them. What it raises is logged.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, timeout: float, max_waiting: int) -> None:
        self.on_push: Callable[[int, bytes], object] | None = None
        self._clock = clock
        self._timeout = timeout
        self._exchange: Exchange[_Request] = Exchange(max_waiting)
        self._timer: IDelayedCall | None = None
        self._timer_deadline = inf
        self._behind: int | None = None
        self._error: CcserverError | None = None
        self._lost = False
        self._closed_waiters: list[Deferred[CcserverError]] = []

    @overload
    def request(
        self, code: int, body: Body = b"", *, reply: None = None, timeout: float | None = None
    ) -> Deferred[bytes]: ...

    @overload
    def request(
        self, code: int, body: Body = b"", *, reply: type[M], timeout: float | None = None
    ) -> Deferred[M]: ...

    def request(
        self,
        code: int,
        body: Body = b"",
        *,
        reply: type[M] | None = None,
        timeout: float | None = None,
    ) -> Deferred[bytes] | Deferred[M]:
        """Send a request.

        @return: fires with the answer's body, or the message C{reply} made of it. Fails with

            - L{ConnectionClosed}: the connection ended, or had ended
            - L{RequestTimeout}: no answer within C{timeout} seconds
            - L{ProtocolError}: the server sent what is no packet
            - L{BadBody}: the answer is none of C{reply}'s; the connection stays
            - L{TooMuchWaiting}, L{PacketTooLong}, C{ValueError}: it was not sent
        """
        deferred: Deferred[Any] = Deferred()
        try:
            data = packet(code, body)
            self._check_room(data)
            seconds = self._timeout if timeout is None else timeout
            deadline = self._clock.seconds() + seconds
            self._exchange.expect(code, _Request(deferred, reply), deadline)
        except (CcserverError, ValueError) as error:
            return fail(error)
        self._watch()
        self._write(data)
        return deferred

    def send(self, code: int, body: Body = b"") -> None:
        """Send a packet that the server does not answer.

        @raise ConnectionClosed: the connection has ended.
        @raise TooMuchWaiting: the server does not read, and L{MAX_UNSENT} bytes wait for it.
        """
        data = packet(code, body)
        self._check_room(data)
        self._write(data)

    def close(self) -> Deferred[CcserverError]:
        """Send what is unsent and close; requests without an answer fail at once.

        @return: fires when the connection has ended, like L{closed}. After C{timeout} seconds
            it is cut off.
        """
        closed = self.closed
        if self._end(ConnectionClosed("the client closed the connection")):
            assert self.transport is not None
            self.transport.loseConnection()
            if self._timeout != inf and not self._lost:
                self._timer = self._clock.callLater(self._timeout, self._abort)
        return closed

    @property
    def closed(self) -> Deferred[CcserverError]:
        """A new Deferred, fired with the error that says why when the connection has ended."""
        closed: Deferred[CcserverError] = Deferred(self._closed_waiters_remove)
        if self._lost:
            assert self._error is not None
            closed.callback(self._error)
        else:
            self._closed_waiters.append(closed)
        return closed

    def connectionMade(self) -> None:
        assert self.transport is not None
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        for event in self._exchange.receive_data(data):
            if isinstance(event, Answered):
                self._answer(event.ticket, event.body)
            elif isinstance(event, Pushed):
                self._push(event.code, event.body)
            else:
                self._break(event.error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end(self._exchange.end_of_stream(f"connection lost: {reason.getErrorMessage()}"))
        self._stop_timer()
        self._lost = True
        assert self._error is not None
        while self._closed_waiters:  # one that is told may cancel another
            self._closed_waiters.pop(0).callback(self._error)

    def pauseProducing(self) -> None:
        self._behind = 0

    def resumeProducing(self) -> None:
        self._behind = None

    def stopProducing(self) -> None:
        """The connection is about to end: L{connectionLost} follows."""

    def _answer(self, request: _Request, body: bytes) -> None:
        if request.reply is None:
            request.deferred.callback(body)
            return
        try:
            message = request.reply.decode(body)
        except ProtocolError as error:
            request.deferred.errback(error)
        else:
            request.deferred.callback(message)

    def _push(self, code: int, body: bytes) -> None:
        if self.on_push is None:
            return
        try:
            self.on_push(code, body)
        except Exception:
            self.log.failure("on_push failed for message {code}", code=code)

    def _check_room(self, data: bytes) -> None:
        if self._error is not None:
            raise ConnectionClosed(f"the connection is closed: {self._error}")
        if self._behind is not None and self._behind + len(data) > MAX_UNSENT:
            raise TooMuchWaiting(f"the server does not read: {self._behind} bytes wait")

    def _write(self, data: bytes) -> None:
        assert self.transport is not None
        if self._behind is not None:
            self._behind += len(data)
        self.transport.write(data)

    def _watch(self) -> None:
        """See to it that the one timer goes off at the next deadline, or before."""
        deadline = self._exchange.next_deadline
        if self._timer is None:
            if deadline != inf:
                self._timer_deadline = deadline
                seconds = max(0.0, deadline - self._clock.seconds())
                self._timer = self._clock.callLater(seconds, self._timer_fired)
        elif deadline < self._timer_deadline:
            self._stop_timer()
            self._watch()

    def _timer_fired(self) -> None:
        self._timer = None
        if self._exchange.next_deadline > self._timer_deadline:
            self._watch()
        else:
            self._break(RequestTimeout("no answer in time"))

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _break(self, error: CcserverError) -> None:
        """End the connection without regard to what is unsent: it cannot be used any more."""
        if self._end(error):
            self._abort()

    def _abort(self) -> None:
        self._timer = None
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]

    def _end(self, error: CcserverError) -> bool:
        """Fail what waits; False: that was done before, for another reason."""
        if self._error is not None:
            return False
        self._error = error
        self._stop_timer()
        assert self.transport is not None
        self.transport.unregisterProducer()  # type: ignore[attr-defined]
        late = isinstance(error, RequestTimeout)
        for request in self._exchange.give_up():
            # An exception of its own for each: it collects the traceback of who awaits it.
            if late and request.deadline > self._timer_deadline:
                failed: CcserverError = ConnectionClosed("an earlier answer did not come in time")
            else:
                failed = type(error)(str(error))
            request.ticket.deferred.errback(failed)
        return True

    def _closed_waiters_remove(self, waiter: Deferred[CcserverError]) -> None:
        self._closed_waiters.remove(waiter)


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(self, clock: IReactorTime, timeout: float, max_waiting: int) -> None:
        self._clock = clock
        self._timeout = timeout
        self._max_waiting = max_waiting

    def buildProtocol(self, addr: object) -> Connection:
        return Connection(self._clock, self._timeout, self._max_waiting)
