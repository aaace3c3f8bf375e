"""Succession: an old master lets a new one take over, or goes on as before."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from ccserver.errors import OperationFailed
from ccserver.process import link
from ccserver.process.fleet import LOOK_AGAIN
from ccserver.process.host import Host
from ccserver.process.moment import Moment
from ccserver.process.pidfile import PidFile
from ccserver.process.succession import MORE_WORKERS, START_GRACE, Succession
from ccserver.process.worker import EXIT_APP, EXIT_START
from tests.process.fleets import FakeSystemd, FleetCase


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
        self.master = FakeOldMaster(self.files)
        self.succession = Succession(self.reactor, host, "/srv", "/srv/control", self.master)
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


class FakeOldMaster:
    """This master: notes what it is asked for, and the pid files that there are then."""

    def __init__(self, files: Any) -> None:
        self.told: list[Any] = []
        self._files = files

    def open_control(self) -> None:
        self.told.append(("control", self._files()))

    def fail(self, status: int, reason: str) -> None:
        self.told.append((status, reason))


class FakeSuccessor:
    """A new master as L{Succession} sees it."""

    def __init__(self) -> None:
        self.pid: int | None = 4711
        self.loaded: Moment[int] = Moment()
        self.accepted: Moment[None] = Moment()
        self.gone: Moment[None] = Moment()
        self.started: tuple[Any, ...] = ()
        self.withdrawn = 0
        self.retires = False
        self.timeout = 0.0
        self.channels: list[tuple[int, socket.socket]] = []
        self.error: Exception | None = None

    def start(self, *arguments: Any) -> None:
        self.started = arguments
        if self.error is not None:
            raise self.error

    def slots(self, count: int, timeout: float) -> list[Any]:
        self.timeout = timeout
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
        self.assertEqual(inheritance.control, "/srv/control")
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
        self.assertEqual((self.succession.heir, self.master.told), (4711, []))
        self.assertEqual(successor.timeout, 30)

    def assert_as_before(self, done: Any, why: str) -> None:
        self.turn()
        self.assertIn(why, str(self.failureResultOf(done, OperationFailed).value))
        self.assertEqual([each.told for each in self.workers()], [["serve"]] * 2)
        self.assertEqual(self.files(), ["twistd.pid"])
        self.assertEqual(self.successors[0].withdrawn, 1)
        self.assertFalse(self.successors[0].accepted.over)
        self.assertEqual(self.systemd.told, [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertIsNone(self.succession.heir)

    def test_when_this_one_stops_none_is_to_take_over(self):
        self.serving()
        done = self.upgraded()
        self.succession.stop()
        self.assert_as_before(done, "the server is stopping")
        self.successors[0].loaded.happen(2)
        self.assertFalse(self.successors[0].accepted.over)

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


class BereavementTests(SuccessionCase):
    """The new master dies when it is the master already."""

    def handing_over(self) -> Any:
        """An upgrade that a worker with connections keeps busy."""
        self.first, self.second = self.serving()
        self.first.end.connections, self.second.end.connections = 5, 7
        self.second.end.holding = {"give"}
        done = self.upgraded()
        self.successors[0].loaded.happen(2)
        self.turn()
        self.assertNoResult(done)
        self.addCleanup(self.close_channels)
        return done

    def close_channels(self) -> None:
        for successor in self.successors:
            for _, channel in successor.channels:
                channel.close()

    def test_this_one_is_the_master_again(self):
        self.handing_over()
        spawned, unsteered = self.fleet.spawned, []
        self.patch(self.fleet.listening, "unsteer", lambda: unsteered.append(True))
        self.successors[0].gone.happen(None)
        self.assertIsNone(self.succession.heir)
        self.assertEqual(self.master.told, [("control", ["twistd.pid"])])
        self.assertEqual(self.options["pidfile"], self.pid_path)
        self.assertEqual(self.systemd.told, [4711, os.getpid()])
        self.assertIn("process 4711, has ended: this one is the master again", self.said())
        numbers = [each.order.process_number for each in self.workers(since=2)]
        self.assertEqual(numbers, [spawned + 2 * MORE_WORKERS, spawned + 2 * MORE_WORKERS + 1])
        self.assertEqual(unsteered, [True])

    def test_its_slots_get_workers_and_the_connections_that_are_left(self):
        first, second = self.serving()
        second.end.connections = 7
        second.end.answers = [(2, {"channel": 5}), (5, {})]
        done = self.upgraded()
        successor = self.successors[0]
        self.patch(FakeSlot, "take", lambda slot, channel: self.dying(slot, channel))
        successor.loaded.happen(2)
        self.turn()
        self.assertEqual(second.told[-1], ("give", link.ALL))
        self.assertNoResult(done)
        third, fourth = self.workers(since=2)
        third.ready()
        fourth.ready()
        self.turn(LOOK_AGAIN)
        why = str(self.failureResultOf(done, OperationFailed).value)
        self.assertEqual(why, "the new master, process 4711, has ended: this one serves again")
        self.assertEqual(second.end.connections, 0)
        self.assertEqual([each.told[0] for each in (third, fourth)], ["serve"] * 2)
        self.assertEqual([first.told[-1], second.told[-1]], [("stop", True, 9.0)] * 2)
        self.assertEqual(len(self.fleet.serving), 2)

    def dying(self, slot: FakeSlot, channel: socket.socket) -> Deferred[bool]:
        """Take, and be gone before much has come."""
        slot.gone.happen(None)
        return succeed(True)

    def test_a_worker_that_cannot_start_then_is_tried_again(self):
        self.handing_over()
        self.successors[0].gone.happen(None)
        third, _ = self.workers(since=2)
        third.failed(EXIT_APP, "no module named x")
        self.turn(0.2)
        self.assertEqual(self.owner.refusals, [])
        self.assertEqual(len(self.workers()), 5)

    def test_another_upgrade_is_possible(self):
        self.handing_over()
        self.successors[0].gone.happen(None)
        self.upgraded()
        self.successors[1].loaded.happen(2)
        self.assertEqual(self.succession.heir, 4711)
        self.assertEqual(self.files(), ["twistd.pid.oldbin"])

    def test_one_that_was_told_to_stop_takes_the_server_with_it(self):
        self.handing_over()
        self.successors[0].retires = True
        self.successors[0].gone.happen(None)
        self.assertEqual((self.succession.heir, self.master.told), (4711, []))
        self.assertEqual(len(self.workers()), 2)

    def test_when_this_one_stops_already_it_says_that_nobody_serves(self):
        self.handing_over()
        self.succession.stop()
        self.successors[0].gone.happen(None)
        why = "the new master, process 4711, has ended, and this one stops"
        self.assertEqual(self.master.told, [(EXIT_START, why)])
        self.assertEqual((len(self.workers()), self.files()), (2, ["twistd.pid.oldbin"]))

    def test_its_own_end_is_not_taken_for_that(self):
        self.handing_over()
        self.succession.stop()
        for each in self.workers():
            each.die(0)
        self.successors[0].gone.happen(None)
        self.assertEqual(self.master.told, [])
