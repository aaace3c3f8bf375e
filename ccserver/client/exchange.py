"""Which request each packet from a server answers: a client's connection, without I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

from ccserver.app import CODES
from ccserver.core.framing import LENGTH_LIMIT, FrameDecoder, encode
from ccserver.errors import ConnectionClosed, ProtocolError, TooMuchWaiting
from ccserver.message import Message

T = TypeVar("T")

Body = bytes | bytearray | memoryview | Message
"""What a body may be given as."""


def packet(code: int, body: Body) -> bytes:
    """The packet that carries C{body} under C{code}.

    @raise ValueError: no such code, or a field of the message cannot hold its value.
    @raise PacketTooLong: header and body exceed 65535 bytes.
    @raise TypeError: the body is neither bytes-like nor a L{Message}.
    """
    if code not in CODES:
        raise ValueError(f"{code} is no message code: they go from 0 to {CODES[-1]}")
    return encode(code, body.encode() if isinstance(body, Message) else bytes(memoryview(body)))


@dataclass(slots=True)
class Answered(Generic[T]):
    """The request that was announced with C{ticket} has its answer."""

    ticket: T
    body: bytes


@dataclass(slots=True)
class Pushed:
    """A packet that the server sent of its own accord."""

    code: int
    body: bytes


@dataclass(slots=True)
class Refused:
    """The server sent what is no packet: close the connection, nothing behind it is read."""

    error: ProtocolError


@dataclass(slots=True)
class Waiting(Generic[T]):
    """A request without its answer; C{deadline} is in seconds, infinite where there is none."""

    code: int
    ticket: T
    deadline: float


class Exchange(Generic[T]):
    """The requests of one connection, and the answers that come for them.

    A server answers the requests of a connection in their order, each under its own code. So a
    packet with the code of the oldest waiting request answers that one; any other is a push. A
    server that pushes under codes that are also requested cannot be told apart: do not.

    Answers arrive in order, so a request that undercuts an older one's deadline makes that one
    meaningless: only the deadlines that nothing undercuts are kept, in rising order, and the
    earliest of all costs O(1).
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._decoder = FrameDecoder(LENGTH_LIMIT, close_on_bad_checksum=True)
        self._waiting: deque[Waiting[T]] = deque()
        self._deadlines: deque[float] = deque()

    @property
    def waiting(self) -> int:
        """How many requests have no answer yet."""
        return len(self._waiting)

    @property
    def next_deadline(self) -> float:
        """The earliest deadline of the waiting requests; infinite without one."""
        return self._deadlines[0] if self._deadlines else inf

    def expect(self, code: int, ticket: T, deadline: float = inf) -> None:
        """A request under C{code} is about to be sent; L{Answered} will name C{ticket}.

        @raise TooMuchWaiting: as many as there may be wait already.
        """
        if len(self._waiting) >= self._max_waiting:
            raise TooMuchWaiting(f"{len(self._waiting)} requests wait for their answers")
        self._waiting.append(Waiting(code, ticket, deadline))
        while self._deadlines and self._deadlines[-1] > deadline:
            self._deadlines.pop()
        self._deadlines.append(deadline)

    def receive_data(self, data: bytes) -> list[Answered[T] | Pushed | Refused]:
        """What C{data} from the server, in whatever segments it comes, brings."""
        events: list[Answered[T] | Pushed | Refused] = []
        for code, body in self._decoder.feed(data):
            if self._waiting and self._waiting[0].code == code:
                events.append(Answered(self._take_oldest(), body))
            else:
                events.append(Pushed(code, body))
        events.extend(Refused(refusal.error) for refusal in self._decoder.refused)
        self._decoder.refused = []
        return events

    def end_of_stream(self, why: str) -> ConnectionClosed:
        """The error that tells of the connection's end; its cause is an incomplete packet."""
        truncated = self._decoder.end()
        if truncated is None:
            return ConnectionClosed(why)
        error = ConnectionClosed(f"{why} ({truncated})")
        error.__cause__ = truncated
        return error

    def give_up(self) -> list[Waiting[T]]:
        """Nothing more will come: the requests that got no answer, which wait no longer."""
        left = list(self._waiting)
        self._waiting.clear()
        self._deadlines.clear()
        self._decoder.stop()
        return left

    def _take_oldest(self) -> T:
        oldest = self._waiting.popleft()
        if self._deadlines[0] == oldest.deadline:
            self._deadlines.popleft()
        return oldest.ticket
