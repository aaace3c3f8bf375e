"""The clients of the soak: good ones that check each reply, and those a server has to bear."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from benchmarks.servers import HOST
from benchmarks.soak_app import ECHO, ECHO_IN_THREAD, FIGURES, MUCH

_HEADER = struct.Struct(">HHI")
PATIENCE = 20.0
"""Seconds that a reply may take before it counts as lost."""

STEADY, CHURNING, SLOW, HOSTILE = 40, 10, 4, 2
"""How many clients there are of each kind."""

MUCH_ASKED = 400
"""Replies of 20 KB that a slow reader asks for at once: far more than the kernel holds."""

EXCUSED = 3.0
"""Seconds before and behind a death of a worker in which its connections may break."""


class WrongReplyError(Exception):
    """A reply is not what it has to be, or does not come."""


class Connection:
    """One connection of a client that expects each request to be answered in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def make(cls, port: int, limit: int = 1 << 16) -> Connection:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(HOST, port, limit=limit)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(reader, writer)

    def send(self, code: int, *bodies: bytes) -> None:
        """Ask without waiting for the answers."""
        self.send_bytes(b"".join(_packet(code, body) for body in bodies))

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    async def receive(self, code: int) -> bytes:
        """The body of the next packet, which must have that code."""
        try:
            async with asyncio.timeout(PATIENCE):
                header = await self._reader.readexactly(_HEADER.size)
                length, got, checksum = _HEADER.unpack(header)
                body = await self._reader.readexactly(length - _HEADER.size)
        except TimeoutError:
            raise WrongReplyError("no reply in time") from None
        if got != code or zlib.crc32(body) != checksum:
            raise WrongReplyError(f"code {got} instead of {code}, or a wrong checksum")
        return body

    async def ask(self, code: int, *bodies: bytes) -> None:
        """Ask, and check each answer: the body comes back."""
        self.send(code, *bodies)
        for body in bodies:
            reply = await self.receive(code)
            if reply != (body * 1000 if code == MUCH else body):
                raise WrongReplyError(f"another body than was sent under code {code}")

    async def drain(self) -> None:
        """Read what comes, until the end."""
        async with asyncio.timeout(PATIENCE):
            while await self._reader.read(1 << 16):
                pass

    def end(self) -> None:
        self._writer.write_eof()

    def close(self, reset: bool = False) -> None:
        if reset:
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.close()


class Clients:
    """All clients, until they are told to stop.

    @ivar counts: what was done, and what went wrong.
    @ivar faults: the first of what went wrong, in words.
    @ivar latencies: when a good client was answered, and within how many seconds.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.latencies: list[tuple[float, float]] = []
        self._port = port
        self._random = random.Random(seed)
        self._killed = -EXCUSED
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        kinds: list[tuple[int, Callable[[], Coroutine[Any, Any, None]]]] = [
            (STEADY, self._steady),
            (CHURNING, self._churn),
            (SLOW, self._read_slowly),
            (HOSTILE, self._attack),
        ]
        for count, kind in kinds:
            self._tasks += [asyncio.create_task(self._repeat(kind)) for _ in range(count)]

    async def stop(self) -> None:
        left = set(self._tasks)
        while left:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=1.0)

    def killed(self) -> None:
        """A worker has been killed at this moment."""
        self._killed = time.monotonic()

    async def figures(self, workers: frozenset[int]) -> dict[int, int]:
        """The timers of each of C{workers}, by process, as far as one can be asked."""
        found: dict[int, int] = {}
        for _ in range(10 * len(workers)):
            if workers <= set(found):
                break
            with suppress(OSError, asyncio.IncompleteReadError, WrongReplyError):
                connection = await Connection.make(self._port)
                try:
                    connection.send(FIGURES, b"")
                    pid, timers, _ = map(int, (await connection.receive(FIGURES)).split())
                    found[pid] = timers
                finally:
                    connection.close()
        return found

    async def _repeat(self, kind: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await kind()
            except (OSError, asyncio.IncompleteReadError, WrongReplyError) as error:
                await self._note(kind.__name__.strip("_"), error)

    async def _note(self, kind: str, error: Exception) -> None:
        """A good client has seen something that it should not have seen."""
        await asyncio.sleep(EXCUSED)  # a kill may be told of a moment after it
        broken = isinstance(error, OSError | asyncio.IncompleteReadError)
        if broken and time.monotonic() - self._killed < 2 * EXCUSED:
            self.counts["broken by a kill"] += 1
            return
        self.counts["faults"] += 1
        if len(self.faults) < 10:
            self.faults.append(f"{kind}: {type(error).__name__}: {error}")

    async def _steady(self) -> None:
        """A connection that stays, and asks from time to time."""
        connection = await Connection.make(self._port)
        try:
            while True:
                code = self._random.choice((ECHO, ECHO, ECHO_IN_THREAD))
                bodies = [self._body() for _ in range(self._random.choice((1, 1, 1, 8)))]
                began = time.monotonic()
                await connection.ask(code, *bodies)
                self.latencies.append((began, time.monotonic() - began))
                self.counts["replies"] += len(bodies)
                await asyncio.sleep(self._random.uniform(0.02, 0.2))
        finally:
            connection.close()

    async def _churn(self) -> None:
        """Connect, ask something, and go in one of the ways that there are."""
        connection = await Connection.make(self._port)
        self.counts["connections"] += 1
        way = self._random.randrange(5)
        try:
            for _ in range(self._random.randrange(4)):
                await connection.ask(self._random.choice((ECHO, ECHO_IN_THREAD)), self._body())
                self.counts["replies"] += 1
            if way == 0:
                connection.send_bytes(_packet(ECHO, self._body())[:-1])
            elif way == 1:
                connection.send(ECHO_IN_THREAD, self._body())  # and not wait for it
            elif way == 2:
                connection.end()
                await connection.drain()
        finally:
            connection.close(reset=way == 3)
        await asyncio.sleep(self._random.uniform(0.0, 0.1))

    async def _read_slowly(self) -> None:
        """Ask for much, do not read for a while, then read it or go."""
        self.counts["slow readers"] += 1
        connection = await Connection.make(self._port, limit=1 << 12)
        body = self._random.randbytes(20)
        try:
            connection.send(MUCH, *[body] * MUCH_ASKED)
            await asyncio.sleep(self._random.uniform(1.0, 8.0))
            if self._random.random() < 0.5:
                for _ in range(MUCH_ASKED):
                    if await connection.receive(MUCH) != body * 1000:
                        raise WrongReplyError("a slow reader got something else")
                self.counts["replies"] += MUCH_ASKED
        except (OSError, asyncio.IncompleteReadError):
            self.counts["slow readers cut"] += 1
        finally:
            connection.close(reset=True)

    async def _attack(self) -> None:
        """Send what is no packet, or one that is not good."""
        self.counts["garbage"] += 1
        connection = await Connection.make(self._port)
        good = _packet(ECHO, b"x")
        try:
            connection.send_bytes(
                self._random.choice(
                    (
                        self._random.randbytes(self._random.randrange(1, 5000)),
                        b"GET / HTTP/1.1\r\n\r\n",
                        good[:-1] + b"?" + good,
                        _packet(999, b"x") * 5,
                        good * 3 + _HEADER.pack(7, 1, 0),
                    )
                )
            )
            connection.end()
            await connection.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # to be closed is what it has to expect, in time
        finally:
            connection.close()
        await asyncio.sleep(self._random.uniform(0.0, 0.2))

    def _body(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 10, 100, 1000, 20000)))


def _packet(code: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), code, zlib.crc32(body)) + body
