"""Room: new connections of a full worker wait or are closed, and a freed place is there at once."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.limits import SessionLimits
from ccserver.net.intake import Intake
from ccserver.net.port import DirectPort
from ccserver.net.room import Room
from tests.net.sockets import FakeSocket
from tests.net.test_transport import ListeningSocket
from tests.support import FakeWorker


class RoomTests(SynchronousTestCase):
    """A worker with room for three connections."""

    def setUp(self) -> None:
        self.worker = FakeWorker(self, App(), SessionLimits(), connections=3)
        intake = Intake(self.worker.reactor)
        intake._ceiling = 1 << 62  # the numbers of fake sockets are high
        self.room = Room(self.worker.connections, intake)
        self.changes: list[bool] = []
        self.room.on_change = lambda: self.changes.append(self.room.full)
        self.port: Any = DirectPort(
            ListeningSocket(2_000_000), self.worker.factory, self.worker.reactor
        )
        self.port.numberAccepts = 10
        intake.add(self.port)
        self.port.startListening()

    def come(self, count: int) -> None:
        self.port.socket.waiting += [FakeSocket(3_000_000 + n) for n in range(count)]
        self.turn()

    def turn(self) -> None:
        if self.port in self.worker.reactor.readers and self.port.socket.waiting:
            self.port.doRead()

    def leave(self) -> None:
        connection: Any = next(iter(self.worker.connections))
        connection.abort()
        self.worker.reactor.advance(0)

    def counts(self) -> tuple[int, int, int]:
        """How many are served, wait, and were refused."""
        refused = self.worker.counts.closed["connection_limit"]
        return len(self.worker.connections), len(self.port.socket.waiting), refused

    def test_those_beyond_are_refused_where_nobody_else_has_room(self):
        self.come(5)
        self.assertEqual(self.counts(), (3, 0, 2))

    def test_they_wait_where_somebody_has(self):
        self.room.wait(True)
        self.come(5)
        self.turn()
        self.assertEqual(self.counts(), (3, 2, 0))

    def test_a_freed_place_is_taken_at_once(self):
        self.room.wait(True)
        self.come(5)
        self.leave()
        self.turn()
        self.assertEqual(self.counts(), (3, 1, 0))

    def test_they_are_refused_as_soon_as_that_is_said(self):
        self.room.wait(True)
        self.come(5)
        self.room.wait(False)
        self.turn()
        self.assertEqual(self.counts(), (3, 0, 2))

    def test_it_tells_of_each_change_once(self):
        self.come(2)
        self.assertEqual(self.changes, [])
        self.come(2)
        self.assertEqual(self.changes, [True])
        self.leave()
        self.leave()
        self.assertEqual(self.changes, [True, False])
