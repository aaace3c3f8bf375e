"""Many connections in one process, which send a packet now and then."""

import select
import socket
import struct
import time
import zlib
from itertools import cycle

from benchmarks.servers import HOST, ServerError

BODY = b"still there"
FIRST = 200
"""Connections before the measured ones: with them, what is allocated once is there."""

SOURCES = [f"127.0.0.{n}" for n in range(2, 12)]


def packet(code: int) -> bytes:
    """What each connection sends."""
    return struct.pack(">HHI", 8 + len(BODY), code, zlib.crc32(BODY)) + BODY


class Clients:
    """Connections that each send a packet once a period, and read the reply."""

    def __init__(self, port: int, code: int = 1) -> None:
        self._port = port
        self._packet = packet(code)
        self._poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.replies = 0
        self.lost = 0

    def connect(self, count: int) -> None:
        """Make C{count} more, each of which sends a packet at once."""
        sources = cycle(SOURCES)
        for _ in range(count):
            made = socket.socket()
            made.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            made.bind((next(sources), 0))
            made.connect((HOST, self._port))
            made.setblocking(False)
            made.send(self._packet)
            self.sockets[made.fileno()] = made
            self._poll.register(made.fileno(), select.EPOLLIN)
            self.read(0)

    def read(self, timeout: float) -> None:
        """Take what has come."""
        for fd, _ in self._poll.poll(timeout, 1024):
            data = self.sockets[fd].recv(65536)
            if data:
                self.replies += len(data) // len(self._packet)
            else:
                self.lost += 1
                self._poll.unregister(fd)

    def connect_and_wait(self, count: int) -> None:
        """Make C{count} more, and wait until all have their first reply."""
        self.connect(count)
        while self.replies < len(self.sockets):
            self.read(1.0)
            if self.lost:
                raise ServerError("connections were lost")

    def take(self, expected: bytes) -> None:
        """Wait until each has got C{expected}, and nothing else."""
        missing = set(self.sockets)
        while missing:
            for fd, _ in self._poll.poll(10.0, 1024):
                data = self.sockets[fd].recv(65536)
                if data != expected or fd not in missing:
                    raise ServerError(f"a client has got {data[:40]!r}")
                missing.discard(fd)

    def close(self) -> None:
        """Leave."""
        for made in self.sockets.values():
            made.close()
        self._poll.close()

    def run(self, seconds: float, period: float) -> None:
        """Let each send a packet once a period."""
        everybody = cycle(list(self.sockets.values()))
        start = time.monotonic()
        sent = 0
        while (now := time.monotonic() - start) < seconds:
            while sent < now / period * len(self.sockets):
                next(everybody).send(self._packet)
                sent += 1
            self.read(0.005)
