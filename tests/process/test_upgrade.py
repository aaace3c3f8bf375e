"""Upgrade: what old and new master say to each other, whoever goes away in the midst of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Address
from ccserver.errors import OperationFailed, StartError
from ccserver.process import upgrade
from ccserver.process.control import ControlSocket
from ccserver.process.host import Host
from ccserver.process.listening import SOCKETS_VARIABLE, Listening
from ccserver.process.moment import Moment
from ccserver.process.pidfile import PidFile
from ccserver.process.succession import START_GRACE, Succession
from ccserver.process.upgrade import VARIABLE, Inheritance, Predecessor, Successor
from ccserver.process.worker import EXIT_APP, EXIT_START
from tests.process.masters import MasterCase
from tests.process.test_listening import free_port
from tests.process.workers import FakeSystemd, FleetCase
from tests.support import FakeReactor


class PairCase(SynchronousTestCase):
    """An old master and a new one in one process, and their link."""

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.listening = Listening([Address("127.0.0.1", free_port())], 10)
        self.listening.open(2)
        self.addCleanup(self.listening.close)
        self.addCleanup(self.close)
        self.kills: list[tuple[int, int]] = []
        self.patch(os, "kill", lambda pid, number: self.kills.append((pid, number)))
        self.taken: list[tuple[int, socket.socket]] = []
        self.answer = True

    def close(self) -> None:
        for each in (*self.reactor.adopted, *self.reactor.processes):
            each.close()
        for _, channel in self.taken:
            channel.close()

    def executed(self) -> Successor:
        self.old = Successor()
        self.old.start(self.reactor, self.listening, Inheritance(40, 3), {"A": "B"}, "/srv")
        return self.old

    def paired(self) -> tuple[Successor, Predecessor]:
        """Both, with the link between them."""
        old = self.executed()
        (process,) = self.reactor.processes
        new = self.new = Predecessor.found(dict(process.env))
        assert new is not None
        self.patch(upgrade, "LINK_FD", os.dup(process.given[3]))
        new.attach(self.reactor, self.take)
        self.talk()
        return old, new

    def take(self, slot: int, channel: socket.socket) -> Deferred[bool]:
        self.taken.append((slot, channel.dup()))
        return succeed(self.answer)

    def talk(self) -> None:
        old, new = (each.transport for each in self.reactor.adopted)
        for _ in range(10):
            if old.connected and new.connected:
                old.deliver(new.protocol)
                new.deliver(old.protocol)

    def unlink(self) -> None:
        """The link ends, as each of them sees it."""
        for each in self.reactor.adopted:
            each.transport.lose(ConnectionDone())


class ExecutionTests(PairCase):
    def test_it_is_executed_as_this_process_was(self):
        self.executed()
        (process,) = self.reactor.processes
        self.assertEqual(process.args, [sys.executable, *sys.orig_argv[1:]])

    def test_its_environment_says_what_it_goes_on_with(self):
        self.executed()
        (process,) = self.reactor.processes
        self.assertEqual(process.env["A"], "B")
        self.assertEqual(json.loads(process.env[VARIABLE]), {"spawned": 40, "generation": 3})
        (told,) = json.loads(process.env[SOCKETS_VARIABLE]).values()
        self.assertEqual(told, [4, 5])

    def test_it_has_the_link_and_the_sockets_and_nothing_else(self):
        self.executed()
        (process,) = self.reactor.processes
        self.assertEqual(sorted(process.given), [0, 1, 2, 3, 4, 5])
        for slot, fd in ((0, 4), (1, 5)):
            (mine,) = self.listening.of_slot(slot)
            self.assertEqual(os.fstat(process.given[fd]).st_ino, os.fstat(mine.fileno()).st_ino)
        with socket.socket(fileno=os.dup(process.given[3])) as end:
            end.send(b"hello")
        self.assertEqual(self.reactor.adopted[0].socket.recv(10), b"hello")

    def test_the_old_one_keeps_no_end_of_the_new_one(self):
        before = len(os.listdir("/proc/self/fd"))
        self.executed()
        (process,) = self.reactor.processes
        copies = len(process.given) + 1  # of the fake child, and of the fake reactor
        self.assertEqual(len(os.listdir("/proc/self/fd")), before + copies)

    def test_one_that_cannot_be_executed_leaves_nothing_open(self):
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise OSError(11, "no more processes")

        self.reactor.spawnProcess = fail
        before = len(os.listdir("/proc/self/fd"))
        self.assertRaises(OSError, self.executed)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.old.withdraw()

    def test_who_is_no_new_master_has_no_old_one(self):
        self.assertIsNone(Predecessor.found({"A": "B"}))

    def test_what_it_goes_on_with_is_for_it_alone(self):
        environ = {VARIABLE: json.dumps({"spawned": 7, "generation": 2}), "A": "B"}
        found = Predecessor.found(environ)
        assert found is not None
        self.assertEqual(found.inheritance, Inheritance(7, 2))
        self.assertEqual(environ, {"A": "B"})


class LinkTests(PairCase):
    def test_the_new_one_says_who_it_is(self):
        old, _ = self.paired()
        self.assertEqual(old.pid, os.getpid())

    def test_it_is_the_master_when_the_old_one_agrees_and_not_before(self):
        old, new = self.paired()
        loaded, accepted = old.loaded.wait(), new.loaded(4)
        self.talk()
        self.assertEqual(self.successResultOf(loaded), 4)
        self.assertNoResult(accepted)
        old.accepted.happen(None)
        self.talk()
        self.assertTrue(self.successResultOf(accepted))

    def test_its_slots_take_through_the_link(self):
        old, _ = self.paired()
        first, second = old.slots(2)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                taken = second.take(theirs)
                self.talk()
                self.assertTrue(self.successResultOf(taken))
            ((slot, channel),) = self.taken
            self.assertEqual(slot, 1)
            channel.sendall(b"connection")
            self.assertEqual(ours.recv(100), b"connection")
            channel.close()
            self.assertEqual(ours.recv(1), b"", "neither master keeps a copy")
        self.assertFalse(first.gone.over)

    def test_a_slot_that_takes_nothing_says_so(self):
        old, _ = self.paired()
        self.answer = False
        ours, theirs = socket.socketpair()
        with ours, theirs:
            taken = old.take(0, theirs)
            self.talk()
            self.assertFalse(self.successResultOf(taken))

    def test_refused_it_says_why(self):
        old, new = self.paired()
        loaded = old.loaded.wait()
        new.refuse("there is no module named x" * 1000)
        self.talk()
        self.assertNoResult(loaded)
        self.unlink()
        error = self.failureResultOf(loaded, OperationFailed).value
        self.assertIn("there is no module named x", str(error))

    def test_one_that_goes_without_a_word_is_told_of(self):
        old, _ = self.paired()
        loaded = old.loaded.wait()
        self.unlink()
        error = self.failureResultOf(loaded, OperationFailed).value
        self.assertIn("the new master ended before it was ready", str(error))
        self.assertTrue(old.gone.over)

    def test_how_its_process_ended_is_told(self):
        old, _ = self.paired()
        loaded = old.loaded.wait()
        self.reactor.processes[0].end(1)
        self.assertNoResult(loaded)
        self.unlink()
        error = self.failureResultOf(loaded, OperationFailed).value
        self.assertIn("the new master exited with status 1", str(error))

    def test_as_a_daemon_its_first_process_ends_and_it_goes_on(self):
        old, new = self.paired()
        loaded = old.loaded.wait()
        self.reactor.processes[0].end(0)
        new.loaded(2)
        self.talk()
        self.assertEqual(self.successResultOf(loaded), 2)
        self.assertFalse(old.gone.over)

    def test_the_link_lost_before_it_is_agreed_the_new_one_is_not_the_master(self):
        old, new = self.paired()
        accepted, gone = new.loaded(4), new.gone.wait()
        self.talk()
        self.unlink()
        self.assertFalse(self.successResultOf(accepted))
        self.successResultOf(gone)
        self.assertTrue(old.gone.over)

    def test_the_link_lost_afterwards_its_slots_take_nothing_more(self):
        old, new = self.paired()
        new.loaded(1)
        self.talk()
        old.accepted.happen(None)
        (slot,) = old.slots(1)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            asked = slot.take(theirs)
            self.unlink()
            self.assertFalse(self.successResultOf(asked))
            self.assertFalse(self.successResultOf(slot.take(theirs)))
        self.assertTrue(slot.gone.over)

    def test_withdrawn_it_is_told_by_signal_and_by_the_end_of_the_link(self):
        old, _ = self.paired()
        old.withdraw()
        self.assertTrue(self.reactor.adopted[0].transport.aborted)
        self.assertEqual(
            sorted(self.kills), sorted({(os.getpid(), signal.SIGTERM), (1000, signal.SIGTERM)})
        )

    def test_a_new_one_without_a_link_can_still_say_everything(self):
        _, new = self.paired()
        self.unlink()
        new.refuse("no")
        self.assertFalse(self.successResultOf(new.loaded(2)))


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
