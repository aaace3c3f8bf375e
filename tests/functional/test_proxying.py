"""The PROXY protocol with real processes; with HAProxy itself where there is one.

HAProxy is found by the environment variable C{CCSERVER_HAPROXY}, or in C{PATH}: without it its
tests are skipped, and the headers that it sends are sent here by hand.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from threading import Event, Thread
from typing import Self

from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.framing import encode
from tests.authority import Authority, written
from tests.core.test_proxy import v1_tcp, v2, v2_tcp
from tests.functional.codes import REACTOR, WHO
from tests.functional.operator import Operator
from tests.functional.server import Client, ServerProcess, wait_until
from tests.functional.stopwatch import Stopwatch
from tests.ports import free_port

CLIENT = ("192.0.2.1", 1234)
HAPROXY = os.environ.get("CCSERVER_HAPROXY") or shutil.which("haproxy")


class ProxyCase(SynchronousTestCase):
    """Tests with a server whose port C{behind} is behind proxies."""

    def running(self, words: str = "proxy", **settings: object) -> ServerProcess:
        self.behind, port = free_port(), free_port()
        settings.setdefault("ProxyFrom", "127.0.0.1")
        listen = f"127.0.0.1:{port}, 127.0.0.1:{self.behind} {words}"
        server = ServerProcess(Listen=listen, **settings)
        server.port = port
        self.addCleanup(server.close)
        server.start()
        return server

    def connect(self, header: bytes = b"") -> Client:
        client = Client(self.behind)
        self.addCleanup(client.close)
        client.socket.sendall(header)
        return client


class HeaderTests(ProxyCase):
    def test_the_client_s_address_counts_whatever_header_tells_it(self):
        self.running()
        for header, peer in (
            (v1_tcp(*CLIENT), b"192.0.2.1:1234"),
            (v2_tcp(*CLIENT, b"\x04\0\x01x"), b"192.0.2.1:1234"),
            (v1_tcp("2001:db8::1", 5), b"[2001:db8::1]:5"),
            (v2_tcp("2001:db8::1", 5), b"[2001:db8::1]:5"),
        ):
            self.assertEqual(self.connect(header).ask(WHO), peer)
        for header in (b"PROXY UNKNOWN\r\n", v2(0x20, 0, b"")):
            client = self.connect(header)
            self.assertEqual(client.ask(WHO).decode(), client.address)

    def test_a_header_in_pieces_and_one_with_packets_behind_it_in_one_segment(self):
        self.running()
        client = self.connect()
        for byte in v2_tcp(*CLIENT):
            client.socket.sendall(bytes([byte]))
        self.assertEqual(client.ask(WHO), b"192.0.2.1:1234")
        client = self.connect(v1_tcp(*CLIENT) + encode(WHO) + encode(REACTOR, b"x"))
        self.assertEqual(client.receive(), (WHO, b"192.0.2.1:1234"))
        self.assertEqual(client.receive(), (REACTOR, b"x"))

    def test_the_allow_and_deny_lists_are_about_the_client(self):
        server = self.running(Deny="192.0.2.0/24")
        _until_closed(self.connect(v1_tcp(*CLIENT)))
        self.assertIn("denied: 192.0.2.1:1234 refused", server.log)
        self.assertEqual(self.connect(v1_tcp("198.51.100.1", 1)).ask(WHO), b"198.51.100.1:1")

    def test_a_connection_moves_at_a_reload_with_the_client_s_address(self):
        server = self.running()
        workers = server.workers()
        client = self.connect(v1_tcp(*CLIENT))
        self.assertEqual(client.ask(WHO), b"192.0.2.1:1234")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: len(server.workers()) == 1 and server.workers() != workers, "the reload")
        self.assertEqual(client.ask(WHO), b"192.0.2.1:1234")

    def test_one_whose_header_comes_during_a_reload_is_served_by_the_new_worker(self):
        server = self.running()
        old = server.workers()
        with FreshClients(self.behind) as clients:
            for _ in range(3):
                Operator(server).reload()
        self.assertNotEqual(server.workers(), old)
        self.assertGreater(clients.served, 20)
        self.assertEqual(clients.failed, [])

    def test_the_header_precedes_the_handshake(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        authority = Authority()
        path = written(os.path.join(folder.name, "a.pem"), *authority.issue("localhost"))
        self.running("tls proxy", TlsCertificate=path)
        client = self.connect(v2_tcp(*CLIENT))
        trust = ssl.create_default_context(cadata=authority.pem.decode())
        client.socket = trust.wrap_socket(client.socket, server_hostname="localhost")
        self.assertEqual(client.ask(WHO), b"192.0.2.1:1234")


class RefusalTests(ProxyCase):
    def test_who_is_no_proxy_is_closed(self):
        server = self.running(ProxyFrom="127.0.0.2")
        _until_closed(self.connect())
        self.assertIn("refused: no address of a proxy", server.log)

    def test_what_is_no_header_is_closed_at_once_and_none_at_the_deadline(self):
        server = self.running(ProxyTimeout="2s")
        silent, halfway = self.connect(), self.connect(b"PROXY TCP4 192.")
        with Stopwatch(server) as watch:
            start = time.monotonic()
            _until_closed(self.connect(encode(REACTOR, b"hello")))
            closed = time.monotonic()
            for client in (silent, halfway):
                _until_closed(client)
        self.assertLess(watch.own(start, closed), 1)
        self.assertGreater(watch.elapsed, 1.5)
        self.assertLess(watch.seconds, 4)
        self.assertIn("refused: no PROXY header", server.log)
        self.assertEqual(self.connect(v1_tcp(*CLIENT)).ask(WHO), b"192.0.2.1:1234")


class HaproxyTests(ProxyCase):
    """Behind a real HAProxy."""

    if HAPROXY is None:
        skip = "HAProxy is not installed"

    def test_clients_of_haproxy_are_known_by_both_versions(self):
        self.running(ProxyFrom="127.0.0.0/8")
        for option in ("send-proxy", "send-proxy-v2"):
            port = self.proxied(option)
            with Client(port) as client:
                self.assertEqual(client.ask(WHO).decode(), client.address)
                self.assertEqual(client.ask(REACTOR, bytes(20000)), bytes(20000))

    def proxied(self, option: str) -> int:
        """The port of a HAProxy that passes on to the server."""
        folder, port = tempfile.mkdtemp(), free_port()
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "haproxy.cfg")
        with open(path, "w") as file:
            file.write(
                "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n"
                f" timeout server 30s\nlisten x\n bind 127.0.0.1:{port}\n"
                f" server y 127.0.0.1:{self.behind} check {option} check-send-proxy\n"
            )
        assert HAPROXY is not None
        process = subprocess.Popen([HAPROXY, "-db", "-f", path])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        wait_until(lambda: _is_open(port), "HAProxy")
        return port


class FreshClients(Thread):
    """Connects again and again, each time with a header, until the end of the block.

    @ivar served: how many connections had their answer.
    @ivar failed: what became of the others.
    """

    def __init__(self, port: int) -> None:
        Thread.__init__(self, daemon=True)
        self.served = 0
        self.failed: list[str] = []
        self._port = port
        self._done = Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.is_set():
            try:
                with Client(self._port) as client:
                    client.socket.sendall(v1_tcp(*CLIENT))
                    assert client.ask(WHO) == b"192.0.2.1:1234"
            except (AssertionError, OSError) as error:
                self.failed.append(repr(error))
            else:
                self.served += 1


def _is_open(port: int) -> bool:
    try:
        Client(port).close()
    except ConnectionRefusedError:
        return False
    return True


def _until_closed(client: Client) -> None:
    with contextlib.suppress(ConnectionResetError):
        while client.socket.recv(65536):
            pass
