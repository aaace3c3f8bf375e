"""Worker processes as the master sees them: what they are given, told, and what they answer."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import sys
from typing import Any

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Config
from ccserver.process import link, worker, workers
from ccserver.process.worker import EXIT_APP, EXIT_START, Order
from ccserver.process.workers import (
    GIVE_TIMEOUT,
    Handed,
    NotReady,
    WorkerOfMaster,
    WorkerState,
    ended,
)
from tests.ports import free_port
from tests.process.fleets import FleetCase
from tests.process.workers import lose_descriptors


class SpawnTests(FleetCase):
    def test_a_worker_is_python_without_the_current_folder_on_its_path(self):
        (each,) = self.started(1)
        self.assertEqual(each.process.args, (sys.executable, "-P", "-m", "ccserver.process.worker"))

    def test_it_has_the_environment_it_was_given(self):
        (each,) = self.started(1)
        self.assertEqual(each.process.env, {"A": "B"})

    def test_it_gets_just_the_descriptors_that_it_needs(self):
        self.ports.append(free_port())
        for each in self.started(2):
            self.assertEqual(sorted(each.process.given), [0, 1, 2, 3, 4, 5, 6, 7])

    def test_its_input_is_nothing_and_its_output_the_masters(self):
        (each,) = self.started(1)
        self.assertEqual(os.fstat(each.process.given[0]).st_rdev, os.stat(os.devnull).st_rdev)
        for fd in (1, 2):
            self.assertEqual(os.fstat(each.process.given[fd])[:3], os.fstat(fd)[:3])

    def test_its_link_ends_at_the_master(self):
        (each,) = self.started(1)
        with socket.socket(fileno=os.dup(each.process.given[worker.LINK_FD])) as end:
            end.send(b"hello")
        self.assertEqual(each.adopted.socket.recv(10), b"hello")

    def test_its_sockets_are_those_of_its_slot_in_the_order_of_the_addresses(self):
        self.ports.append(free_port())
        inodes = set()
        for each in self.started(2):
            for place, port in enumerate(self.ports):
                fd = each.process.given[worker.SOCKETS_FD + place]
                with socket.socket(fileno=os.dup(fd)) as listening:
                    self.assertEqual(listening.getsockname(), ("127.0.0.1", port))
                inodes.add(os.fstat(fd).st_ino)
        self.assertEqual(len(inodes), 4)

    def test_its_order_says_who_it_is_and_what_holds(self):
        self.made(2).log_level = 8
        self.fleet.start()
        config = self.fleet.config
        for number, each in enumerate(self.workers()):
            self.assertEqual(
                each.order,
                Order(config.text, config.path, config.base, number, number, True, 8),
            )

    def test_the_order_is_no_file_that_others_could_read(self):
        (each,) = self.started(1)
        found = os.fstat(each.process.given[worker.ORDER_FD])
        self.assertTrue(stat.S_ISREG(found.st_mode))
        self.assertEqual(found.st_nlink, 0)

    def test_signals_wait_until_the_worker_has_its_handlers(self):
        self.started(2)
        self.assertEqual(self.masks, [signal.SIG_BLOCK, signal.SIG_UNBLOCK] * 2)

    def test_the_master_keeps_no_end_of_the_workers(self):
        self.made(1)
        before = self.descriptors()
        self.fleet.start()
        (each,) = self.workers()
        copies = len(each.process.given) + 1  # of the fake child, and of the fake reactor
        copies += 1  # the board is on both sides
        self.assertLessEqual(self.descriptors(), before + copies)

    def test_no_two_have_the_same_number_also_after_those_of_an_old_master(self):
        self.made(2)._spawner.spawned = 40
        self.fleet.start()
        self.assertEqual([each.order.process_number for each in self.workers()], [40, 41])
        self.assertEqual(self.fleet.spawned, 42)


class FailedSpawnTests(FleetCase):
    def fail(self, *args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EAGAIN, "no more processes")

    def test_one_that_cannot_be_started_is_gone_and_says_why(self):
        self.made(1)
        self.reactor.spawnProcess = self.fail
        before = self.descriptors()
        self.fleet.start()
        self.assertEqual(self.fleet.workers, set())
        self.assertIn("no more processes", self.said())
        ((status, reason),) = self.owner.refusals
        self.assertEqual(status, worker.EXIT_START)
        self.assertIn("no more processes", reason)
        self.assertLessEqual(self.descriptors(), before)

    def test_without_a_descriptor_for_its_order_it_is_not_started(self):
        self.made(1)
        self.patch(os, "memfd_create", self.fail)
        self.fleet.start()
        self.assertEqual(self.reactor.processes, [])
        self.assertEqual(len(self.owner.refusals), 1)

    def test_one_that_runs_but_cannot_be_talked_to_is_killed_and_waited_for(self):
        self.made(1)
        self.reactor.adoptStreamConnection = self.fail
        self.fleet.start()
        (process,) = self.reactor.processes
        self.addCleanup(process.close)
        self.assertEqual(process.killed, [signal.SIGKILL])
        self.assertEqual((len(self.fleet.workers), self.owner.refusals), (1, []))
        process.end(None, signal.SIGKILL)
        self.assertEqual((len(self.fleet.workers), len(self.owner.refusals)), (0, 1))


class TalkTests(FleetCase):
    """What the master says to a worker, and hears from it."""

    def setUp(self) -> None:
        super().setUp()
        (self.other,) = self.started(1)
        (self.process,) = self.fleet.workers

    def answer(self, deferred: Any) -> Any:
        self.turn()
        return self.successResultOf(deferred)

    def test_it_starts_loads_and_serves(self):
        process = self.process
        self.assertIs(process.state, WorkerState.STARTING)
        loaded = process.loaded.wait()
        self.other.ready()
        self.successResultOf(loaded)
        self.assertIs(process.state, WorkerState.READY)
        self.turn()
        self.assertEqual(self.other.told, ["serve"])

    def test_one_that_ends_before_it_is_ready_has_said_why_or_not(self):
        loaded = self.process.loaded.wait()
        self.other.failed(EXIT_APP, "there is no module named x")
        error = self.failureResultOf(loaded, NotReady).value
        self.assertEqual((str(error), error.status), ("there is no module named x", EXIT_APP))

    def test_one_that_ends_without_a_word_is_told_of_by_how_it_ended(self):
        loaded = self.process.loaded.wait()
        self.other.die(None, signal.SIGSEGV)
        error = self.failureResultOf(loaded, NotReady).value
        self.assertEqual(str(error), "worker process 0 was killed by signal 11 (SIGSEGV)")
        self.assertEqual(error.status, EXIT_START)
        self.assertTrue(self.process.gone.over)

    def test_its_board_shows_how_it_is_and_nothing_is_said(self):
        self.assertEqual((self.process.figures, self.process.connections), ({}, 0))
        self.other.beat(connections=5, packets=100)
        self.assertEqual(self.process.figures, {"connections": 5, "packets": 100})
        self.other.beat(connections=7, packets=150)
        self.assertEqual((self.process.connections, self.process.figures["packets"]), (7, 150))
        self.assertEqual(self.owner.rooms, [])

    def test_it_says_whether_it_has_room(self):
        self.assertIsNone(self.process.full)
        for full in (False, True):
            self.other.beat(full=full)
            self.assertIs(self.process.full, full)
        self.assertEqual(self.owner.rooms, [self.process] * 2)

    def test_its_silence_is_the_time_since_its_start_or_its_last_beat(self):
        self.reactor.advance(3)
        self.assertEqual(self.process.silence, 3.0)
        self.other.beat()
        self.reactor.advance(1)
        self.assertEqual((self.process.silence, self.process.silent), (1.0, False))
        self.reactor.advance(1)
        self.assertEqual((self.process.silence, self.process.silent), (2.0, True))

    def test_what_it_had_on_its_board_outlives_it_and_the_file_does_not(self):
        self.other.beat(connections=5)
        before = self.descriptors()
        self.other.die()
        self.assertEqual(self.process.connections, 5)
        self.assertLess(self.descriptors(), before)
        self.assertIsNone(self.process.beat)

    def test_told_to_accept_no_more_it_says_how_many_it_has(self):
        self.other.ready()
        self.other.end.connections = 12
        stopped = self.process.stop_accepting()
        self.assertEqual(self.answer(stopped), 12)
        self.assertIs(self.process.state, WorkerState.LEAVING)

    def test_it_lists_its_connections_any_number_of_them(self):
        self.other.end.rows = [{"id": number, "peer": "x" * 50} for number in range(5000)]
        before = self.descriptors()
        self.assertEqual(self.answer(self.process.connection_rows()), self.other.end.rows)
        self.assertLessEqual(self.descriptors(), before)

    def test_without_a_descriptor_nothing_is_listed_and_nothing_sent(self):
        def fail(name: str) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        self.patch(os, "memfd_create", fail)
        self.assertEqual(self.answer(self.process.connection_rows()), [])
        self.assertEqual(self.other.told, [])
        self.assertIn("Too many open files", self.said())

    def test_a_list_that_could_not_be_written_is_an_empty_one(self):
        self.patch(link, "write_json", lambda fd, value: None)
        self.assertEqual(self.answer(self.process.connection_rows()), [])

    def test_it_kicks_whom_it_has(self):
        self.other.end.rows = [{"id": 7}]
        self.assertTrue(self.answer(self.process.kick(7)))
        self.assertFalse(self.answer(self.process.kick(8)))

    def test_it_is_lent_a_socket_as_a_descriptor_of_its_own(self):
        (listening,) = self.fleet.listening.of_slot(0)
        self.process.lend(3, "127.0.0.1:1", listening)
        self.process.give_back(3)
        self.turn()
        self.assertEqual(self.other.told, [("lend", 3, "127.0.0.1:1"), ("return", 3)])
        (lent,) = self.other.end.lent
        self.assertEqual(os.fstat(lent.fileno()).st_ino, os.fstat(listening.fileno()).st_ino)
        self.assertNotEqual(lent.fileno(), listening.fileno())

    def test_it_is_told_the_rest(self):
        self.process.set_log_level(3)
        self.process.reopen()
        self.process.stop(True, 7.0)
        self.turn()
        self.assertEqual(self.other.told, [("log level", 3), "reopen", ("stop", True, 7.0)])
        self.assertIs(self.process.state, WorkerState.STOPPING)

    def test_nor_without_a_descriptor_for_what_goes_with_a_command(self):
        lose_descriptors(self, self.other)
        self.other.beat(connections=9)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.assertFalse(self.answer(self.process.take(ours)))
            self.assertIsNone(self.answer(self.process.give(ours, 5)))
            self.assertFalse(self.answer(self.process.lend(1, "127.0.0.1:5678", ours)))
        self.assertEqual(self.answer(self.process.connection_rows()), [])
        self.assertIn("lists no connections: no file descriptor is left", self.said())
        self.assertTrue(self.process.linked)
        self.assertEqual(self.other.told, [])

    def test_without_a_link_every_question_has_an_answer(self):
        self.other.beat(connections=9)
        self.other.unlink()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = self.process
            self.assertEqual(self.answer(process.stop_accepting()), 0)
            self.assertFalse(self.answer(process.take(ours)))
            self.assertEqual(self.answer(process.give(ours, 5)), Handed(0, {"lost": 9}))
            self.assertEqual(self.answer(process.connection_rows()), [])
            self.assertFalse(self.answer(process.kick(1)))
            self.assertEqual(self.answer(process.reopen()), "")
            process.stop(True, 1.0)

    def test_a_question_on_the_way_when_the_link_ends_has_an_answer(self):
        self.other.end.holding.add("stop accepting")
        asked = self.process.stop_accepting()
        self.turn()
        self.assertNoResult(asked)
        self.assertTrue(self.process.linked)
        self.other.unlink()
        self.assertEqual(self.successResultOf(asked), 0)
        self.assertFalse(self.process.linked)

    def test_who_does_not_answer_is_not_waited_for_for_ever(self):
        self.other.ready()
        self.other.beat(connections=9)
        self.other.end.holding.update({"stop accepting", "take", "give", "list", "kick"})
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        with ours:
            process = self.process
            asked = [
                process.stop_accepting(),
                process.take(ours),
                process.give(ours, 5),
                process.connection_rows(),
                process.kick(1),
            ]
            self.turn(GIVE_TIMEOUT + 2 * process.config.process.handover_timeout + 1)
        answers = [self.successResultOf(each) for each in asked]
        self.assertEqual(answers, [9, False, Handed(0, {"lost": 9}), [], False])
        self.assertFalse(self.other.killed)

    def test_who_is_gone_gets_no_signals(self):
        self.other.die()
        self.process.kill()
        self.assertEqual(self.other.process.killed, [])


class StateTests(SynchronousTestCase):
    def test_ready_is_only_who_starts(self):
        process = WorkerOfMaster(0, 1, Config.parse(""), lambda: 0.0)
        process.state = WorkerState.STOPPING
        process.is_loaded()
        self.assertIs(process.state, WorkerState.STOPPING)
        self.assertFalse(process.loaded.over)

    def test_who_has_not_loaded_is_not_let_serve(self):
        process = WorkerOfMaster(0, 1, Config.parse(""), lambda: 0.0)
        process.serve()
        self.assertIs(process.state, WorkerState.STARTING)


class WordsTests(SynchronousTestCase):
    def test_the_command_is_the_worker_module(self):
        self.assertEqual(workers.COMMAND[-1], worker.__name__)

    def test_ends_in_words(self):
        for error, status, how in (
            (ProcessDone(0), 0, "exited with status 0"),
            (ProcessTerminated(4, None), 4, "exited with status 4"),
            (ProcessTerminated(None, 9), None, "was killed by signal 9 (SIGKILL)"),
            (ProcessTerminated(None, 35), None, "was killed by signal 35 (a real-time signal)"),
        ):
            self.assertEqual(ended(Failure(error)), (status, how))

    def test_what_all_means_is_no_number_of_connections(self):
        self.assertLess(link.ALL, 0)
