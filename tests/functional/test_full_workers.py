"""Full workers: connections are refused only when all are full."""

from __future__ import annotations

from typing import ClassVar

from tests.functional import codes
from tests.functional.server import Client, ServerCase, measured, wait_until
from tests.functional.stopwatch import Stopwatch

ROOM = 20


class FullCase(ServerCase):
    """Two workers, of which each holds twenty connections."""

    options: ClassVar = {"workers": 2, "worker_connections": ROOM}

    def fill(self) -> list[Client]:
        """As many clients as there is room for, all at once; all are served."""
        clients = [self.client() for _ in range(2 * ROOM)]
        for client in clients:
            client.send((codes.REACTOR, b"here"))
        for client in clients:
            self.assertEqual(client.receive(), (codes.REACTOR, b"here"))
        return clients

    def client(self) -> Client:
        client = Client(self.server.port)
        self.addCleanup(client.close)
        return client

    def is_refused(self) -> bool:
        """Whether a client that connects now is closed at once."""
        with Client(self.server.port, 5) as client:
            try:
                client.send((codes.REACTOR, b"more"))
                return client.receive() is None
            except ConnectionError:
                return True

    def admitted(self) -> Client | None:
        """A client that is served; None where it is closed at once."""
        client = self.client()
        try:
            client.ask(codes.REACTOR, b"new")
        except (ConnectionError, AssertionError):
            return None
        return client


class RefusalTests(FullCase):
    def test_all_are_served_and_one_more_is_refused(self):
        clients = self.fill()
        wait_until(self.is_refused, "one more to be refused")
        self.assertIn("connection_limit", self.server.log)
        for client in clients:
            self.assertEqual(client.ask(codes.REACTOR, b"still"), b"still")


class FreedTests(FullCase):
    def test_each_place_that_is_freed_can_be_had(self):
        clients = self.fill()
        wait_until(self.is_refused, "it to be full")
        for _ in range(10):
            with Stopwatch(self.server) as watch:
                clients.pop(0).close()
                clients.append(wait_until(self.admitted, "a place"))
            measured("seconds until a freed place can be had", watch.elapsed)
            self.assertLess(watch.seconds, 0.5)
