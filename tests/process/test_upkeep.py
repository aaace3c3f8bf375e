"""Upkeep: who is blocked is replaced, who is due is recycled, and the rest is balanced."""

from __future__ import annotations

import random
from typing import Any

from ccserver.process import board
from ccserver.process.stacks import STACKS_SIGNAL
from ccserver.process.upkeep import GROUP_GRACE, RETRY, Upkeep
from ccserver.process.worker import EXIT_APP
from ccserver.process.workers import WorkerOfMaster, WorkerState
from tests.process.fleets import AdministrationCase, FakeOwner
from tests.process.workers import FakeWorkerProcess


class Tended(FakeOwner):
    """The owner of a fleet, as the master is: tells the upkeep."""

    upkeep: Upkeep | None = None

    def worker_ready(self, process: WorkerOfMaster, first: bool) -> None:
        super().worker_ready(process, first)
        if self.upkeep is not None:
            self.upkeep.serves(process)

    def worker_room(self, process: WorkerOfMaster) -> None:
        if self.upkeep is not None:
            self.upkeep.relieve()

    def worker_leaves(self, process: WorkerOfMaster) -> bool:
        return self.upkeep is not None and self.upkeep.leaves(process)

    def worker_gone(self, process: WorkerOfMaster) -> None:
        super().worker_gone(process)
        if self.upkeep is not None:
            self.upkeep.gone(process)


class UpkeepCase(AdministrationCase):
    def setUp(self) -> None:
        super().setUp()
        self.owner = Tended()
        self.silent: set[FakeWorkerProcess] = set()
        self.figures: dict[FakeWorkerProcess, dict[str, Any]] = {}

    def tended(self, workers: int = 2, more: str = "") -> list[FakeWorkerProcess]:
        """The workers of a fleet with an upkeep."""
        administration = self.administered(workers, more)
        self.upkeep = self.owner.upkeep = Upkeep(self.reactor, self.fleet, administration)
        self.upkeep.start()
        self.addCleanup(self.upkeep.stop)
        for process in self.fleet.serving:
            self.upkeep.serves(process)
        return self.workers()

    def live(self, seconds: float, step: float = 0.5) -> None:
        """Time passes, in which all but the silent beat; who starts is ready."""
        end = self.reactor.seconds() + seconds
        while end - self.reactor.seconds() > 1e-6:
            self.turn(step)
            for each, process in self.by_process():
                if each not in self.silent:
                    if process.state is WorkerState.STARTING:
                        each.ready()
                    each.beat(**self.figures.get(each, {}))
                if each.told and isinstance(each.told[-1], tuple) and each.told[-1][0] == "stop":
                    each.die(0)
        self.turn()


class BlockedTests(UpkeepCase):
    def test_who_gives_no_sign_of_life_is_replaced_once(self):
        first, second = self.tended(2, "WorkerTimeout = 4\n")
        self.live(2)
        self.silent.add(first)
        self.immortal.add(first)
        self.live(3.5)
        self.assertEqual(first.process.killed, [])
        self.live(1.5)
        self.assertEqual(first.process.killed[0], STACKS_SIGNAL)
        self.assertTrue(first.killed)
        self.live(20)
        self.assertEqual(len(self.workers()), 3)
        self.assertEqual(len(first.process.killed), 2)
        self.assertEqual(self.said().count("has given no sign of life"), 1)
        self.assertFalse(second.process.killed)

    def test_who_beats_is_left_alone(self):
        workers = self.tended(2, "WorkerTimeout = 2\n")
        self.live(60)
        self.assertEqual([each.process.killed for each in workers], [[], []])

    def test_without_a_timeout_nobody_is(self):
        (first,) = self.tended(1, "WorkerTimeout = 0\n")
        self.silent.add(first)
        self.live(600, step=10)
        self.assertEqual(first.process.killed, [])

    def test_the_masters_own_pause_is_forgiven(self):
        workers = self.tended(2, "WorkerTimeout = 4\n")
        self.live(3)
        self.reactor.advance(1000)  # the whole machine stood still, say
        self.live(3)
        self.assertEqual([each.process.killed for each in workers], [[], []])

    def test_all_were_stopped_and_beat_a_check_later_than_the_master_looks(self):
        workers = self.tended(2, "WorkerTimeout = 4\n")
        self.live(3)
        self.reactor.advance(1000)
        self.turn(2)
        self.live(3)
        self.assertEqual([each.process.killed for each in workers], [[], []])

    def noticed(self, worker: FakeWorkerProcess) -> float:
        """Seconds until it is found to be blocked; the others are not."""
        start = self.reactor.seconds()
        while STACKS_SIGNAL not in worker.process.killed:
            self.assertLess(self.reactor.seconds(), start + 60)
            self.live(1)
        others = [each for each in self.workers() if each is not worker]
        self.assertFalse(any(each.process.killed for each in others))
        return self.reactor.seconds() - start

    def test_who_is_blocked_when_the_master_wakes_up_gets_no_more_time_than_others(self):
        first, second = self.tended(2, "WorkerTimeout = 4\n")
        self.live(3)
        self.reactor.rightNow += 999.8  # they go on meanwhile
        for each in (first, second):
            each.board.write({})
        self.silent.add(first)
        self.assertLess(self.noticed(first), 7)

    def test_nor_does_he_where_the_clock_was_set(self):
        for hours in (1, -1):
            with self.subTest(hours=hours):
                first, second = self.tended(2, "WorkerTimeout = 4\n")
                self.live(3)
                for each in (first, second):
                    each.beat()
                self.silent.add(first)
                jump = 3600 * hours
                self.patch(board, "monotonic", lambda by=jump: self.reactor.seconds() - by)
                self.reactor.rightNow += jump
                for call in self.reactor.calls:
                    call.time += jump
                self.assertLess(self.noticed(first), 7)
                self.doCleanups()
                self.setUp()

    def leave_slowly(self, worker: FakeWorkerProcess) -> None:
        """A reload, in which one of two workers does not come to an end with what it has."""
        self.write(2, "WorkerTimeout = 4\n")
        worker.end.connections = 3
        worker.end.holding.add("give")
        self.begin(self.administration._reload(lambda text: None))
        for each in self.workers(since=2):
            each.ready()

    def test_who_leaves_and_beats_is_left_alone(self):
        first, _ = self.tended(2, "WorkerTimeout = 4\n")
        self.leave_slowly(first)
        self.live(30)
        self.assertEqual(first.process.killed, [])

    def test_a_replacement_is_watched_too(self):
        first, _ = self.tended(2, "WorkerTimeout = 4\n")
        self.silent.add(first)
        self.live(6)
        (replacement,) = self.workers(since=2)
        self.silent.add(replacement)
        self.live(8)
        self.assertIn(STACKS_SIGNAL, replacement.process.killed)

    def test_who_starts_is_not_watched_but_has_its_own_time(self):
        first, _ = self.tended(2, "WorkerTimeout = 4\n")
        first.die()
        self.turn()
        (replacement,) = self.workers(since=2)
        self.silent.add(replacement)
        self.live(15)
        self.assertEqual(replacement.process.killed, [])

    def test_who_is_gone_is_not_watched_any_more(self):
        first, _ = self.tended(2, "WorkerTimeout = 4\n")
        self.live(3)
        first.die()
        self.live(60)
        self.assertNotIn("has given no sign of life", self.said())

    def test_one_that_ended_between_ready_and_serving_is_not_watched(self):
        self.tended(1, "WorkerTimeout = 4\n")
        prepared = self.prepared(0)
        (fresh,) = self.workers(since=1)
        fresh.ready()
        fresh.die()
        self.committed(self.successResultOf(prepared), 1)
        self.live(60)
        self.assertNotIn("has given no sign of life", self.said())

    def test_each_is_measured_by_what_it_was_started_with(self):
        first, _ = self.tended(2, "WorkerTimeout = 100\n")
        self.leave_slowly(first)
        self.silent.add(first)
        self.live(20)
        self.assertEqual(first.process.killed, [])
        self.live(90)
        self.assertIn(STACKS_SIGNAL, first.process.killed)

    def test_stopped_it_leaves_them_alone(self):
        first, _ = self.tended(2, "WorkerTimeout = 4\n")
        self.upkeep.stop()
        self.silent.add(first)
        self.turn(60)
        self.assertEqual(first.process.killed, [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class RecyclingTests(UpkeepCase):
    def test_who_has_had_its_packets_is_replaced_and_hands_over(self):
        first, second = self.tended(2, "MaxRequests = 1000\n")
        first.end.connections = 5
        self.figures[first] = {"packets": 999, "connections": 5}
        self.live(5)
        self.assertEqual(len(self.workers()), 2)
        self.figures[first] = {"packets": 1000, "connections": 5}
        self.live(5)
        (replacement,) = self.workers(since=2)
        self.assertEqual(replacement.told, ["serve", "take"])
        self.assertTrue(first.process.ended)
        self.assertEqual(second.told, ["serve"])
        self.assertIn("recycling of worker 0 (max_requests) done", self.said())
        self.live(60)
        self.assertEqual(len(self.workers()), 3)

    def test_who_is_old_or_big_too(self):
        self.tended(1, "MaxWorkerAge = 30\n")
        self.live(29)
        self.assertEqual(len(self.workers()), 1)
        self.live(3)
        self.assertEqual(len(self.workers()), 2)
        self.assertIn("(max_age)", self.said())

    def test_too_much_memory(self):
        (first,) = self.tended(1, "MaxWorkerMemory = 100MiB\n")
        self.figures[first] = {"memory": 200 << 20}
        self.live(15)
        self.assertEqual(len(self.workers()), 2)
        self.assertIn("(max_memory)", self.said())

    def test_each_draws_its_own_jitter_once(self):
        drawn = iter((0.0, 0.99))
        self.patch(random, "random", lambda: next(drawn))
        first, second = self.tended(2, "MaxRequests = 1000\nMaxRequestsJitter = 100\n")
        for each in (first, second):
            self.figures[each] = {"packets": 1050}
        self.patch(random, "random", lambda: 0.0)
        self.live(10)
        self.assertTrue(first.process.ended)
        self.assertFalse(second.process.ended)

    def test_one_at_a_time(self):
        workers = self.tended(3, "MaxWorkerAge = 30\n")
        self.live(29)
        self.patch(self, "silent", SilentStarters(self))
        self.live(5)
        self.assertEqual(len(self.workers()), 4, "the second waits for the first")
        self.patch(self, "silent", set())
        self.live(20)
        self.assertEqual(len(self.workers()), 6)
        self.assertTrue(all(each.process.ended for each in workers))

    def test_one_that_fails_is_put_off_and_the_old_one_serves_on(self):
        (first,) = self.tended(1, "MaxWorkerAge = 30\n")
        self.live(29)
        self.turn(2)
        self.workers()[1].failed(EXIT_APP, "no")
        self.live(RETRY - 5)
        self.assertEqual(len(self.workers()), 2)
        self.assertEqual(first.told, ["serve"])
        self.live(10)
        self.assertEqual(len(self.workers()), 3)
        self.assertIn("recycling of worker 0 (max_age) failed: no", self.said())

    def test_another_that_is_due_waits_as_long_as_one_that_failed(self):
        self.tended(2, "MaxWorkerAge = 30\n")
        self.live(29)
        self.turn(2)
        self.workers()[2].failed(EXIT_APP, "no")
        self.live(RETRY - 5)
        self.assertEqual(len(self.workers()), 3)

    def test_not_while_an_operator_does_something(self):
        self.tended(1, "MaxWorkerAge = 30\n")
        self.administration.upgrade(lambda text: None)
        self.live(60)
        self.assertEqual(len(self.workers()), 1)


class LeaveTests(UpkeepCase):
    """A signal asks a worker to stop."""

    def test_it_is_replaced_first(self):
        first, second = self.tended()
        self.assertTrue(first.leave())
        self.assertEqual(first.told, ["serve"])
        self.live(5)
        (replacement,) = self.workers(since=2)
        self.assertIn("serve", replacement.told)
        self.assertEqual(first.told[-1][0], "stop")
        self.assertEqual(second.told, ["serve"])
        self.assertIn("recycling of worker 0 (signal) done", self.said())

    def test_asked_together_they_are_replaced_one_after_the_other(self):
        workers = self.tended(3)
        for each in workers:
            self.assertTrue(each.leave())
        self.live(10)
        self.assertEqual([each.told[-1][0] for each in workers], ["stop"] * 3)
        self.assertEqual(len(self.workers(since=3)), 3)

    def test_where_the_server_is_asked_to_stop_as_well_nobody_is_replaced(self):
        first, _ = self.tended()
        self.assertTrue(first.leave())
        self.turn(GROUP_GRACE / 2)
        self.upkeep._administration.begin_stop()
        self.live(5)
        self.assertEqual(len(self.workers()), 2)
        self.assertNotIn("recycling", self.said())

    def test_an_operation_that_goes_on_is_waited_for(self):
        first, _ = self.tended()
        self.upkeep._administration.doing = "upgrade"
        self.assertTrue(first.leave())
        self.live(5)
        self.assertEqual(len(self.workers()), 2)
        self.upkeep._administration.doing = ""
        self.live(5)
        self.assertEqual(first.told[-1][0], "stop")

    def test_one_that_is_replaced_meanwhile_is_not_replaced_again(self):
        first, _ = self.tended()
        self.assertTrue(first.leave())
        reloading = self.upkeep._administration.reload(lambda text: None)
        self.live(5)
        self.successResultOf(reloading)
        self.assertEqual(len(self.workers()), 4)
        self.assertNotIn("recycling", self.said())

    def test_one_that_hands_its_connections_over_or_stops_need_not_be(self):
        first, _ = self.tended()
        for state in (WorkerState.LEAVING, WorkerState.STOPPING):
            self.patch(self.fleet.places[0].worker, "state", state)
            self.assertTrue(first.leave())
            self.live(5)
            self.assertEqual(len(self.workers()), 2)

    def test_one_that_does_not_serve_yet_may_stop_by_itself(self):
        first, _ = self.tended()
        first.die()
        self.turn()
        (replacement,) = self.workers(since=2)
        self.assertFalse(replacement.leave())

    def test_where_no_other_can_start_it_stays(self):
        first, _ = self.tended()
        self.assertTrue(first.leave())
        while not self.workers(since=2):
            self.turn(0.5)
        (fresh,) = self.workers(since=2)
        fresh.failed(EXIT_APP, "no")
        self.turn()
        self.assertEqual(first.told, ["serve", "stay"])
        self.assertIn("recycling of worker 0 (signal) failed: no", self.said())
        self.live(5)
        self.assertEqual(len(self.workers()), 3)


class SilentStarters:
    """Whoever has not been told to serve."""

    def __init__(self, case: UpkeepCase) -> None:
        self._case = case

    def __contains__(self, each: FakeWorkerProcess) -> bool:
        return not each.told


class BalanceTests(UpkeepCase):
    def test_from_time_to_time_some_move_until_they_differ_little(self):
        first, second = self.tended(2, "RebalanceInterval = 10\n")
        first.end.connections, second.end.connections = 200, 0
        for _ in range(60):
            for each in (first, second):
                self.figures[each] = {"connections": each.end.connections}
            before = first.end.connections
            self.live(1, step=1)
            moved = before - first.end.connections
            second.end.connections += moved
            self.assertLessEqual(moved, 10, "5 % of all, at most, at a time")
        self.assertEqual(second.told[1:].count("take"), 5)

    def test_without_an_interval_none_do(self):
        first, second = self.tended(2, "RebalanceInterval = 0\n")
        self.figures[first] = {"connections": 200}
        self.live(100, step=1)
        self.assertEqual((first.told, second.told), (["serve"], ["serve"]))

    def test_one_that_fails_ends_nothing(self):
        first, _second = self.tended(2, "RebalanceInterval = 5\n")
        self.figures[first] = {"connections": 200}

        def fail(*args: Any) -> Any:
            raise ZeroDivisionError

        self.patch(self.fleet, "move", fail)
        self.live(12)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)


class FaultTests(UpkeepCase):
    def test_a_fault_does_not_end_it(self):
        self.tended(1, "MaxWorkerAge = 30\n")
        self.upkeep._rules = None
        self.live(5)
        self.assertGreaterEqual(len(self.flushLoggedErrors(AttributeError)), 4)
        self.upkeep._rules = {}
        self.live(5)
        self.assertEqual(self.flushLoggedErrors(), [])
