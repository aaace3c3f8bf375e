"""The end of a connection: nobody waits for ever, and who goes on gets what is left for him."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.session import CloseReason, Session
from ccserver.errors import BadBody
from ccserver.net import sending
from ccserver.net.closing import RENEWALS, CloseTimeouts
from tests.net.moving import in_thread
from tests.net.test_sending import ANY, ECHO, PUSH, STREAM, Kernel, SendingCase
from tests.support import FakeConnection, FakeWorker, logged, texts

TIMEOUTS = CloseTimeouts()
WAIT, STUBBORN, RAISE, OTHER = 1, 2, 3, 4
MIB = 1 << 20


class FlushTests(SendingCase):
    """A client that is to be sent a MiB, and closes its side."""

    def closing(self) -> Kernel:
        kernel = self.start(ANY, room=0)
        kernel.session.send(PUSH, bytes(1000))
        for _ in range(MIB // 4096):
            kernel.session.send(PUSH, bytes(4096))
        kernel.socket.incoming.append(b"")
        kernel.wire.turn()
        return kernel

    def wait(self, kernel: Kernel, seconds: float) -> None:
        kernel.wire.poller.now += seconds
        kernel.wire.turn(2)

    def test_who_reads_slowly_but_steadily_gets_all_of_it(self):
        kernel = self.closing()
        size, seconds = 1008 + MIB // 4096 * 4104, 0
        while len(kernel.socket.received) < size:
            self.wait(kernel, 1.0)
            self.assertFalse(kernel.socket.closed)
            kernel.take(40_000)
            seconds += 1
        self.assertGreater(seconds, 2 * TIMEOUTS.flush)
        self.assertTrue(kernel.socket.closed)
        self.assertFalse(kernel.socket.was_reset)

    def test_who_reads_nothing_is_cut_after_the_timeout(self):
        kernel = self.closing()
        for _ in range(9):
            self.wait(kernel, 1.0)
        self.assertFalse(kernel.socket.closed)
        self.wait(kernel, 1.0)
        self.assertTrue(kernel.socket.was_reset)
        self.assertEqual(kernel.counts.closed, {CloseReason.CLIENT_CLOSED: 1})

    def test_who_stops_reading_is_cut_then(self):
        kernel = self.closing()
        for _ in range(5):
            self.wait(kernel, 1.0)
            kernel.take(40_000)
        for _ in range(9):
            self.wait(kernel, 1.0)
            self.assertFalse(kernel.socket.closed)
        self.wait(kernel, 2.0)
        self.assertTrue(kernel.socket.was_reset)

    def test_who_reads_next_to_nothing_does_not_stay_for_ever(self):
        kernel = self.closing()
        seconds = 0
        while not kernel.socket.closed:
            self.wait(kernel, 1.0)
            kernel.take(1)
            seconds += 1
            self.assertLessEqual(seconds, RENEWALS * TIMEOUTS.flush + 1)
        self.assertGreaterEqual(seconds, RENEWALS * TIMEOUTS.flush)
        self.assertTrue(kernel.socket.was_reset)

    def test_a_handler_that_waits_for_room_does_not_keep_it(self):
        kernel = self.start(room=0)
        kernel.ask((STREAM, b"1000"))
        kernel.socket.incoming.append(b"")
        for _ in range(11):
            self.wait(kernel, 1.0)
        self.assertTrue(kernel.socket.was_reset)
        self.assertEqual(len(self.failed), 1)


class LingerTests(SendingCase):
    """A connection that we close, when all of it is in the kernel."""

    def closing(self) -> Kernel:
        self.held = 0  # bytes that our kernel has, and the client's has not
        self.patch(sending, "unacknowledged", lambda transport: self.held)
        kernel = self.start()
        for _ in range(2):
            kernel.session.send(PUSH, bytes(49_996))
        self.held = 100_009
        kernel.session.close()
        kernel.wire.turn(2)
        self.assertEqual(kernel.socket.shut, [1])
        return kernel

    def wait(self, kernel: Kernel, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            kernel.wire.poller.now += 0.25
            kernel.wire.turn(2)

    def test_who_reads_slowly_but_steadily_gets_all_of_it(self):
        kernel = self.closing()
        for _ in range(40):
            self.wait(kernel, 2.0)
            self.assertFalse(kernel.socket.closed)
            self.held = max(1, self.held - 2000)
        self.held = 0
        self.wait(kernel, 1.0 + TIMEOUTS.linger)
        self.assertTrue(kernel.socket.closed)
        self.assertFalse(kernel.socket.was_reset)

    def test_he_has_the_linger_timeout_from_then_on(self):
        kernel = self.closing()
        self.wait(kernel, 5.0)
        self.held = 0
        self.wait(kernel, TIMEOUTS.linger - 0.25)
        self.assertFalse(kernel.socket.closed)
        self.wait(kernel, 1.25)
        self.assertTrue(kernel.socket.closed)
        self.assertFalse(kernel.socket.was_reset)
        self.assertEqual(kernel.wire.reactor.getDelayedCalls(), [])

    def test_he_who_has_it_soon_is_not_kept_much_longer(self):
        kernel = self.closing()
        kernel.wire.poller.now += 0.04
        self.held = 0
        kernel.wire.poller.now += 0.01
        kernel.wire.turn()
        kernel.wire.poller.now += TIMEOUTS.linger
        kernel.wire.turn(2)
        self.assertTrue(kernel.socket.closed)

    def test_who_closes_meanwhile_is_gone_at_once(self):
        kernel = self.closing()
        self.wait(kernel, 1.0)
        self.held = 0
        kernel.socket.incoming.append(b"")
        kernel.wire.turn(2)
        self.assertTrue(kernel.socket.closed)
        self.assertFalse(kernel.socket.was_reset)
        self.assertEqual(kernel.wire.reactor.getDelayedCalls(), [])

    def test_who_takes_nothing_is_cut_after_the_flush_timeout(self):
        kernel = self.closing()
        self.wait(kernel, TIMEOUTS.flush - 0.25)
        self.assertFalse(kernel.socket.closed)
        self.wait(kernel, 0.5)
        self.assertTrue(kernel.socket.was_reset)

    def test_who_takes_next_to_nothing_does_not_stay_for_ever(self):
        kernel = self.closing()
        seconds = 0
        while not kernel.socket.closed:
            self.wait(kernel, 1.0)
            self.held -= 1
            seconds += 1
            self.assertLessEqual(seconds, RENEWALS * TIMEOUTS.flush + 1)
        self.assertGreaterEqual(seconds, RENEWALS * TIMEOUTS.flush)
        self.assertTrue(kernel.socket.was_reset)

    def test_what_the_kernel_holds_is_asked_of_the_socket(self):
        one, other = socket.socketpair()
        with one, other:
            transport = SimpleNamespace(socket=one)
            self.assertEqual(sending.unacknowledged(transport), 0)
            one.send(b"x" * 100)
            self.assertGreaterEqual(sending.unacknowledged(transport), 100)
            other.recv(100)
            self.assertEqual(sending.unacknowledged(transport), 0)
            one.close()
            self.assertEqual(sending.unacknowledged(transport), 0)
        self.assertEqual(sending.unacknowledged(object()), 0)


class DepartedTests(SendingCase):
    def test_a_close_on_the_way_to_another_process_leaves_no_timer(self):
        """A thread that has got hold of the lane before it left closes it behind that."""
        kernel = self.start()
        kernel.lane.hold(lambda at_rest: None)
        kernel.protocol.detach()
        in_thread(kernel.lane.close)
        kernel.pool.doRead()
        kernel.protocol.gone()
        self.assertEqual(kernel.wire.reactor.getDelayedCalls(), [])


class WaitingHandlerTests(SynchronousTestCase):
    """Handlers that never come to an end."""

    def setUp(self) -> None:
        self.waits: list[Deferred[Any]] = []
        self.lost: list[str] = []
        self.app = App()

        @self.app.message(WAIT)
        async def wait(session: Session, request: bytes) -> Any:
            self.waits.append(Deferred())
            return await self.waits[-1]

        @self.app.message(STUBBORN)
        async def stubborn(session: Session, request: bytes) -> Any:
            while True:
                self.waits.append(Deferred())
                try:
                    return await self.waits[-1]
                except CancelledError:
                    continue

        @self.app.on_connection_lost
        async def gone(session: Session, reason: str) -> None:
            self.lost.append(reason)

    def connect(self, timeouts: CloseTimeouts | None = None) -> FakeConnection:
        self.worker = FakeWorker(self, self.app, timeouts=timeouts)
        return self.worker.connect()

    def advance(self, client: FakeConnection, seconds: float) -> None:
        for _ in range(int(seconds)):
            client.clock.advance(1.0)
            client.turn()

    def test_one_whose_client_has_closed_is_cancelled_after_the_timeout(self):
        ends: dict[str, Any] = {
            "client_closed": FakeConnection.end,
            "handler": lambda client: client.session.close(),
            "kicked": lambda client: client.protocol.close(CloseReason.KICKED),
            "drain": lambda client: client.protocol.finish(),
        }
        for reason, end in ends.items():
            self.lost.clear()
            client = self.connect()
            client.receive((WAIT, b""))
            end(client)
            self.advance(client, TIMEOUTS.handler - 1)
            self.assertTrue(client.connected, reason)
            self.advance(client, 1 + TIMEOUTS.linger)
            self.assertFalse(client.connected, reason)
            self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)
            self.assertEqual(self.lost, [reason])
            self.assertEqual(len(self.worker.connections), 0)
            self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_one_that_waits_again_is_done_without(self):
        client = self.connect()
        client.receive((STUBBORN, b""))
        client.end()
        self.advance(client, TIMEOUTS.handler + 1)
        self.assertFalse(client.connected)
        self.assertEqual(len(self.worker.connections), 0)
        self.assertEqual(self.lost, [], "no hook runs beside a handler")
        self.waits[-1].callback(b"late")
        self.assertEqual((self.lost, client.sent()), (["client_closed"], []))
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_one_whose_connection_is_lost_is_cancelled_too(self):
        client = self.connect()
        client.receive((WAIT, b""))
        client.reset()
        self.advance(client, TIMEOUTS.handler - 1)
        self.assertEqual(self.lost, [])
        self.advance(client, 1)
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)
        self.assertEqual(self.lost, ["client_reset"])
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_one_that_begins_to_wait_when_the_end_has_begun_is_watched_as_well(self):
        @self.app.message(9)
        async def close_and_wait(session: Session, request: bytes) -> Any:
            session.close()
            return await Deferred()

        client = self.connect()
        client.receive((9, b""))
        self.advance(client, TIMEOUTS.handler + TIMEOUTS.linger)
        self.assertFalse(client.connected)
        self.flushLoggedErrors(CancelledError)

    def test_the_log_says_whose_it_was(self):
        events = logged(self)
        client = self.connect()
        client.receive((STUBBORN, b""))
        client.end()
        self.advance(client, TIMEOUTS.handler)
        said = "a handler has waited for 60.0 s since the end of its connection"
        self.assertEqual([text for text in texts(events) if "waited" in text], [said])

    def test_where_there_is_no_timeout_it_is_waited_for(self):
        client = self.connect(CloseTimeouts(handler=0.0))
        client.receive((WAIT, b""))
        client.end()
        self.advance(client, 1000)
        self.assertTrue(client.connected)
        self.waits.pop().callback(b"at last")
        self.assertEqual(client.bodies(), [b"at last"])

    def test_one_that_waits_for_ever_holds_up_its_own_connection_alone(self):
        @self.app.message(OTHER)
        async def echo(session: Session, request: bytes) -> bytes:
            return request

        client = self.connect()
        other = self.worker.connect(5001)
        client.receive((WAIT, b""))
        client.receive(*[(OTHER, b"behind it")] * 100)
        self.assertFalse(client.reading)
        for _ in range(600):
            self.advance(client, 1)
            other.receive((OTHER, b"beside it"))
        self.assertEqual((len(other.bodies()), client.bodies()), (600, []))
        self.assertEqual(len(self.worker.connections), 2)
        client.reset()
        self.advance(client, TIMEOUTS.handler)
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)
        self.assertEqual(self.lost, ["client_reset"])
        self.assertEqual(len(self.worker.connections), 1)

    def test_an_open_connection_waits_as_long_as_it_likes(self):
        client = self.connect()
        client.receive((WAIT, b""))
        self.advance(client, 1000)
        self.waits.pop().callback(b"at last")
        self.assertEqual(client.bodies(), [b"at last"])


class FaultTests(SendingCase):
    def test_a_refusal_that_cannot_be_told_costs_nothing_else(self):
        class Unspeakable(BadBody):
            def __str__(self) -> str:
                raise RuntimeError("no words")

        @self.app.message(9)
        async def refuse(session: Session, request: bytes) -> None:
            raise Unspeakable

        kernel = self.start()
        kernel.ask((4, b""))
        kernel.ask((9, b""), (ECHO, b"a"))
        self.waits.pop().callback(b"waited")
        kernel.ask((ECHO, b"b"))
        kernel.wire.settle()
        self.assertEqual(kernel.bodies(), [b"waited", b"a", b"b"])
        self.assertEqual(kernel.counts.refused, {"bad_body": 1})

    def test_a_fault_of_ours_ends_its_connection_instead_of_stopping_it_for_ever(self):
        kernel = self.start()
        kernel.ask((4, b""), (ECHO, b"behind"))

        def fail(*arguments: Any) -> None:
            raise MemoryError

        self.patch(kernel.protocol, "refuse", fail)
        kernel.ask((99, b""))
        wait = self.waits.pop()
        wait.callback(b"waited")
        self.failureResultOf(wait, MemoryError)
        kernel.wire.settle()
        self.assertTrue(kernel.socket.closed)
        self.assertEqual(len(kernel.connections), 0)

    def test_a_flush_that_fails_costs_its_connection_and_no_other(self):
        kernel = self.start()
        other_protocol = type(kernel.protocol)(kernel.factory, "10.0.0.9:5001")
        _, other = kernel.wire.connect(other_protocol)
        kernel.session.send(PUSH, b"lost")
        other_protocol.session.send(PUSH, b"sent")

        def fail() -> None:
            raise MemoryError

        kernel.transport.flush = fail
        kernel.wire.turn()
        self.assertEqual(len(self.flushLoggedErrors(MemoryError)), 1)
        kernel.wire.settle()
        self.assertEqual(other.received[8:], b"sent")
        self.assertTrue(kernel.socket.was_reset)
