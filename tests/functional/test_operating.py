"""The commands, against a running server."""

from __future__ import annotations

import json
import os
import stat
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.operator import Operator, Refused
from tests.functional.server import ServerCase, ServerProcess, title, wait_until


class CommandTests(ServerCase):
    options: ClassVar = {"workers": 2, "LogLevel": 6, "RebalanceInterval": 0}

    def setUp(self):
        super().setUp()
        self.operator = Operator(self.server)

    def test_status_as_a_table_and_as_json(self):
        table = self.operator.command("status")
        self.assertEqual((table.returncode, table.stderr), (0, ""))
        for word in ("serving", "ccserver.conf", "ready", "worker", "memory"):
            self.assertIn(word, table.stdout)
        told = json.loads(self.operator.command("status", "--json").stdout)
        self.assertEqual(told["pid"], self.server.master)
        pids = {row["slot"]: row["pid"] for row in told["workers"]}
        self.assertEqual(pids, self.server.workers())

    def test_connections_are_listed_and_kicked(self):
        client, other = self.connect(), self.connect()
        client.ask(apps.REACTOR, b"one")
        other.ask(apps.REACTOR, b"two")
        rows = self.operator.ask("connections", peer=client.address)["connections"]
        self.assertEqual([row["peer"] for row in rows], [client.address])
        (row,) = rows
        self.assertEqual((row["packets_in"], row["packets_out"]), (1, 1))
        done = self.operator.command("kick", str(row["id"]))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(client.rest(), [])
        client.close()
        wait_until(lambda: self.operator.status()["closed"].get("kicked") == 1, "its end")
        other.ask(apps.PING)
        again = self.operator.command("kick", str(row["id"]))
        self.assertEqual((again.returncode, len(again.stderr.splitlines())), (1, 1))

    def test_the_log_level_is_changed_in_all_processes_until_the_next_reload(self):
        self.assertEqual(self.operator.command("log", "level", "info").returncode, 0)
        client = self.connect()
        client.ask(apps.PING)
        client.close()
        wait_until(lambda: f"client: {client.address}" in self.server.log, "a line at info")
        self.operator.ask("workers", count=3)  # who is started now logs so too
        self.operator.ask("workers", count=2)
        self.operator.reload()
        client = self.connect()
        client.ask(apps.PING)
        client.close()
        self.operator.wait_for_rest()
        self.assertNotIn(f"client: {client.address}", self.server.log)

    def test_the_log_is_opened_anew(self):
        os.rename(self.server.path("error.log"), self.server.path("error.log.1"))
        self.assertEqual(self.operator.command("reopen").returncode, 0)
        wait_until(lambda: os.path.exists(self.server.path("error.log")), "the new file")
        self.operator.reload()
        self.assertIn("reload done", self.server.log)
        old = self.server.read("error.log.1")
        self.server.write("error.log", (old + self.server.log).encode())  # for the other tests

    def test_the_control_socket_is_its_users_alone(self):
        mode = os.stat(self.operator.path).st_mode
        self.assertTrue(stat.S_ISSOCK(mode))
        self.assertEqual(stat.S_IMODE(mode), 0o600)

    def test_a_wrong_command_is_refused_and_nothing_happens(self):
        for command, arguments in (("dance", {}), ("workers", {"count": -1}), ("kick", {})):
            with self.assertRaises(Refused):
                self.operator.ask(command, **arguments)

    def test_the_title_of_a_worker_says_how_many_connections_it_has(self):
        clients = [self.connect() for _ in range(7)]
        for client in clients:
            client.ask(apps.PING)

        def told() -> int:
            titles = [title(pid) for pid in self.server.workers().values()]
            return sum(int(text.partition("(")[2].partition(" ")[0]) for text in titles)

        wait_until(lambda: told() >= 7, "the titles")


class InstanceTests(SynchronousTestCase):
    def test_without_a_server_a_command_says_so_in_one_line(self):
        server = ServerProcess()
        self.addCleanup(server.close)
        done = Operator(server).command("status")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(len(done.stderr.splitlines()), 1)

    def test_a_second_server_on_the_same_control_socket_does_not_start(self):
        server = ServerProcess(workers=1)
        self.addCleanup(server.close)
        server.start()
        second = ServerProcess(workers=1, Control=server.path("ccserver.sock"))
        self.addCleanup(second.close)
        second.launch()
        self.assertEqual(second.wait(), 1)
        self.assertIn("control socket", second.stderr)
        self.assertEqual(Operator(server).status()["pid"], server.master)

    def test_one_that_a_dead_server_left_is_replaced(self):
        server = ServerProcess(workers=1)
        self.addCleanup(server.close)
        server.start()
        os.kill(server.master, 9)
        server.wait()
        wait_until(server.is_gone, "the server to be gone")
        self.assertTrue(os.path.exists(server.path("ccserver.sock")))
        server.launch()
        wait_until(lambda: server.log.count(" ready: ") == 2, "the new server")
        self.assertEqual(Operator(server).status()["pid"], server.master)

    def test_quit_and_stop_wait_for_the_end(self):
        for command in ("quit", "stop"):
            server = ServerProcess(workers=2)
            self.addCleanup(server.close)
            server.start()
            with server.connect() as client:
                client.ask(apps.PING)
                done = Operator(server).command(command)
                self.assertEqual(done.returncode, 0, done.stderr)
                if command == "quit":
                    self.assertEqual(client.rest(), [])  # without a reset
            self.assertEqual(server.wait(), 0)
            self.assertTrue(server.is_gone())
            self.assertFalse(os.path.exists(server.path("ccserver.sock")))
            self.assertFalse(os.path.exists(server.path("twistd.pid")))

    def test_a_single_process_does_what_it_can(self):
        server = ServerProcess(workers=0)
        self.addCleanup(server.close)
        server.start()
        operator = Operator(server)
        with server.connect() as client:
            client.ask(apps.PING)
            (row,) = operator.ask("connections")["connections"]
            self.assertEqual(row["peer"], client.address)
            with self.assertRaises(Refused) as caught:
                operator.reload()
            self.assertIn("no worker processes", str(caught.exception))
            self.assertTrue(operator.ask("kick", id=row["id"]))
            self.assertEqual(client.rest(), [])
        operator.ask("stop", graceful=True)
        self.assertEqual(server.wait(), 0)
