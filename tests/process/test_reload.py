"""Reload: all or nothing, and what it cannot do says so."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.defer import Deferred

from ccserver.process.worker import EXIT_APP
from tests.ports import free_port
from tests.process.fleets import AdministrationCase


class ReloadCase(AdministrationCase):
    def setUp(self) -> None:
        super().setUp()
        self.progress = []

    def reloaded(self) -> Any:
        return self.did(self.administration.reload(self.progress.append))

    def failed(self) -> str:
        return self.refusal(self.administration.reload(self.progress.append))


class SuccessTests(ReloadCase):
    def test_all_workers_are_replaced_by_those_of_the_next_generation(self):
        self.administered()
        old = self.workers()
        old[0].end.connections = 7
        result = self.reloaded()
        seconds = result.pop("seconds")
        self.assertGreaterEqual(seconds, 0)
        self.assertEqual(
            result,
            {"generation": 2, "workers": 2, "handed_over": 7, "left": {}, "warnings": []},
        )
        self.assertEqual([each.told[-1] for each in old], [("stop", True, 9.0)] * 2)
        self.assertEqual([each.generation for each in self.fleet.serving], [2, 2])

    def test_they_have_what_the_file_says_now(self):
        self.administered()
        self.write(3, "HandoverTimeout = 5\nLogLevel = 3\n")
        self.text_now = self.text(3, "HandoverTimeout = 5\nLogLevel = 3\n")
        result = self.reloaded()
        self.assertEqual(result["workers"], 3)
        for each in self.workers(since=2):
            order = each.order
            self.assertEqual(
                (order.text, order.path, order.base), (self.text_now, "a.conf", self.folder)
            )
            self.assertEqual(order.log_level, 3)
        self.assertEqual(self.fleet.config.process.handover_timeout, 5)
        self.assertEqual(self.server.configs, [self.fleet.config])

    def test_fewer_workers(self):
        self.administered(3)
        self.write(1)
        self.assertEqual(self.reloaded()["workers"], 1)
        self.assertEqual(len(self.fleet.serving), 1)

    def test_ports_come_and_go(self):
        self.administered()
        (old_port,), new_port = self.ports, free_port()
        self.ports = [new_port]
        self.write()
        reload = self.administration.reload(self.progress.append)
        with socket.create_connection(("127.0.0.1", old_port), 5):
            pass
        self.assertRaises(OSError, socket.create_connection, ("127.0.0.1", new_port), 5)
        self.did(reload)
        for each in self.workers():
            each.process.close()  # the copies of those who leave
        with socket.create_connection(("127.0.0.1", new_port), 5):
            pass
        self.assertRaises(OSError, socket.create_connection, ("127.0.0.1", old_port), 5)
        self.assertEqual([address.port for address in self.fleet.listening.addresses], [new_port])

    def test_the_log_goes_where_the_file_says_as_far_as_it_says(self):
        self.administered()
        path = os.path.join(self.folder, "other.log")
        self.write(2, f"Log = {path}\nLogLevel = 3\n")
        self.reloaded()
        self.assertEqual((self.observer.path, self.observer.level), (path, 3))
        self.assertTrue(os.path.exists(path))
        self.assertEqual(self.fleet.log_level, 3)

    def test_a_level_that_was_set_by_hand_ends_with_it(self):
        self.administered()
        self.administration.set_log_level(8)
        self.reloaded()
        self.assertEqual((self.observer.level, self.fleet.log_level), (6, 6))
        self.assertEqual({each.order.log_level for each in self.workers(since=2)}, {6})

    def test_what_needs_a_restart_says_so_and_does_not_hold(self):
        self.administered()
        self.write(2, "Daemon = 1\n")
        result = self.reloaded()
        self.assertEqual(result["warnings"], ["Daemon = 1: takes effect at a restart"])
        self.assertIn("Daemon = 1: takes effect at a restart", self.said())

    def test_warnings_of_the_file_are_told(self):
        self.administered()
        self.write(2, "LogLevel = 3\nLogLevel = 4\n")
        (warning,) = self.reloaded()["warnings"]
        self.assertIn("LogLevel", warning)
        self.assertIn(warning, self.said())

    def test_the_operator_hears_how_far_it_is(self):
        self.administered()
        self.reloaded()
        self.assertEqual(self.progress[:2], [f"reading {self.path}", "starting 2 workers"])

    def test_twenty_in_a_row_leave_nothing_open(self):
        self.administered()
        self.reloaded()
        self.end_old()
        before = self.descriptors()
        for _ in range(20):
            self.reloaded()
            self.end_old()
        self.assertLessEqual(self.descriptors(), before)
        self.assertEqual(len(self.fleet.workers), 2)

    def end_old(self) -> None:
        serving = self.fleet.serving
        for each, process in self.by_process():
            if process not in serving:
                each.die(0)

    def test_systemd_is_told_of_its_begin_and_its_end(self):
        self.administered()
        self.reloaded()
        self.assertEqual(self.systemd.told, ["reloading", "ready"])

    def test_a_log_that_cannot_be_opened_any_more_does_not_stop_it(self):
        self.administered()
        path = os.path.join(self.folder, "other.log")
        self.write(2, f"Log = {path}\n")
        reload = self.administration.reload(self.progress.append)
        os.remove(path)
        os.mkdir(path)
        self.assertEqual(self.did(reload)["generation"], 2)
        self.assertEqual(self.observer.path, self.log_path)
        self.assertIn("Is a directory", self.said())


class FailureTests(ReloadCase):
    """Nothing changes for anybody, and the reason is told and logged."""

    def setUp(self) -> None:
        super().setUp()
        self.administered()
        self.before = self.state()
        self.descriptors_before = self.descriptors()

    def state(self) -> list[Any]:
        fleet = self.fleet
        listening = [each.fileno() for slot in (0, 1) for each in fleet.listening.of_slot(slot)]
        return [
            *(fleet.config, fleet.generation, fleet.log_level, set(fleet.workers), listening),
            *(self.observer.path, self.observer.level, self.server.configs),
        ]

    def assert_failed(self, why: str, reload: Deferred[Any] | None = None) -> None:
        text = self.failed() if reload is None else self.refusal(reload)
        self.assertIn(why, text)
        self.assertIn(f"reload failed: {text}", self.said())
        self.assertEqual(self.state(), self.before)
        self.assertLessEqual(self.descriptors(), self.descriptors_before)
        self.assertEqual([each.told for each in self.workers()[:2]], [["serve"]] * 2)
        self.assertEqual(self.systemd.told, ["reloading", "ready"])
        self.assertFalse(self.administration.busy)

    def test_a_file_that_is_wrong(self):
        self.write(2, "WrokerThreads = 2\nLogLevel = loud\n")
        self.assert_failed(f'{self.path}:6: unknown key "WrokerThreads"')
        self.assertIn("(and 1 more errors)", self.said())

    def test_a_file_that_is_gone(self):
        os.remove(self.path)
        self.assert_failed(self.path)

    def test_no_workers(self):
        self.write(0)
        self.assert_failed("WorkerProcesses = 0 needs a restart")

    def test_a_port_that_is_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.descriptors_before += 1
            self.ports.append(taken.getsockname()[1])
            self.write()
            self.assert_failed(
                f"cannot listen on 127.0.0.1:{self.ports[1]}: Address already in use"
            )

    def test_a_log_that_cannot_be_opened(self):
        self.write(2, f"Log = {self.folder}\n")
        self.assert_failed("Is a directory")

    def test_an_application_that_cannot_be_loaded(self):
        self.ports.append(free_port())
        self.write()
        reload = self.administration.reload(self.progress.append)
        self.workers()[-1].failed(EXIT_APP, "there is no module named x")
        self.assert_failed("there is no module named x", reload)

    def test_an_application_that_hangs(self):
        reload = self.administration.reload(self.progress.append)
        self.turn(20.5)
        self.assert_failed("a new worker was not ready within 20 s", reload)

    def test_fifty_in_a_row_leave_nothing_open(self):
        self.write(4, "LogLevel = 3\n")
        self.ports.append(free_port())
        self.write(4)
        for _ in range(50):
            reload = self.administration.reload(self.progress.append)
            self.workers()[-1].failed(EXIT_APP, "no")
            self.refusal(reload)
        self.assertEqual(self.state(), self.before)
        self.assertLessEqual(self.descriptors(), self.descriptors_before)

    def test_the_next_one_may_succeed(self):
        self.write(0)
        self.failed()
        self.write(2)
        self.assertEqual(self.reloaded()["generation"], 2)
