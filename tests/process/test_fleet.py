"""The fleet: who dies is replaced, and who is to stop stops, or is killed."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

from ccserver.errors import OperationFailed
from ccserver.process import worker
from ccserver.process.ending import KILL_GRACE
from ccserver.process.fleet import STACKS_GRACE
from ccserver.process.logs import LEVELS, severity_of
from ccserver.process.serving import HOOK_TIMEOUT
from ccserver.process.stacks import STACKS_SIGNAL
from ccserver.process.worker import EXIT_APP, EXIT_CONFIG, EXIT_START
from ccserver.process.workers import WorkerState
from tests.ports import free_port
from tests.process.fleets import FleetCase
from tests.process.workers import FakeWorkerProcess
from tests.support import texts


class StartTests(FleetCase):
    def levels(self, words: str) -> list[str]:
        """The levels of what is logged with C{words} in it."""
        found = [each for each in self.events if words in texts([each])[0]]
        return [LEVELS[severity_of(each)] for each in found]

    def test_who_is_ready_serves_at_once(self):
        first, second = self.started()
        first.ready()
        self.turn()
        self.assertEqual((first.told, second.told), (["serve"], []))
        self.assertEqual([each.slot for each in self.fleet.serving], [0])
        self.assertFalse(self.fleet.was_ready)
        second.ready()
        self.assertTrue(self.fleet.was_ready)

    def test_the_owner_is_told_of_each_and_that_it_is_the_first(self):
        self.serving()
        self.assertEqual([(each.slot, first) for each, first in self.owner.ready], [(0, 1), (1, 1)])

    def test_one_that_is_not_ready_in_time_is_killed(self):
        first, second = self.started()
        first.ready()
        self.turn(19.9)
        self.assertFalse(second.killed)
        self.turn(0.2)
        self.assertTrue(second.killed)
        ((status, reason),) = self.owner.refusals
        self.assertEqual(status, EXIT_START)
        self.assertIn("was not ready within 20 s", reason)
        self.assertFalse(first.killed)

    def test_an_application_that_cannot_be_loaded_is_status_4(self):
        (each,) = self.started(1)
        each.failed(EXIT_APP, "there is no module named x")
        self.assertEqual(
            self.owner.refusals, [(EXIT_APP, "cannot start: there is no module named x")]
        )

    def test_any_other_reason_is_status_3(self):
        for status, number, how in (
            (EXIT_START, None, "exited with status 3"),
            (1, None, "exited with status 1"),  # Python's own, where it has said nothing
            (EXIT_APP, None, "exited with status 4"),
            (None, 11, "was killed by signal 11 (SIGSEGV)"),
        ):
            self.ports = [free_port()]
            each = self.started(1)[-1]
            each.die(status, number)
            expected = (EXIT_START, f"cannot start: worker process 0 {how}")
            self.assertEqual(self.owner.refusals.pop(), expected)

    def test_who_says_why_leaves_it_to_others_to_tell(self):
        (each,) = self.started(1)
        each.failed(EXIT_CONFIG, "AppPath: the folder a cannot be read")
        ((status, reason),) = self.owner.refusals
        self.assertEqual(status, EXIT_CONFIG)
        self.assertEqual(reason, "cannot start: AppPath: the folder a cannot be read")
        self.assertEqual(self.levels("exited with status 1"), ["notice"])
        self.assertNotIn("AppPath", "".join(texts(self.events)))

    def test_it_is_told_where_nobody_waits_for_it(self):
        (first,) = self.serving(1)
        first.die(None, signal.SIGSEGV)
        self.turn()
        self.workers()[-1].failed(EXIT_APP, "no module x")
        self.assertEqual(self.owner.refusals, [])
        self.assertEqual(self.levels("cannot start: no module x"), ["alert"])

    def test_nobody_is_replaced_who_never_could_start(self):
        (each,) = self.started(1)
        each.die()
        self.turn(60)
        self.assertEqual(len(self.workers()), 1)

    def test_a_crash_of_one_that_served_does_not_end_the_start_of_the_others(self):
        first, second = self.started()
        first.ready()
        first.die(None, signal.SIGSEGV)
        self.turn()
        self.assertEqual((self.owner.refusals, len(self.workers())), ([], 3))
        second.ready()
        self.assertTrue(self.fleet.was_ready)


class RespawnTests(FleetCase):
    def test_a_worker_that_dies_is_replaced_at_once(self):
        first, _ = self.serving()
        first.die(None, signal.SIGKILL)
        self.turn()
        self.assertEqual(len(self.workers()), 3)
        self.assertIn("worker process 0, pid 1000, was killed by signal 9 (SIGKILL)", self.said())

    def test_its_replacement_has_the_same_sockets_and_its_own_number(self):
        first, _ = self.serving()
        inode = os.fstat(first.process.given[worker.SOCKETS_FD]).st_ino
        first.die()
        self.turn()
        (replacement,) = self.workers(since=2)
        self.assertEqual(os.fstat(replacement.process.given[worker.SOCKETS_FD]).st_ino, inode)
        self.assertEqual((replacement.order.slot, replacement.order.process_number), (0, 2))

    def test_it_serves_when_it_is_ready_and_is_not_the_first(self):
        self.serving()[0].die()
        self.turn()
        (replacement,) = self.workers(since=2)
        replacement.ready()
        self.turn()
        self.assertEqual(replacement.told, ["serve"])
        self.assertEqual(self.owner.ready[-1][1], False)

    def test_who_dies_quickly_is_replaced_ever_more_slowly(self):
        (each,) = self.serving(1)
        delays = []
        for _ in range(6):
            died, spawned = self.reactor.seconds(), len(self.workers())
            each.die()
            self.reactor.advance(0)
            while len(self.workers()) == spawned:
                self.reactor.advance(0.05)
            delays.append(round(self.reactor.seconds() - died, 2))
            (each,) = self.workers(since=spawned)
            each.ready()
        for delay, expected in zip(delays, (0, 0.1, 0.2, 0.4, 0.8, 1.6), strict=True):
            self.assertApproximates(delay, expected, 0.06)

    def test_who_served_a_while_is_replaced_at_once_again(self):
        (each,) = self.serving(1)
        for _ in range(5):
            self.reactor.advance(3)
            spawned = len(self.workers())
            each.die()
            self.turn()
            (each,) = self.workers(since=spawned)
            each.ready()

    def test_a_replacement_that_cannot_start_is_tried_again(self):
        self.serving()[0].die()
        self.turn()
        self.workers(since=2)[0].failed(EXIT_APP, "broken meanwhile")
        self.turn(0.2)
        self.assertEqual((self.owner.refusals, len(self.workers())), ([], 4))

    def test_a_replacement_that_cannot_be_spawned_is_tried_again(self):
        first, _ = self.serving()
        spawn = self.reactor.spawnProcess
        faults = [OSError(errno.EAGAIN, "no more processes")]

        def sometimes(*args: Any, **kwargs: Any) -> Any:
            if faults:
                raise faults.pop()
            return spawn(*args, **kwargs)

        self.reactor.spawnProcess = sometimes
        first.die()
        self.turn(1)
        self.assertEqual((self.owner.refusals, len(self.workers())), ([], 3))
        self.assertIn("no more processes", self.said())

    def test_a_replacement_that_hangs_is_killed_and_tried_again(self):
        self.serving()[0].die()
        self.turn(20.5)
        (hanging, next_one) = self.workers(since=2)
        self.assertTrue(hanging.killed)
        self.assertFalse(next_one.process.ended)
        self.assertIn("was not ready within 20 s: killed", self.said())


class StopTests(FleetCase):
    def test_all_are_told_also_who_still_starts(self):
        first, second = self.started()
        first.ready()
        self.fleet.stop(True)
        self.turn()
        self.assertEqual(first.told, ["serve", ("stop", True, 9.0)])
        self.assertEqual(second.told, [("stop", True, 9.0)])

    def test_at_once_is_told_as_such(self):
        (each,) = self.serving(1)
        self.fleet.stop(False)
        self.turn()
        self.assertEqual(each.told[1:], [("stop", False, 0.0)])

    def test_it_is_over_when_the_last_one_has_gone(self):
        first, second = self.serving()
        stopped = self.fleet.stop(True)
        first.die(0)
        self.assertNoResult(stopped)
        second.die(0)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(len(self.owner.gone), 2)

    def test_without_workers_it_is_over_at_once(self):
        self.successResultOf(self.made().stop(True))

    def test_nobody_is_replaced_and_nobody_who_was_to_be(self):
        first, second = self.serving()
        for _ in range(2):
            first.die()
            self.turn()
            first = self.workers()[-1]
        self.assertTrue(self.reactor.getDelayedCalls(), "it is to be replaced in a moment")
        self.fleet.stop(True)
        second.die(1)
        self.turn(5)
        self.assertEqual(len(self.workers()), 3)

    def test_a_fleet_that_is_stopped_first_starts_nobody(self):
        self.made().stop(True)
        self.fleet.start()
        self.assertEqual(self.workers(), [])

    def test_who_gives_no_sign_of_life_when_his_time_is_over_is_killed(self):
        first, second = self.serving()
        stopped = self.fleet.stop(True)
        first.die(0)
        self.turn(9 + KILL_GRACE - 0.1)
        self.assertFalse(second.killed)
        self.turn(0.2)
        self.assertTrue(second.killed)
        self.assertIn("worker process 1, pid 1001, does not stop: killed", self.said())
        self.successResultOf(stopped)

    def test_who_runs_his_stop_hooks_has_more_time(self):
        self.serving(1)
        (each,) = self.workers()
        stopped = self.fleet.stop(True)
        for _ in range(int(9 + HOOK_TIMEOUT + KILL_GRACE) - 1):
            each.beat()
            self.turn(1.0)
            self.assertFalse(each.killed)
        each.beat()
        self.turn(1.1)
        self.assertTrue(each.killed)
        self.successResultOf(stopped)

    def test_hastened_it_stops_at_once(self):
        (each,) = self.serving(1)
        self.fleet.stop(True)
        self.turn(1)
        self.fleet.hasten()
        self.turn()
        self.assertEqual(each.told[1:], [("stop", True, 9.0), ("stop", False, 0.0)])
        self.turn(KILL_GRACE + 0.1)
        self.assertTrue(each.killed)

    def test_haste_that_is_repeated_does_not_put_the_end_off(self):
        (each,) = self.serving(1)
        self.fleet.stop(True)
        for _ in range(10):
            self.turn(0.3)
            self.fleet.hasten()
        self.assertTrue(each.killed)

    def test_one_whose_link_is_gone_is_waited_for(self):
        (each,) = self.serving(1)
        each.unlink()
        stopped = self.fleet.stop(True)
        self.turn(1)
        self.assertNoResult(stopped)
        each.process.end(0)
        self.successResultOf(stopped)

    def test_an_asked_for_end_is_no_alert(self):
        (each,) = self.serving(1)
        self.fleet.stop(True)
        each.die(0)
        (line,) = [event for event in self.events if "exited" in str(event.get("how"))]
        self.assertNotIn("critical", str(line["log_level"]))


class StoppingTests(FleetCase):
    """A worker that stops by itself."""

    def stopping(self) -> FakeWorkerProcess:
        spawned = self.serving(2)
        self.live(5)
        self.immortal.add(spawned[0])
        spawned[0].stops()
        self.turn()
        return spawned[0]

    def live(self, seconds: float) -> None:
        """Time in which all beat, so that who ends has served for long."""
        for _ in range(int(seconds)):
            for each in self.workers():
                each.beat()
            self.turn(1.0)

    def test_it_is_replaced_at_once_and_ends_what_it_has(self):
        old = self.stopping()
        (replacement,) = self.workers(since=2)
        self.assertEqual(replacement.order.slot, 0)
        replacement.ready()
        self.assertIn("serve", replacement.told)
        self.assertFalse(old.killed)
        old.die(0)
        self.turn()
        self.assertEqual(len(self.workers()), 3)

    def test_one_that_does_not_end_is_killed(self):
        old = self.stopping()
        self.assertEqual(old.told[-1][:2], ("stop", True))
        self.turn(self.fleet.config.process.shutdown_timeout + HOOK_TIMEOUT + KILL_GRACE + 0.1)
        self.assertTrue(old.killed)

    def test_one_that_was_to_take_another_place_is_not_ready(self):
        self.serving(2)
        prepared = self.prepared(0, 1)
        first, second = self.workers(since=2)
        first.ready()
        first.stops()
        second.ready()
        self.turn()
        failure = self.failureResultOf(prepared, OperationFailed)
        self.assertIn("was asked to stop", str(failure.value))
        self.assertEqual([each.told[-1] for each in self.workers()[:2]], ["serve"] * 2)

    def test_nor_does_it_serve_if_it_stops_when_it_is_to_begin(self):
        self.serving(1)
        prepared = self.prepared(0)
        (fresh,) = self.workers(since=1)
        fresh.ready()
        (process,) = self.successResultOf(prepared)
        fresh.stops()
        self.committed([process], 1)
        self.turn()
        self.assertNotIn("serve", fresh.told)
        self.assertEqual(len(self.workers()), 3)

    def test_meanwhile_another_accepts_for_it(self):
        self.stopping()
        self.assertIn("lend", [each[0] for each in self.workers()[1].told])

    def test_its_end_is_no_alert(self):
        old = self.stopping()
        old.die(0)
        self.turn()
        self.assertIn("exited with status 0", self.said())
        self.assertNotIn("alert", {LEVELS[severity_of(event)] for event in self.events})


class BlockedTests(FleetCase):
    """A worker whose reactor gives no sign of life."""

    def blocked(self, workers: int = 3) -> list[FakeWorkerProcess]:
        """Workers of which the first is blocked."""
        spawned = self.serving(workers)
        (process,) = [each for each in self.fleet.workers if each.slot == 0]
        self.immortal.add(spawned[0])
        self.process = process
        self.fleet.replace_blocked(process, 31.0)
        return spawned

    def test_its_stacks_are_asked_for_and_then_it_is_killed(self):
        first, *_ = self.blocked()
        self.turn()
        self.assertEqual(first.process.killed, [STACKS_SIGNAL])
        self.turn(STACKS_GRACE - 0.05)
        self.assertFalse(first.killed)
        self.turn(0.1)
        self.assertEqual(first.process.killed, [STACKS_SIGNAL, signal.SIGKILL])
        self.assertIn("has given no sign of life for 31.0 seconds", self.said())
        self.assertIs(self.process.state, WorkerState.BLOCKED)

    def test_several_write_their_stacks_one_after_the_other(self):
        spawned = self.serving(3)
        self.immortal.update(spawned)
        for process in self.fleet.serving:
            self.fleet.replace_blocked(process, 31.0)
        asked = []
        for _ in range(3):
            self.turn()
            asked.append([bool(each.process.killed) for each in spawned])
            self.turn(STACKS_GRACE + 0.1)
        self.assertEqual(asked, [[True, False, False], [True, True, False], [True, True, True]])
        self.assertTrue(all(each.killed for each in spawned))

    def test_it_is_replaced_before_it_has_ended(self):
        self.blocked()
        self.turn()
        (replacement,) = self.workers(since=3)
        self.assertEqual(replacement.order.slot, 0)

    def test_meanwhile_who_has_fewest_connections_accepts_from_its_sockets(self):
        self.ports.append(free_port())
        _, second, third = spawned = self.serving(3)
        second.beat(connections=5)
        third.beat(connections=4)
        (process,) = [each for each in self.fleet.workers if each.slot == 0]
        self.fleet.replace_blocked(process, 31.0)
        self.turn()
        addresses = [("lend", 0, f"127.0.0.1:{port}") for port in self.ports]
        self.assertEqual((second.told[1:], third.told[1:]), ([], addresses))
        for place, lent in enumerate(third.end.lent):
            mine = self.fleet.listening.of_slot(0)[place]
            self.assertEqual(os.fstat(lent.fileno()).st_ino, os.fstat(mine.fileno()).st_ino)
        self.assertTrue(spawned[0].killed is False)

    def test_it_gives_them_back_when_the_replacement_serves(self):
        _, second, _ = self.blocked()
        self.turn()
        self.assertEqual([each[0] for each in second.told[1:]], ["lend"])
        (replacement,) = self.workers(since=3)
        replacement.ready()
        self.turn()
        self.assertEqual(second.told[2:], [("return", 0)])
        self.assertEqual(replacement.told, ["serve"])

    def test_its_end_is_an_alert_and_vacates_nothing_any_more(self):
        first, *_ = self.blocked()
        self.turn()
        first.die(None, signal.SIGKILL)
        self.turn(5)
        self.assertEqual(len(self.workers()), 4)
        self.assertEqual(self.fleet.places[0].slot.restarts, 1)

    def test_one_that_ends_by_itself_is_not_killed_any_more(self):
        first, *_ = self.blocked()
        self.turn()
        first.die(None, signal.SIGSEGV)
        self.turn(5)
        self.assertEqual(first.process.killed, [STACKS_SIGNAL])

    def test_who_has_borrowed_and_is_blocked_too_lends_them_on(self):
        _, second, third = self.blocked()
        self.turn()
        (process,) = [each for each in self.fleet.workers if each.slot == 1]
        self.immortal.add(second)
        self.fleet.replace_blocked(process, 31.0)
        self.turn()
        self.assertEqual(sorted(each[1] for each in third.told[1:]), [0, 1])

    def test_the_only_one_has_nobody_to_lend_to(self):
        (first,) = self.blocked(1)
        self.turn(1)
        self.assertTrue(first.killed)
        self.assertEqual(len(self.workers()), 2)

    def test_a_lender_that_dies_is_told_nothing_when_the_replacement_comes(self):
        _, second, _ = self.blocked()
        self.turn()
        second.die()
        self.turn()
        self.workers(since=3)[0].ready()
        self.turn()
        self.assertNotIn(("return", 0), second.told)

    def test_a_slot_that_is_taken_away_meanwhile_is_lent_no_more(self):
        spawned = self.serving(2)
        (process,) = [each for each in self.fleet.workers if each.slot == 1]
        self.fleet.replace_blocked(process, 31.0)
        self.turn()
        self.assertEqual(spawned[0].told[1][0], "lend")
        self.resized(1)
        self.turn(2)
        self.assertIn(("return", 1), spawned[0].told)
