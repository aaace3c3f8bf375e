"""The pace of accepting: those beyond it wait in the kernel, and nobody turns in circles."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.rates import Rate
from ccserver.net.pace import Pace, PacedPort
from tests.net.sockets import FakeSocket
from tests.net.test_transport import ListeningSocket
from tests.support import FakeReactor


class Refusing(Factory):
    """Counts the connections, and wants none of them."""

    noisy = False

    def __init__(self) -> None:
        self.count = 0

    def buildProtocol(self, addr: Any) -> None:
        self.count += 1


class PaceTests(SynchronousTestCase):
    """Ten connections a second, and as many at once."""

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.pace = Pace(self.reactor, Rate(10, 10))
        self.factory = Refusing()
        self.ports = [self.port(2_000_000 + n) for n in range(2)]

    def port(self, fd: int) -> PacedPort:
        port = PacedPort(ListeningSocket(fd), self.factory, self.reactor, pace=self.pace)
        port.startListening()
        return port

    def come(self, port: PacedPort, count: int) -> None:
        port.socket.waiting += [FakeSocket(3_000_000 + n) for n in range(count)]

    def turn(self) -> int:
        """A turn of the reactor; how many were accepted in it."""
        before = self.factory.count
        for port in list(self.reactor.readers):
            if port.socket.waiting:
                port.doRead()
        return self.factory.count - before

    def test_so_many_are_accepted_at_once_and_no_more(self):
        self.come(self.ports[0], 100)
        self.assertEqual([self.turn() for _ in range(5)], [10, 0, 0, 0, 0])
        self.assertEqual(len(self.ports[0].socket.waiting), 90)

    def test_then_it_does_not_look_until_there_may_be_more(self):
        self.come(self.ports[0], 100)
        self.turn()
        self.turn()
        self.assertNotIn(self.ports[0], self.reactor.readers)
        self.reactor.advance(0.1)
        self.assertIn(self.ports[0], self.reactor.readers)

    def test_in_the_long_run_the_rate_holds_for_all_ports_together(self):
        for port in self.ports:
            self.come(port, 1000)
        for _ in range(1000):
            self.turn()
            self.reactor.advance(0.01)
        self.assertTrue(105 <= self.factory.count <= 111, self.factory.count)

    def test_who_comes_at_the_rate_never_waits(self):
        for _ in range(100):
            self.come(self.ports[0], 1)
            self.assertEqual(self.turn(), 1)
            self.reactor.advance(0.1)

    def test_a_port_that_was_closed_is_not_read_again(self):
        self.come(self.ports[0], 100)
        self.turn()
        self.turn()
        self.ports[0].connectionLost(None)
        self.reactor.advance(1)
        self.assertNotIn(self.ports[0], self.reactor.readers)

    def test_without_a_pace_all_that_wait_are_accepted(self):
        port = self.ports[0]
        self.come(port, 100)
        port.pace = None
        port.numberAccepts = 1000
        port.doRead()
        self.assertEqual(self.factory.count, 100)
