"""The protocol: how a connection lives and ends, on a transport in memory."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.framing import encode
from ccserver.core.limits import FloodLimit, Heartbeat, SessionLimits
from ccserver.core.session import CloseReason, Session
from ccserver.net.closing import CloseTimeouts
from ccserver.net.connections import LINES_PER_SECOND
from ccserver.net.intake import address_text
from ccserver.net.protocol import FINAL_READS
from tests.core.test_framing import header, spoiled
from tests.support import FakeConnection, FakeWorker, connect, logged, texts

FLUSH_TIMEOUT, LINGER_TIMEOUT = CloseTimeouts().flush, CloseTimeouts().linger

ECHO, WAIT, THREAD, CLOSE = 1, 2, 3, 4


class ProtocolCase(SynchronousTestCase):
    """Has an application that echoes: at once, after a wait, and in a thread."""

    def setUp(self) -> None:
        self.app = App()
        self.waits: list[Deferred[Any]] = []
        self.lost: list[str] = []

        @self.app.message(ECHO)
        async def echo(session: Session, request: bytes) -> bytes:
            return request

        @self.app.message(WAIT)
        async def wait(session: Session, request: bytes) -> bytes:
            result: Deferred[None] = Deferred()
            self.waits.append(result)
            await result
            return request

        @self.app.message(THREAD)
        def thread(session: Session, request: bytes) -> bytes:
            return request

        @self.app.message(CLOSE)
        async def close(session: Session, request: bytes) -> bytes:
            session.close()
            return request

        @self.app.on_connection_lost
        async def lost(session: Session, reason: str) -> None:
            self.lost.append(reason)

    def connect(self, limits: SessionLimits | None = None, **worker: Any) -> FakeConnection:
        connection: FakeConnection = connect(self, self.app, limits, **worker)
        self.worker = connection.worker
        return connection

    def assertEnded(self, client: FakeConnection, reason: str, aborted: bool = False) -> None:
        """The connection is gone without a trace, and everybody knows why."""
        self.assertFalse(client.connected)
        self.assertEqual(client.transport.aborted, aborted)
        self.assertEqual(client.session.close_reason, reason)
        self.assertEqual(self.worker.counts.closed, {reason: 1})
        self.assertEqual(self.lost, [reason])
        self.assertEqual(len(self.worker.connections), 0)
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def let_end(self, client: FakeConnection) -> None:
        """The client reads all, sees the end of the stream, and closes too."""
        client.turn()
        if client.connected:
            client.end()
            client.turn()


class EndTests(ProtocolCase):
    def test_a_client_that_closes_between_packets(self):
        client = self.connect()
        client.receive((ECHO, b"a"))
        client.end()
        client.turn()
        self.assertEqual(client.bodies(), [b"a"])
        self.assertEnded(client, "client_closed")

    def test_a_client_that_closes_inside_a_packet(self):
        whole = encode(ECHO, b"abc")
        for length in range(1, len(whole)):
            self.lost.clear()
            client = self.connect()
            client.receive_bytes(whole[:length])
            client.end()
            client.turn()
            self.assertEnded(client, "truncated")

    def test_a_client_that_resets(self):
        client = self.connect()
        client.reset()
        self.assertEnded(client, "client_reset")

    def test_half_close_before_the_replies_loses_none_of_them(self):
        client = self.connect(threads=1)
        client.receive((WAIT, b"a"), (THREAD, b"b"), (ECHO, b"c"))
        client.end()
        client.turn()
        self.assertTrue(client.connected)
        self.waits.pop().callback(None)
        self.worker.idle()
        self.assertEqual(client.bodies(), [b"a", b"b", b"c"])
        client.turn()
        self.assertEnded(client, "client_closed")

    def test_a_reset_while_a_handler_waits(self):
        client = self.connect()
        client.receive((WAIT, b"a"))
        client.reset()
        self.assertEqual(self.lost, [], "not before the last handler has returned")
        self.waits.pop().callback(None)
        self.assertEnded(client, "client_reset")

    def test_a_handler_that_closes(self):
        client = self.connect()
        client.receive((CLOSE, b"bye"))
        self.assertEqual(client.bodies(), [b"bye"])
        self.let_end(client)
        self.assertEnded(client, "handler")

    def test_a_client_that_closes_while_we_close(self):
        client = self.connect()
        client.receive((CLOSE, b"bye"))
        client.end()
        client.turn()
        self.assertEnded(client, "handler")

    def test_a_flood(self):
        client = self.connect(SessionLimits(flood=FloodLimit(0.1, 10)))
        client.receive(*((ECHO, b"%d" % n) for n in range(20)))
        self.assertEqual(client.bodies(), [b"%d" % n for n in range(10)])
        self.let_end(client)
        self.assertEnded(client, "flood")

    def test_an_abort(self):
        client = self.connect()
        client.protocol.abort()
        self.assertEnded(client, "shutdown", aborted=True)

    def test_the_first_reason_counts(self):
        client = self.connect()
        client.receive_bytes(header(3))
        client.reset()
        self.assertEnded(client, "bad_length")


class BadInputTests(ProtocolCase):
    """The rows of PROTOCOL.md 2."""

    def test_a_bad_length_closes(self):
        for length in (0, 7, 29001, 0xFFFF):
            self.lost.clear()
            client = self.connect()
            client.receive_bytes(header(length))
            self.let_end(client)
            self.assertEnded(client, "bad_length")
            self.assertEqual(self.worker.counts.refused, {"bad_length": 1})

    def test_the_replies_to_what_was_before_it_are_sent(self):
        client = self.connect()
        client.receive_bytes(encode(ECHO, b"a") + encode(WAIT, b"b") + header(3))
        client.turn()
        self.waits.pop().callback(None)
        self.assertEqual(client.bodies(), [b"a", b"b"])
        self.let_end(client)
        self.assertEnded(client, "bad_length")

    def test_what_is_behind_it_is_not_handled(self):
        client = self.connect()
        client.receive_bytes(header(3) + encode(ECHO, b"a"))
        client.receive((ECHO, b"b"))
        self.assertEqual(client.sent(), [])

    def test_a_wrong_checksum_drops_the_packet(self):
        client = self.connect()
        client.receive_bytes(encode(ECHO, b"a") + spoiled(ECHO, b"b") + encode(ECHO, b"c"))
        self.assertEqual(client.bodies(), [b"a", b"c"])
        self.assertEqual(self.worker.counts.refused, {"bad_crc": 1})
        self.assertIsNone(client.session.close_reason)

    def test_a_wrong_checksum_closes_where_that_is_asked_for(self):
        client = self.connect(SessionLimits(close_on_bad_checksum=True))
        client.receive_bytes(encode(ECHO, b"a") + spoiled(ECHO, b"b") + encode(ECHO, b"c"))
        self.assertEqual(client.bodies(), [b"a"])
        self.let_end(client)
        self.assertEnded(client, "bad_crc")

    def test_a_flood_of_wrong_checksums_closes(self):
        client = self.connect(SessionLimits(flood=FloodLimit(0.1, 10)))
        client.receive_bytes(spoiled(ECHO, b"b") * 11)
        self.let_end(client)
        self.assertEnded(client, "flood")
        self.assertEqual(self.worker.counts.refused, {"bad_crc": 11})

    def test_an_unknown_code_is_skipped(self):
        client = self.connect()
        client.receive((ECHO, b"a"), (77, b"?"), (ECHO, b"b"))
        self.assertEqual(client.bodies(), [b"a", b"b"])
        self.assertEqual(self.worker.counts.refused, {"unknown_code": 1})

    def test_a_refusal_is_logged_with_session_code_and_reason(self):
        events = logged(self)
        client = self.connect()
        client.receive((77, b"?"))
        (event,) = [event for event in events if "refused" in event.get("log_format", "")]
        self.assertIs(event["session"], client.session)
        self.assertEqual(texts([event]), ["refused unknown_code, code 77: no handler for code 77"])

    def test_a_flood_of_refusals_is_no_flood_of_lines(self):
        for reason, packet in (
            ("unknown_code", encode(77, b"?")),
            ("bad_crc", spoiled(ECHO, b"?")),
        ):
            events = logged(self)
            client = self.connect()
            client.receive_bytes(packet * 1000)
            self.assertEqual(len(texts(events)), LINES_PER_SECOND)
            client.clock.advance(1)
            client.receive_bytes(packet)
            suppressed = 1000 - LINES_PER_SECOND
            self.assertIn(f"({suppressed} more such lines suppressed)", texts(events)[-1])
            self.assertEqual(self.worker.counts.refused[reason], 1001)

    def test_each_line_tells_of_a_packet_of_its_own(self):
        events = logged(self)
        client = self.connect()
        client.receive_bytes(spoiled(1, b"a") + spoiled(2, b"bc") + b"\0\7\0\3" + bytes(4))
        self.assertEqual(
            [text.partition(": ") for text in texts(events)],
            [
                ("refused bad_crc, code 1", ": ", "0xe8b7be42 for a body of 1 bytes"),
                ("refused bad_crc, code 2", ": ", "0xc2a92b39 for a body of 2 bytes"),
                ("refused bad_length, code 3", ": ", "pkgLen 7, allowed 8 to 29000"),
            ],
        )
        self.assertIs(client.session.close_reason, CloseReason.BAD_LENGTH)

    def test_the_limit_of_lines_is_the_workers_not_the_connections(self):
        events = logged(self)
        client = self.connect()
        for other in [client, *(self.worker.connect() for _ in range(99))]:
            other.receive((77, b"?"))
        self.assertEqual(len(texts(events)), LINES_PER_SECOND)


class ClosingTests(ProtocolCase):
    """First our end of stream, then time to read, then the cut."""

    def closing(self) -> FakeConnection:
        client = self.connect()
        client.receive_bytes(encode(ECHO, b"last") + header(3))
        return client

    def test_our_side_is_closed_first_and_what_was_sent_comes_before(self):
        client = self.closing()
        self.assertTrue(client.transport.ended)
        self.assertFalse(client.transport.closing)
        self.assertEqual(client.bodies(), [b"last"])

    def test_what_still_comes_is_read_and_thrown_away(self):
        client = self.closing()
        client.sent()
        client.turn()
        self.assertTrue(client.reading)
        client.receive_bytes(b"x" * 100000)
        self.assertEqual(client.sent(), [])
        self.assertTrue(client.connected)

    def test_a_client_that_does_not_close_is_closed_in_order_after_the_linger_timeout(self):
        client = self.closing()
        client.turn()
        client.clock.advance(LINGER_TIMEOUT - 0.01)
        client.turn()
        self.assertTrue(client.connected)
        client.clock.advance(0.01)
        client.turn()
        self.assertEnded(client, "bad_length", aborted=False)

    def test_sending_on_does_not_prolong_that(self):
        client = self.closing()
        client.turn()
        for _ in range(8):
            client.receive_bytes(b"x")
            client.clock.advance(LINGER_TIMEOUT / 8)
        client.turn()
        self.assertFalse(client.connected)

    def test_a_client_that_does_not_read_is_cut_after_the_flush_timeout(self):
        client = self.closing()
        client.clock.advance(FLUSH_TIMEOUT - 0.01)
        self.assertTrue(client.connected)
        client.clock.advance(0.01)
        self.assertEnded(client, "bad_length", aborted=True)

    def test_a_client_that_closed_its_side_and_does_not_read_is_cut_after_the_flush_timeout(self):
        client = self.connect()
        client.receive((ECHO, b"a"))
        client.end()
        client.clock.advance(FLUSH_TIMEOUT)
        self.assertEnded(client, "client_closed", aborted=True)

    def test_a_client_with_requests_waiting_that_does_not_read_is_cut_too(self):
        for end in (self.garbage, self.half_close):
            self.lost.clear()
            client = self.connect()
            client.block()
            client.receive((ECHO, b"a"))
            end(client)
            for _ in range(60):
                client.clock.advance(1)
            self.assertFalse(client.connected, end.__name__)

    def garbage(self, client: FakeConnection) -> None:
        client.receive_bytes(header(3))

    def half_close(self, client: FakeConnection) -> None:
        client.end()

    def test_the_client_that_closes_in_time_is_not_cut(self):
        client = self.closing()
        client.turn()
        client.clock.advance(LINGER_TIMEOUT / 2)
        client.end()
        client.turn()
        self.assertEnded(client, "bad_length")

    def test_the_client_that_resets_leaves_no_timer(self):
        for turns in (0, 1):
            self.lost.clear()
            client = self.closing()
            for _ in range(turns):
                client.turn()
            client.reset()
            self.assertEnded(client, "bad_length")


class FinishTests(ProtocolCase):
    """A stopping worker lets its connections answer what has been received."""

    def test_an_idle_connection_ends_at_once(self):
        client = self.connect()
        client.protocol.finish()
        self.assertTrue(client.transport.ended)
        self.let_end(client)
        self.assertEnded(client, "drain")

    def test_what_waits_in_the_kernel_is_answered(self):
        client = self.connect(threads=1)
        client.transport.unread = [encode(ECHO, b"a"), encode(THREAD, b"b") + encode(ECHO, b"c")]
        client.protocol.finish()
        self.worker.idle()
        self.assertEqual(client.bodies(), [b"a", b"b", b"c"])
        self.let_end(client)
        self.assertEnded(client, "drain")

    def test_but_not_for_ever(self):
        client = self.connect()
        client.transport.unread = [encode(ECHO, b"a")] * 100
        client.protocol.finish()
        self.assertEqual(len(client.sent()), FINAL_READS)

    def test_half_a_packet_does_not_delay_it(self):
        client = self.connect()
        client.receive_bytes(encode(ECHO, b"a")[:5])
        client.protocol.finish()
        self.assertTrue(client.transport.ended)
        self.let_end(client)
        self.assertEnded(client, "drain")

    def test_a_handler_that_waits_is_waited_for(self):
        client = self.connect()
        client.receive((WAIT, b"a"), (ECHO, b"b"))
        client.protocol.finish()
        self.assertFalse(client.transport.ended)
        self.assertFalse(client.reading)
        self.waits.pop().callback(None)
        self.assertEqual(client.bodies(), [b"a", b"b"])
        self.let_end(client)
        self.assertEnded(client, "drain")

    def test_behind_our_end_of_stream_it_reads_on_to_see_the_clients(self):
        client = self.connect()
        client.protocol.finish()
        self.assertFalse(client.reading)
        client.turn()
        self.assertTrue(client.reading)

    def test_nothing_more_is_taken(self):
        client = self.connect()
        client.receive((WAIT, b"a"))
        client.protocol.finish()
        client.receive((ECHO, b"late"))
        self.waits.pop().callback(None)
        self.assertEqual(client.bodies(), [b"a"])

    def test_a_bad_packet_in_the_kernel_is_its_reason(self):
        client = self.connect()
        client.transport.unread = [encode(ECHO, b"a"), header(3), encode(ECHO, b"b")]
        client.protocol.finish()
        self.assertEqual(client.bodies(), [b"a"])
        self.let_end(client)
        self.assertEnded(client, "bad_length")

    def test_twice_is_no_fault_at_any_time(self):
        client = self.connect()
        client.protocol.finish()
        client.protocol.finish()
        client.turn()
        client.protocol.finish()
        client.end()
        client.turn()
        client.protocol.finish()
        self.assertEnded(client, "drain")

    def test_a_connection_that_comes_while_the_worker_stops_is_finished_at_once(self):
        self.connect()
        self.worker.connections.finish()
        late = self.worker.connect()
        self.assertTrue(late.transport.ended)
        self.assertEqual(late.session.close_reason, "drain")

    def test_all_connections_are_finished_even_if_they_go_meanwhile(self):
        clients = [self.connect()]
        clients += [self.worker.connect() for _ in range(9)]
        self.worker.connections.finish()
        self.assertTrue(all(client.transport.ended for client in clients))

    def test_who_is_cut_while_he_finishes_was_too_slow_for_the_drain(self):
        client = self.connect()
        client.receive((WAIT, b"a"))
        client.protocol.finish()
        client.protocol.abort()
        self.waits.pop().callback(None)
        self.assertEnded(client, "shutdown", aborted=True)

    def test_who_is_cut_in_his_own_end_keeps_its_reason(self):
        client = self.connect()
        client.receive_bytes(header(3))
        client.protocol.abort()
        self.assertEqual(client.session.close_reason, "bad_length")

    def test_in_a_spread_a_connection_is_served_until_its_turn(self):
        idle, busy = self.connect(), self.worker.connect()
        busy.receive((WAIT, b"a"))
        late = self.worker.connect()
        self.worker.connections.finish(10.0)
        self.assertTrue(idle.transport.ended, "the first of the idle ones")
        self.assertEqual(busy.session.close_reason, "drain", "what it has is its last")
        late.receive((ECHO, b"x"))
        self.assertEqual(late.bodies(), [b"x"])
        self.worker.reactor.advance(4.9)
        self.worker.connections.finish_due()
        self.assertIsNone(late.session.close_reason)
        self.worker.reactor.advance(0.1)
        self.worker.connections.finish_due()
        self.assertEqual(late.session.close_reason, "drain")

    def test_all_connections_are_cut_at_once_by_abort(self):
        clients = [self.connect()]
        clients += [self.worker.connect() for _ in range(9)]
        self.worker.connections.abort()
        self.assertFalse(any(client.connected for client in clients))
        self.assertEqual(self.worker.counts.closed, {"shutdown": 10})


class IdleTests(ProtocolCase):
    LIMITS = SessionLimits(heartbeat=Heartbeat(5))

    def pass_time(self, client: FakeConnection, seconds: int) -> None:
        """So many ticks of the heartbeat."""
        for _ in range(seconds):
            client.clock.advance(1)
            self.worker.connections.check_heartbeats()

    def test_a_silent_connection_is_closed(self):
        client = self.connect(self.LIMITS)
        self.pass_time(client, 25)
        self.assertIsNone(client.session.close_reason)
        self.pass_time(client, 7)
        self.let_end(client)
        self.assertEnded(client, "idle")

    def test_one_that_sends_packets_is_not(self):
        client = self.connect(self.LIMITS)
        for _ in range(10):
            self.pass_time(client, 20)
            client.receive((ECHO, b"a"))
        self.assertIsNone(client.session.close_reason)

    def test_one_that_sends_single_bytes_is(self):
        client = self.connect(self.LIMITS)
        whole = encode(ECHO, bytes(1000))
        for place in range(35):
            client.receive_bytes(whole[place : place + 1])
            self.pass_time(client, 1)
        self.assertEqual(client.session.close_reason, "idle")

    def test_what_waits_for_its_handler_is_dropped(self):
        client = self.connect(self.LIMITS)
        client.receive((WAIT, b"a"), (ECHO, b"b"))
        self.pass_time(client, 35)
        self.waits.pop().callback(None)
        self.assertEqual(client.bodies(), [b"a"])
        self.let_end(client)
        self.assertEnded(client, "idle")

    def test_with_kick_it_is_closed_at_the_first_check(self):
        client = self.connect(SessionLimits(heartbeat=Heartbeat(5, kick=True)))
        for second in range(5):
            client.receive((ECHO, b"%d" % second))
            self.pass_time(client, 1)
            self.assertIsNone(client.session.close_reason)
        self.pass_time(client, 2)
        self.assertEqual(client.session.close_reason, "idle")


class LimitTests(ProtocolCase):
    def test_a_connection_too_many_is_closed_at_once_and_counted(self):
        self.connect(connections=2)
        self.assertIsNotNone(self.worker.try_connect())
        self.assertIsNone(self.worker.try_connect())
        self.assertEqual(self.worker.counts.closed, {"connection_limit": 1})
        self.assertEqual(self.worker.counts.accepted, 3)

    def test_the_others_are_served_on(self):
        client = self.connect(connections=1)
        self.worker.try_connect()
        client.receive((ECHO, b"a"))
        self.assertEqual(client.bodies(), [b"a"])

    def test_a_place_is_free_as_soon_as_somebody_leaves(self):
        client = self.connect(connections=1)
        for _ in range(3):
            self.assertIsNone(self.worker.try_connect())
            client.reset()
            client = self.worker.connect()

    def test_refusals_are_logged_and_not_too_often(self):
        self.connect(connections=1)
        events = logged(self)
        for _ in range(100):
            self.worker.try_connect()
        self.assertEqual(len(events), LINES_PER_SECOND)
        self.assertEqual(
            texts(events)[0], "connection_limit: 1 connections, 127.0.0.1:5000 refused"
        )


class LogTests(ProtocolCase):
    def test_a_line_for_each_connection_that_ends(self):
        client = self.connect(log_ends=True)
        events = logged(self)
        client.receive((ECHO, b"hello"), (77, b""))
        client.clock.advance(1.5)
        client.reset()
        (event,) = [event for event in events if event.get("log_format", "").startswith("closed")]
        self.assertEqual(
            texts([event]),
            ["closed: client_reset, 1.500 s, in 21 bytes 2 packets, out 13 bytes 1 packets"],
        )
        self.assertIs(event["session"], client.session)

    def test_none_where_the_level_does_not_ask_for_it(self):
        client = self.connect()
        events = logged(self)
        client.reset()
        self.assertEqual(events, [])


class AddressTests(SynchronousTestCase):
    def test_of_ipv4(self):
        self.assertEqual(address_text(IPv4Address("TCP", "10.0.0.1", 80)), "10.0.0.1:80")

    def test_of_ipv6(self):
        self.assertEqual(address_text(IPv6Address("TCP", "::1", 80)), "[::1]:80")

    def test_of_anything_else(self):
        self.assertEqual(address_text(UNIXAddress("/tmp/socket")), "-")
        self.assertEqual(address_text(None), "-")


class SessionTests(ProtocolCase):
    def test_it_knows_both_addresses_and_its_beginning(self):
        client = self.connect()
        client.clock.advance(5)
        later = self.worker.connect(port=5001)
        self.assertEqual(later.session.peer, "127.0.0.1:5001")
        self.assertEqual(later.session.server, "10.0.0.1:5678")
        self.assertEqual(later.session.started, 5.0)


STEPS = st.lists(
    st.one_of(
        st.sampled_from([ECHO, WAIT, CLOSE, 77]).map(lambda code: ("packet", code)),
        st.binary(max_size=12).map(lambda data: ("bytes", data)),
        st.sampled_from(
            [
                ("end", None),
                ("reset", None),
                ("turn", None),
                ("turn", None),
                ("block", None),
                ("unblock", None),
                ("answer", None),
                ("answer", None),
                ("finish", None),
                ("close", None),
                ("idle", None),
                ("abort", None),
                ("time", 0.5),
                ("time", 30.0),
            ]
        ),
    ),
    max_size=30,
)


class AnyLifeTests(ProtocolCase):
    """Whatever happens in whatever order, a connection ends once and leaves nothing behind."""

    def setUp(self) -> None:
        super().setUp()
        self.worker = FakeWorker(self, self.app)

    @given(STEPS)
    @settings(deadline=None, max_examples=300)
    def test_it_ends_once_and_leaves_nothing(self, steps: list[tuple[str, Any]]):
        self.waits.clear()
        self.lost.clear()
        self.worker.counts.closed.clear()
        client, ended, sent = self.worker.connect(), False, b""
        for step, value in [*steps, ("unblock", None), ("answer", None)]:
            if not client.connected and step not in ("answer", "close", "finish", "time", "turn"):
                continue
            if step == "packet" and not ended:
                client.receive((value, b"x"))
            elif step == "bytes" and not ended:
                client.receive_bytes(value)
            elif step == "end" and not ended:
                ended = True
                client.end()
            elif step == "reset":
                client.reset()
            elif step == "turn":
                client.turn()
            elif step in ("block", "unblock") and client.transport.producer is not None:
                getattr(client, step)()
            elif step == "answer":
                while self.waits:
                    self.waits.pop(0).callback(None)
            elif step == "finish":
                client.protocol.finish()
            elif step == "close":
                client.session.close()
            elif step == "idle":
                client.protocol.close(CloseReason.IDLE)
            elif step == "abort":
                client.protocol.abort()
            elif step == "time":
                client.clock.advance(value)
            if client.transport.end_told:
                self.assertEqual(client.transport.value()[len(sent) :], b"")
            sent = client.transport.value()
        for _ in range(3):
            if client.connected and not ended:
                ended = True
                client.end()
            client.turn()
        while self.waits:
            self.waits.pop(0).callback(None)
        client.turn()
        self.flushLoggedErrors(CancelledError)  # of handlers that waited too long
        self.assertFalse(client.connected)
        self.assertEqual(len(self.lost), 1)
        self.assertEqual(self.worker.counts.closed.total(), 1)
        self.assertEqual(self.worker.counts.closed, {self.lost[0]: 1})
        self.assertEqual(len(self.worker.connections), 0)
        self.assertEqual(client.clock.getDelayedCalls(), [])
