"""Succession: an old master lets a new one take over, or goes on as before."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from ccserver.errors import OperationFailed, StartError
from ccserver.process.control import ControlSocket
from ccserver.process.host import Host
from ccserver.process.moment import Moment
from ccserver.process.pidfile import PidFile
from ccserver.process.succession import START_GRACE, Succession
from ccserver.process.upgrade import Inheritance
from ccserver.process.worker import EXIT_APP, EXIT_START
from tests.process.fleets import FakeSystemd, FleetCase
from tests.process.masters import MasterCase
from tests.process.test_listening import free_port


class SuccessionCase(FleetCase):
    """The old master's part of an upgrade."""

    def setUp(self) -> None:
        super().setUp()
        self.systemd = FakeSystemd()
        self.pid_path = os.path.join(self.folder, "twistd.pid")
        with open(self.pid_path, "w") as file:
            file.write(str(os.getpid()))
        self.options = {"pidfile": self.pid_path}
        systemd: Any = self.systemd
        host = Host(systemd, PidFile(self.options))
        self.succession = Succession(self.reactor, host, "/srv")
        self.successors: list[FakeSuccessor] = []
        case = self

        def make() -> Any:
            case.successors.append(FakeSuccessor())
            return case.successors[-1]

        self.patch(sys.modules[Succession.__module__], "Successor", make)

    def upgraded(self) -> Any:
        return self.begin(self.succession.upgrade(self.fleet, self.progress.append))

    def files(self) -> list[str]:
        return sorted(name for name in os.listdir(self.folder) if "pid" in name)


class FakeSuccessor:
    """A new master as L{Succession} sees it."""

    def __init__(self) -> None:
        self.pid: int | None = 4711
        self.loaded: Moment[int] = Moment()
        self.accepted: Moment[None] = Moment()
        self.gone: Moment[None] = Moment()
        self.started: tuple[Any, ...] = ()
        self.withdrawn = 0
        self.channels: list[tuple[int, socket.socket]] = []
        self.error: Exception | None = None

    def start(self, *arguments: Any) -> None:
        self.started = arguments
        if self.error is not None:
            raise self.error

    def slots(self, count: int) -> list[Any]:
        return [FakeSlot(self, number) for number in range(count)]

    def withdraw(self) -> None:
        self.withdrawn += 1


class FakeSlot:
    def __init__(self, successor: FakeSuccessor, number: int) -> None:
        self.gone = successor.gone
        self._successor = successor
        self._number = number

    def take(self, channel: socket.socket) -> Deferred[bool]:
        self._successor.channels.append((self._number, channel.dup()))
        return succeed(True)


class SuccessionTests(SuccessionCase):
    def test_the_new_one_gets_what_it_goes_on_with(self):
        self.serving()
        self.upgraded()
        _, listening, inheritance, environment, folder = self.successors[0].started
        self.assertIs(listening, self.fleet.listening)
        self.assertGreaterEqual(inheritance.spawned, 2)
        self.assertEqual(inheritance.generation, 2)
        self.assertEqual(environment["NOTIFY_SOCKET"], "/run/notify")
        self.assertEqual(folder, "/srv")

    def test_until_it_is_ready_nothing_changes(self):
        first, second = self.serving()
        self.upgraded()
        self.turn(15)
        self.assertEqual([first.told, second.told], [["serve"]] * 2)
        self.assertFalse(self.successors[0].accepted.over)
        self.assertEqual(self.files(), ["twistd.pid.oldbin"])

    def test_then_it_is_the_master_and_gets_everything_slot_by_slot(self):
        first, second = self.serving()
        first.end.connections, second.end.connections = 5, 7
        done = self.upgraded()
        successor = self.successors[0]
        successor.loaded.happen(2)
        self.assertTrue(successor.accepted.over)
        self.turn()
        self.assertEqual(
            self.successResultOf(done),
            {"pid": 4711, "workers": 2, "handed_over": 12, "left": {}},
        )
        self.assertEqual([slot for slot, _ in successor.channels], [0, 1])
        for _, channel in successor.channels:
            channel.close()
        self.assertEqual(self.systemd.told, [4711])
        self.assertEqual([first.told[-1], second.told[-1]], [("stop", True, 9.0)] * 2)
        self.assertEqual(self.options["pidfile"], self.pid_path + ".oldbin")

    def assert_as_before(self, done: Any, why: str) -> None:
        self.turn()
        self.assertIn(why, str(self.failureResultOf(done, OperationFailed).value))
        self.assertEqual([each.told for each in self.workers()], [["serve"]] * 2)
        self.assertEqual(self.files(), ["twistd.pid"])
        self.assertEqual(self.successors[0].withdrawn, 1)
        self.assertFalse(self.successors[0].accepted.over)
        self.assertEqual(self.systemd.told, [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_one_that_cannot_serve_changes_nothing(self):
        self.serving()
        done = self.upgraded()
        self.successors[0].loaded.happen(Failure(OperationFailed("no module named x")))
        self.assert_as_before(done, "no module named x")

    def test_one_that_hangs_is_withdrawn(self):
        self.serving()
        done = self.upgraded()
        self.turn(20 + START_GRACE - 0.5)
        self.assertNoResult(done)
        self.turn(1)
        self.assert_as_before(done, "the new master was not ready within 30 s")

    def test_one_that_cannot_be_executed_is_told(self):
        self.serving()
        make = FakeSuccessor()
        make.error = OSError(11, "no more processes")
        self.successors.append(make)
        self.patch(sys.modules[Succession.__module__], "Successor", lambda: make)
        self.assert_as_before(self.upgraded(), "cannot execute a new master: ")

    def test_process_1_cannot_be_upgraded(self):
        self.serving()
        self.patch(os, "getpid", lambda: 1)
        self.failureResultOf(self.upgraded(), OperationFailed)
        self.assertEqual((self.successors, self.files()), ([], ["twistd.pid"]))

    def test_one_that_dies_in_the_midst_of_the_hand_over_leaves_the_rest_to_be_drained(self):
        first, second = self.serving()
        first.end.connections, second.end.connections = 5, 7
        done = self.upgraded()
        self.successors[0].loaded.happen(2)
        self.successors[0].gone.happen(None)
        self.turn()
        self.assertEqual(self.successResultOf(done)["left"], {"channel": 12})
        self.assertEqual([first.told[-1], second.told[-1]], [("stop", True, 9.0)] * 2)


class FakePredecessor:
    """An old master as the new one sees it."""

    def __init__(self) -> None:
        self.inheritance = Inheritance(40, 3)
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


class TakeOverTests(MasterCase):
    """The new master's part of an upgrade."""

    def setUp(self) -> None:
        super().setUp()
        self.old = FakePredecessor()
        self.opened: list[Any] = []
        self.patch(ControlSocket, "open", lambda control, **how: self.opened.append(how))

    def begun(self, workers: int = 2) -> Any:
        old: Any = self.old
        made = self.made(workers, "", old)
        made.privilegedStartService()
        made.startService()
        self.reactor.advance(0)
        return self.workers()

    def taken_over(self) -> Any:
        workers = self.begun()
        for each in workers:
            each.ready()
        self.turn()
        self.old.answer.callback(True)
        self.turn()
        return workers

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
        self.assertIn("the old master goes on without us", self.said())
        self.assertEqual([each.told for each in self.workers()], [[], []])

    def test_an_old_one_that_dies_while_they_load_ends_it(self):
        self.begun()
        self.old.gone.happen(None)
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_START], 1))

    def test_a_control_socket_that_cannot_be_opened_does_not_end_it(self):
        def fail(control: Any, **how: Any) -> None:
            raise StartError("control socket: Permission denied")

        self.patch(ControlSocket, "open", fail)
        workers = self.taken_over()
        self.assertEqual([each.told for each in workers], [["serve"]] * 2)
        self.assertEqual(self.exits, [])
        self.assertIn("Permission denied", self.said())
