"""Connections that go to others: of slots that there are no more, of all, and of some."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred, FirstError, succeed

from ccserver.errors import OperationFailed
from ccserver.process import link, transfers
from ccserver.process.listening import STEER_GRACE, Listening
from ccserver.process.moment import Moment
from ccserver.process.workers import Handed
from tests.process.fleets import FleetCase
from tests.process.workers import FakeWorkerProcess


class FakeTarget:
    """A worker of another master."""

    def __init__(self, *answers: bool) -> None:
        """@param answers: the first ones to whether it takes; then it does."""
        self.gone: Moment[Any] = Moment()
        self.channels: list[socket.socket] = []
        self._answers = list(answers)

    def take(self, channel: socket.socket) -> Deferred[bool]:
        self.channels.append(channel.dup())
        return succeed(self._answers.pop(0) if self._answers else True)


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
        self.assertLessEqual(self.descriptors() - copies, before - 1)

    def test_a_bug_in_the_hand_over_leaves_nobody_steered(self):
        async def fail(*arguments: Any) -> None:
            raise ValueError("a bug")

        _, second = self.serving()
        second.end.connections = 5
        self.patch(transfers, "hand_over", fail)
        done = self.resized(1)
        self.turn(STEER_GRACE + 0.1)
        self.failureResultOf(done, FirstError)
        self.assertEqual([name for name, _, _ in self.steered], ["steer", "release", "unsteer"])

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

    def test_where_a_worker_of_the_new_master_dies_its_slot_is_tried_again(self):
        first, second = self.serving()
        first.end.connections = second.end.connections = 4
        second.end.answers = [(1, {"channel": 3}), (3, {})]
        targets = FakeTarget(False), FakeTarget()
        done = self.departed(*targets)
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(8, {}))
        for target in targets:
            for channel in target.channels:
                channel.close()

    def test_however_many_refuse_each_is_asked(self):
        (first,) = self.serving(1)
        first.end.connections = 4
        targets = [*(FakeTarget(False, False) for _ in range(5)), FakeTarget()]
        done = self.departed(*targets)
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(4, {}))
        for target in targets:
            for channel in target.channels:
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

    def test_nor_to_or_from_one_that_is_silent(self):
        first, second = self.serving()
        first.end.connections = 10
        self.turn(1)
        second.beat()
        self.turn(1)
        done = self.moved((0, 1, 4), (1, 0, 4))
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(0, {}))
        self.assertEqual((first.told, second.told), (["serve"], ["serve"]))

    def test_a_target_that_dies_leaves_those_where_they_are(self):
        first, second = self.serving()
        first.beat(connections=1000)
        second.end.holding.add("take")
        done = self.moved((0, 1, 4))
        self.turn()
        second.die()
        self.assertEqual(self.successResultOf(done), Handed(0, {"channel": 4}))
        self.assertEqual(first.told, ["serve"])
