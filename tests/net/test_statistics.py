"""Statistics: what a worker tells of itself, and of its connections."""

from __future__ import annotations

import errno
import json
import os
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.framing import encode
from ccserver.core.limits import Heartbeat, SessionLimits
from ccserver.core.session import Session
from ccserver.net import statistics
from ccserver.net.statistics import collect, connection_rows, resident_memory, unsent_bytes
from ccserver.net.transport import DirectServer
from tests.support import FakeReactor, FakeWorker

ECHO, WAIT = 1, 2


class StatisticsCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.waits: list[Deferred[Any]] = []
        app = App()

        @app.message(ECHO)
        async def echo(session: Session, request: bytes) -> bytes:
            return request

        @app.message(WAIT)
        async def wait(session: Session, request: bytes) -> bytes:
            self.waits.append(Deferred())
            return await self.waits[-1]

        self.worker = FakeWorker(self, app, SessionLimits(heartbeat=Heartbeat(60)))

    def figures(self) -> dict[str, Any]:
        return collect(self.worker.connections, self.worker.pool)


class CollectTests(StatisticsCase):
    def test_packets_are_all_that_were_received_by_whom_ever(self):
        gone, here = self.worker.connect(), self.worker.connect()
        gone.receive((ECHO, b"a"), (ECHO, b"b"))
        here.receive((ECHO, b"c"))
        gone.reset()
        self.assertEqual(self.figures()["packets"], 3)
        self.assertEqual(self.figures()["connections"], 1)

    def test_packets_in_lanes_are_those_that_wait(self):
        for _ in range(2):
            client = self.worker.connect()
            client.receive((WAIT, b""))
            client.receive((ECHO, b"a"), (ECHO, b"b"))
        self.assertEqual(self.figures()["lane_packets"], 4)
        for wait in self.waits:
            wait.callback(b"")
        self.assertEqual(self.figures()["lane_packets"], 0)

    def test_counts_come_under_their_reasons(self):
        client = self.worker.connect()
        client.receive((99, b""))
        client.reset()
        figures = self.figures()
        self.assertEqual(figures["refused"], {"unknown_code": 1})
        self.assertEqual(figures["closed"], {"client_reset": 1})
        self.assertEqual(figures["accepted"], 1)

    def test_the_memory_is_that_of_the_process(self):
        with open("/proc/self/status") as file:
            (size,) = [line.split()[1] for line in file if line.startswith("VmRSS:")]
        self.assertAlmostEqual(resident_memory(), int(size) * 1024, delta=1 << 20)

    def test_where_no_file_can_be_opened_it_is_not_known_and_all_else_is(self):
        def fail(*args: Any) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        statistics._statm.cache_clear()
        self.patch(os, "open", fail)
        figures = self.figures()
        self.assertEqual((figures["memory"], figures["connections"]), (None, 0))

    def test_it_can_be_told_as_json(self):
        client = self.worker.connect()
        client.receive((99, b""))
        client.reset()
        figures = self.figures()
        self.assertEqual(json.loads(json.dumps(figures)), figures)


class RowTests(StatisticsCase):
    def row(self) -> dict[str, Any]:
        (row,) = connection_rows(self.worker.connections, self.worker.reactor.seconds())
        return row

    def test_a_row_says_who_and_how_much(self):
        client = self.worker.connect(port=4711)
        self.worker.reactor.advance(2.5)
        client.receive((ECHO, b"abc"))
        self.worker.reactor.advance(1.0)
        size = len(encode(ECHO, b"abc"))
        self.assertEqual(
            self.row(),
            {
                "id": client.session.id,
                "peer": "127.0.0.1:4711",
                "server": "10.0.0.1:5678",
                "seconds": 3.5,
                "idle": 1.0,
                "packets_in": 1,
                "packets_out": 1,
                "bytes_in": size,
                "bytes_out": size,
                "waiting": 0,
                "unsent": 0,
                "state": "idle",
            },
        )

    def test_where_nobody_keeps_the_time_nothing_is_said_of_it(self):
        self.worker.factory.timed = False
        self.worker.connect()
        self.assertIsNone(self.row()["idle"])

    def test_a_row_says_what_is_going_on(self):
        client = self.worker.connect()
        client.receive((WAIT, b""))
        client.receive((ECHO, b"a"))
        self.assertEqual((self.row()["state"], self.row()["waiting"]), ("busy", 1))
        client.block()
        self.assertEqual(self.row()["state"], "blocked")
        client.unblock()
        client.protocol.finish()
        self.assertEqual(self.row()["state"], "closing")


class UnsentTests(SynchronousTestCase):
    def test_it_is_what_was_written_and_the_kernel_has_not_taken(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        self.addCleanup(ours.close)
        ours.setblocking(False)
        reactor = FakeReactor()
        later: list[Any] = []
        reactor.flush_later = later.append
        transport = DirectServer(ours, Protocol(), ("-", 0), None, 0, reactor)
        written = 0
        for _ in range(100):
            transport.write(b"x" * 60000)
            written += 60000
            self.assertGreater(unsent_bytes(transport), 0, "corked, or buffered")
            transport.flush()
        left = unsent_bytes(transport)
        self.assertGreater(left, 0)
        theirs.setblocking(False)
        taken = 0
        for _ in range(2):
            while taken < written - left:
                taken += len(theirs.recv(1 << 20))
            self.assertRaises(BlockingIOError, theirs.recv, 1)
            self.assertEqual(taken, written - left)
            transport.doWrite()
            left = unsent_bytes(transport)
            self.assertGreater(left, 0)
