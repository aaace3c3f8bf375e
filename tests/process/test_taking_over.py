"""Taking over: a new master becomes the master when all its workers can serve, or ends."""

from __future__ import annotations

import signal
import socket
from typing import Any

from twisted.internet.defer import Deferred, succeed

from ccserver.errors import StartError
from ccserver.process.control import ControlSocket
from ccserver.process.fleet import LOOK_AGAIN
from ccserver.process.moment import Moment
from ccserver.process.upgrade import Inheritance
from ccserver.process.worker import EXIT_APP, EXIT_START
from tests.ports import free_port
from tests.process.masters import MasterCase


class FakePredecessor:
    """An old master as the new one sees it."""

    def __init__(self) -> None:
        self.inheritance = Inheritance(40, 3, "")
        self.retired = 0
        self.gone: Moment[None] = Moment()
        self.take: Any = None
        self.counts: list[int] = []
        self.answer: Deferred[bool] = Deferred()
        self.refusals: list[str] = []
        self.told: Deferred[Any] = succeed(None)

    def attach(self, reactor: Any, take: Any) -> None:
        self.take = take

    def loaded(self, workers: int) -> Deferred[bool]:
        self.counts.append(workers)
        return self.answer

    def refuse(self, reason: str) -> Deferred[Any]:
        self.refusals.append(reason)
        return self.told

    def retire(self) -> None:
        self.retired += 1


class TakeOverCase(MasterCase):
    """The new master's part of an upgrade.

    @ivar same_path: its control socket has the path that the old master's has.
    """

    same_path = True

    def setUp(self) -> None:
        super().setUp()
        self.old = FakePredecessor()
        self.opened: list[Any] = []
        self.patch(ControlSocket, "open", lambda control, **how: self.opened.append(how))

    def begun(self, workers: int = 2) -> Any:
        old: Any = self.old
        made = self.made(workers, "", old)
        if self.same_path:
            self.old.inheritance = Inheritance(40, 3, self.settings.control.path)
        made.privilegedStartService()
        made.startService()
        self.reactor.advance(0)
        return self.workers()

    def taken_over(self, workers: int = 2) -> Any:
        spawned = self.begun(workers)
        for each in spawned:
            each.ready()
        self.turn()
        self.old.answer.callback(True)
        self.turn()
        return spawned


class TakeOverTests(TakeOverCase):
    def test_its_workers_have_numbers_and_a_generation_of_their_own(self):
        workers = self.begun()
        self.assertEqual([each.order.process_number for each in workers], [40, 41])
        self.assertEqual(self.master._fleet.generation, 3)

    def test_ready_they_wait_for_the_old_one_to_agree(self):
        first, second = self.begun()
        first.ready()
        self.assertEqual(self.old.counts, [])
        second.ready()
        self.turn()
        self.assertEqual(self.old.counts, [2])
        self.assertEqual([first.told, second.told, self.opened], [[], [], []])
        self.assertEqual(self.systemd.told, [])

    def test_then_they_serve_and_the_control_socket_is_taken_over(self):
        workers = self.taken_over()
        self.assertEqual([each.told for each in workers], [["serve"]] * 2)
        self.assertEqual(self.opened, [{"take_over": True}])
        self.assertEqual(self.systemd.told, ["ready"])
        self.assertIn("ready: 2 worker processes", self.said())

    def test_what_comes_from_the_old_one_goes_to_the_worker_of_that_slot(self):
        workers = self.taken_over()
        for slot in (0, 1, 2):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                taken = self.old.take(slot, theirs)
                self.turn()
                self.assertTrue(self.successResultOf(taken))
        self.assertEqual([each.told.count("take") for each in workers], [2, 1])

    def test_what_comes_while_nobody_serves_goes_to_who_serves_next(self):
        (first,) = self.taken_over(1)
        first.die(None, 9)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            taken = self.old.take(0, theirs)
            self.turn(5)
            self.assertNoResult(taken)
            (second,) = self.workers(since=1)
            second.ready()
            self.turn(LOOK_AGAIN)
            self.assertTrue(self.successResultOf(taken))
        self.assertEqual(second.told, ["serve", "take"])

    def test_but_not_for_ever(self):
        (first,) = self.taken_over(1)
        first.die(None, 9)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            taken = self.old.take(0, theirs)
            self.turn(19)
            self.assertNoResult(taken)
            self.turn(1.1)
            self.assertFalse(self.successResultOf(taken))

    def test_before_they_serve_nothing_is_taken(self):
        self.begun()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.assertFalse(self.successResultOf(self.old.take(0, theirs)))

    def test_when_the_old_one_has_gone_it_goes_on(self):
        self.taken_over()
        self.old.gone.happen(None)
        self.turn(5)
        self.assertEqual((self.exits, self.reactor.stops), ([], 0))

    def test_an_application_that_cannot_be_loaded_is_told_the_old_one(self):
        first, second = self.begun()
        first.ready()
        second.failed(EXIT_APP, "there is no module named x")
        self.turn()
        self.assertEqual(self.old.refusals, ["cannot start: there is no module named x"])
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_APP], 1))
        self.assertTrue(first.killed)
        self.assertEqual(self.opened, [])

    def test_its_end_waits_until_the_old_one_knows_why_but_not_for_ever(self):
        for patience, answered in ((0, True), (30, False)):
            self.old = FakePredecessor()
            self.old.told = Deferred()
            (each,) = self.begun(1)[-1:]
            each.failed(EXIT_APP, "there is no module named x")
            stopped = self.master.stopService()
            self.turn()
            self.assertNoResult(stopped)
            if answered:
                self.old.told.callback({})
            self.turn(patience)
            self.successResultOf(stopped)
            self.reactor.stops = 0
            self.ports = [free_port()]

    def test_an_old_one_that_does_not_agree_ends_it(self):
        for each in self.begun():
            each.ready()
        self.turn()
        self.old.answer.callback(False)
        self.old.gone.happen(None)
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_START], 1))
        self.assertIn("the old master has ended, or goes on without us", self.said())
        self.assertEqual([each.told for each in self.workers()], [[], []])

    def test_an_old_one_that_dies_while_they_load_ends_it_with_one_line(self):
        self.begun()
        self.old.gone.happen(None)
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_START], 1))
        stopped = self.master.stopService()
        for each in self.workers():
            each.die(0)
        self.turn()
        self.successResultOf(stopped)
        self.assertNotIn("the server is stopping", self.said())

    def test_a_control_socket_that_cannot_be_opened_does_not_end_it(self):
        def fail(control: Any, **how: Any) -> None:
            raise StartError("control socket: Permission denied")

        self.patch(ControlSocket, "open", fail)
        workers = self.taken_over()
        self.assertEqual([each.told for each in workers], [["serve"]] * 2)
        self.assertEqual(self.exits, [])
        self.assertIn("Permission denied", self.said())

    def test_told_to_stop_it_says_so_to_the_old_one(self):
        self.taken_over()
        self.send(signal.SIGTERM)
        self.master.stopService()
        self.assertEqual(self.old.retired, 1)

    def test_that_it_fails_is_no_such_end(self):
        self.taken_over()
        self.master.fail(EXIT_START, "no")
        self.master.stopService()
        self.assertEqual((self.old.retired, self.old.refusals), (0, ["no"]))
        self.assertIsNone(self.master._host.pid_file.path)

    def test_nor_is_it_before_it_is_the_master(self):
        self.begun()
        self.send(signal.SIGTERM)
        self.master.stopService()
        self.assertEqual(self.old.retired, 0)

    def test_a_configuration_without_workers_is_told_the_old_one(self):
        self.begun(0)
        self.turn()
        self.assertEqual(self.old.refusals, ["cannot start: WorkerProcesses = 0 needs a restart"])
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_START], 1))


class OtherControlTests(TakeOverCase):
    """The control socket of the new master has a path of its own."""

    same_path = False

    def test_it_is_opened_before_it_is_the_master_and_takes_nobodys(self):
        workers = self.begun()
        for each in workers:
            each.ready()
        self.turn()
        self.assertEqual((self.opened, self.old.counts), ([{}], [2]))
        self.old.answer.callback(True)
        self.turn()
        self.assertEqual(self.opened, [{}])
        self.assertEqual([each.told for each in workers], [["serve"]] * 2)

    def test_one_that_another_server_has_ends_it_and_the_old_one_goes_on(self):
        def fail(control: Any, **how: Any) -> None:
            raise StartError("another server is running")

        self.patch(ControlSocket, "open", fail)
        for each in self.begun():
            each.ready()
        self.turn()
        self.assertEqual(self.old.counts, [])
        self.assertEqual(self.old.refusals, ["cannot start: another server is running"])
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_START], 1))
