"""Upgrade: a new master takes over ports and connections; or cannot, and the old one goes on."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.operator import Operator, Refused
from tests.functional.server import ECHO, Client, ServerProcess, measured, wait_until
from tests.functional.stopwatch import Stopwatch
from tests.functional.traffic import LONGEST_PAUSE, Traffic

CONNECTIONS = 2000
UPGRADES = 3


class UpgradeCase(SynchronousTestCase):
    def serve(self, app: str = ECHO, **options: Any) -> ServerProcess:
        server = ServerProcess(app, **options)
        self.addCleanup(server.close)
        server.start()
        self.operator = Operator(server)
        return server

    def upgraded(self, server: ServerProcess) -> dict[str, Any]:
        """The result of an upgrade, when the old master is gone."""
        old = self.operator.status()["pid"]
        done = self.operator.ask("upgrade")
        wait_until(lambda: old not in server.processes(), "the old master to be gone")
        wait_until(lambda: self.pid_in_file(server) == done["pid"], "the pid of the new one")
        self.assertEqual(self.operator.status()["pid"], done["pid"])
        self.operator.wait_for_rest()
        return done

    def pid_in_file(self, server: ServerProcess) -> int:
        return int(server.read("twistd.pid") or 0)


class UpgradeTests(UpgradeCase):
    def test_upgrades_under_traffic_cut_lose_double_and_reorder_nothing(self):
        server = self.serve(workers=2, LogLevel=6)
        masters = [server.master]
        longest = 0.0
        with Traffic(server.port, CONNECTIONS) as traffic:
            for _ in range(UPGRADES):
                with Stopwatch(server) as watch:
                    traffic.mark()
                    os.kill(masters[-1], signal.SIGUSR2)
                    wait_until(
                        lambda: server.log.count(" upgrade done: ") == len(masters), "the upgrade"
                    )
                    wait_until(lambda: self.pid_in_file(server) not in (0, *masters), "its pid")
                    counts = traffic.counts()
                self.assertEqual((counts.errors, counts.open), ({}, CONNECTIONS), counts.details)
                own = watch.longest_pause(counts)
                self.assertLess(own, LONGEST_PAUSE, (watch.cores, counts.pauses))
                longest = max(longest, counts.pause)
                old, new = masters[-1], self.pid_in_file(server)
                masters.append(new)
                wait_until(
                    lambda old=old: old not in server.processes(), "the old master to be gone"
                )
                self.assertFalse(os.path.exists(server.path("twistd.pid.oldbin")))
                self.assertEqual(self.operator.status()["pid"], new)
            counts = traffic.stop()
        self.assertEqual((counts.errors, counts.owed, counts.connected), ({}, 0, CONNECTIONS))
        measured(f"longest pause of {CONNECTIONS} connections in {UPGRADES} upgrades, s", longest)
        self.assertEqual(self.operator.status()["generation"], UPGRADES + 1)
        os.kill(masters[-1], signal.SIGTERM)
        wait_until(server.is_gone, "the last one to be gone")
        self.assertFalse(os.path.exists(server.path("twistd.pid")))

    def test_a_daemon_is_upgraded_to_a_daemon(self):
        server = self.serve(workers=2, background=True)
        old = server.master
        session = os.getsid(old)
        with server.connect() as client:
            client.ask(apps.PING)
            self.assertEqual(self.operator.ask("upgrade")["handed_over"], 1)
            wait_until(lambda: self.pid_in_file(server) not in (0, old), "the new pid file")
            wait_until(lambda: old not in server.processes(), "the old master to be gone")
            client.ask(apps.PING)
        # in a process session of its own, which the end of ours or of the first master cannot end
        self.assertNotIn(os.getsid(server.master), (os.getsid(0), session))
        self.assertEqual(self.operator.status()["pid"], server.master)
        server.send_signal(signal.SIGTERM)
        wait_until(server.is_gone, "the daemon to be gone")

    def test_another_number_of_workers_comes_with_it(self):
        server = self.serve(workers=3)
        text = server.read("ccserver.conf")
        clients = [server.connect() for _ in range(12)]
        for client in clients:
            self.addCleanup(client.close)
            client.ask(apps.PING)
        for count in (1, 2):
            changed = text.replace("WorkerProcesses = 3", f"WorkerProcesses = {count}")
            server.write("ccserver.conf", changed.encode())
            done = self.upgraded(server)
            self.assertEqual((done["workers"], done["handed_over"]), (count, 12))
            for client in clients:
                client.ask(apps.PING)
        with server.connect() as client:
            client.ask(apps.PING)

    def test_ids_go_on_and_are_never_used_again(self):
        server = self.serve(workers=1)
        clients = []
        for _ in range(3):
            clients.append(server.connect())
            self.addCleanup(clients[-1].close)
            clients[-1].ask(apps.PING)
            self.upgraded(server)
        rows = self.operator.ask("connections", sort="id", limit=10)["connections"]
        self.assertEqual([row["peer"] for row in rows], [each.address for each in clients])
        self.assertEqual(len({row["id"] for row in rows}), 3)


class DisturbedUpgradeTests(UpgradeCase):
    """A handler keeps the old master at work while something happens."""

    def busy(self, server: ServerProcess, milliseconds: int) -> Client:
        client = server.connect()
        self.addCleanup(client.close)
        client.ask(apps.PING)
        client.send((apps.SLEEP, b"%d" % milliseconds))
        return client

    def begun(self, server: ServerProcess, line: str = "SIGUSR2 received") -> None:
        server.send_signal(signal.SIGUSR2)
        wait_until(lambda: line in server.log, line)

    def test_two_at_once_are_one_and_leave_one_master(self):
        server = self.serve(workers=1, HandoverTimeout=1)
        old, client = server.master, self.busy(server, 2500)
        self.begun(server)
        server.send_signal(signal.SIGUSR2)
        self.assertEqual(client.receive(), (apps.SLEEP, b"2500"))
        wait_until(lambda: old not in server.processes(), "the old master to be gone")
        new = self.operator.status()["pid"]
        self.assertEqual(self.pid_in_file(server), new)
        self.assertFalse(os.path.exists(server.path("twistd.pid.oldbin")))
        self.assertEqual(len(server.processes()), 2)
        self.assertIn(f"upgrade failed: process {new} is the master now: ask it", server.log)

    def test_a_stop_in_the_midst_stops_the_new_master_too(self):
        server = self.serve(workers=1)
        client = self.busy(server, 2000)
        self.begun(server)
        server.send_signal(signal.SIGTERM)
        self.assertEqual(client.receive(), (apps.SLEEP, b"2000"))
        wait_until(server.is_gone, "all to be gone")
        self.assertNotIn(" is the master now", server.log)
        self.assertFalse(os.path.exists(server.path("twistd.pid")))

    def test_a_new_master_that_is_killed_at_once_costs_what_it_had_and_no_more(self):
        server = self.serve(workers=2)
        master, client = server.master, self.busy(server, 6000)  # until behind the kill
        self.begun(server, " is the master now")
        (new,) = re.findall(r"process ([0-9]+) is the master now", server.log)
        os.kill(int(new), signal.SIGKILL)
        self.assertEqual(client.receive(), (apps.SLEEP, b"6000"))
        wait_until(lambda: "upgrade failed: " in server.log, "the upgrade to have failed")
        client.ask(apps.PING)
        self.operator.wait_for_rest()
        self.assertEqual((self.operator.status()["pid"], server.master), (master, master))
        self.assertEqual(self.pid_in_file(server), master)
        for _ in range(10):
            with server.connect() as another:
                another.ask(apps.PING)
        self.assertEqual(len(server.processes()), 3)


class FailedUpgradeTests(UpgradeCase):
    def refused(self, server: ServerProcess, text: str) -> str:
        """Why an upgrade to such a configuration is refused, which is logged too."""
        server.write("ccserver.conf", text.encode())
        with self.assertRaises(Refused) as caught:
            self.operator.ask("upgrade")
        self.assertIn(f"upgrade failed: {caught.exception}", server.log)
        return str(caught.exception)

    def test_that_of_a_daemon_says_why_too(self):
        server = self.serve(workers=1, background=True)
        text = server.read("ccserver.conf")
        for change, word in (
            (text + "Wrokers = 1\n", 'unknown key "Wrokers"'),
            (text.replace("Listen = ", "Listen = 192.0.2.1:15999, "), "192.0.2.1:15999: "),
        ):
            self.assertIn(word, self.refused(server, change))

    def test_one_that_cannot_leaves_the_old_master_as_it_was(self):
        server = self.serve(workers=1)
        text = server.read("ccserver.conf")
        master, pids = server.master, server.workers()
        with server.connect() as client:
            for change, word in (
                (text + "Wrokers = 1\n", 'unknown key "Wrokers"'),
                (text.replace(ECHO, "missing:app"), "no module missing"),
                (text.replace("Listen = ", "Listen = 192.0.2.1:15999, "), "192.0.2.1:15999: "),
            ):
                self.assertIn(word, self.refused(server, change))
                client.ask(apps.PING)
                self.assertEqual(self.operator.status()["pid"], master)
                wait_until(lambda: len(server.processes()) == 2, "the new ones to be gone")
                self.assertEqual(self.pid_in_file(server), master)
                self.assertFalse(os.path.exists(server.path("twistd.pid.oldbin")))
            server.write("ccserver.conf", text.encode())
            self.assertEqual(server.workers(), pids)
            self.operator.ask("upgrade")
            client.ask(apps.PING)
