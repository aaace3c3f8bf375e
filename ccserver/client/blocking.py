"""Client: requests that block until their answer is there, on a socket."""

from __future__ import annotations

import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from types import TracebackType
from typing import NoReturn, Self, TypeVar, overload

from ccserver.client.exchange import Answered, Body, Exchange, Pushed, packet
from ccserver.errors import ConnectionClosed, ReceiveTimeout, RequestTimeout
from ccserver.message import Message

M = TypeVar("M", bound=Message)

WINDOW = 1024
"""Requests of a pipeline that may wait for their answers at once."""

SEND_AHEAD = 1 << 16
"""Bytes; a pipeline makes no more packets while more than this wait to be sent."""

MAX_PUSHES = 1024
"""Pushes kept for L{Client.receive}."""

READ_SIZE = 1 << 16

LONGEST_WAIT = 1e6
"""Seconds. Poll takes milliseconds in a C int, 24 days of them: a longer wait is several."""

# Neither needs a descriptor of its own, as epoll would; select() alone is limited to 1024.
_Selector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)


class _Answer:
    """The place of an answer; C{body} is None until it has come."""

    __slots__ = ("body",)

    def __init__(self) -> None:
        self.body: bytes | None = None


class Client:
    """A connection to a server, for one thread at a time.

    Any error in sending or receiving, an interruption (C{KeyboardInterrupt}) too, closes it:
    what still comes could not be told apart. It then raises L{ConnectionClosed} whatever is
    asked of it; make a new one.

    A C{timeout} is in seconds; None stands for the one given here, C{math.inf} for no limit.

    @ivar on_push: called with code and body of a packet that the server sends of its own
        accord while an answer is waited for; it may use the client. What it raises comes out of
        the call that waits, and that call's answers are lost. Without it such packets are
        kept for L{receive}, the last L{MAX_PUSHES} of them.
    @ivar pushes_lost: how many packets were dropped because nobody called L{receive}.
    """

    def __init__(
        self,
        host: str,
        port: int,
        timeout: float = 10.0,
        *,
        on_push: Callable[[int, bytes], object] | None = None,
    ) -> None:
        """Connect; C{host} is a name or an IPv4 or IPv6 address.

        C{timeout} holds for each of the addresses that a name has.

        @raise ConnectionClosed: nobody answers there, or not in time.
        """
        self._adopt(_connected(host, port, timeout), timeout, on_push)

    @classmethod
    def from_socket(
        cls,
        sock: socket.socket,
        timeout: float = 10.0,
        *,
        on_push: Callable[[int, bytes], object] | None = None,
    ) -> Self:
        """A client on a connected stream socket of any family, which it owns from now on."""
        client = cls.__new__(cls)
        client._adopt(sock, timeout, on_push)
        return client

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, as far as this client has noticed."""
        return self._why_closed is not None

    @overload
    def request(
        self, code: int, body: Body = b"", *, reply: None = None, timeout: float | None = None
    ) -> bytes: ...

    @overload
    def request(
        self, code: int, body: Body = b"", *, reply: type[M], timeout: float | None = None
    ) -> M: ...

    def request(
        self,
        code: int,
        body: Body = b"",
        *,
        reply: type[M] | None = None,
        timeout: float | None = None,
    ) -> bytes | M:
        """Send a request and wait for its answer: bytes, or the message C{reply} made of them.

        A server does not answer what it refuses (an unknown code, a body of the wrong size):
        that ends in a timeout.

        @raise ConnectionClosed: the connection ended, or had ended.
        @raise RequestTimeout: no answer in time; closes the connection.
        @raise ProtocolError: the server sent what is no packet; closes the connection.
        @raise BadBody: the answer is none of C{reply}'s; the connection stays.
        @raise ValueError: no such code, or a field of C{body} cannot hold its value: not sent.
        @raise PacketTooLong: not sent.
        """
        (answer,) = self._exchanged([packet(code, body)], [code], timeout)
        return answer if reply is None else reply.decode(answer)

    @overload
    def pipeline(
        self,
        requests: Iterable[tuple[int, Body]],
        *,
        reply: None = None,
        timeout: float | None = None,
    ) -> list[bytes]: ...

    @overload
    def pipeline(
        self,
        requests: Iterable[tuple[int, Body]],
        *,
        reply: type[M],
        timeout: float | None = None,
    ) -> list[M]: ...

    def pipeline(
        self,
        requests: Iterable[tuple[int, Body]],
        *,
        reply: type[M] | None = None,
        timeout: float | None = None,
    ) -> list[bytes] | list[M]:
        """Send many requests, not waiting for each one's answer; the answers, in order.

        C{timeout} is the longest time without another answer. At most L{WINDOW} requests are
        under way, and answers are read while requests are sent, so any number of any size goes
        through. Raises what L{request} raises; nothing is sent if one of them cannot be encoded,
        and all answers were received if one of them cannot be decoded.
        """
        codes, packets = [], []
        for code, body in requests:
            codes.append(code)
            packets.append(packet(code, body))
        answers = self._exchanged(packets, codes, timeout)
        return answers if reply is None else [reply.decode(answer) for answer in answers]

    def send(self, code: int, body: Body = b"", *, timeout: float | None = None) -> None:
        """Send a packet that the server does not answer.

        That it was sent does not say that it arrived: the first one behind the server's end may
        be lost without a word.

        @raise ConnectionClosed: the connection ended, or had ended.
        @raise RequestTimeout: the server does not take it in time; closes the connection.
        """
        data = packet(code, body)
        self._check_open()
        deadline = self._deadline(timeout)
        self._put(data)
        while self._unsent or self._why_unsent is not None:
            if not self._step(deadline) and (self._unsent or self._why_unsent is not None):
                self._time_out(self._why_unsent or "the packet could not be sent in time")
            self._tell_pushes()

    def receive(self, timeout: float | None = None) -> tuple[int, bytes]:
        """Code and body of the next packet that the server sent of its own accord.

        C{timeout=0} looks at what is there already.

        @raise ReceiveTimeout: there was none in time; the connection stays open.
        @raise ConnectionClosed: the connection ended; packets from before are returned first.
        """
        deadline = self._deadline(timeout)
        while not self._pushed:
            self._check_open()
            if not self._step(deadline) and not self._pushed:
                raise ReceiveTimeout("nothing came in time")
        return self._pushed.popleft()

    def close(self) -> None:
        """Close the connection; what is not yet sent is dropped. May be called again."""
        self._close("the client closed it")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _adopt(
        self,
        sock: socket.socket,
        timeout: float,
        on_push: Callable[[int, bytes], object] | None,
    ) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.on_push = on_push
        self.pushes_lost = 0
        self._timeout = timeout
        self._sock = sock
        self._selector = _Selector()
        self._selector.register(sock, selectors.EVENT_READ)
        self._interest = selectors.EVENT_READ
        self._why_closed: str | None = None
        self._why_unsent: str | None = None
        self._unsent = bytearray()
        self._exchange: Exchange[_Answer] = Exchange(max_waiting=WINDOW)
        self._pushed: deque[tuple[int, bytes]] = deque()

    def _deadline(self, timeout: float | None) -> float:
        return monotonic() + (self._timeout if timeout is None else timeout)

    def _check_open(self) -> None:
        if self._why_closed is not None:
            raise ConnectionClosed(f"the connection is closed: {self._why_closed}")

    def _exchanged(
        self, packets: list[bytes], codes: list[int], timeout: float | None
    ) -> list[bytes]:
        """The answers to C{packets}, which are sent under C{codes}."""
        self._check_open()
        deadline = self._deadline(timeout)
        places: list[_Answer] = []
        answers: list[bytes] = []
        while len(answers) < len(packets):
            self._check_open()  # on_push may have closed it
            self._send_ahead(packets, codes, places)
            before = len(answers)
            in_time = self._step(deadline)
            self._tell_pushes()
            for place in places[before:]:
                if place.body is None:
                    break
                answers.append(place.body)
            if len(answers) > before:
                deadline = self._deadline(timeout)
            elif not in_time:
                self._time_out(f"no answer to message {codes[before]} in time")
        return answers

    def _send_ahead(self, packets: list[bytes], codes: list[int], places: list[_Answer]) -> None:
        """Send of C{packets} what the window has room for."""
        ahead = []
        size = len(self._unsent)
        while len(places) < len(packets) and self._exchange.waiting < WINDOW and size < SEND_AHEAD:
            place = _Answer()
            self._exchange.expect(codes[len(places)], place)
            ahead.append(packets[len(places)])
            size += len(ahead[-1])
            places.append(place)
        if ahead:
            self._put(b"".join(ahead))

    def _step(self, deadline: float) -> bool:
        """Wait until something can be sent or received, and do it.

        False: the deadline has passed; what was there already has been received all the same.
        """
        try:
            remaining = deadline - monotonic()
            ready = self._wait(min(max(remaining, 0.0), LONGEST_WAIT))
            if ready & selectors.EVENT_WRITE:
                self._flush()
            if ready & selectors.EVENT_READ:
                self._read()
            return remaining > 0 and (ready != 0 or remaining > LONGEST_WAIT)
        except BaseException as error:
            self._close(str(error) or type(error).__name__)
            raise

    def _wait(self, seconds: float) -> int:
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if interest != self._interest:
            self._selector.modify(self._sock, interest)
            self._interest = interest
        ready = self._selector.select(seconds)
        return ready[0][1] if ready else 0

    def _put(self, data: bytes) -> None:
        try:
            self._unsent += data
            self._flush()
        except BaseException as error:
            self._close(str(error) or type(error).__name__)
            raise

    def _flush(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            # The server is gone, but answers from before may be there: reading finds the end.
            self._unsent.clear()
            self._why_unsent = _said(error)

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._exchange.end_of_stream(_said(error)) from error
        if not data:
            why = self._why_unsent or "the server closed the connection"
            raise self._exchange.end_of_stream(why)
        for event in self._exchange.receive_data(data):
            if isinstance(event, Answered):
                event.ticket.body = event.body
            elif isinstance(event, Pushed):
                self._keep(event.code, event.body)
            else:
                raise event.error

    def _keep(self, code: int, body: bytes) -> None:
        if len(self._pushed) >= MAX_PUSHES and self.on_push is None:
            self._pushed.popleft()
            self.pushes_lost += 1
        self._pushed.append((code, body))

    def _tell_pushes(self) -> None:
        while self._pushed and self.on_push is not None:
            self.on_push(*self._pushed.popleft())

    def _time_out(self, why: str) -> NoReturn:
        self._close(why)
        raise RequestTimeout(why)

    def _close(self, why: str) -> None:
        if self._why_closed is None:
            self._why_closed = why
            self._unsent.clear()
            self._selector.close()
            self._sock.close()


def _connected(host: str, port: int, timeout: float) -> socket.socket:
    try:
        return socket.create_connection((host, port), min(timeout, LONGEST_WAIT))
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConnectionClosed(f"cannot connect to {host} port {port}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
