"""What comes from an open port: noise, scanners, crowds. The next good client notices nothing."""

from __future__ import annotations

import random
import resource
import select
import socket
import struct
from typing import Any, ClassVar

from ccserver.core.framing import HEADER, encode
from tests.functional import codes
from tests.functional.server import TIMEOUT, ServerCase, descriptors, measured, wait_until
from tests.functional.stopwatch import Stopwatch

CONNECTIONS = 10_000
PACKETS = 100_000
SCANS = 5_000
CROWD = 2_000
AT_ONCE = 50
LINES = 400
"""Bytes that the log may grow by for each hostile connection, at most."""


class HostileCase(ServerCase):
    """Has a server whose one worker must be as it was, behind whatever the test has done."""

    options: ClassVar[dict[str, Any]] = {"workers": 1, "worker_connections": 4000}

    def setUp(self) -> None:
        super().setUp()
        ((_, self.worker),) = self.server.workers().items()
        self.random = random.Random(4)

    def open(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.server.port), 20)
        self.addCleanup(sock.close)
        return sock

    def serve(self) -> None:
        """A good client is served, and with it all that came before it."""
        with self.server.connect() as client:
            self.assertEqual(client.ask(codes.REACTOR, b"good"), b"good")

    def memory(self) -> int:
        with open(f"/proc/{self.worker}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def begin(self) -> None:
        """Note how the worker is, which has seen as much once: what it keeps for that is known."""
        self.serve()
        self.had = len(descriptors(self.worker))
        self.memory_before = self.memory()
        self.log_before = len(self.server.log)

    def assert_as_before(self, what: str) -> None:
        """The worker is as it was, and a good client is served at once."""
        with Stopwatch(self.server) as watch:
            self.serve()
        measured(f"the next good client behind {what}, seconds", watch.elapsed)
        self.assertLess(watch.seconds, 0.5)
        wait_until(lambda: len(descriptors(self.worker)) <= self.had, "the descriptors to go")
        growth = self.memory() / self.memory_before - 1
        measured(f"growth of the worker's memory by {what}, percent", 100 * growth)
        self.assertLess(growth, 0.05)
        self.assertEqual(list(self.server.workers().values()), [self.worker])
        self.assertNotIn("Traceback", self.server.log)
        self.assertNotIn("[alert]", self.server.log)


class NoiseTests(HostileCase):
    def test_ten_thousand_connections_of_random_bytes(self):
        self.noise(CONNECTIONS)
        self.begin()
        self.noise(CONNECTIONS)
        self.assert_as_before(f"{CONNECTIONS} connections of random bytes")
        grown = len(self.server.log) - self.log_before
        self.assertLess(grown, LINES * CONNECTIONS)
        self.assertEqual(_unprintable(self.server.log), b"\n")

    def noise(self, count: int) -> None:
        held: list[socket.socket] = []
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", self.server.port), 20)
            held.append(sock)
            try:
                sock.send(self.random.randbytes(self.random.randrange(300)))
                if self.random.random() < 0.3:
                    sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # closed already: just so
            if len(held) == AT_ONCE:
                self.end(held)
                self.serve()
        self.end(held)

    def end(self, held: list[socket.socket]) -> None:
        """Close them, some with a RST."""
        while held:
            sock = held.pop()
            if self.random.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    def test_a_hundred_thousand_packets_that_are_not_good(self):
        kinds = [
            HEADER.pack(13, codes.REACTOR, 1) + b"wrong",
            HEADER.pack(8, codes.REACTOR, 1),
            HEADER.pack(13, codes.REACTOR, 0) + b"wrong",
            encode(60000, b"unknown"),
            encode(codes.POINT, b"too long for it"),
            encode(codes.POINT),
            encode(codes.PING, b"with a body"),
        ]
        self.bad(kinds, PACKETS // 4)
        self.begin()
        self.bad(kinds, PACKETS)
        self.assert_as_before(f"{PACKETS} packets that are not good")
        self.assertLess(len(self.server.log) - self.log_before, 300 * 200)

    def bad(self, kinds: list[bytes], count: int) -> None:
        """Send so many, a good one behind each thousand, which is answered."""
        with self.server.connect() as client:
            for _ in range(count // 1000):
                client.socket.sendall(b"".join(self.random.choices(kinds, k=1000)))
                self.assertEqual(client.ask(codes.REACTOR, b"good"), b"good")


class ScannerTests(HostileCase):
    def test_five_thousand_that_connect_and_go(self):
        self.scan(SCANS)
        self.begin()
        self.scan(SCANS)
        self.assert_as_before(f"{SCANS} scans")
        for level in ("[error]", "[crit]", "[warn]"):
            self.assertNotIn(level, self.server.log[self.log_before :])

    def scan(self, count: int) -> None:
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", self.server.port), 20)
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            if number % AT_ONCE == 0:
                self.serve()


class CrowdTests(HostileCase):
    def test_two_thousand_that_connect_at_once_are_all_served(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, CROWD * 2)), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with Stopwatch(self.server) as watch:
            self.crowd()
        measured(f"{CROWD} clients that connect at once, all answered, seconds", watch.elapsed)
        self.assertLess(watch.seconds, 20)

    def crowd(self) -> None:
        poll = select.poll()
        socks = {}
        for _ in range(CROWD):
            sock = socket.socket()
            self.addCleanup(sock.close)
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", self.server.port))
            socks[sock.fileno()] = sock
            poll.register(sock, select.POLLOUT)
        request = encode(codes.REACTOR, b"one of many")
        answered = 0
        while answered < CROWD:
            ready = poll.poll(TIMEOUT * 1000)
            self.assertTrue(ready, f"{answered} answers")
            for fd, events in ready:
                sock = socks[fd]
                if events & select.POLLIN:
                    self.assertEqual(sock.recv(1000), request)
                    poll.unregister(sock)
                    answered += 1
                else:
                    self.assertEqual(events, select.POLLOUT)
                    self.assertEqual(sock.send(request), len(request))
                    poll.modify(sock, select.POLLIN)


def _unprintable(text: str) -> bytes:
    """The bytes below a blank that are in it."""
    return bytes(sorted({ord(each) for each in text if ord(each) < 32}))
