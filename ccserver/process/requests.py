"""One connection to the control socket: requests in, one after the other, and their answers out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.errors import CcserverError, OperationFailed
from ccserver.process.logs import ProcessLogger
from ccserver.process.operations import Operations, command_of, perform

LINE_LIMIT = 16 << 10
"""Bytes that may wait: a request and what follows it."""

PROGRESS_LIMIT = 1000
"""Characters of a text of progress."""

PATIENCE = 60.0
"""Seconds that a client has for its next request, and for reading the answer to the last one."""


class Credentials(NamedTuple):
    """Who is at the other end of a UNIX socket."""

    pid: int
    uid: int
    gid: int


@implementer(IHalfCloseableProtocol, IPushProducer)
class ControlConnection(Protocol):
    """Answers requests, each a line of JSON, in their order.

    What is begun is carried out whether or not the client stays. A client that is silent or does
    not read is closed after L{PATIENCE}, unless it waits for an answer.
    """

    log = ProcessLogger()

    def __init__(
        self,
        operations: Operations,
        clock: IReactorTime,
        peer: Credentials,
        gone: Callable[[ControlConnection], None],
    ) -> None:
        """@param gone: told when the connection is lost."""
        self._operations = operations
        self._clock = clock
        self._peer = peer
        self._gone = gone
        self._received = bytearray()
        self._requests = 0
        self._running = self._looping = self._paused = False
        self._read_ended = self._closing = False
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._transport.registerProducer(self, True)
        self._expect()

    def dataReceived(self, data: bytes) -> None:
        if not self._closing:
            self._received += data
            self._go_on()

    def readConnectionLost(self) -> None:
        """The client asks no more; it still gets the answers."""
        self._read_ended = True
        self._go_on()

    def writeConnectionLost(self) -> None:
        """Not asked for."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closing = True
        self._expect_nothing()
        self._gone(self)

    def pauseProducing(self) -> None:
        """The client does not read: no further requests, and no progress, until it does."""
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._go_on()

    def stopProducing(self) -> None:
        """The connection is lost; C{connectionLost} follows."""

    def close(self) -> None:
        """Close it when what was written is sent."""
        if not self._closing:
            self._closing = True
            self._received.clear()
            self._transport.unregisterProducer()
            self._transport.loseConnection()
            self._expect()

    def abort(self) -> None:
        """Close it at once."""
        self._closing = True
        self._transport.abortConnection()

    @property
    def _transport(self) -> Any:
        return self.transport

    def _go_on(self) -> None:
        """Take up the requests that wait, as far as that is possible now."""
        if self._looping:
            return
        self._looping = True
        while not (self._running or self._paused or self._closing):
            end = self._received.find(b"\n")
            if end < 0:
                break
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            if len(line) > LINE_LIMIT:
                self._refuse()
            elif line.strip():
                self._begin(line)
        self._looping = False
        if self._closing:
            return
        if len(self._received) > LINE_LIMIT:
            self._refuse()
        elif self._read_ended and not (self._running or self._paused):
            self.close()

    def _refuse(self) -> None:
        """The client has sent more than a client may."""
        self._send({"error": f"more than {LINE_LIMIT} bytes at once"})
        self.close()

    def _begin(self, line: bytes) -> None:
        self._requests += 1
        number = self._requests
        self._running = True
        self._expect_nothing()
        asked = self._perform(line, number)
        asked.addCallback(_result_line).addErrback(self._error_line)
        asked.addCallback(self._answer)
        if self._running:
            self._send({"accepted": True})

    def _perform(self, line: bytes, number: int) -> Deferred[Any]:
        try:
            request = _parsed(line)
            command, given = command_of(request)
        except OperationFailed:
            failed: Deferred[Any] = Deferred()
            failed.errback()
            return failed
        if not command.quiet:
            self.log.notice(
                "{command} asked for by uid {uid}, pid {pid}",
                command=request["command"],
                uid=self._peer.uid,
                pid=self._peer.pid,
            )
        return perform(command, self._operations, given, lambda text: self._progress(number, text))

    def _progress(self, number: int, text: str) -> None:
        if self._running and number == self._requests and not self._paused:
            self._send({"progress": text[:PROGRESS_LIMIT]})

    def _answer(self, line: bytes) -> None:
        self._running = False
        self._write(line)
        if not self._closing:
            self._expect()
        self._go_on()

    def _error_line(self, failure: Failure) -> bytes:
        if failure.check(CcserverError):
            return _line({"error": str(failure.value)})
        self.log.failure("a control command failed", failure)
        return _line({"error": "internal error: the server's log says which"})

    def _send(self, message: dict[str, Any]) -> None:
        self._write(_line(message))

    def _write(self, line: bytes) -> None:
        if not self._closing:
            self._transport.write(line)

    def _expect(self) -> None:
        """The client has to do something, or it is closed."""
        self._expect_nothing()
        self._deadline = self._clock.callLater(PATIENCE, self.abort)

    def _expect_nothing(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise OperationFailed("not a line of JSON") from None


def _line(message: dict[str, Any]) -> bytes:
    """A message as it is sent; only ASCII."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def _result_line(result: Any) -> bytes:
    return _line({"result": {} if result is None else result})
