"""Administration: operators ask, and one thing after the other is done, told and logged."""

from __future__ import annotations

import resource
from typing import Any

from ccserver.core.balance import Move
from ccserver.errors import OperationFailed, StartError
from ccserver.process.worker import EXIT_APP
from ccserver.process.workers import WorkerOfMaster
from tests.process.fleets import AdministrationCase


def nobody(text: str) -> None:
    """The progress of what nobody waits for."""


class TurnTests(AdministrationCase):
    """Operations wait for each other."""

    def test_one_begins_when_the_one_before_is_over(self):
        administration = self.administered()
        reload = administration.reload(nobody)
        scaling = administration.set_workers(3, nobody)
        self.assertEqual(administration.doing, "reload")
        self.turn(1)
        self.assertEqual(len(self.workers()), 4)
        self.did(reload)
        self.assertEqual(administration.doing, "scaling")
        self.assertEqual(self.did(scaling)["workers"], 3)
        self.assertFalse(administration.busy)

    def test_one_that_fails_lets_the_next_begin(self):
        administration = self.administered()
        reload = administration.reload(nobody)
        scaling = administration.set_workers(3, nobody)
        self.workers()[-1].failed(EXIT_APP, "no")
        self.refusal(reload)
        self.assertEqual(self.did(scaling)["workers"], 3)

    def test_reloads_that_are_asked_for_while_one_waits_are_one(self):
        administration = self.administered()
        first = administration.reload(nobody)
        heard: list[list[str]] = [[], [], []]
        others = [administration.reload(each.append) for each in heard]
        self.did(first)
        self.assertEqual(self.fleet.generation, 2)
        results = [self.did(each) for each in others]
        self.assertEqual([each["generation"] for each in results], [3, 3, 3])
        self.assertEqual(len(self.workers()), 6)
        self.assertIn("starting 2 workers", heard[0])
        self.assertEqual(heard[0], heard[1])
        self.assertEqual(heard[0], heard[2])

    def test_a_reload_that_runs_already_is_not_shared_for_the_file_may_have_changed(self):
        administration = self.administered()
        first = administration.reload(nobody)
        self.write(3)
        second = administration.reload(nobody)
        self.assertEqual(self.did(first)["workers"], 2)
        self.assertEqual(self.did(second)["workers"], 3)

    def test_all_who_share_one_are_told_why_it_failed(self):
        administration = self.administered()
        first = administration.reload(nobody)
        others = [administration.reload(nobody) for _ in range(2)]
        self.write(0)
        self.did(first)
        for each in others:
            self.assertIn("WorkerProcesses", self.refusal(each))
        self.assertEqual(self.said().count("reload failed"), 1)

    def test_what_waits_when_the_server_stops_is_not_begun(self):
        administration = self.administered()
        upgrade = administration.upgrade(nobody)
        waiting = [
            administration.reload(nobody),
            administration.set_workers(3, nobody),
            administration.rebalance(nobody),
        ]
        administration.begin_stop()
        self.succession.done.errback(OperationFailed("no"))
        self.refusal(upgrade)
        for each in waiting:
            self.assertEqual(self.refusal(each), "the server is stopping")
        self.assertEqual(self.refusal(administration.reload(nobody)), "the server is stopping")
        self.assertEqual(len(self.workers()), 2)

    def test_a_bug_is_logged_with_its_traceback_and_ends_only_that(self):
        administration = self.administered()
        reload = administration.upgrade(nobody)
        self.succession.done.errback(ZeroDivisionError("a bug"))
        self.failureResultOf(reload, ZeroDivisionError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.did(administration.reload(nobody))["generation"], 2)

    def test_what_is_done_is_logged_with_its_result(self):
        administration = self.administered()
        self.workers()[0].end.connections = 7
        self.did(administration.reload(nobody))
        self.assertIn("reload done: generation 2, workers 2, handed_over 7", self.said())


class ScalingTests(AdministrationCase):
    def test_more_workers_serve_and_get_their_share_of_the_connections(self):
        administration = self.administered()
        for each in self.workers():
            each.beat(connections=30)
        result = self.did(administration.set_workers(3, nobody))
        self.assertEqual((result["workers"], result["handed_over"]), (3, 20))
        self.assertEqual(self.workers()[2].told[0], "serve")
        self.assertEqual(len(self.fleet.serving), 3)

    def test_fewer_workers_take_all_the_connections(self):
        administration = self.administered(3)
        self.workers()[2].end.connections = 9
        result = self.did(administration.set_workers(2, nobody))
        self.assertEqual((result["workers"], result["handed_over"]), (2, 9))
        self.assertEqual(self.fleet.config.process.workers, 2)

    def test_more_connections_than_those_that_stay_can_have_are_a_warning(self):
        administration = self.administered(3)
        for each in self.workers():
            each.beat(connections=1000)
        room = self.fleet.config.descriptors - self.fleet.config.net.worker_connections
        for limit, warnings in ((1500 + room, 0), (1499 + room, 1)):
            self.patch(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
            begun = administration.set_workers(2, nobody)
            self.assertEqual(self.said().count("3000 connections are too many"), warnings)
            self.assertEqual(len(self.did(begun)["warnings"]), warnings)
            self.did(administration.set_workers(3, nobody))
            for each, _ in self.by_process():
                each.beat(connections=1000)

    def test_a_worker_that_cannot_start_changes_nothing(self):
        administration = self.administered()
        before, descriptors = self.fleet.config, self.descriptors()
        scaling = administration.set_workers(4, nobody)
        self.workers()[-1].failed(EXIT_APP, "no")
        self.assertEqual(self.refusal(scaling), "no")
        self.assertEqual((len(self.fleet.places), self.fleet.config), (2, before))
        self.assertEqual(len(self.fleet.workers), 2)
        self.assertLessEqual(self.descriptors(), descriptors)

    def test_there_is_at_least_one(self):
        administration = self.administered()
        self.assertEqual(
            self.refusal(administration.set_workers(0, nobody)), "there is at least one worker"
        )

    def test_by_signal_one_more_or_less_but_one_at_least(self):
        administration = self.administered()
        self.assertEqual(self.did(administration.change_workers(1, nobody))["workers"], 3)
        for expected in (2, 1, 1):
            result = self.did(administration.change_workers(-1, nobody))
            self.assertEqual((result["workers"], len(self.fleet.serving)), (expected, expected))

    def test_changes_by_signal_count_from_what_is_there_in_their_turn(self):
        administration = self.administered()
        both = [administration.change_workers(1, nobody) for _ in range(2)]
        self.assertEqual([self.did(each)["workers"] for each in both], [3, 4])

    def test_a_level_that_was_set_by_hand_holds_for_the_new_ones(self):
        administration = self.administered()
        administration.set_log_level(8)
        self.did(administration.set_workers(3, nobody))
        self.assertEqual(self.workers()[2].order.log_level, 8)

    def test_a_port_that_cannot_be_opened_once_more_is_told_as_a_line(self):
        administration = self.administered()

        def fail(*args: Any) -> Any:
            raise StartError("cannot listen")

        self.patch(self.fleet.listening, "follow", fail)
        self.assertEqual(self.refusal(administration.set_workers(3, nobody)), "cannot listen")


class WorkerStopTests(AdministrationCase):
    """WINCH: all workers leave, the ports stay."""

    def test_all_leave_and_a_reload_brings_others(self):
        administration = self.administered()
        self.assertEqual(self.did(administration.stop_workers())["workers"], 0)
        for each in self.workers():
            self.assertEqual(each.told, ["serve", "stop accepting", ("stop", True, 9.0)])
            each.die(0)
        self.turn(5)
        self.assertEqual(len(self.workers()), 2)
        self.assertEqual(len(self.fleet.listening.of_slot(1)), 1)
        self.assertEqual(self.did(administration.reload(nobody))["workers"], 2)
        self.assertEqual([each.told for each in self.workers(since=2)], [["serve"]] * 2)

    def test_one_more_by_signal_brings_one(self):
        administration = self.administered()
        self.did(administration.stop_workers())
        self.assertEqual(self.did(administration.change_workers(1, nobody))["workers"], 1)

    def test_the_status_shows_them_until_they_have_gone(self):
        administration = self.administered()
        self.did(administration.stop_workers())
        rows = self.successResultOf(administration.status())["workers"]
        self.assertEqual([row["state"] for row in rows], ["stopping"] * 2)
        for each in self.workers():
            each.die(0)
        self.assertEqual(self.successResultOf(administration.status())["workers"], [])

    def test_meanwhile_the_server_is_paused(self):
        administration = self.administered()
        self.did(administration.stop_workers())
        self.assertEqual(self.successResultOf(administration.status())["state"], "paused")
        self.did(administration.reload(nobody))
        self.assertEqual(self.successResultOf(administration.status())["state"], "serving")


class MovingTests(AdministrationCase):
    def served_by(self, slot: int) -> WorkerOfMaster:
        """Who serves in a slot."""
        (process,) = [each for each in self.fleet.serving if each.slot == slot]
        return process

    def test_recycling_puts_a_new_worker_into_one_slot(self):
        administration = self.administered()
        first, second = self.workers()
        second.end.connections = 5
        result = self.did(administration.recycle(self.served_by(1), "max_age"))
        self.assertEqual(result["slot"], 1)
        self.assertEqual((first.told, second.told[-1]), (["serve"], ("stop", True, 9.0)))
        self.assertEqual(self.workers()[2].told, ["serve", "take"])
        self.assertIn("recycling of worker 1 (max_age) done", self.said())
        self.assertEqual(self.fleet.generation, 1)

    def test_a_recycling_that_fails_keeps_the_old_one(self):
        administration = self.administered()
        recycling = administration.recycle(self.served_by(1), "max_age")
        self.workers()[2].failed(EXIT_APP, "no")
        self.assertEqual(self.refusal(recycling), "no")
        self.assertEqual(self.workers()[1].told, ["serve"])

    def test_nobody_takes_the_place_of_who_has_left_it(self):
        administration = self.administered()
        process = self.served_by(1)
        self.workers()[1].die(0)
        self.turn()
        count = len(self.workers())
        recycling = administration.recycle(process, "signal")
        self.assertEqual(self.refusal(recycling), f"{process}, serves no more")
        self.assertEqual(len(self.workers()), count)

    def test_rebalancing_evens_out(self):
        administration = self.administered(3)
        for each, count in zip(self.workers(), (50, 10, 0), strict=True):
            each.beat(connections=count)
        result = self.did(administration.rebalance(nobody))
        self.assertEqual((result["handed_over"], result["left"]), (30, {}))
        self.assertEqual(self.workers()[0].end.connections, 20)

    def test_nothing_to_even_out_is_no_failure(self):
        result = self.did(self.administered().rebalance(nobody))
        self.assertEqual((result["handed_over"], result["left"]), (0, {}))
        self.assertTrue(self.said().endswith("rebalance done"), self.said())

    def test_moves_are_made_as_they_are_asked_for(self):
        administration = self.administered()
        self.workers()[0].end.connections = 10
        self.did(administration.shift([Move(0, 1, 3)]))
        self.assertEqual(self.workers()[0].told[1:], [("give", 3)])


class UpgradeTests(AdministrationCase):
    def test_when_the_new_master_has_taken_over_this_one_stops(self):
        administration = self.administered()
        upgrade = administration.upgrade(nobody)
        self.assertEqual((self.server.stops, administration.doing), ([], "upgrade"))
        self.take_over()
        self.assertEqual(self.did(upgrade)["pid"], 7)
        self.assertEqual(self.server.stops, [True])

    def take_over(self) -> None:
        """The new master has all."""
        self.succession.heir = 7
        self.succession.done.callback({"pid": 7})

    def test_what_waited_is_not_begun_by_who_is_not_the_master_any_more(self):
        administration = self.administered()
        upgrade = administration.upgrade(nobody)
        waiting = [administration.upgrade(nobody), administration.reload(nobody)]
        self.take_over()
        self.did(upgrade)
        for each in waiting:
            self.assertEqual(self.refusal(each), "process 7 is the master now: ask it")
        self.assertEqual((self.succession.begun, len(self.workers())), (1, 2))
        self.assertTrue(self.succession.stopped)

    def test_nor_where_the_hand_over_failed_it_has_to_end_all_the_same(self):
        administration = self.administered()
        upgrade = administration.upgrade(nobody)
        waiting = administration.upgrade(nobody)
        self.succession.heir = 7
        self.succession.done.errback(OperationFailed("no channels"))
        self.assertEqual(self.refusal(upgrade), "no channels")
        self.assertEqual(self.refusal(waiting), "process 7 is the master now: ask it")
        self.assertEqual(self.server.stops, [True])

    def test_a_stop_that_is_asked_for_lets_no_new_master_take_over(self):
        administration = self.administered()
        administration.upgrade(nobody)
        self.assertFalse(self.succession.stopped)
        administration.stop(True)
        self.assertTrue(self.succession.stopped)

    def test_when_it_fails_it_serves_on(self):
        administration = self.administered()
        upgrade = administration.upgrade(nobody)
        self.succession.done.errback(OperationFailed("the new master has no ports"))
        self.assertEqual(self.refusal(upgrade), "the new master has no ports")
        self.assertEqual(self.server.stops, [])
        self.assertIn("upgrade failed: the new master has no ports", self.said())


class RestTests(AdministrationCase):
    def test_the_level_of_the_log_holds_everywhere_and_for_those_who_come(self):
        set_everywhere = self.administered().set_log_level(8)
        self.assertNoResult(set_everywhere)
        self.turn()
        self.successResultOf(set_everywhere)
        self.assertEqual([each.told[-1] for each in self.workers()], [("log level", 8)] * 2)
        self.assertEqual((self.observer.level, self.fleet.log_level), (8, 8))
        self.assertIn("log level is debug now", self.said())
        self.workers()[0].die()
        self.turn()
        self.assertEqual(self.workers()[2].order.log_level, 8)

    def test_a_worker_that_does_not_answer_is_not_waited_for_for_ever(self):
        administration = self.administered()
        self.workers()[0].unlink()
        level_set = administration.set_log_level(8)
        self.turn()
        self.successResultOf(level_set)

    def test_all_workers_read_the_certificates_anew(self):
        told = self.administered().certificates()
        self.turn()
        self.assertEqual([each.told[-1] for each in self.workers()], ["certificates"] * 2)
        self.assertEqual(
            self.successResultOf(told), {"certificates": ["a until 2027", "b until 2028"]}
        )

    def test_certificates_that_one_worker_cannot_read_are_an_error(self):
        administration = self.administered()
        self.workers()[1].end.certificates = ("", "no key")
        told = administration.certificates()
        self.turn()
        self.assertEqual(str(self.failureResultOf(told, OperationFailed).value), "no key")

    def test_stop_and_reopen_are_the_server_s(self):
        administration = self.administered()
        for graceful in (True, False):
            self.successResultOf(administration.stop(graceful))
        self.successResultOf(administration.reopen())
        self.assertEqual((self.server.stops, self.server.reopened), ([True, False], 1))

    def test_they_do_not_wait_for_their_turn(self):
        administration = self.administered()
        upgrade = administration.upgrade(nobody)
        self.successResultOf(administration.stop(True))
        level_set = administration.set_log_level(3)
        self.turn()
        self.successResultOf(level_set)
        self.successResultOf(administration.status())
        self.assertNoResult(upgrade)
