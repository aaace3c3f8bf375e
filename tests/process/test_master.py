"""The master: starts, keeps workers alive and stops, as twistd and signals say."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket

from ccserver.errors import StartError
from ccserver.process import control
from ccserver.process.worker import EXIT_APP, EXIT_CONFIG, EXIT_START
from tests.process.masters import MasterCase
from tests.support import open_descriptors, texts


class StartTests(MasterCase):
    def test_making_it_opens_nothing(self):
        self.settings = self.master_config(2, "")
        before = open_descriptors()
        self.made()
        self.assertLessEqual(open_descriptors(), before)
        self.assertFalse(os.path.exists(self.path))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_log_ports_and_control_are_opened_before_the_rights_are_given_up(self):
        self.made().privilegedStartService()
        self.assertTrue(os.path.exists(self.path))
        with socket.create_connection(("127.0.0.1", self.ports[0]), 5):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.settings.control.path)
        self.assertEqual(self.reactor.processes, [])

    def test_as_many_descriptors_as_may_be_are_allowed_before_the_ports_are_opened(self):
        asked: list[object] = []

        def note(which: int, limits: tuple[int, int]) -> None:
            asked.append((limits, len(made._listening.of_slot(0))))

        made = self.made()
        self.patch(resource, "getrlimit", lambda which: (128, 4096))
        self.patch(resource, "setrlimit", note)
        made.privilegedStartService()
        self.assertEqual(asked, [((4096, 4096), 0)])

    def test_workers_are_not_to_close_a_descriptor_that_is_beyond_the_limit(self):
        made = self.made()
        passed = fcntl.fcntl(0, fcntl.F_DUPFD, 900)
        self.addCleanup(os.close, passed)
        self.patch(resource, "getrlimit", lambda which: (900, 900))
        self.patch(resource, "setrlimit", lambda which, limits: None)
        made.privilegedStartService()
        self.assertFalse(os.get_inheritable(passed))

    def test_a_log_that_cannot_be_opened_is_told(self):
        os.mkdir(self.path)
        error = self.assertRaises(StartError, self.made().privilegedStartService)
        self.assertIn("cannot open the log file", str(error))

    def test_a_port_that_is_taken_is_told(self):
        with socket.create_server(("127.0.0.1", self.ports[0])):
            error = self.assertRaises(StartError, self.made().privilegedStartService)
        self.assertIn("Address already in use", str(error))

    def test_a_server_that_has_the_control_socket_is_told(self):
        with socket.socket(socket.AF_UNIX) as other:
            self.patch(control, "LIVE_TIMEOUT", 0.1)
            made = self.made()
            other.bind(self.settings.control.path)
            other.listen()
            error = self.assertRaises(StartError, made.privilegedStartService)
        self.assertIn("another server is running", str(error))

    def test_warnings_of_the_configuration_are_logged(self):
        made = self.made(more="LogLevel = 3\nLogLevel = 4\n")
        self.assertTrue(self.settings.warnings)
        made.privilegedStartService()
        self.assertIn(self.settings.warnings[0], texts(self.events))

    def test_processes_are_spawned_when_the_reactor_runs(self):
        made = self.made()
        made.privilegedStartService()
        made.startService()
        self.assertEqual(self.reactor.processes, [])
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.processes), 2)

    def test_its_title_names_the_configuration(self):
        self.started()
        self.assertEqual(self.titles, [f"ccserver: master process {self.config_path}"])

    def test_it_says_once_that_all_are_ready_systemd_too(self):
        first, second = self.started()
        first.ready()
        self.assertNotIn("ready:", self.said())
        self.assertEqual(self.systemd.told, [])
        second.ready()
        self.assertEqual(self.said().count("ready: 2 worker processes"), 1)
        self.assertIn(f"127.0.0.1:{self.ports[0]}", self.said())
        self.assertEqual(self.systemd.told, ["ready"])

    def test_a_watchdog_of_systemd_is_told_that_it_lives(self):
        self.systemd.watchdog_interval = 5.0
        self.serving()
        self.turn(11)
        self.assertEqual(self.systemd.told.count("watchdog"), 3)


class RespawnTests(MasterCase):
    def test_a_worker_that_dies_is_replaced_at_once(self):
        first, _ = self.serving()
        first.die(None, signal.SIGKILL)
        self.turn()
        self.assertEqual(len(self.reactor.processes), 3)

    def test_its_replacement_says_that_it_serves(self):
        self.serving()[0].die()
        self.turn()
        self.workers(since=2)[0].ready()
        self.assertIn("worker process 0, pid 1002, serves", self.said())
        self.assertEqual(self.said().count("ready: 2 worker"), 1)

    def test_a_replacement_that_cannot_start_does_not_end_the_server(self):
        self.serving()[0].die()
        self.turn()
        self.workers(since=2)[0].die(EXIT_APP)
        self.turn(0.2)
        self.assertEqual((self.reactor.stops, self.exits), (0, []))
        self.assertEqual(len(self.reactor.processes), 4)


class FirstStartTests(MasterCase):
    """A server that cannot start ends, with a status that says why."""

    def test_an_application_that_cannot_be_loaded_is_status_4(self):
        (each,) = self.started(1)
        each.failed(EXIT_APP, "there is no module named x")
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_APP], 1))
        self.assertIn("cannot start: there is no module named x", self.said())

    def test_a_worker_that_cannot_start_is_status_3(self):
        (each,) = self.started(1)
        each.failed(EXIT_START, "start hook raised")
        self.assertEqual(self.exits, [EXIT_START])
        self.assertIn("cannot start: start hook raised", self.said())

    def test_a_configuration_that_a_worker_finds_wrong_is_status_1(self):
        (each,) = self.started(1)
        each.failed(EXIT_CONFIG, "a.conf:1: DBInfo names no database")
        self.assertEqual(self.exits, [EXIT_CONFIG])
        self.assertIn("cannot start: a.conf:1: DBInfo names no database", self.said())

    def test_one_of_several_is_enough(self):
        first, second = self.started(2)
        first.ready()
        second.failed(EXIT_APP, "no application")
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_APP], 1))

    def test_all_failing_at_once_stop_the_reactor_once(self):
        for each in self.started(3):
            each.failed(EXIT_APP, "no application")
        self.assertEqual(self.reactor.stops, 1)
        self.assertEqual(self.exits, [EXIT_APP])
        self.assertEqual(self.said().count("no application"), 1, "once, whoever says it")

    def test_the_workers_that_did_start_are_stopped_at_once(self):
        first, second = self.started(2)
        first.ready()
        second.die(EXIT_APP)
        stopped = self.master.stopService()
        self.turn()
        self.assertEqual(first.told, ["serve", ("stop", False, 0.0)])
        first.die(0)
        self.successResultOf(stopped)

    def test_a_failure_in_the_moment_of_a_signal_stops_the_reactor_once(self):
        (each,) = self.started(1)
        self.send(signal.SIGTERM)
        each.failed(EXIT_APP, "no application")
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_APP], 1))
