"""The service that twistd runs: what signals and operators make of it, with a master."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

from ccserver.errors import OperationFailed
from ccserver.process.ending import KILL_GRACE
from ccserver.process.serving import HOOK_TIMEOUT
from ccserver.process.worker import ECHO
from tests.process.masters import MasterCase


class StopTests(MasterCase):
    def stopped(self, number: int = signal.SIGTERM) -> Any:
        """What twistd waits for, after a signal."""
        self.send(number)
        self.assertEqual(self.reactor.stops, 1)
        stopped = self.master.stopService()
        self.turn()
        return stopped

    def test_term_and_quit_stop_gracefully_within_the_timeout(self):
        for number in (signal.SIGTERM, signal.SIGQUIT):
            self.setUp()
            workers = self.serving()
            self.stopped(number)
            self.assertEqual([each.told[1:] for each in workers], [[("stop", True, 9.0)]] * 2)

    def test_from_the_signal_on_nothing_else_is_begun(self):
        self.serving()
        self.send(signal.SIGTERM)
        asked = self.master._administration.upgrade(lambda text: None)
        self.assertIn("stopping", str(self.failureResultOf(asked, OperationFailed).value))

    def test_int_stops_at_once(self):
        workers = self.serving()
        self.stopped(signal.SIGINT)
        self.assertEqual([each.told[1:] for each in workers], [[("stop", False, 0.0)]] * 2)

    def test_it_is_over_when_the_last_worker_has_gone(self):
        first, second = self.serving()
        stopped = self.stopped()
        first.die(0)
        self.assertNoResult(stopped)
        second.die(0)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.exits, [])
        self.assertEqual(self.systemd.told, ["ready", "stopping"])

    def test_the_ports_are_closed(self):
        self.serving()
        self.stopped()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for each in self.reactor.processes:
                each.close()
            probe.bind(("127.0.0.1", self.ports[0]))

    def test_the_control_socket_is_there_until_the_end(self):
        (each,) = self.serving(1)
        stopped = self.stopped()
        self.assertTrue(os.path.exists(self.settings.control.path))
        each.die(0)
        self.successResultOf(stopped)
        self.assertFalse(os.path.exists(self.settings.control.path))

    def test_who_does_not_stop_in_time_is_killed(self):
        first, second = self.serving()
        stopped = self.stopped()
        first.die(0)
        self.turn(9 + HOOK_TIMEOUT + KILL_GRACE + 0.1)
        self.assertFalse(first.killed)
        self.assertTrue(second.killed)
        self.successResultOf(stopped)

    def test_a_second_signal_stops_at_once(self):
        (each,) = self.serving(1)
        self.stopped()
        self.turn(1)
        self.send(signal.SIGTERM)
        self.assertEqual(each.told[1:], [("stop", True, 9.0), ("stop", False, 0.0)])
        self.assertIn("SIGTERM again: stopping at once", self.said())
        self.turn(KILL_GRACE + 0.1)
        self.assertTrue(each.killed)

    def test_the_first_signal_is_the_second_wish_where_a_command_was_the_first(self):
        (each,) = self.serving(1)
        self.master.stop_later(True)
        self.turn()
        self.master.stopService()
        self.send(signal.SIGTERM)
        self.assertEqual(each.told[1:], [("stop", True, 9.0), ("stop", False, 0.0)])
        self.assertIn("SIGTERM received: stopping at once", self.said())

    def test_the_same_signal_twice_in_a_moment_is_one(self):
        (each,) = self.serving(1)
        self.stopped()
        self.reactor.advance(ECHO / 2)
        self.send(signal.SIGTERM)
        self.assertEqual(each.told[1:], [("stop", True, 9.0)])

    def test_another_signal_in_that_moment_is_another(self):
        (each,) = self.serving(1)
        self.stopped()
        self.reactor.advance(ECHO / 2)
        self.send(signal.SIGINT)
        self.assertEqual(each.told[1:], [("stop", True, 9.0), ("stop", False, 0.0)])

    def test_signals_before_the_reactor_stops_stop_it_once(self):
        (each,) = self.serving(1)
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.turn()
        self.assertEqual(self.reactor.stops, 1)
        self.master.stopService()
        self.turn()
        self.assertEqual(each.told[1:], [("stop", True, 9.0)])

    def test_an_int_before_the_reactor_stops_makes_it_at_once(self):
        (each,) = self.serving(1)
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.handlers[signal.SIGINT](signal.SIGINT, None)
        self.turn()
        self.assertEqual(self.reactor.stops, 1)
        self.master.stopService()
        self.turn()
        self.assertEqual(each.told[1:], [("stop", False, 0.0)])

    def test_signals_that_keep_coming_do_not_put_the_end_off(self):
        (each,) = self.serving(1)
        self.stopped()
        for _ in range(10):
            self.turn(ECHO + 0.1)
            self.send(signal.SIGTERM)
        self.assertTrue(each.killed)

    def test_a_worker_that_still_starts_is_stopped_too(self):
        (each,) = self.started(1)
        stopped = self.stopped()
        self.assertEqual(each.told, [("stop", True, 9.0)])
        each.die(0)
        self.successResultOf(stopped)

    def test_without_workers_it_is_over_at_once(self):
        made = self.made()
        made.privilegedStartService()
        made.startService()
        self.successResultOf(made.stopService())

    def test_a_signal_before_the_first_worker_is_spawned_spawns_none(self):
        made = self.made()
        made.privilegedStartService()
        made.startService()
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.successResultOf(made.stopService())
        self.reactor.advance(0)
        self.assertEqual(self.reactor.processes, [])
        self.assertEqual(self.reactor.getDelayedCalls(), [], "nothing is begun any more")

    def test_asked_for_by_an_operator_it_begins_in_a_later_turn_and_ends_cleanly(self):
        (each,) = self.serving(1)
        self.master.stop_later(True)
        self.assertEqual(self.reactor.stops, 0)
        self.turn()
        self.assertEqual((self.reactor.stops, self.reactor.signals), (1, []))
        self.master.stopService()
        self.turn()
        self.assertEqual(each.told[1:], [("stop", True, 9.0)])
        self.master.stop_later(False)
        self.turn()
        self.assertEqual(each.told[2:], [("stop", False, 0.0)])
        self.assertEqual(self.reactor.stops, 1)

    def test_asked_for_twice_in_a_turn_it_stops_once_as_the_hastier_says(self):
        (each,) = self.serving(1)
        self.master.stop_later(True)
        self.master.stop_later(False)
        self.turn()
        self.assertEqual(self.reactor.stops, 1)
        self.master.stopService()
        self.turn()
        self.assertEqual(each.told[1:], [("stop", False, 0.0)])


class SignalTests(MasterCase):
    def test_no_signal_does_anything_in_its_handler(self):
        self.serving()
        for handler in set(self.handlers.values()):
            handler(signal.SIGTERM, None)
        self.assertEqual(self.reactor.stops, 0)

    def test_usr1_opens_the_logs_anew_the_workers_too(self):
        workers = self.serving()
        os.rename(self.path, self.path + ".1")
        self.send(signal.SIGUSR1)
        self.assertTrue(os.path.exists(self.path))
        self.assertEqual([each.told[1:] for each in workers], [["reopen"]] * 2)

    def test_a_log_that_cannot_be_opened_anew_is_no_fault(self):
        self.serving()
        os.rename(self.path, self.path + ".1")
        os.mkdir(self.path)
        self.send(signal.SIGUSR1)
        self.assertIn("reopen", self.said())
        self.assertEqual(self.reactor.stops, 0)
        asked = self.master.open_log_anew()
        self.turn()
        failed = self.failureResultOf(asked, OperationFailed)
        self.assertIn("the log was not opened anew: [Errno 21] Is a directory", str(failed.value))

    def test_whoever_asks_hears_why_a_worker_cannot(self):
        workers = self.serving()
        workers[1].end.reopens = "No space left on device"
        asked = self.master.open_log_anew()
        self.turn()
        failed = self.failureResultOf(asked, OperationFailed)
        self.assertIn("anew: No space left on device", str(failed.value))

    def test_hup_reloads(self):
        first, _ = self.serving()
        self.send(signal.SIGHUP)
        for each in self.workers(since=2):
            each.ready()
        self.turn()
        self.assertEqual([each.told for each in self.workers(since=2)], [["serve"]] * 2)
        self.assertIn(("stop", True, 9.0), first.told)
        self.assertIn("reload done", self.said())
        self.assertEqual(self.systemd.told, ["ready", "reloading", "ready"])

    def test_hup_with_a_wrong_file_is_logged_and_changes_nothing(self):
        workers = self.serving()
        with open(self.config_path, "w") as file:
            file.write("LogLevel = loud\n")
        self.send(signal.SIGHUP)
        self.assertIn("reload failed: ", self.said())
        self.assertEqual([each.told for each in workers], [["serve"]] * 2)

    def test_ttin_and_ttou_are_one_more_and_one_less(self):
        self.serving()
        self.send(signal.SIGTTIN)
        (third,) = self.workers(since=2)
        third.ready()
        self.turn()
        self.assertEqual(third.told, ["serve"])
        self.send(signal.SIGTTOU)
        self.turn(2)
        self.assertEqual(third.told[1:], ["stop accepting", ("stop", True, 9.0)])

    def test_winch_lets_all_workers_leave(self):
        workers = self.serving()
        self.send(signal.SIGWINCH)
        for each in workers:
            self.assertEqual(each.told[1:], ["stop accepting", ("stop", True, 9.0)])
            each.die(0)
        self.turn(5)
        self.assertEqual((self.reactor.stops, len(self.workers())), (0, 2))

    def test_usr2_upgrades(self):
        self.serving()
        self.patch(os, "getpid", lambda: 1)
        self.send(signal.SIGUSR2)
        self.assertIn("upgrade failed: process 1 cannot be upgraded", self.said())

    def test_they_are_logged(self):
        self.serving()
        for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGWINCH):
            self.send(number)
            self.assertIn(f"{number.name} received", self.said())
        self.assertEqual(self.reactor.stops, 0)

    def test_a_reload_under_way_ends_with_a_stop(self):
        first, second = self.serving()
        self.send(signal.SIGHUP)
        third, fourth = self.workers(since=2)
        self.send(signal.SIGTERM)
        stopped = self.master.stopService()
        self.turn()
        for each in (first, second, third, fourth):
            self.assertEqual(each.told[-1], ("stop", True, 9.0))
            self.assertNotIn("stop accepting", each.told)
            each.die(0)
        self.turn()
        self.successResultOf(stopped)
        self.turn(30)
        self.assertEqual(len(self.workers()), 4)
        self.assertIn("reload failed", self.said())
