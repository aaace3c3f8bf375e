"""The intake: where nothing can be accepted, nobody turns in circles, and all goes on by itself."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from ccserver.native import native
from ccserver.net import intake
from ccserver.net.intake import (
    DESCRIPTORS,
    LINE_INTERVAL,
    MOST_ACCEPTS,
    PAUSE,
    Endpoint,
    Intake,
    address_text,
)
from ccserver.net.port import DirectPort
from ccserver.net.reactor import DirectReactor
from ccserver.net.transport import DirectServer
from tests.net.sockets import FakeSocket, Wire
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

    def test_without_memory_accepting_pauses_and_goes_on(self):
        real = intake.accept

        def fail(listening: Any) -> Any:
            intake.accept = real
            raise MemoryError

        self.patch(intake, "accept", fail)
        self.ports[0].doRead()
        self.assertEqual(self.intake.reasons, {DESCRIPTORS})
        self.reactor.advance(PAUSE)
        self.assertEqual(self.intake.reasons, set())
        self.assertIn(self.ports[0], self.reactor.readers)

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


class NoDelayTests(SynchronousTestCase):
    """Replies go out at once: the port has TCP_NODELAY, and its connections inherit it."""

    OPTION = (socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def setUp(self) -> None:
        self.wire = Wire(self, DirectReactor, DirectServer)
        self.door = Door(2_000_000)
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        self.port = DirectPort(self.door, factory, self.wire.reactor)
        self.port.startListening()

    def come(self, count: int) -> list[FakeSocket]:
        made = [FakeSocket(2_000_001 + n) for n in range(count)]
        self.door.waiting += made
        return made

    def test_the_port_has_it(self):
        self.assertEqual(self.door.options[self.OPTION], 1)

    def test_those_that_came_before_the_port_had_it_are_given_it_and_no_others(self):
        self.port.numberAccepts = 2
        early = self.come(5)
        self.port.doRead()
        self.port.doRead()
        late = [FakeSocket(2_000_101), FakeSocket(2_000_102)]
        self.door.waiting += late
        self.port.doRead()
        self.assertEqual([s.options.get(self.OPTION) for s in early], [1] * 5)
        self.assertEqual([s.options.get(self.OPTION) for s in late], [None] * 2)

    def test_what_is_accepted_inherits_it(self):
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        DirectPort(listening, Factory(), self.wire.reactor)
        client = socket.create_connection(listening.getsockname())
        self.addCleanup(client.close)
        sock, _ = intake.accept(listening)
        self.addCleanup(sock.close)
        self.assertTrue(sock.getsockopt(*self.OPTION))


class AcceptTests(SynchronousTestCase):
    """Both ways to accept a connection, from a real kernel."""

    def setUp(self) -> None:
        self.patch(intake, "native", native)

    def ways(self, address: str) -> Iterator[tuple[socket.socket, Any, Any]]:
        """A listening socket, a client that waits there, and what accepts it."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for compiled in (None,) if native is None else (native, None):
            self.patch(intake, "native", compiled)
            with socket.create_server((address, 0), family=family) as listening:
                listening.setblocking(False)
                with socket.create_connection(listening.getsockname()[:2]) as client:
                    yield listening, client, intake.accept

    def test_it_has_the_socket_and_the_client_s_address(self):
        for address in ("127.0.0.1", *(("::1",) if has_ipv6() else ())):
            for listening, client, accept in self.ways(address):
                sock, (host, port) = accept(listening)
                self.assertEqual((host, port), client.getsockname()[:2])
                client.sendall(b"hello")
                self.assertEqual(sock.recv(9), b"hello")
                self.assertEqual(sock.getpeername(), client.getsockname())
                sock.close()
                self.assertEqual(client.recv(9), b"")

    def test_the_socket_neither_blocks_nor_is_left_to_programs(self):
        for listening, _, accept in self.ways("127.0.0.1"):
            sock, _ = accept(listening)
            self.assertFalse(os.get_blocking(sock.fileno()))
            self.assertFalse(os.get_inheritable(sock.fileno()))
            self.assertEqual(sock.gettimeout(), 0.0)
            self.assertRaises(BlockingIOError, sock.recv, 1)
            sock.close()

    def test_nobody_there_is_a_blocking_io_error(self):
        for listening, _, accept in self.ways("127.0.0.1"):
            accept(listening)[0].close()
            self.assertRaises(BlockingIOError, accept, listening)

    def test_other_errors_have_their_number(self):
        for _, client, accept in self.ways("127.0.0.1"):
            error = self.assertRaises(OSError, accept, client)
            self.assertEqual(error.errno, errno.EINVAL)

    def test_a_client_is_named_by_its_host_and_port(self):
        for endpoint, text in (
            (Endpoint("192.0.2.1", 5), "192.0.2.1:5"),
            (Endpoint("fe80::1%eth0", 5), "[fe80::1%eth0]:5"),
        ):
            self.assertEqual(address_text(endpoint), text)


def has_ipv6() -> bool:
    """Whether there is a loopback for it."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
