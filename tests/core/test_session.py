"""Session: what a connection's packets say about it, and what its handlers may do."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.addresses import AddressLimits, Origin
from ccserver.core.carried import Carried
from ccserver.core.framing import Packet, encode
from ccserver.core.limits import FloodLimit, Heartbeat, RateAction, SessionLimits
from ccserver.core.outbox import Overflow
from ccserver.core.rates import Rate
from ccserver.core.session import CloseReason, Session
from ccserver.errors import NotCarried, PacketTooLong, SessionClosed
from ccserver.message import Message, field
from tests.core.test_framing import header, spoiled

FLOOD = SessionLimits(flood=FloodLimit(0.1, 10))
HEARTBEAT = SessionLimits(heartbeat=Heartbeat(5))


class Point(Message):
    x: int = field.i16()


class Outlet:
    """Remembers what a session sends."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closes = 0
        self.policies: list[tuple[Overflow, Hashable]] = []

    def send(self, frame: bytes, overflow: Overflow, key: Hashable) -> None:
        self.sent.append(frame)
        self.policies.append((overflow, key))

    def close(self) -> None:
        self.closes += 1

    def room(self) -> None:
        """There is always some."""


def session(limits: SessionLimits | None = None, now: float = 0.0) -> Session:
    return Session(7, "127.0.0.1:5000", "0.0.0.0:5678", limits or SessionLimits(), now)


def read(session: Session, data: bytes, now: float) -> list[Packet]:
    """One read, as the protocol has it done."""
    packets = session.admit(session.decoder.feed(data), now)
    session.take_refused()
    return packets


class HandlersViewTests(SynchronousTestCase):
    def setUp(self):
        self.session = session()
        self.outlet = Outlet()
        self.session.attach(self.outlet)

    def test_state_is_a_dictionary_of_its_own(self):
        self.session.state["user"] = "ada"
        self.assertEqual(self.session.state, {"user": "ada"})
        self.assertEqual(session().state, {})

    def test_by_what_it_is_known_is_no_handlers_to_change(self):
        for name in ("id", "peer", "server", "packets_in", "bytes_in"):
            self.assertRaises(AttributeError, setattr, self.session, name, 5)

    def test_a_packet_may_have_a_policy(self):
        self.session.send(9, b"a")
        self.session.send(9, b"b", "drop_old")
        self.session.send(9, b"c", overflow=Overflow.LATEST, key=("x", 1))
        policies = [(Overflow.CLOSE, None), (Overflow.DROP_OLD, None), (Overflow.LATEST, ("x", 1))]
        self.assertEqual(self.outlet.policies, policies)
        self.assertRaises(ValueError, self.session.send, 9, b"", "drop")
        self.assertRaises(TypeError, self.session.send, 9, b"", "latest", key=["x"])

    def test_where_there_is_room_nobody_waits_for_it(self):
        sending = self.session.send_async(9, b"hello")
        self.assertRaises(StopIteration, sending.send, None)
        self.assertEqual(self.outlet.sent, [encode(9, b"hello")])

    def test_where_nobody_can_be_sent_to_that_is_told(self):
        self.session.attach(None)
        self.session.send(9, b"nothing happens")
        self.assertRaises(SessionClosed, self.session.send_async(9, b"").send, None)

    def test_bytes_are_sent_as_a_packet(self):
        self.session.send(9, b"hello")
        self.assertEqual(self.outlet.sent, [encode(9, b"hello")])

    def test_a_message_is_sent_as_its_body(self):
        self.session.send(9, Point(x=1))
        self.assertEqual(self.outlet.sent, [encode(9, b"\0\x01")])

    def test_without_a_body_the_header_is_sent(self):
        self.session.send(9)
        self.assertEqual(self.outlet.sent, [encode(9)])

    def test_too_long_a_body_is_refused(self):
        self.assertRaises(PacketTooLong, self.session.send, 9, bytes(65528))

    def test_a_code_that_does_not_exist_is_refused(self):
        self.assertRaises(ValueError, self.session.send, 65536)

    def test_a_message_that_cannot_be_encoded_is_refused(self):
        self.assertRaises(ValueError, self.session.send, 9, Point(x=1 << 20))

    def test_what_is_refused_is_not_sent(self):
        self.assertRaises(ValueError, self.session.send, 65536)
        self.assertEqual(self.outlet.sent, [])

    def test_close_closes_through_the_outlet(self):
        self.session.close()
        self.assertEqual(self.outlet.closes, 1)

    def test_without_a_connection_sending_and_closing_do_nothing(self):
        alone = session()
        alone.send(9, b"hello")
        alone.close()
        self.assertIsNone(alone.close_reason)


class CloseReasonTests(SynchronousTestCase):
    def test_the_words_are_those_of_the_log(self):
        self.assertEqual(
            sorted(map(str, CloseReason)),
            [
                "address_limit",
                "address_rate",
                "bad_crc",
                "bad_length",
                "client_closed",
                "client_reset",
                "connection_limit",
                "denied",
                "drain",
                "first_packet_timeout",
                "flood",
                "handler",
                "handover",
                "idle",
                "kicked",
                "login_timeout",
                "overload",
                "packet_timeout",
                "proxy",
                "rate",
                "send_queue_full",
                "send_timeout",
                "shutdown",
                "tls",
                "truncated",
            ],
        )

    def test_an_open_connection_has_none(self):
        self.assertIsNone(session().close_reason)

    def test_the_first_one_counts(self):
        it = session()
        it.stop(CloseReason.FLOOD)
        it.stop(CloseReason.CLIENT_RESET)
        self.assertIs(it.close_reason, CloseReason.FLOOD)

    def test_a_stopped_session_decodes_no_more(self):
        it = session()
        it.stop(CloseReason.IDLE)
        self.assertEqual(it.decoder.feed(encode(1)), [])

    def test_the_end_between_packets_is_the_clients(self):
        it = session()
        it.decoder.feed(encode(1))
        it.end_of_stream()
        self.assertIs(it.close_reason, CloseReason.CLIENT_CLOSED)

    def test_the_end_inside_a_packet_is_truncated(self):
        it = session()
        it.decoder.feed(encode(1)[:7])
        it.end_of_stream()
        self.assertIs(it.close_reason, CloseReason.TRUNCATED)

    def test_the_end_behind_a_fatal_packet_is_that_ones(self):
        it = session()
        read(it, header(3), 0.0)
        it.end_of_stream()
        self.assertIs(it.close_reason, CloseReason.BAD_LENGTH)


class RefusedTests(SynchronousTestCase):
    def test_what_was_refused_is_taken_once(self):
        it = session()
        it.decoder.feed(spoiled(4, b"a"))
        self.assertEqual([refusal.code for refusal in it.take_refused()], [4])
        self.assertEqual(it.take_refused(), [])

    def test_a_fatal_packet_behind_one_that_is_dropped_closes(self):
        it = session()
        read(it, spoiled(4, b"a") + header(3), 0.0)
        self.assertIs(it.close_reason, CloseReason.BAD_LENGTH)

    def test_a_wrong_checksum_does_not_close(self):
        it = session()
        it.decoder.feed(spoiled(4, b"a"))
        it.take_refused()
        self.assertIsNone(it.close_reason)

    def test_a_wrong_checksum_closes_where_that_is_asked_for(self):
        it = session(SessionLimits(close_on_bad_checksum=True))
        it.decoder.feed(spoiled(4, b"a"))
        it.take_refused()
        self.assertIs(it.close_reason, CloseReason.BAD_CRC)

    def test_a_wrong_length_closes(self):
        it = session()
        it.decoder.feed(header(3))
        it.take_refused()
        self.assertIs(it.close_reason, CloseReason.BAD_LENGTH)


class FloodTests(SynchronousTestCase):
    def test_the_packet_that_is_too_much_is_dropped_and_closes(self):
        it = session(FLOOD)
        packets = read(it, b"".join(encode(n) for n in range(12)), 0.0)
        self.assertEqual([code for code, _ in packets], list(range(10)))
        self.assertIs(it.close_reason, CloseReason.FLOOD)

    def test_packets_with_a_wrong_checksum_count_too(self):
        it = session(FLOOD)
        read(it, spoiled(1, b"a") * 11, 0.0)
        self.assertIs(it.close_reason, CloseReason.FLOOD)

    def test_refused_packets_do_not_push_good_ones_out(self):
        it = session(FLOOD)
        data = spoiled(1, b"a") * 3 + encode(2) * 4 + spoiled(1, b"a") * 2 + encode(3) * 4
        packets = read(it, data, 0.0)
        self.assertEqual([code for code, _ in packets], [2] * 4 + [3])

    def test_ten_packets_at_once_are_no_flood(self):
        it = session(FLOOD)
        self.assertEqual(len(read(it, encode(1) * 10, 0.0)), 10)
        self.assertIsNone(it.close_reason)

    def test_behind_a_flood_nothing_is_decoded(self):
        it = session(FLOOD)
        read(it, encode(1) * 11, 0.0)
        self.assertEqual(read(it, encode(1), 100.0), [])

    @given(
        st.lists(
            st.tuples(st.lists(st.sampled_from("gb"), max_size=14), st.integers(0, 250)),
            max_size=10,
        ),
        st.integers(1, 12),
    )
    @settings(deadline=None, max_examples=200)
    def test_what_is_let_through_is_what_the_familys_rule_lets_through(
        self, reads: list[tuple[list[str], int]], count: int
    ):
        it = session(SessionLimits(flood=FloodLimit(100.0, count)))
        got: list[int] = []
        expected: list[int] = []
        now, number, quick, last = 0.0, 0, 0, None
        closed = False
        for kinds, pause in reads:
            now += pause
            data = b""
            for kind in kinds:
                number += 1
                data += encode(number, b"x") if kind == "g" else spoiled(number, b"x")
                if closed:
                    continue
                quick = quick + 1 if last is not None and now - last < 100.0 else 0
                last = now
                closed = quick >= count
                if kind == "g" and not closed:
                    expected.append(number)
            got += [code for code, _ in read(it, data, now)]
        self.assertEqual(got, expected)
        self.assertEqual(it.close_reason, CloseReason.FLOOD if closed else None)


class HeartbeatTests(SynchronousTestCase):
    def test_the_beginning_is_a_sign_of_life(self):
        self.assertEqual(session(HEARTBEAT, now=3.0).heard, 3.0)

    def test_any_complete_packet_is_one(self):
        it = session(HEARTBEAT)
        read(it, encode(5, b"a"), 9.0)
        self.assertEqual(it.heard, 9.0)

    def test_bytes_that_complete_no_packet_are_none(self):
        it = session(HEARTBEAT)
        read(it, encode(5, b"a")[:-1], 9.0)
        self.assertEqual(it.heard, 0.0)

    def test_with_ping_only_another_packet_is_none(self):
        it = session(SessionLimits(heartbeat=Heartbeat(5), ping_only=True))
        read(it, encode(5, b"a"), 9.0)
        self.assertEqual(it.heard, 0.0)

    def test_with_ping_only_a_ping_is_one_wherever_it_stands(self):
        it = session(SessionLimits(heartbeat=Heartbeat(5), ping_only=True))
        read(it, encode(5, b"a") + encode(0) + encode(5, b"a"), 9.0)
        self.assertEqual(it.heard, 9.0)

    def test_with_ping_only_a_ping_with_a_wrong_checksum_is_none(self):
        it = session(SessionLimits(heartbeat=Heartbeat(5), ping_only=True))
        read(it, spoiled(0, b""), 9.0)
        self.assertEqual(it.heard, 0.0)


class CountTests(SynchronousTestCase):
    def test_bytes_and_packets_in_are_the_decoders(self):
        it = session()
        it.decoder.feed(encode(1) + spoiled(2, b"b") + b"\0")
        self.assertEqual((it.packets_in, it.bytes_in), (2, 18))


class RateTests(SynchronousTestCase):
    """A session whose packets have a rate of 10 a second, and 20 at once."""

    def session(self, action: RateAction = RateAction.DELAY, address: bool = False) -> Session:
        rate = Rate(10, 20)
        limits = SessionLimits(
            rate=None if address else rate, address_rate=address, rate_action=action
        )
        it = session(limits)
        if address:
            it.origin = Origin("192.0.2.1", AddressLimits(packets=rate), 0.0)
        return it

    def send(self, it: Session, count: int, now: float) -> int:
        """How many of C{count} packets that come at C{now} are let through."""
        return len(read(it, encode(1) * count, now))

    def test_what_it_lets_through_is_let_through_at_once(self):
        for address in (False, True):
            it = self.session(address=address)
            self.assertEqual(self.send(it, 20, 0.0), 20)
            self.assertIsNone(it.excess)
            self.assertEqual([self.send(it, 1, n / 10) for n in range(1, 50)], [1] * 49)
            self.assertIsNone(it.excess)

    def test_the_others_wait_in_order(self):
        for address in (False, True):
            it = self.session(address=address)
            data = b"".join(encode(1, bytes([n])) for n in range(50))
            packets = read(it, data, 0.0)
            self.assertEqual(len(packets), 20)
            self.assertAlmostEqual(it.wait(0.0), 0.1)
            packets += it.release(0.51)
            self.assertEqual(len(packets), 25)
            packets += it.release(10.0)
            self.assertEqual(len(packets), 45)
            packets += it.release(20.0)
            self.assertEqual([body[0] for _, body in packets], list(range(50)))
            self.assertIsNone(it.excess)

    def test_what_comes_while_others_wait_waits_behind_them(self):
        it = self.session()
        self.send(it, 30, 0.0)
        self.assertEqual(self.send(it, 5, 60.0), 0)
        self.assertEqual(len(it.release(60.0)), 15)

    def test_those_that_are_dropped_take_no_token(self):
        it = self.session(RateAction.DROP)
        self.assertEqual(self.send(it, 1000, 0.0), 20)
        self.assertEqual(len(it.take_excess()), 980)
        self.assertEqual(self.send(it, 5, 0.21), 2)

    def test_who_is_to_be_kicked_has_what_was_let_through_answered(self):
        it = self.session(RateAction.KICK)
        self.assertEqual(self.send(it, 21, 0.0), 20)
        self.assertIs(it.close_reason, CloseReason.RATE)
        self.assertIsNone(it.excess)

    def test_packets_with_a_wrong_checksum_count(self):
        it = self.session()
        self.assertEqual(len(read(it, spoiled(1, b"x") * 15 + encode(1) * 10, 0.0)), 5)

    def test_nobody_sends_more_of_them_than_the_rate_either(self):
        for action in (RateAction.DELAY, RateAction.KICK):
            it = self.session(action)
            read(it, spoiled(1, b"x") * 100, 0.0)
            if action is RateAction.KICK:
                self.assertIs(it.close_reason, CloseReason.RATE)
                continue
            self.assertEqual(it.excess, [])
            self.assertAlmostEqual(it.wait(0.0), 8.1)
            self.assertEqual(it.release(7.9), [])
            self.assertEqual(it.excess, [])
            it.release(8.1)
            self.assertIsNone(it.excess)

    def test_the_lower_of_two_rates_holds(self):
        limits = SessionLimits(rate=Rate(10, 20), address_rate=True)
        it = session(limits)
        it.origin = Origin("192.0.2.1", AddressLimits(packets=Rate(1, 5)), 0.0)
        self.assertEqual(self.send(it, 30, 0.0), 5)
        self.assertAlmostEqual(it.wait(0.0), 1.0)

    def test_two_connections_of_an_address_share_its_rate(self):
        one, other = self.session(address=True), self.session(address=True)
        other.origin = one.origin
        self.assertEqual([self.send(one, 15, 0.0), self.send(other, 15, 0.0)], [15, 5])

    def test_what_is_let_through_beyond_is_owed(self):
        it = self.session()
        self.send(it, 40, 0.0)
        self.assertEqual(len(it.let_through()), 20)
        self.assertAlmostEqual(it.wait(0.0), 2.1)

    def test_an_end_comes_behind_the_packets_that_wait(self):
        """With which the client could otherwise go round the rate, or which it would lose."""
        ends = {"client_closed": b"", "truncated": encode(1)[:5], "bad_length": header(3, 1, 0)}
        for reason, behind in ends.items():
            it = self.session()
            self.assertEqual(len(read(it, encode(1) * 40 + behind, 0.0)), 20 - (len(behind) == 8))
            it.end_of_stream()
            self.assertEqual((it.ending, it.close_reason), (True, None))
            self.assertEqual(read(it, encode(1) * 40, 1.0), [])
            now, through = 0.0, 0
            while it.excess is not None:
                self.assertIsNone(it.close_reason)
                now += 0.5
                through += len(it.release(now))
                self.assertLessEqual(through, now * 10)
            self.assertEqual(through, 20 + (len(behind) == 8))
            self.assertEqual((it.close_reason, it.excess), (reason, None))

    def test_who_is_closed_before_that_has_ended_for_the_first_reason(self):
        it = self.session()
        self.send(it, 40, 0.0)
        it.end_of_stream()
        it.stop(CloseReason.DRAIN)
        self.assertEqual((it.close_reason, it.excess), ("client_closed", None))

    def test_nothing_waits_once_it_ends(self):
        it = self.session()
        self.send(it, 40, 0.0)
        it.stop(CloseReason.IDLE)
        self.assertIsNone(it.excess)

    @given(
        st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3000)), max_size=30),
        st.integers(1, 50),
        st.integers(1, 40),
    )
    @settings(deadline=None)
    def test_all_come_through_in_order_and_never_more_than_the_rate_allows(
        self, reads: list[tuple[int, int]], rate: int, burst: int
    ):
        it = session(SessionLimits(rate=Rate(rate, burst)))
        capacity = Rate(rate, burst).capacity
        now, sent, through = 0.0, 0, []
        for count, pause in reads:
            now += pause / 1000
            through += it.release(now) if it.excess is not None else []
            if it.excess is None:  # else nothing is read
                data = b"".join(encode(n) for n in range(sent, sent + count))
                through += read(it, data, now)
                sent += count
            self.assertLessEqual(len(through), capacity + now * rate + 1e-6)
            # nothing is held back that there are tokens for
            if it.excess:
                self.assertGreater(it.wait(now), 0)
        while it.excess is not None:
            now += it.wait(now) + 1e-9
            through += it.release(now)
        self.assertEqual([code for code, _ in through], list(range(sent)))


class EmptyReadTests(SynchronousTestCase):
    """A session of which 10 reads a second may complete no packet."""

    def setUp(self):
        self.session = session(SessionLimits(empty_reads=10))

    def test_ten_at_once_are_let_through_and_the_next_closes(self):
        for _ in range(10):
            self.session.came_little(1, 5.0)
        self.assertIsNone(self.session.close_reason)
        self.session.came_little(1, 5.0)
        self.assertIs(self.session.close_reason, CloseReason.FLOOD)

    def test_ten_a_second_are_always_let_through(self):
        for n in range(1000):
            self.session.came_little(1, n / 10)
        self.assertIsNone(self.session.close_reason)

    def test_long_reads_do_not_count(self):
        for _ in range(1000):
            self.session.came_little(512, 5.0)
        self.assertIsNone(self.session.close_reason)

    def test_without_the_limit_nothing_does(self):
        it = session()
        for _ in range(1000):
            it.came_little(1, 5.0)
        self.assertIsNone(it.close_reason)


class CarryTests(SynchronousTestCase):
    def carried_to(self, it: Session, limits: SessionLimits, now: float = 2.0) -> Session:
        """The session that goes on elsewhere."""
        carried = Carried.load(it.carry([], it.dump_state()).dump())
        return Session.adopt(carried, limits, now)

    @given(st.data())
    def test_a_stream_may_be_carried_at_any_byte(self, data):
        stream = encode(1, b"first") + spoiled(2, b"spoiled") + encode(3, b"") + b"\x00\x09"
        place = data.draw(st.integers(0, len(stream)))
        it = session()
        packets = it.decoder.feed(stream[:place])
        refused = it.take_refused()
        other = self.carried_to(it, SessionLimits())
        packets += other.decoder.feed(stream[place:])
        refused += other.take_refused()
        self.assertEqual(packets, [(1, b"first"), (3, b"")])
        self.assertEqual([refusal.error.reason for refusal in refused], ["bad_crc"])
        self.assertEqual((other.bytes_in, other.packets_in), (len(stream), 3))
        self.assertEqual(other.decoder.incomplete, b"\x00\x09")

    def test_what_is_known_goes_along(self):
        it = session(HEARTBEAT, 1.0)
        it.packets_out, it.bytes_out, it.heard = 3, 50, 1.5
        it.state["name"] = "alice"
        other = self.carried_to(it, HEARTBEAT)
        self.assertEqual((other.id, other.peer, other.server), (it.id, it.peer, it.server))
        self.assertEqual((other.started, other.heard), (1.0, 1.5))
        self.assertEqual((other.packets_out, other.bytes_out), (3, 50))
        self.assertEqual(other.state, {"name": "alice"})
        self.assertIsNone(other.close_reason)

    def test_silence_counts_from_now_where_nobody_has_listened(self):
        self.assertEqual(self.carried_to(session(), HEARTBEAT, 99.0).heard, 99.0)

    def test_the_flood_is_counted_on(self):
        it = session(FLOOD)
        it.admit([(1, b"")] * 9, 1.0)
        other = self.carried_to(it, FLOOD)
        self.assertEqual(len(other.admit([(1, b"")] * 5, 1.05)), 1)
        self.assertIs(other.close_reason, CloseReason.FLOOD)

    def test_limits_that_come_or_go_begin_or_end_with_the_move(self):
        it = session()
        it.admit([(1, b"")] * 100, 1.0)
        self.assertEqual(len(self.carried_to(it, FLOOD).admit([(1, b"")] * 9, 1.0)), 9)
        it = session(FLOOD)
        it.admit([(1, b"")] * 9, 1.0)
        self.assertEqual(len(self.carried_to(it, SessionLimits()).admit([(1, b"")] * 9, 1.0)), 9)

    def test_a_packet_that_is_too_long_now_is_refused(self):
        it = session()
        it.decoder.feed(header(200, 1, 0))
        other = self.carried_to(it, SessionLimits(max_packet_length=199))
        self.assertEqual([r.error.reason for r in other.take_refused()], ["bad_length"])
        self.assertIs(other.close_reason, CloseReason.BAD_LENGTH)
        self.assertEqual((other.packets_in, other.decoder.buffered), (1, 0))

    def test_a_complete_packet_is_none_that_is_incomplete(self):
        good, spoiled = encode(1, b"x"), encode(1, b"x")[:-1] + b"?"
        for complete in (good, spoiled, spoiled + good):
            carried = replace(session().carry([], b"d\0\0\0\0"), incomplete=complete)
            self.assertRaises(ValueError, Session.adopt, carried, SessionLimits(), 0.0)

    def test_a_state_without_names_is_none(self):
        for state in (b"N", b"?", b""):
            carried = session().carry([], state)
            self.assertRaises(ValueError, Session.adopt, carried, SessionLimits(), 0.0)

    def test_a_state_that_is_not_plain_is_refused_by_name(self):
        it = session()
        it.state["user"] = object()
        error = self.assertRaises(NotCarried, it.dump_state)
        self.assertEqual(str(error), "session.state['user']: object is not plain")
