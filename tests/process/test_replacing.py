"""Replacing workers by others: as a transaction, with a hand-over, whoever dies meanwhile."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.defer import Deferred, succeed

from ccserver.errors import OperationFailed
from ccserver.process import link
from ccserver.process.fleet import KILL_GRACE, LOOK_AGAIN
from ccserver.process.listening import STEER_GRACE, Listening
from ccserver.process.moment import Moment
from ccserver.process.serving import HOOK_TIMEOUT
from ccserver.process.worker import EXIT_APP
from ccserver.process.workers import Handed, WorkerState
from tests.process.workers import FakeWorkerProcess, FleetCase


class FakeTarget:
    """A worker of another master."""

    def __init__(self) -> None:
        self.gone: Moment[Any] = Moment()
        self.channels: list[socket.socket] = []

    def take(self, channel: socket.socket) -> Deferred[bool]:
        self.channels.append(channel.dup())
        return succeed(True)


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
        self.assertEqual(self.descriptors(), before)

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


class CommitTests(FleetCase):
    def test_the_new_serve_and_the_old_hand_over_slot_by_slot(self):
        first, second = self.serving()
        first.end.connections, second.end.connections = 30, 50
        done = self.replaced()
        self.turn()
        third, fourth = self.workers(since=2)
        gave = ["serve", "stop accepting", ("give", link.ALL), ("stop", True, 9.0)]
        self.assertEqual([first.told, second.told], [gave, gave])
        self.assertEqual([third.told, fourth.told], [["serve", "take"]] * 2)
        self.assertEqual(self.successResultOf(done), Handed(80, {}))
        self.assertEqual(self.fleet.handed_over, 80)
        for source, target in ((first, third), (second, fourth)):
            source.end.channels[0].sendall(b"connection")
            self.assertEqual(target.end.channels[0].recv(100), b"connection")

    def test_the_master_keeps_no_end_of_a_channel(self):
        first, _ = self.serving()
        first.end.connections = 3
        self.replaced(0)
        self.turn()
        first.end.channels[0].close()
        taken = self.workers()[-1].end.channels[0]
        self.assertEqual(taken.recv(1), b"")

    def test_old_and_new_are_known_until_the_old_have_gone(self):
        first, _ = self.serving()
        self.replaced(0)
        self.turn()
        self.assertEqual(len(self.fleet.workers), 3)
        first.die(0)
        self.assertEqual(len(self.fleet.workers), 2)
        self.turn(5)
        self.assertEqual(len(self.workers()), 3, "who has left is not replaced")

    def test_who_has_no_connections_just_leaves(self):
        first, _ = self.serving()
        done = self.replaced(0)
        self.turn()
        self.assertEqual(first.told, ["serve", "stop accepting", ("stop", True, 9.0)])
        self.assertEqual(self.successResultOf(done), Handed(0, {}))

    def test_what_cannot_move_is_told_by_reason_and_drained(self):
        first, second = self.serving()
        first.end.connections, first.end.stays = 30, {"tls": 4, "handler": 1}
        second.end.connections, second.end.stays = 8, {"tls": 2}
        done = self.replaced()
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(31, {"tls": 6, "handler": 1}))
        self.assertEqual(self.fleet.left, {"tls": 6, "handler": 1})
        self.assertIn("31 connections handed over, not: 1 handler, 6 tls", self.said())
        self.assertEqual(first.told[-1], ("stop", True, 9.0))

    def test_it_is_over_when_the_slowest_has_handed_over(self):
        first, second = self.serving()
        first.end.connections = second.end.connections = 5
        second.end.holding.add("give")
        done = self.replaced()
        self.turn(3)
        self.assertNoResult(done)
        self.assertNotIn(("stop", True, 9.0), second.told)
        second.die()
        self.successResultOf(done)

    def test_meanwhile_the_operator_hears_how_many_are_left(self):
        first, _ = self.serving()
        first.beat(connections=7)
        first.end.holding.add("give")
        self.replaced(0)
        self.turn(1)
        self.assertIn("handing over: 7 connections left", self.progress)

    def test_who_does_not_end_what_it_has_left_is_killed(self):
        first, _ = self.serving()
        self.replaced(0)
        self.turn(9 + HOOK_TIMEOUT + KILL_GRACE - 0.1)
        self.assertFalse(first.killed)
        self.turn(0.2)
        self.assertTrue(first.killed)
        self.assertIn("does not stop: killed", self.said())

    def test_a_slot_without_a_worker_is_filled_and_nobody_else_comes(self):
        first, _ = self.serving()
        for _ in range(3):
            first.die()
            self.turn()
            first = self.workers()[-1]
        spawned = len(self.workers())
        self.replaced(0)
        self.turn(5)
        self.assertEqual(len(self.workers()), spawned + 1)
        self.assertEqual(self.workers()[-1].told, ["serve"])

    def test_an_old_one_that_still_starts_leaves_too(self):
        first, _ = self.serving()
        first.die()
        self.turn()
        (starting,) = self.workers(since=2)
        self.replaced(0)
        self.turn()
        self.assertEqual(starting.told, ["stop accepting", ("stop", True, 9.0)])
        starting.ready()
        self.turn()
        self.assertNotIn("serve", starting.told)

    def test_the_owner_hears_of_those_who_serve(self):
        self.serving()
        self.replaced()
        self.assertEqual([each.generation for each, _ in self.owner.ready], [1, 1, 2, 2])
        self.assertEqual([first for _, first in self.owner.ready], [True, True, False, False])


class DeathTests(FleetCase):
    """Somebody dies during a hand-over: the connections of the living are kept."""

    def test_one_that_has_ended_since_it_was_ready_is_replaced_and_its_slot_goes_on(self):
        first, _second = self.serving()
        first.end.connections = 6
        prepared = self.prepared(0, 1)
        third, fourth = self.workers(since=2)
        third.ready()
        fourth.ready()
        third.die()
        done = self.committed(self.successResultOf(prepared), 2)
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(6, {}))
        self.assertIn("take", fourth.told)
        self.assertEqual([each.slot for each, _ in self.owner.ready], [0, 1, 1])
        (replacement,) = self.workers(since=4)
        self.assertEqual(replacement.order.slot, 0)
        self.assertEqual(self.owner.refusals, [])

    def test_a_target_that_dies_before_it_takes_another_takes(self):
        first, _second = self.serving()
        first.beat(connections=0)  # what it has said last may be long out of date
        first.end.connections = 6
        prepared = self.prepared(0, 1)
        third, fourth = self.workers(since=2)
        third.ready()
        fourth.ready()
        third.end.holding.add("take")
        done = self.committed(self.successResultOf(prepared), 2)
        self.turn()
        third.die()
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(6, {}))
        self.assertIn("take", fourth.told)
        self.assertEqual(first.told[-2:], [("give", link.ALL), ("stop", True, 9.0)])

    def test_a_target_that_dies_in_the_midst_of_it_another_takes_the_rest(self):
        first, _second = self.serving()
        first.end.connections = 6
        first.end.answers = answers = [(4, {"channel": 2}), (2, {})]
        done = self.replaced()
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(6, {}))
        self.assertEqual(answers, [])

    def test_all_targets_dead_and_nobody_else_they_stay_and_are_drained(self):
        (first,) = self.serving(1)
        first.end.connections = 6
        prepared = self.prepared(0)
        (second,) = self.workers(since=1)
        second.ready()
        second.end.holding.add("take")
        done = self.committed(self.successResultOf(prepared), 1)
        self.turn()
        second.die()
        self.turn(20.5)  # its replacements are not ready either
        self.assertEqual(self.successResultOf(done), Handed(0, {"channel": 6}))
        self.assertEqual(first.told[-1], ("stop", True, 9.0))

    def test_the_replacement_of_a_dead_target_takes_when_it_is_ready(self):
        (first,) = self.serving(1)
        first.end.connections = 6
        prepared = self.prepared(0)
        (second,) = self.workers(since=1)
        second.ready()
        second.end.holding.add("take")
        done = self.committed(self.successResultOf(prepared), 1)
        self.turn()
        second.die()
        self.turn()
        (third,) = self.workers(since=2)
        self.turn(5)
        self.assertNoResult(done)
        third.ready()
        self.turn(LOOK_AGAIN)
        self.assertEqual(self.successResultOf(done), Handed(6, {}))
        self.assertEqual(third.told, ["serve", "take"])

    def test_a_source_that_dies_before_it_has_stopped_ends_its_part(self):
        first, second = self.serving()
        second.end.connections = 5
        first.end.holding.add("stop accepting")
        done = self.replaced()
        self.turn(2)
        self.assertNoResult(done)
        first.die(None, 9)
        self.assertEqual(self.successResultOf(done), Handed(5, {}))
        self.turn(5)
        self.assertEqual(len(self.workers()), 4)

    def test_a_source_that_dies_while_it_gives_loses_what_it_had(self):
        first, second = self.serving()
        first.beat(connections=9)
        second.end.connections = 5
        first.end.holding.add("give")
        done = self.replaced()
        self.turn()
        first.die(None, 9)
        self.assertEqual(self.successResultOf(done), Handed(5, {"lost": 9}))

    def test_a_source_whose_link_ends_first_is_counted_once(self):
        (first, *_) = self.serving(3)
        first.beat(connections=9)
        first.end.holding.add("give")
        done = self.resized_from(first)
        self.assertEqual(self.successResultOf(done), Handed(0, {"lost": 9}))

    def resized_from(self, source: FakeWorkerProcess) -> Any:
        """A hand-over of a source to several targets, in which its link ends before it does."""
        process = self.fleet.places[0].worker
        others = [place.worker for place in self.fleet.places[1:]]
        done = self.begin(self.fleet._leave([(process, others)], self.progress.append))
        self.turn()
        source.unlink()
        self.turn()
        return done


class ShrinkTests(FleetCase):
    def setUp(self) -> None:
        super().setUp()
        self.steered: list[Any] = []
        for name in ("steer", "release", "unsteer"):
            self.note(name)

    def note(self, name: str) -> None:
        real = getattr(Listening, name)

        def noting(listening: Listening, *args: Any) -> None:
            self.steered.append((name, self.reactor.seconds(), [w.told[1:] for w in self.spawned]))
            real(listening, *args)

        self.patch(Listening, name, noting)

    spawned: tuple[FakeWorkerProcess, ...] = ()

    def test_nobody_comes_any_more_to_the_sockets_that_go_before_they_are_closed(self):
        self.spawned = tuple(self.serving(3))
        _, second, third = self.spawned
        second.end.connections, third.end.connections = 9, 5
        second.end.holding.add("give")
        done = self.resized(1)
        self.turn(STEER_GRACE - 0.1)
        self.assertEqual(self.steered, [("steer", 0.0, [[], [], []])])
        self.assertEqual(second.told, ["serve"])
        self.turn(0.2)
        self.assertEqual([name for name, _, _ in self.steered], ["steer", "release"])
        self.assertEqual(self.steered[1][2], [[], [], []], "those who leave stop accepting later")
        self.assertIn("stop accepting", second.told)
        self.assertNoResult(done)
        second.end.holding.clear()
        second.die()
        self.turn()
        self.successResultOf(done)
        self.assertEqual([name for name, _, _ in self.steered], ["steer", "release", "unsteer"])

    def test_those_who_leave_give_to_those_who_stay_in_even_parts(self):
        first, second, third = self.serving(3)
        third.end.connections = 9
        done = self.resized(2)
        self.turn(2)
        self.assertEqual(self.successResultOf(done), Handed(9, {}))
        self.assertEqual(third.told[2:4], [("give", 5), ("give", link.ALL)])
        self.assertEqual([first.told, second.told], [["serve", "take"]] * 2)
        self.assertEqual(len(self.fleet.places), 2)

    def test_who_leaves_is_not_replaced(self):
        _, second = self.serving()
        self.resized(1)
        self.turn(2)
        second.die(0)
        self.turn(5)
        self.assertEqual(len(self.workers()), 2)

    def test_the_sockets_of_those_who_leave_are_closed(self):
        self.serving()
        before = self.descriptors()
        self.resized(1)
        self.turn(2)
        copies = len(self.workers()[0].end.channels) + len(self.workers()[1].end.channels)
        self.assertEqual(self.descriptors() - copies, before - 1)

    def test_growing_starts_more_and_steers_nobody(self):
        self.serving()
        done = self.resized(4)
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(0, {}))
        self.assertEqual([each.told for each in self.workers()], [["serve"]] * 4)
        self.assertEqual([name for name, _, _ in self.steered], ["release"])

    def test_a_stop_while_it_is_steered_ends_everybody(self):
        first, second = self.serving()
        done = self.resized(1)
        self.turn(0.5)
        stopped = self.fleet.stop(True)
        self.turn(1)
        self.failureResultOf(done, OperationFailed)
        for each in (first, second):
            self.assertEqual(each.told[1], ("stop", True, 9.0))
            each.die(0)
        self.successResultOf(stopped)
        self.turn(30)
        self.assertEqual(len(self.workers()), 2)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_to_a_fleet_without_workers_they_come_as_at_the_start(self):
        for each in self.serving():
            each.end.connections = 0
        self.begin(self.fleet.depart([], self.progress.append))
        self.turn()
        done = self.resized(2)
        self.turn()
        self.successResultOf(done)
        self.assertEqual([each.told for each in self.workers(since=2)], [["serve"]] * 2)


class DepartTests(FleetCase):
    def departed(self, *targets: Any) -> Any:
        return self.begin(self.fleet.depart(targets, self.progress.append))

    def test_all_leave_and_nobody_comes(self):
        first, second = self.serving()
        first.end.connections = 5
        done = self.departed()
        self.turn()
        for each in (first, second):
            self.assertEqual(each.told, ["serve", "stop accepting", ("stop", True, 9.0)])
            each.die(0)
        self.turn(5)
        self.successResultOf(done)
        self.assertEqual((len(self.workers()), self.fleet.places), (2, []))

    def test_with_as_many_targets_slot_goes_to_slot(self):
        first, second = self.serving()
        first.end.connections = second.end.connections = 4
        targets = FakeTarget(), FakeTarget()
        done = self.departed(*targets)
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(8, {}))
        for source, target in zip((first, second), targets, strict=True):
            (channel,) = target.channels
            self.addCleanup(channel.close)
            source.end.channels[0].sendall(b"connection")
            self.assertEqual(channel.recv(100), b"connection")

    def test_with_more_targets_each_gives_to_all(self):
        (first,) = self.serving(1)
        first.end.connections = 4
        targets = FakeTarget(), FakeTarget()
        done = self.departed(*targets)
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(4, {}))
        for target in targets:
            (channel,) = target.channels
            channel.close()

    def test_targets_that_are_gone_take_nothing_and_it_ends_what_it_has(self):
        (first,) = self.serving(1)
        first.end.connections = 4
        target = FakeTarget()
        target.gone.happen(None)
        done = self.departed(target)
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(0, {"channel": 4}))
        self.assertEqual(target.channels, [])
        self.assertEqual(first.told[-1], ("stop", True, 9.0))


class MoveTests(FleetCase):
    def moved(self, *moves: tuple[int, int, int]) -> Any:
        return self.begin(self.fleet.move(moves, self.progress.append))

    def test_they_go_from_one_to_the_other_and_both_serve_on(self):
        first, second = self.serving()
        first.end.connections = 10
        done = self.moved((0, 1, 4))
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(4, {}))
        self.assertEqual(first.told, ["serve", ("give", 4)])
        self.assertEqual(second.told, ["serve", "take"])
        self.assertEqual(len(self.fleet.serving), 2)
        self.assertEqual(self.progress, ["handing 4 connections over, 0 to 1"])

    def test_one_after_the_other(self):
        first, second, third = self.serving(3)
        first.end.connections = 10
        first.end.holding.add("give")
        done = self.moved((0, 1, 2), (0, 2, 3))
        self.turn()
        self.assertEqual((second.told, third.told), (["serve", "take"], ["serve"]))
        first.die()
        self.turn()
        self.successResultOf(done)

    def test_to_or_from_somebody_who_does_not_serve_nothing_moves(self):
        first, _ = self.serving()
        done = self.moved((0, 7, 4), (7, 0, 4))
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(0, {}))
        self.assertEqual(first.told, ["serve"])

    def test_a_target_that_dies_leaves_those_where_they_are(self):
        first, second = self.serving()
        first.beat(connections=1000)
        second.end.holding.add("take")
        done = self.moved((0, 1, 4))
        self.turn()
        second.die()
        self.assertEqual(self.successResultOf(done), Handed(0, {"channel": 4}))
        self.assertEqual(first.told, ["serve"])
