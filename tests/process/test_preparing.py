"""Preparing workers that are to serve: all of them, or none."""

from __future__ import annotations

import errno
from typing import Any

from ccserver.errors import OperationFailed
from ccserver.process.listening import Listening
from ccserver.process.worker import EXIT_APP
from ccserver.process.workers import WorkerState
from tests.process.fleets import FleetCase
from tests.process.workers import FakeWorkerProcess


class PrepareTests(FleetCase):
    def test_they_are_ready_when_all_are_and_do_not_serve_yet(self):
        self.serving()
        prepared = self.prepared(0, 1)
        third, fourth = self.workers(since=2)
        third.ready()
        self.assertNoResult(prepared)
        fourth.ready()
        fresh = self.successResultOf(prepared)
        self.turn()
        self.assertEqual([each.slot for each in fresh], [0, 1])
        self.assertEqual({each.state for each in fresh}, {WorkerState.LOADED})
        self.assertEqual((third.told, fourth.told), ([], []))
        self.assertEqual([each.generation for each in fresh], [2, 2])

    def test_they_start_with_the_configuration_that_is_to_come(self):
        self.serving()
        config = self.config(2, "LogLevel = 3\n")
        self.prepared(0, config=config)
        (fresh,) = self.workers(since=2)
        self.assertEqual((fresh.order.text, fresh.order.log_level), (config.text, 3))

    def test_a_level_that_was_set_by_hand_holds_for_the_same_configuration(self):
        self.serving()
        self.fleet.log_level = 8
        self.prepared(0)
        (fresh,) = self.workers(since=2)
        self.assertEqual(fresh.order.log_level, 8)

    def assert_as_before(self, old: list[FakeWorkerProcess]) -> None:
        """Nothing has changed for those who serve, and nothing is left of the others."""
        self.turn()
        self.assertEqual([each.told for each in old], [["serve"]] * 2)
        self.assertEqual([each.process.ended for each in old], [False, False])
        self.assertEqual([each.slot for each in self.fleet.serving], [0, 1])
        self.assertEqual(len(self.fleet.workers), 2)
        self.assertEqual(self.owner.refusals, [])
        self.turn(60)
        self.assertFalse([each for each in self.workers(since=2) if not each.process.ended])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_one_that_cannot_start_ends_them_all_and_says_why(self):
        old = self.serving()
        prepared = self.prepared(0, 1)
        third, fourth = self.workers(since=2)
        third.ready()
        fourth.failed(EXIT_APP, "there is no module named x")
        self.turn()
        error = self.failureResultOf(prepared, OperationFailed).value
        self.assertEqual(str(error), "there is no module named x")
        self.assertEqual(error.__cause__.status, EXIT_APP)
        self.assertTrue(third.killed)
        self.assert_as_before(old)

    def test_one_that_dies_without_a_word_does(self):
        old = self.serving()
        prepared = self.prepared(0, 1)
        self.workers(since=2)[0].die(None, 11)
        self.turn()
        error = self.failureResultOf(prepared, OperationFailed).value
        self.assertEqual(str(error), "worker process 0 was killed by signal 11 (SIGSEGV)")
        self.assert_as_before(old)

    def test_one_that_dies_while_the_others_still_load_does(self):
        old = self.serving()
        prepared = self.prepared(0, 1)
        third, fourth = self.workers(since=2)
        third.ready()
        third.die(None, 11)
        fourth.ready()
        self.turn()
        error = self.failureResultOf(prepared, OperationFailed).value
        self.assertIn("worker process 0, pid 1002, ended", str(error))
        self.assert_as_before(old)

    def test_one_that_hangs_does_after_the_timeout(self):
        old = self.serving()
        prepared = self.prepared(0, 1)
        third, fourth = self.workers(since=2)
        third.ready()
        self.turn(19.9)
        self.assertNoResult(prepared)
        self.turn(0.2)
        error = self.failureResultOf(prepared, OperationFailed).value
        self.assertEqual(str(error), "a new worker was not ready within 20 s")
        self.assertTrue(third.killed)
        self.assertTrue(fourth.killed)
        self.assert_as_before(old)

    def test_the_failure_is_told_when_they_have_ended_and_not_before(self):
        self.serving()
        prepared = self.prepared(0)
        (fresh,) = self.workers(since=2)
        self.immortal.add(fresh)
        self.turn(20.5)
        self.assertNoResult(prepared)
        fresh.die(None, 9)
        self.failureResultOf(prepared, OperationFailed)

    def test_a_process_that_cannot_be_spawned_ends_the_others(self):
        old = self.serving()
        spawn = self.reactor.spawnProcess

        def once(*args: Any, **kwargs: Any) -> Any:
            if len(self.reactor.processes) == 3:
                raise OSError(errno.EAGAIN, "no more processes")
            return spawn(*args, **kwargs)

        self.reactor.spawnProcess = once
        prepared = self.prepared(0, 1)
        self.turn()
        error = self.failureResultOf(prepared, OperationFailed).value
        self.assertIn("no more processes", str(error))
        self.assertTrue(self.workers()[2].killed)
        self.assert_as_before(old)

    def test_sockets_that_cannot_listen_end_them(self):
        old = self.serving()

        def fail(listening: Listening) -> None:
            raise OSError(errno.EADDRINUSE, "taken")

        self.patch(Listening, "listen", fail)
        prepared = self.prepared(0)
        (fresh,) = self.workers(since=2)
        fresh.ready()
        self.turn()
        self.failureResultOf(prepared, OSError)
        self.assertTrue(fresh.killed)
        self.assert_as_before(old)

    def test_fifty_failures_leave_nothing_open(self):
        self.serving()
        before = self.descriptors()
        for _ in range(50):
            prepared = self.prepared(0, 1)
            self.workers()[-1].failed(EXIT_APP, "no")
            self.turn()
            self.failureResultOf(prepared, OperationFailed)
        self.assertLessEqual(self.descriptors(), before)

    def test_a_server_that_stops_meanwhile_prepares_nobody(self):
        first, second = self.serving()
        prepared = self.prepared(0)
        (fresh,) = self.workers(since=2)
        stopped = self.fleet.stop(True)
        self.turn()
        self.assertEqual(fresh.told, [("stop", True, 9.0)])
        fresh.ready()
        for each in (first, second, fresh):
            each.die(0)
        self.failureResultOf(prepared, OperationFailed)
        self.successResultOf(stopped)

    def test_a_server_that_has_begun_to_stop_starts_nobody(self):
        self.serving(1)
        self.fleet.stop(True)
        for numbers in ((0,), ()):
            self.failureResultOf(self.prepared(*numbers), OperationFailed)
        self.assertEqual(len(self.workers()), 1)

    def test_a_worker_that_dies_meanwhile_is_replaced_by_one_of_its_own_generation(self):
        first, _ = self.serving()
        prepared = self.prepared(0, 1)
        first.die()
        self.turn()
        (replacement,) = self.workers(since=4)
        replacement.ready()
        self.turn()
        self.assertEqual(replacement.told, ["serve"])
        self.assertNoResult(prepared)
