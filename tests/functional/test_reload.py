"""Reload under traffic: new code, new settings, other workers and ports, and nobody notices."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.framing import encode
from tests.functional import apps
from tests.functional.operator import Operator
from tests.functional.server import ECHO, Client, ServerProcess, measured, wait_until
from tests.functional.stopwatch import Stopwatch
from tests.functional.traffic import LONGEST_PAUSE, Traffic
from tests.ports import free_port

CONNECTIONS = 2000
RELOADS = 20
VERSIONED = """
from ccserver import App, Session

app = App()

@app.message(1)
async def version(session: Session, request: bytes) -> bytes:
    session.state["count"] = session.state.get("count", 0) + 1
    return b"{version} %d" % session.state["count"]
"""


class ReloadCase(SynchronousTestCase):
    def serve(self, app: str = ECHO, **options: Any) -> ServerProcess:
        server = ServerProcess(app, **options)
        self.addCleanup(server.close)
        server.start()
        self.operator = Operator(server)
        return server

    def connect(self, server: ServerProcess) -> Client:
        client = server.connect()
        self.addCleanup(client.close)
        return client


class TrafficTests(ReloadCase):
    def test_twenty_reloads_in_a_row_cut_lose_double_and_reorder_nothing(self):
        server = self.serve(workers=2, LogLevel=6)
        pauses, own = [], []
        with Traffic(server.port, CONNECTIONS) as traffic:
            for _ in range(RELOADS):
                with Stopwatch(server) as watch:
                    traffic.mark()
                    self.operator.signal_and_wait(signal.SIGHUP, " reload done: ")
                    counts = traffic.counts()
                self.assertEqual(counts.errors, {}, counts.details)
                self.assertEqual(counts.open, CONNECTIONS)
                pauses.append(counts.pause)
                own.append(watch.longest_pause(counts))
                self.assertLess(own[-1], LONGEST_PAUSE, (watch.cores, counts.pauses))
            counts = traffic.stop()
        self.assertEqual((counts.errors, counts.owed, counts.connected), ({}, 0, CONNECTIONS))
        self.assertGreater(counts.replies, 10 * CONNECTIONS)
        what = f"longest pause of {CONNECTIONS} connections in {RELOADS} reloads"
        for seconds, whose in ((pauses, ""), (own, ", without what others took")):
            measured(f"{what}{whose}, seconds", max(seconds))
            print(f"{what}{whose}: {max(seconds):.3f} s")
        status = self.operator.status()
        self.assertEqual(status["generation"], RELOADS + 1)
        self.assertGreater(status["handed_over"], 0.9 * RELOADS * CONNECTIONS)
        self.assertEqual(set(status["left"]) - {"closing"}, set(), status["left"])

    def test_other_numbers_of_workers_under_traffic(self):
        server = self.serve(workers=2, LogLevel=6)
        text = server.read("ccserver.conf")
        with Traffic(server.port, 300) as traffic:
            for workers in (4, 1, 3):
                changed = text.replace("WorkerProcesses = 2", f"WorkerProcesses = {workers}")
                server.write("ccserver.conf", changed.encode())
                self.assertEqual(self.operator.reload()["workers"], workers)
                counts = traffic.counts()
                self.assertEqual((counts.errors, counts.open), ({}, 300), counts.details)
                wait_until(
                    lambda: sum(row["connections"] for row in self.operator.serving()) == 300,
                    "the figures of the new workers",
                )
                shares = [row["connections"] for row in self.operator.serving()]
                self.assertEqual(len(shares), workers)
                self.assertLessEqual(max(shares) - min(shares), 10, shares)
            counts = traffic.stop()
        self.assertEqual((counts.errors, counts.owed), ({}, 0), counts.details)


class ChangeTests(ReloadCase):
    def test_changed_code_answers_at_once_and_no_connection_notices(self):
        server = ServerProcess("versioned:app", workers=2)
        self.addCleanup(server.close)
        server.write("versioned.py", VERSIONED.format(version="first").encode())
        server.start()
        self.operator = Operator(server)
        clients = [self.connect(server) for _ in range(20)]
        for client in clients:
            self.assertEqual(client.ask(1), b"first 1")
        # of another length: Python knows a compiled file by its source's size and second
        server.write("versioned.py", VERSIONED.format(version="the second").encode())
        self.operator.reload()
        for client in clients:
            self.assertEqual(client.ask(1), b"the second 2")
        self.assertEqual(self.connect(server).ask(1), b"the second 1")

    def test_a_packet_in_pieces_and_replies_that_wait_go_along(self):
        server = self.serve(workers=1)
        half, waiting = self.connect(server), self.connect(server)
        packet = encode(apps.REACTOR, b"in two pieces")
        half.socket.sendall(packet[:11])
        waiting.send((apps.SLEEP, b"300"), (apps.REACTOR, b"behind it"))
        self.connect(server).ask(apps.PING)
        self.operator.reload()
        half.socket.sendall(packet[11:])
        self.assertEqual(half.receive(), (apps.REACTOR, b"in two pieces"))
        self.assertEqual(waiting.receive(), (apps.SLEEP, b"300"))
        self.assertEqual(waiting.receive(), (apps.REACTOR, b"behind it"))

    def test_ports_come_and_go(self):
        server = self.serve(workers=2)
        old, new = server.port, free_port()
        client = self.connect(server)
        client.ask(apps.PING)
        text = server.read("ccserver.conf")
        both = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{old}, 127.0.0.1:{new}")
        server.write("ccserver.conf", both.encode())
        self.operator.reload()
        with Client(new) as other:
            other.ask(apps.PING)
            server.write("ccserver.conf", text.replace(str(old), str(new)).encode())
            self.operator.reload()
            other.ask(apps.PING)
        client.ask(apps.PING)  # connected to a port that there is no more
        self.assertTrue(server.is_port_free())
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", old), 5).close()

    def test_limits_and_the_log_change_for_the_connections_that_there_are(self):
        server = self.serve(workers=1, MaxPacketLength=2000, LogLevel=6)
        client = self.connect(server)
        client.ask(apps.REACTOR, bytes(1900))
        text = server.read("ccserver.conf").replace("2000", "1000")
        text = text.replace("LogLevel = 6", "LogLevel = 7\nLog = another.log")
        server.write("ccserver.conf", text.encode())
        self.operator.reload()
        client.ask(apps.REACTOR, bytes(900))
        client.send((apps.REACTOR, bytes(1900)))
        self.assertEqual(client.rest(), [])
        wait_until(lambda: "closed: bad_length" in server.read("another.log"), "the new log")
        self.assertIn("reload done", server.read("another.log"))

    def test_what_needs_a_restart_is_said(self):
        server = self.serve(workers=1)
        server.write("ccserver.conf", server.read("ccserver.conf").encode() + b"Daemon = 1\n")
        done = self.operator.command("reload", "--wait")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("Daemon = 1: takes effect at a restart", done.stderr)

    def test_reloads_that_are_asked_for_during_one_are_one(self):
        self.serve(workers=1)
        with contextlib.ExitStack() as stack:
            askers = []
            for _ in range(8):
                asker = stack.enter_context(socket.socket(socket.AF_UNIX))
                asker.settimeout(30)
                asker.connect(self.operator.path)
                asker.sendall(b'{"command": "reload"}\n')
                askers.append(stack.enter_context(asker.makefile("rb")))
            results = {self.result(answers)["generation"] for answers in askers}
        self.assertIn(results, ({2}, {3}, {2, 3}))
        self.assertEqual(self.operator.status()["generation"], max(results))

    def result(self, answers):
        for answer in map(json.loads, answers):
            if "result" in answer:
                return answer["result"]
        raise AssertionError("no result")


class HookTests(ReloadCase):
    SOURCE = b"""
import socket
from ccserver import App, Session

app = App()
app.state["adopted"] = []

@app.message(1)
async def keep(session: Session, request: bytes) -> bytes:
    session.state["kept"] = socket.socket() if request == b"socket" else request
    return request

@app.message(2)
async def kept(session: Session, request: bytes) -> bytes:
    return repr(session.state).encode()

@app.on_handover
async def pack(session):
    if session.state.get("kept") == b"stay":
        return False
    session.state["packed"] = (1, b"two")

@app.on_adopt
def unpack(session):
    session.state["unpacked"] = session.state.pop("packed")
"""

    def test_an_application_packs_and_unpacks_refuses_and_holds_what_cannot_travel(self):
        server = ServerProcess("hooked:app", workers=1, ShutdownTimeout=20)
        self.addCleanup(server.close)
        server.write("hooked.py", self.SOURCE)
        server.start()
        self.operator = Operator(server)
        goes, stays, cannot = (self.connect(server) for _ in range(3))
        goes.ask(1, b"plain")
        stays.ask(1, b"stay")
        cannot.ask(1, b"socket")
        done = self.operator.reload()
        self.assertEqual((done["handed_over"], done["left"]), (1, {"refused": 1, "state": 1}))
        self.assertEqual(goes.ask(2), b"{'kept': b'plain', 'unpacked': (1, b'two')}")
        for client in (stays, cannot):
            self.assertEqual(client.rest(), [])  # drained, without a reset
            client.close()
        wait_until(lambda: server.log.count("closed: drain") == 2, "their ends in the log")
