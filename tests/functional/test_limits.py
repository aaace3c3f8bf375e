"""Limits of the receiving side on a real server: each is wired to its setting."""

from __future__ import annotations

import re
import socket
import time
from typing import Any, ClassVar

from ccserver.core.framing import encode
from tests.functional.codes import REACTOR as ECHO
from tests.functional.server import ServerCase, measured, wait_until


class ReceivingLimitsTests(ServerCase):
    options: ClassVar[dict[str, Any]] = {
        "PacketTimeout": 1,
        "FirstPacketTimeout": 2,
        "EmptyReads": 200,
        "PacketRate": 50,
        "PacketBurst": 100,
        "ConnectionsPerAddress": 5,
        "Deny": "127.0.0.66",
        "KeepAlive": 77,
    }

    def connect_from(self, host: str) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.server.port), 10, (host, 0))
        self.addCleanup(made.close)
        return made

    def assert_closed_for(self, reason: str, made: socket.socket) -> None:
        """The server closes, and says why."""
        peer = "{}:{}".format(*made.getsockname())
        while made.recv(65536):
            pass
        made.close()
        line = rf"closed: {reason}, .*client: {re.escape(peer)}"
        wait_until(lambda: re.search(line, self.server.log), line)

    def test_an_incomplete_packet(self):
        made = self.connect_from("127.0.0.2")
        made.sendall(encode(ECHO) + encode(ECHO)[:3])
        start = time.monotonic()
        self.assert_closed_for("packet_timeout", made)
        self.assertGreater(time.monotonic() - start, 1)

    def test_no_packet_at_all(self):
        self.assert_closed_for("first_packet_timeout", self.connect_from("127.0.0.3"))

    def test_single_bytes(self):
        made = self.connect_from("127.0.0.4")
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.sendall(encode(ECHO))
        try:
            for byte in encode(ECHO, bytes(20000)):
                made.send(bytes([byte]))
        except OSError:
            pass
        line = "closed: flood, .*client: 127.0.0.4:"
        wait_until(lambda: re.search(line, self.server.log), line)

    def test_a_rate(self):
        made = self.connect_from("127.0.0.5")
        start = time.monotonic()
        made.sendall(encode(ECHO) * 150)
        data = b""
        while len(data) < 150 * 8:
            data += made.recv(65536)
        seconds = time.monotonic() - start
        self.assertEqual(data, encode(ECHO) * 150)
        measured("150 packets at 50 a second, 100 at once", seconds)
        self.assertGreater(seconds, 0.9)

    def test_connections_of_an_address(self):
        made = [self.connect_from("127.0.0.6") for _ in range(5)]
        for each in made:
            each.sendall(encode(ECHO))
            self.assertEqual(each.recv(8, socket.MSG_WAITALL), encode(ECHO))
        self.assertEqual(self.connect_from("127.0.0.6").recv(1), b"")
        other = self.connect_from("127.0.0.7")
        other.sendall(encode(ECHO))
        self.assertEqual(other.recv(8, socket.MSG_WAITALL), encode(ECHO))
        wait_until(lambda: "address_limit: 127.0.0.6:" in self.server.log, "a line in the log")

    def test_an_address_that_is_denied(self):
        self.assertEqual(self.connect_from("127.0.0.66").recv(1), b"")
        wait_until(lambda: "denied: 127.0.0.66:" in self.server.log, "a line in the log")

    def test_keepalive(self):
        made = self.connect_from("127.0.0.8")
        made.sendall(encode(ECHO))
        self.assertEqual(made.recv(8, socket.MSG_WAITALL), encode(ECHO))
        port = made.getsockname()[1]
        with open("/proc/net/tcp") as file:
            (line,) = (
                each.split()
                for each in file
                if each.split()[2].endswith(f":{port:04X}") and each.split()[3] == "01"
            )
        timer, expires = line[5].split(":")
        self.assertEqual(timer, "02")  # the keepalive timer runs
        self.assertTrue(60 < int(expires, 16) / 100 <= 77, line[5])


class AcceptRateTests(ServerCase):
    options: ClassVar[dict[str, Any]] = {"AcceptRate": 20}

    def test_those_beyond_the_rate_wait_and_are_served(self):
        start = time.monotonic()
        made = []
        for _ in range(50):
            client = self.connect()
            client.send((ECHO, b"x"))
            made.append(client)
        for client in made:
            self.assertEqual(client.receive(), (ECHO, b"x"))
        seconds = time.monotonic() - start
        measured("50 connections at 20 a second, 20 at once", seconds)
        self.assertGreater(seconds, 1.2)
