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
from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Address
from ccserver.errors import OperationFailed
from ccserver.process import upgrade
from ccserver.process.listening import SOCKETS_VARIABLE, Listening
from ccserver.process.upgrade import VARIABLE, Inheritance, Predecessor, Successor
from tests.ports import free_port
from tests.support import FakeReactor, open_descriptors


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
        inheritance = Inheritance(40, 3, "/srv/control")
        self.old.start(self.reactor, self.listening, inheritance, {"A": "B"}, "/srv")
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
        self.assertEqual(
            json.loads(process.env[VARIABLE]),
            {"spawned": 40, "generation": 3, "control": "/srv/control"},
        )
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
        before = open_descriptors()
        self.executed()
        (process,) = self.reactor.processes
        copies = len(process.given) + 1  # of the fake child, and of the fake reactor
        self.assertLessEqual(open_descriptors(), before + copies)

    def test_one_that_cannot_be_executed_leaves_nothing_open(self):
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise OSError(11, "no more processes")

        self.reactor.spawnProcess = fail
        before = open_descriptors()
        self.assertRaises(OSError, self.executed)
        self.assertLessEqual(open_descriptors(), before)
        self.old.withdraw()

    def test_who_is_no_new_master_has_no_old_one(self):
        self.assertIsNone(Predecessor.found({"A": "B"}))

    def test_what_it_goes_on_with_is_for_it_alone(self):
        told = {"spawned": 7, "generation": 2, "control": "/a"}
        environ = {VARIABLE: json.dumps(told), "A": "B"}
        found = Predecessor.found(environ)
        assert found is not None
        self.assertEqual(found.inheritance, Inheritance(7, 2, "/a"))
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
        first, second = old.slots(2, 70)
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
            taken = old.take(0, theirs, 70)
            self.talk()
            self.assertFalse(self.successResultOf(taken))
            self.answer = True
            again = old.take(0, theirs, 70)
            self.talk()
            self.assertTrue(self.successResultOf(again))

    def test_one_that_does_not_answer_in_time_is_asked_no_more(self):
        old, _ = self.paired()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            taken = old.take(0, theirs, 70)
            self.reactor.advance(69.9)
            self.assertNoResult(taken)
            self.reactor.advance(0.2)
            self.assertFalse(self.successResultOf(taken))
            self.assertFalse(self.successResultOf(old.take(1, theirs, 70)))
            self.talk()
        self.assertEqual([slot for slot, _ in self.taken], [0])
        self.assertFalse(old.gone.over)

    def test_it_says_that_it_ends_because_it_was_told_to(self):
        old, new = self.paired()
        self.assertFalse(old.retires)
        new.retire()
        self.talk()
        self.assertTrue(old.retires)

    def test_refused_it_says_why(self):
        old, new = self.paired()
        loaded = old.loaded.wait()
        new.refuse("there is no module named x" * 1000)
        self.talk()
        self.assertNoResult(loaded)
        self.unlink()
        error = self.failureResultOf(loaded, OperationFailed).value
        self.assertIn("there is no module named x", str(error))

    def test_before_it_has_a_reactor_it_says_why_too(self):
        old = self.executed()
        loaded = old.loaded.wait()
        (process,) = self.reactor.processes
        new = Predecessor.found(dict(process.env))
        assert new is not None
        self.patch(upgrade, "LINK_FD", os.dup(process.given[3]))
        new.refuse_early("a.conf:1: what is caf\udce9?" + "x" * 100_000)
        os.close(process.given.pop(3))
        (adopted,) = self.reactor.adopted
        while said := adopted.socket.recv(1 << 16):
            adopted.transport.protocol.dataReceived(said)
        self.unlink()
        error = self.failureResultOf(loaded, OperationFailed).value
        self.assertTrue(str(error).startswith("a.conf:1: what is caf??xxx"), error)

    def test_where_the_old_one_is_gone_it_says_nothing(self):
        self.executed()
        (process,) = self.reactor.processes
        new = Predecessor.found(dict(process.env))
        assert new is not None
        self.patch(upgrade, "LINK_FD", os.dup(process.given[3]))
        (adopted,) = self.reactor.adopted
        adopted.socket.close()
        new.refuse_early("no")

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
        (slot,) = old.slots(1, 70)
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

    def test_a_process_that_may_be_somebody_elses_by_now_gets_no_signal(self):
        old, _ = self.paired()
        self.unlink()
        old.withdraw()
        self.assertEqual(self.kills, [(1000, signal.SIGTERM)])  # our child

    def test_one_that_may_not_be_signalled_is_withdrawn_all_the_same(self):
        def refuse(pid: int, number: int) -> None:
            raise PermissionError(1, "Operation not permitted")

        old, _ = self.paired()
        self.patch(os, "kill", refuse)
        old.withdraw()
        self.assertTrue(self.reactor.adopted[0].transport.aborted)

    def test_it_is_gone_before_what_it_was_asked_fails(self):
        old, _ = self.paired()
        seen = []
        ours, theirs = socket.socketpair()
        with ours, theirs:
            old.take(0, theirs, 70).addCallback(lambda taken: seen.append(old.gone.over))
            self.unlink()
        self.assertEqual(seen, [True])

    def test_a_new_one_without_a_link_can_still_say_everything(self):
        _, new = self.paired()
        self.unlink()
        new.refuse("no")
        new.retire()
        self.assertFalse(self.successResultOf(new.loaded(2)))
