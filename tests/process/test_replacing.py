"""Replacing workers by others: as a transaction, with a hand-over, whoever dies meanwhile."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.defer import FirstError

from ccserver.process import link, transfers
from ccserver.process.ending import KILL_GRACE
from ccserver.process.fleet import LOOK_AGAIN
from ccserver.process.serving import HOOK_TIMEOUT
from ccserver.process.transfers import Leaver
from ccserver.process.workers import Handed
from tests.process.fleets import FleetCase
from tests.process.workers import FakeWorkerProcess


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
        self.assertEqual(self.fleet.transfers.moved, 80)
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
        self.assertEqual(self.fleet.transfers.left, {"tls": 6, "handler": 1})
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

    def test_what_a_target_has_no_room_for_another_takes(self):
        first, _second = self.serving()
        first.end.connections = 6
        first.end.answers = answers = [(4, {"target": 2}), (2, {})]
        done = self.replaced()
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(6, {}))
        self.assertEqual(answers, [])

    def test_where_nobody_has_room_that_is_why_they_stay(self):
        (first,) = self.serving(1)
        first.end.connections = 6
        first.end.answers = [(4, {"target": 2}), *[(0, {"target": 2})] * 9]
        done = self.replaced()
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(4, {"target": 2}))

    def test_a_target_that_is_silent_is_none_where_there_is_another(self):
        first, _second = self.serving()
        first.end.connections = 6
        prepared = self.prepared(0, 1)
        third, fourth = self.workers(since=2)
        third.ready()
        fourth.ready()
        third.end.holding.add("take")  # it is stopped
        done = self.committed(self.successResultOf(prepared), 2)
        for _ in range(22):
            self.turn(0.5)
            fourth.beat()
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(6, {}))
        self.assertEqual(third.told.count("take"), 1)

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

    def test_of_many_who_take_in_place_of_a_dead_one_each_gets_a_part(self):
        first, *_ = self.serving(8)
        first.end.connections = 80
        first.end.answers = [(0, {"channel": 80})]
        done = self.replaced(0)
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(80, {}))
        gave = [each[1] for each in first.told if each[0] == "give"]
        self.assertEqual(gave, [link.ALL, *[10] * 7, link.ALL])

    def test_a_hand_over_that_never_gets_on_comes_to_an_end(self):
        first, _ = self.serving()
        first.end.connections = 6
        first.end.answers = answers = [(0, {"channel": 6})] * 100
        done = self.replaced(0)
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(0, {"channel": 6}))
        self.assertEqual(len(answers), 100 - 1 - transfers.RETRIES)

    def resized_from(self, source: FakeWorkerProcess) -> Any:
        """A hand-over of a source to several targets, in which its link ends before it does."""
        process = self.fleet.places[0].worker
        others = [place.worker for place in self.fleet.places[1:]]
        done = self.begin(
            self.fleet.transfers.leave(
                [Leaver(process, others)], self.fleet.any_serving, self.progress.append
            )
        )
        self.turn()
        source.unlink()
        self.turn()
        return done


class FaultTests(FleetCase):
    """Connections cannot be handed over: who has them ends them, and goes."""

    def test_without_descriptors_for_channels_they_are_drained(self):
        def fail() -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        first, second = self.serving()
        first.end.connections = second.end.connections = 6
        prepared = self.prepared(0, 1)
        for each in self.workers(since=2):
            each.ready()
        self.patch(socket, "socketpair", fail)
        done = self.committed(self.successResultOf(prepared), 2)
        self.turn()
        self.assertEqual(self.successResultOf(done), Handed(0, {"channel": 12}))
        self.assertEqual([first.told[-1], second.told[-1]], [("stop", True, 9.0)] * 2)

    def test_a_bug_keeps_nobody_who_leaves(self):
        async def fail(*arguments: Any) -> None:
            raise ValueError("a bug")

        first, second = self.serving()
        first.end.connections = second.end.connections = 6
        self.patch(transfers, "hand_over", fail)
        done = self.replaced()
        self.turn()
        self.failureResultOf(done, FirstError)
        self.assertEqual([first.told[-1], second.told[-1]], [("stop", True, 9.0)] * 2)
        self.assertEqual(self.flushLoggedErrors(), [])
