"""The intake: where nothing can be accepted, nobody turns in circles, and all goes on by itself."""

from __future__ import annotations

import errno
import os
import resource
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from ccserver.net import intake
from ccserver.net.intake import LINE_INTERVAL, MOST_ACCEPTS, PAUSE, Intake
from ccserver.net.transport import DirectPort
from tests.net.sockets import FakeSocket
from tests.net.test_transport import ListeningSocket
from tests.support import FakeReactor, logged, texts

LIMIT = 100


class Door(ListeningSocket):
    """A listening socket whose kernel can be out of something.

    @ivar error: what accept says, if there is somebody.
    @ivar calls: how often it was called.
    """

    error: OSError | None = None
    accepts = 0

    def accept(self) -> Any:
        self.accepts += 1
        if self.waiting and self.error is not None:
            raise self.error
        return super().accept()


class Faulty(Protocol):
    def connectionMade(self) -> None:
        raise ZeroDivisionError


class IntakeTests(SynchronousTestCase):
    """There are a hundred descriptors, of which connections leave eight."""

    def setUp(self) -> None:
        self.events = logged(self)
        self.reactor = FakeReactor()
        self.patch(resource, "getrlimit", lambda which: (LIMIT, LIMIT))
        self.free = 10
        self.patch(intake.os, "open", self.open)
        self.patch(intake.os, "close", lambda fd: None)
        self.intake = Intake(self.reactor)
        self.made: list[Protocol] = []
        self.factory = Factory()
        self.factory.noisy = False
        self.factory.buildProtocol = self.build  # type: ignore[method-assign]
        self.ports = [self.port(2_000_000 + n) for n in range(2)]
        self.kind: type[Protocol] = Protocol

    def open(self, path: str, flags: int) -> int:
        if self.free >= LIMIT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.free

    def build(self, addr: Any) -> Protocol:
        self.made.append(self.kind())
        return self.made[-1]

    def port(self, fd: int) -> Any:
        port: Any = DirectPort(Door(fd), self.factory, self.reactor)
        self.intake.add(port)
        port.startListening()
        return port

    def come(self, *numbers: int, at: int = 0) -> None:
        self.ports[at].socket.waiting += [FakeSocket(fd) for fd in numbers]

    def turn(self) -> int:
        """A turn of the reactor; how many were accepted in it."""
        before = len(self.made)
        for port in self.ports:
            if port in self.reactor.readers and port.socket.waiting:
                port.doRead()
        return len(self.made) - before

    def fail(self, number: int) -> None:
        for port in self.ports:
            port.socket.error = OSError(number, os.strerror(number)) if number else None

    def test_what_waits_is_accepted(self):
        self.ports[0].numberAccepts = 5
        self.come(11, 12, 13)
        self.assertEqual(self.turn(), 3)

    def test_however_many_wait_a_turn_accepts_only_so_many(self):
        self.come(*[11] * 50 * MOST_ACCEPTS)
        self.assertEqual([self.turn() for _ in range(50)], [MOST_ACCEPTS] * 50)

    def test_after_few_it_begins_with_few_and_comes_back_to_as_many(self):
        self.come(11, 12)
        self.turn()
        self.come(*[11] * 10 * MOST_ACCEPTS)
        turns = [self.turn() for _ in range(8)]
        self.assertEqual((turns[0], turns[-1]), (2, MOST_ACCEPTS))

    def test_without_descriptors_nothing_is_read_until_there_are_some(self):
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EINVAL):
            self.come(11)
            self.fail(number)
            self.assertEqual(self.turn(), 0)
            called = self.ports[0].socket.accepts
            self.assertEqual([self.turn() for _ in range(100)], [0] * 100)
            self.assertLessEqual(self.ports[0].socket.accepts - called, 1)
            self.fail(0)
            self.reactor.advance(PAUSE)
            self.assertEqual(self.turn(), 1)

    def test_while_there_are_none_it_looks_ten_times_a_second_and_no_oftener(self):
        self.come(11)
        self.fail(errno.EMFILE)
        self.free = LIMIT
        calls = 0
        for _ in range(1000):
            self.turn()
            self.reactor.advance(0.01)
            calls = self.ports[0].socket.accepts
        self.assertLessEqual(calls, 1)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)

    def test_where_others_hold_the_whole_systems_it_tries_ten_times_a_second(self):
        self.come(11)
        self.fail(errno.ENFILE)
        for _ in range(1000):
            self.turn()
            self.reactor.advance(0.01)
        self.assertLessEqual(self.ports[0].socket.accepts, 101)

    def test_all_ports_pause_and_go_on(self):
        self.come(11)
        self.fail(errno.EMFILE)
        self.turn()
        self.fail(0)
        self.come(12, at=1)
        self.assertEqual(self.turn(), 0)
        self.reactor.advance(PAUSE)
        self.assertEqual(self.turn(), 2)

    def test_the_last_ones_are_left_to_others(self):
        self.ports[0].numberAccepts = 50
        self.come(90, 91, 92, 91)
        self.free = 93
        self.assertEqual([self.turn(), self.turn()], [3, 0])
        self.reactor.advance(PAUSE)
        self.assertEqual(self.turn(), 0)
        self.free = 91
        self.reactor.advance(PAUSE)
        self.assertEqual(self.turn(), 1)

    def test_a_limit_that_is_raised_from_outside_counts(self):
        self.come(92, 93)
        self.turn()
        self.free = 93
        self.patch(resource, "getrlimit", lambda which: (2 * LIMIT, 2 * LIMIT))
        self.reactor.advance(PAUSE)
        self.assertEqual(self.turn(), 1)

    def test_a_pause_that_goes_on_is_a_line_in_an_interval(self):
        self.come(11)
        self.fail(errno.ENFILE)
        for _ in range(round(2.5 * LINE_INTERVAL / PAUSE)):
            self.turn()
            self.reactor.advance(PAUSE)
        told = [text for text in texts(self.events) if "cannot accept" in text]
        self.assertEqual(len(told), 3)
        self.assertIn("Too many open files in system, of 100", told[0])

    def test_a_connection_that_was_gone_before_is_none_and_the_next_is_accepted(self):
        self.ports[0].numberAccepts = 5
        self.come(11)
        self.fail(errno.ECONNABORTED)
        self.turn()
        self.assertIn(self.ports[0], self.reactor.readers)
        self.fail(0)
        self.assertEqual(self.turn(), 1)

    def test_one_that_cannot_begin_is_closed_and_the_others_go_on(self):
        self.ports[0].numberAccepts = 5
        self.kind = Faulty
        sockets = [FakeSocket(11), FakeSocket(12)]
        self.ports[0].socket.waiting += sockets
        self.assertEqual(self.turn(), 2)
        self.reactor.advance(0)
        self.assertTrue(all(sock.closed for sock in sockets))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_it_opens_when_nothing_is_in_the_way_any_more(self):
        self.intake.close("one")
        self.intake.close("two")
        self.come(11)
        self.assertEqual(self.turn(), 0)
        self.intake.open("one")
        self.assertEqual(self.turn(), 0)
        self.intake.open("two")
        self.assertEqual(self.turn(), 1)

    def test_a_port_that_ends_meanwhile_stays_so(self):
        self.intake.close("one")
        self.come(11)
        self.turn()
        self.ports[0].stopListening()
        self.intake.open("one")
        self.assertNotIn(self.ports[0], self.reactor.readers)
