"""One process for everything: serves by itself, and does for operators what it can."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Config
from ccserver.core.framing import CHECKSUM
from ccserver.errors import OperationFailed, StartError
from ccserver.net.port import DirectPort
from ccserver.process import service
from ccserver.process.host import Host
from ccserver.process.logs import LineObserver
from ccserver.process.pidfile import PidFile
from ccserver.process.selection import ConnectionFilter
from ccserver.process.single import NO_WORKERS, SingleProcess
from ccserver.process.worker import EXIT_APP, EXIT_START
from tests.ports import free_port
from tests.process.fleets import FakeSystemd
from tests.support import FakeReactor, folder, logged, texts

APP = """
from ccserver import App, Session

app = App()

@app.message(1)
async def echo(session: Session, request: bytes) -> bytes:
    return request
"""


class SingleCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.folder = folder(self)
        self.handlers: dict[int, Any] = {}
        self.exits: list[int] = []
        self.titles: list[str] = []
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.patch(atexit, "register", lambda function, *status: self.exits.extend(status))
        self.patch(service, "setproctitle", self.titles.append)
        self.patch(service, "bridge_stdlib", lambda: None)
        self.events = logged(self)
        self.systemd = FakeSystemd()
        self.port = free_port()
        self.log_path = os.path.join(self.folder, "error.log")
        self.control_path = os.path.join(self.folder, "control")

    def made(self, app: str = APP) -> SingleProcess:
        name = f"single_{id(self)}"
        with open(os.path.join(self.folder, f"{name}.py"), "w") as file:
            file.write(app)
        text = f"WorkerProcesses = 0\nListen = 127.0.0.1:{self.port}\nApp = {name}:app\n"
        text += (
            f"ProcMsgRecvWorkThreadCount = 1\nShutdownTimeout = 5\nControl = {self.control_path}\n"
        )
        config = Config.parse(text, "a.conf", self.folder)
        observer = self.observer = LineObserver(config.log.file, 8, False)
        self.addCleanup(observer.close)
        systemd: Any = self.systemd
        self.single = SingleProcess(self.reactor, config, observer, Host(systemd, PidFile(None)))
        self.addCleanup(self.close)
        return self.single

    def close(self) -> None:
        if not self.single._stopping:
            self.single.stopService()
        self.reactor.pump([0.1] * 10)
        self.single._listening.close()
        for each in self.reactor.adopted:
            each.close()

    def serving(self, app: str = APP) -> SingleProcess:
        single = self.made(app)
        single.privilegedStartService()
        single.startService()
        self.reactor.advance(0)
        return single

    def send(self, number: int) -> None:
        self.handlers[number](number, None)
        self.reactor.advance(0)

    def said(self) -> str:
        return "\n".join(texts(self.events))

    @property
    def ports(self) -> list[Any]:
        return [each for each in self.reactor.readers if isinstance(each, DirectPort)]


class LifeTests(SingleCase):
    def test_it_serves_on_the_reactor_of_twistd(self):
        self.serving()
        self.assertEqual(len(self.ports), 1)
        self.assertIn(f"ready: one process, listening on 127.0.0.1:{self.port}", self.said())
        self.assertEqual(self.systemd.told, ["ready"])
        self.assertEqual(self.titles, ["ccserver: master process a.conf"])

    def test_nothing_is_opened_before_its_time(self):
        self.made()
        self.assertFalse(os.path.exists(self.log_path))
        self.assertEqual(self.reactor.readers, [])

    def test_a_port_that_is_taken_is_told(self):
        with socket.create_server(("127.0.0.1", self.port)):
            error = self.assertRaises(StartError, self.made().privilegedStartService)
        self.assertIn("Address already in use", str(error))

    def test_an_application_that_cannot_be_loaded_is_status_4(self):
        self.serving("app = 5\n")
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_APP], 1))
        self.assertEqual(self.said().count("is a int, not an App"), 1)

    def test_a_start_hook_that_raises_is_status_3(self):
        self.serving(
            APP + "\n@app.on_worker_start\nasync def start(worker):\n    raise ValueError('no')\n"
        )
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_START], 1))
        self.flushLoggedErrors()

    def test_told_to_stop_it_closes_everything(self):
        single = self.serving()
        self.send(signal.SIGTERM)
        self.assertEqual(self.reactor.stops, 1)
        self.successResultOf(single.stopService())
        self.reactor.advance(0)
        self.assertEqual((self.ports, os.path.exists(self.control_path)), ([], False))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_second_signal_stops_at_once(self):
        single = self.serving()
        connections = type(single._server.connections)
        self.patch(connections, "__len__", lambda connections: 1)
        self.send(signal.SIGTERM)
        stopped = single.stopService()
        self.reactor.pump([0.1] * 10)
        self.assertNoResult(stopped)
        self.send(signal.SIGTERM)
        self.reactor.pump([0.1] * 4)
        self.successResultOf(stopped)

    def test_a_signal_before_it_begins_begins_nothing(self):
        single = self.made()
        single.privilegedStartService()
        single.startService()
        self.successResultOf(single.stopService())
        self.reactor.advance(0)
        self.assertEqual(self.ports, [])

    def test_the_watchdog_of_systemd_is_told_that_it_lives(self):
        self.systemd.watchdog_interval = 5.0
        self.serving()
        self.reactor.pump([1.0] * 11)
        self.assertEqual(self.systemd.told.count("watchdog"), 3)

    def test_usr1_opens_the_log_anew(self):
        self.serving()
        os.rename(self.log_path, self.log_path + ".1")
        self.send(signal.SIGUSR1)
        self.assertTrue(os.path.exists(self.log_path))

    def test_signals_for_workers_have_no_meaning_and_end_nothing(self):
        self.serving()
        for number in service.OPERATIONS:
            self.send(number)
            self.assertIn(f"{number.name} has no meaning: {NO_WORKERS}", self.said())
        self.assertEqual(self.reactor.stops, 0)


class OperationTests(SingleCase):
    def status(self) -> Any:
        return json.loads(json.dumps(self.successResultOf(self.single.status())))

    def test_its_status_is_that_of_one_worker(self):
        self.serving()
        self.reactor.advance(3)
        status = self.status()
        self.assertEqual((status["state"], status["doing"], status["uptime"]), ("serving", "", 3.0))
        self.assertEqual(status["listening"], [f"127.0.0.1:{self.port}"])
        self.assertEqual((status["config"], status["generation"]), ("a.conf", 1))
        (row,) = status["workers"]
        self.assertEqual((row["slot"], row["pid"], row["state"]), (0, os.getpid(), "ready"))
        self.assertEqual((row["connections"], row["age"], row["restarts"]), (0, 3.0, 0))
        self.assertIsInstance(status["compiled"], bool)
        self.assertEqual((status["checksum"], status["certificates"]), (CHECKSUM, []))

    def test_its_certificates_are_its_own_and_not_its_worker_s(self):
        single = self.serving()
        figures = {"certificates": {"/a.pem": 1_800_000_000.0}}
        self.patch(single._server, "figures", lambda: dict(figures))
        status = self.status()
        (certificate,) = status["certificates"]
        self.assertEqual(certificate["not_after"], "2027-01-15T08:00:00Z")
        self.assertNotIn("certificates", status["workers"][0])

    def test_before_it_serves_and_while_it_stops_it_has_one_too(self):
        single = self.made()
        self.assertEqual(self.status()["state"], "serving")
        single.privilegedStartService()
        single.startService()
        self.reactor.advance(0)
        single.stopService()
        status = self.status()
        self.assertEqual((status["state"], status["doing"]), ("stopping", "0 connections left"))
        self.assertEqual(status["workers"][0]["state"], "stopping")

    def test_connections_have_the_worker_that_there_is(self):
        single = self.serving()
        row = {"id": 3, "peer": "10.0.0.1:5", "server": "10.0.0.2:7"}
        self.patch(single._server, "connection_rows", lambda: [row])
        asked = single.connections(ConnectionFilter(worker=0), "id", 10)
        self.assertEqual(
            self.successResultOf(asked),
            {"connections": [{**row, "worker": 0, "pid": os.getpid()}], "total": 1},
        )

    def test_before_it_serves_there_are_none_to_list_or_to_kick(self):
        single = self.made()
        asked = single.connections(ConnectionFilter(), "id", 10)
        self.assertEqual(self.successResultOf(asked), {"connections": [], "total": 0})
        self.assertFalse(self.successResultOf(single.kick(1)))

    def test_what_needs_workers_is_refused(self):
        single = self.serving()
        for refused in (
            single.reload(print),
            single.upgrade(print),
            single.rebalance(print),
            single.set_workers(3, print),
        ):
            error = self.failureResultOf(refused, OperationFailed).value
            self.assertEqual(str(error), NO_WORKERS)

    def test_the_level_of_the_log(self):
        single = self.serving()
        self.successResultOf(single.set_log_level(3))
        self.assertEqual(self.observer.level, 3)
        self.assertFalse(single._server.factory("10.0.0.1:1").log_ends)

    def test_the_log_is_opened_anew(self):
        single = self.serving()
        os.rename(self.log_path, self.log_path + ".1")
        single.reopen()
        self.assertTrue(os.path.exists(self.log_path))

    def test_a_stop_begins_in_a_later_turn(self):
        single = self.serving()
        self.successResultOf(single.stop(True))
        self.assertEqual(self.reactor.stops, 0)
        self.reactor.advance(0)
        self.assertEqual((self.reactor.stops, self.reactor.signals), (1, []))
