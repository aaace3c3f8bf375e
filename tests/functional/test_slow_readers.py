"""Clients that ask for much and read nothing: what they cost, and how they end."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.framing import encode
from tests.functional import pushing
from tests.functional.server import Client, ServerProcess, measured, wait_until
from tests.functional.stopwatch import Stopwatch

APP = "tests.functional.pushing:app"
CLIENTS = 8
MEGABYTES = 48
MIB = 1 << 20
PAGE = os.sysconf("SC_PAGESIZE")


class SlowReaderCase(SynchronousTestCase):
    def serve(self, **settings: Any) -> ServerProcess:
        server = ServerProcess(APP, **settings)
        self.addCleanup(server.close)
        server.start()
        (self.worker,) = server.workers().values()
        with server.connect() as client:
            client.ask(pushing.ECHO, b"warm")
        self.before = self.most = self.memory()
        return server

    def memory(self) -> int:
        """The resident bytes of the worker."""
        with open(f"/proc/{self.worker}/statm") as file:
            return int(file.read().split()[1]) * PAGE

    def non_readers(self, server: ServerProcess, *packets: tuple[int, bytes]) -> list[Client]:
        """Clients that have sent C{packets} and read nothing."""
        clients = []
        for _ in range(CLIENTS):
            client = server.connect()
            self.addCleanup(client.close)
            client.send(*packets)
            clients.append(client)
        return clients

    def until(self, condition: Any, what: str) -> None:
        """Wait for C{condition}, and note the memory meanwhile."""

        def look() -> Any:
            self.most = max(self.most, self.memory())
            return condition()

        wait_until(look, what)
        self.most = max(self.most, self.memory())

    def assert_cheap(self, what: str) -> None:
        cost = self.most - self.before
        measured(f"{what}: MiB of a worker, more than before", cost / MIB)
        self.assertLess(cost, 16 * MIB)


class PushTests(SlowReaderCase):
    def flooded(self, code: int) -> None:
        server = self.serve()
        with Stopwatch(server) as watch:
            self.non_readers(server, (code, b"%d" % MEGABYTES))
            self.until(lambda: server.log.count("closed: send_queue_full") == CLIENTS, "their ends")
        what = f"{CLIENTS} clients asked for {MEGABYTES} MiB each, seconds to the last's"
        measured(what, watch.elapsed)
        self.assertLess(watch.seconds, 12)
        self.assertIn("send_queue_full: ", server.log)
        self.assert_cheap(f"pushes of code {code} to {CLIENTS} that do not read")
        with server.connect() as client:
            self.assertEqual(client.ask(pushing.ECHO, b"still"), b"still")

    def test_they_are_closed_and_cost_little(self):
        self.flooded(pushing.FLOOD)

    def test_so_are_those_whom_threads_push_to(self):
        self.flooded(pushing.FLOOD_IN_THREAD)

    def test_who_gets_what_may_be_dropped_stays_and_costs_little(self):
        server = self.serve()
        clients = self.non_readers(server, (pushing.FEED, b"%d" % MEGABYTES))
        with server.connect() as last:  # handled behind them all
            self.until(lambda: last.ask(pushing.ECHO, b"x"), "the feeds")
        self.assert_cheap(f"feeds to {CLIENTS} that do not read")
        for client in clients:
            client.send((pushing.ECHO, b"here"))
            last_body = b""
            while last_body != b"here":
                packet = client.receive()
                assert packet is not None
                last_body = packet[1]
        self.assertNotIn("send_queue_full", server.log)

    def waited_for(self, code: int) -> None:
        server = self.serve()
        clients = self.non_readers(server, (code, b"%d" % MEGABYTES))
        with server.connect() as other:
            self.until(lambda: other.ask(pushing.ECHO, b"x"), "the streams")
        client = clients[0]
        for _ in range(MEGABYTES * 256):
            self.assertEqual(client.receive(), (code, pushing.BODY))
        self.assertEqual(client.receive(), (code, b"done"))
        self.most = max(self.most, self.memory())
        self.assert_cheap(f"streams of code {code} to {CLIENTS} that do not read")

    def test_who_is_waited_for_costs_little_and_gets_all_once_he_reads(self):
        self.waited_for(pushing.STREAM)

    def test_so_does_whom_threads_wait_for(self):
        self.waited_for(pushing.STREAM_IN_THREAD)

    def test_who_half_closes_and_does_not_read_is_cut_after_the_flush_timeout(self):
        server = self.serve(FlushTimeout=2)
        clients = self.non_readers(server, (pushing.STREAM, b"%d" % MEGABYTES))
        with Stopwatch(server) as watch:
            for client in clients:
                client.end()
            self.until(
                lambda: server.log.count("closed: client_closed") == CLIENTS + 1, "their ends"
            )
        what = "FlushTimeout 2: clients that half-close and do not read, seconds"
        measured(what, watch.elapsed)
        self.assertLess(watch.seconds, 4)
        self.assertGreater(watch.elapsed, 1)


class LastRepliesTests(SlowReaderCase):
    def test_who_reads_slowly_gets_all_that_was_sent_before_the_server_closed(self):
        """The kernel has it all by then; a reset would throw it away."""
        server = self.serve(LingerTimeout=0)
        client = socket.socket()
        self.addCleanup(client.close)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        client.connect(("127.0.0.1", server.port))
        client.sendall(encode(pushing.FLOOD, b"1") + bytes(8))  # no packet has 0 bytes
        size, got = 256 * len(encode(pushing.FLOOD, pushing.BODY)), 0
        while data := client.recv(16384):
            got += len(data)
            time.sleep(0.03)
        self.assertEqual(got, size)
        wait_until(lambda: "closed: bad_length" in server.log, "its end")


class KernelTests(SlowReaderCase):
    def test_the_send_buffer_bounds_what_the_kernel_holds(self):
        server = self.serve(SendBuffer="32KiB")
        client = socket.socket()
        self.addCleanup(client.close)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(encode(pushing.STREAM, b"%d" % MEGABYTES))
        with server.connect() as other:
            other.ask(pushing.ECHO, b"x")
        held = unacknowledged(server.port, client.getsockname()[1])
        measured("SendBuffer 32KiB: bytes of an unread stream in the kernel", held)
        self.assertGreater(held, 0)
        self.assertLess(held, 128 * 1024)


def unacknowledged(port: int, peer: int) -> int:
    """The bytes that the kernel holds of what was sent from C{port} to C{peer}, both local."""
    with open("/proc/net/tcp") as file:
        for line in list(file)[1:]:
            _, local, remote, _, queues, *_ = line.split()
            if local.endswith(f":{port:04X}") and remote.endswith(f":{peer:04X}"):
                return int(queues.partition(":")[0], 16)
    return 0
