"""One connection of the traffic: what it sends, and whether what comes back is all right."""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

from tests.functional import codes, stamps

HEADER = struct.Struct(">HHI")
OUTSTANDING = 24
"""Replies that a conversation is owed at most when it asks for more."""

BULK_COUNT, BULK_SIZE = 100, 40000
"""What a slow reader asks for: 4 MB, of which most has to wait in the server."""

KINDS = {
    "bulk": lambda number: number % 250 == 0,
    "busy": lambda number: number % 250 == 1,
    "nap": lambda number: number % 12 == 2,
    "chatter": lambda number: number % 8 == 3,
    "split": lambda number: number % 4 == 0,
    "echo": lambda number: True,
}
"""The kinds of conversations and who is of which; the first that is true."""

CLOSED, RESET, REFUSED = "closed", "reset", "refused"
LOST, DUPLICATED, REORDERED, MIXED, WRONG = "lost", "duplicated", "reordered", "mixed", "wrong"

Fault = Callable[[str, str], None]
"""Is told a kind of error, and what it was."""


class Owed(NamedTuple):
    """A packet that has to come; C{size} is that of the filler behind the stamp of a series."""

    request: int
    place: int
    code: int
    body: bytes | None
    size: int = 0


class Conversation:
    """What one connection says and hears: the bytes go in and come out here.

    @ivar number: in the stamp of all that it sends.
    @ivar kind: of L{KINDS}.
    @ivar owed: what has to come, in order.
    @ivar waiting: since when nothing has come though it might: no request that sleeps is under
        way; None if nothing is owed, or it is not being read.
    @ivar replies: how many packets came.
    """

    __slots__ = ("_buffer", "_fault", "_held", "_naps", "_random", "_requests", "_skipped",
                 "_tally", "kind", "number", "owed", "replies", "waiting")  # fmt: skip

    def __init__(self, number: int, kind: str, seed: int, fault: Fault) -> None:
        self.number = number
        self.kind = kind
        self.owed: deque[Owed] = deque()
        self.waiting: float | None = None
        self.replies = 0
        self._fault = fault
        self._random = random.Random(seed * 1_000_003 + number)
        self._buffer = b""
        self._skipped: dict[tuple[int, int], Owed] = {}
        self._requests = self._tally = self._naps = 0
        self._held = 0  # packets at the end of C{owed} whose requests have not been sent whole

    def burst(self) -> tuple[bytes, bytes]:
        """What is sent now, and what is sent somewhat later."""
        random = self._random
        sent = [self._echo() for _ in range(random.randrange(1, 4))]
        if self.kind == "nap":
            sent.append(self._nap(random.randrange(20, 150)))
        elif self.kind == "chatter":
            sent.append(self._series(random.choice(codes.CHATTERS), random.randrange(1, 6), 50))
        elif self.kind == "bulk":
            sent.append(self._series(codes.BULK, BULK_COUNT, BULK_SIZE))
        sent += [self._count(), self._echo()]
        if self.kind == "split" or random.random() < 0.05:
            first = sent.pop()
            last = first + self._echo()
            cut = random.randrange(1, len(last))
            self._held = 1 if cut >= len(first) else 2
            return b"".join(sent) + last[:cut], last[cut:]
        return b"".join(sent), b""

    def complete(self) -> None:
        """What was to be sent later has been sent."""
        self._held = 0

    def sent(self, now: float) -> None:
        """A request is under way, or reading goes on."""
        if self.waiting is None and self._is_due():
            self.waiting = now

    def _is_due(self) -> bool:
        return len(self.owed) > self._held and not self._naps

    def receive(self, data: bytes, now: float) -> float:
        """Check what came; for how long it had to be waited for."""
        pause = 0.0 if self.waiting is None else now - self.waiting
        if self._buffer:
            data = self._buffer + data
        start, size = 0, len(data)
        while size - start >= HEADER.size:
            length, code, checksum = HEADER.unpack_from(data, start)
            if length < HEADER.size:
                self._fault(WRONG, f"pkgLen {length}")
                start = size
                break
            end = start + length
            if end > size:
                break
            body = data[start + HEADER.size : end]
            self.replies += 1
            if crc32(body) == checksum:
                self._check(code, body)
            else:
                self._fault(WRONG, f"checksum under code {code}")
                if self.owed:
                    self._done()
            start = end
        self._buffer = data[start:]
        self.waiting = now if self._is_due() else None
        return pause

    def pause(self, now: float) -> float:
        """For how long it has been waiting."""
        return 0.0 if self.waiting is None else now - self.waiting

    def ended(self, cut: bool) -> None:
        """Nothing comes any more; C{cut}: that it was owed more, has been told already."""
        if self._buffer and not cut:
            self._fault(WRONG, f"the stream ends {len(self._buffer)} bytes into a packet")
        if not cut:
            for owed in self.owed:
                self._fault(LOST, _name(owed))
        for owed in self._skipped.values():
            self._fault(LOST, _name(owed))
        self.owed.clear()
        self._skipped.clear()
        self.waiting = None

    def _check(self, code: int, body: bytes) -> None:
        owed = self.owed[0] if self.owed else None
        if owed is not None and owed.code == code and body == _body(self.number, owed):
            self._done()
        else:
            self._examine(code, body)

    def _done(self) -> None:
        if self.owed.popleft().code == codes.NAP:
            self._naps -= 1

    def _examine(self, code: int, body: bytes) -> None:
        """What is wrong with it?"""
        if len(body) < stamps.LENGTH:
            self._fault(WRONG, f"code {code}, {len(body)} bytes")
            return
        connection, *rest = stamps.STAMP.unpack_from(body)
        key = (rest[0], rest[1])
        name = f"reply {key} under code {code}"
        if connection != self.number:
            self._fault(MIXED, f"{name}, meant for {connection}")
            return
        if key in self._skipped:
            owed = self._skipped.pop(key)
            self._fault(REORDERED, name)
        elif any(key == (owed.request, owed.place) for owed in self.owed):
            while key != ((owed := self.owed[0]).request, owed.place):
                self._skipped[owed.request, owed.place] = owed
                self._done()
            self._done()
        else:
            past = key[0] < self._requests
            self._fault(DUPLICATED if past else WRONG, name)
            return
        if owed.code != code or body != _body(self.number, owed):
            self._fault(WRONG, f"{name}: {len(body)} bytes {body[:40].hex()}")

    def _request(self, code: int, rest: bytes) -> bytes:
        body = stamps.STAMP.pack(self.number, self._requests, 0) + rest
        return HEADER.pack(HEADER.size + len(body), code, crc32(body)) + body

    def _owe(self, code: int, body: bytes) -> None:
        self.owed.append(Owed(self._requests, 0, code, body))
        self._requests += 1

    def _echo(self) -> bytes:
        size = self._random.randrange(0, 200)
        filler = stamps.filler(self.number, self._requests, 0, size)
        packet = self._request(self._random.choice(codes.ECHOES), filler)
        self._owe(HEADER.unpack_from(packet)[1], packet[HEADER.size :])
        return packet

    def _count(self) -> bytes:
        packet = self._request(self._random.choice(codes.TALLIES), b"")
        self._tally += 1
        reply = packet[HEADER.size :] + stamps.COUNT.pack(self._tally)
        self._owe(HEADER.unpack_from(packet)[1], reply)
        return packet

    def _nap(self, milliseconds: int) -> bytes:
        packet = self._request(codes.NAP, stamps.NAP.pack(milliseconds))
        self._owe(codes.NAP, packet[HEADER.size :])
        self._naps += 1
        self.waiting = None
        return packet

    def _series(self, code: int, count: int, size: int) -> bytes:
        packet = self._request(code, stamps.SERIES.pack(count, size))
        for place in range(1, count + 1):
            self.owed.append(Owed(self._requests, place, code, None, size))
        self._owe(code, packet[HEADER.size :])
        return packet


def kind_of(number: int) -> str:
    """The kind of the conversation with this number."""
    return next(kind for kind, chosen in KINDS.items() if chosen(number))


def _body(number: int, owed: Owed) -> bytes:
    if owed.body is not None:
        return owed.body
    return stamps.stamped(number, owed.request, owed.place, owed.size)


def _name(owed: Owed) -> str:
    return f"reply {(owed.request, owed.place)} under code {owed.code}"
