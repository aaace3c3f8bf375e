"""Clients of slow handlers: few packets, at random times, on connections of their own."""

import random
import select
import socket
import struct
import threading
import time
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from benchmarks.servers import HOST, ServerError

CONNECTIONS = 64
"""Of which a few are busy at a time: no packet waits behind another one of its connection."""


def packet(code: int, body: bytes) -> bytes:
    """A request, and the reply of an echo."""
    return struct.pack(">HHI", 8 + len(body), code, zlib.crc32(body)) + body


class SlowClients:
    """In a thread of their own: packets come as if from many clients that know nothing of another.

    @ivar waited: seconds that each answered packet has waited for its reply.
    """

    def __init__(self, port: int, code: int, rate: float, seed: int) -> None:
        """@param rate: packets a second."""
        self.waited: list[float] = []
        self._port = port
        self._packet = packet(code, b"this one takes a while")
        self._rate = rate
        self._random = random.Random(seed)
        self._leave = threading.Event()

    def __enter__(self) -> "SlowClients":
        self._clients = [socket.create_connection((HOST, self._port)) for _ in range(CONNECTIONS)]
        self._thread = ThreadPoolExecutor(1)
        self._running = self._thread.submit(self._run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """@raise ServerError: they were not served as they should be."""
        self._leave.set()
        self._thread.shutdown()
        for client in self._clients:
            client.close()
        if error is None:
            self._running.result()

    def ended(self) -> bool:
        """Whether they have given up."""
        return self._running.done()

    def _run(self) -> None:
        everybody = {client.fileno(): client for client in self._clients}
        free = deque(self._clients)
        asked: dict[int, float] = {}
        with select.epoll() as poll:
            for fd in everybody:
                poll.register(fd, select.EPOLLIN)
            due = time.monotonic()
            while not self._leave.is_set():
                for fd, _ in poll.poll(min(0.1, max(0.0, due - time.monotonic()))):
                    if everybody[fd].recv(len(self._packet)) != self._packet:
                        raise ServerError("a slow client got a wrong reply, or none")
                    self.waited.append(time.monotonic() - asked.pop(fd))
                    free.append(everybody[fd])
                if time.monotonic() >= due:
                    if not free:
                        raise ServerError("slow clients wait on all their connections")
                    client = free.popleft()
                    asked[client.fileno()] = time.monotonic()
                    client.send(self._packet)
                    due += self._random.expovariate(self._rate)
