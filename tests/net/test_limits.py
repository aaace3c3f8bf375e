"""Limits of the receiving side: how connections meet them, on a transport in memory."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address

from ccserver.core.addresses import AccessList, AddressLimits, Origins
from ccserver.core.framing import encode
from ccserver.core.limits import FloodLimit, Heartbeat, RateAction, SessionLimits
from ccserver.core.rates import DEBT, Rate
from ccserver.core.session import CloseReason
from ccserver.net import protocol
from ccserver.net.connections import LINES_PER_SECOND
from tests.core.test_framing import spoiled
from tests.net.test_handover import MovingCase
from tests.net.test_protocol import ECHO, WAIT, ProtocolCase
from tests.support import FakeConnection, logged, texts


class LimitsCase(ProtocolCase):
    def pass_time(self, seconds: int) -> None:
        """So many seconds, with what is done each second."""
        for _ in range(seconds):
            self.worker.reactor.advance(1)
            self.worker.connections.check_heartbeats()
            self.worker.connections.check_deadlines()

    def pace(self, client: FakeConnection, seconds: float) -> None:
        """So many seconds, in steps of the smallest timer."""
        client.clock.pump([0.1] * round(seconds * 10))


class FamilyTests(LimitsCase):
    """The moments at which the family closes connections (PROTOCOL.md 4)."""

    def silent_for(self, kick: bool, beside: bytes = b"") -> int:
        """The second in which a connection that sends C{beside} each second is closed."""
        client = self.connect(SessionLimits(heartbeat=Heartbeat(5, kick)))
        for second in range(100):
            if client.session.close_reason is not None:
                self.assertEqual(client.session.close_reason, "idle")
                return second
            if beside:
                client.receive_bytes(beside)
            self.pass_time(1)
        return 100

    def test_with_5_and_0_a_silent_one_is_closed_after_25_to_31_seconds(self):
        self.assertTrue(25 < self.silent_for(kick=False) <= 31)

    def test_one_that_sends_a_packet_each_second_is_not(self):
        self.assertEqual(self.silent_for(kick=False, beside=encode(ECHO)), 100)

    def test_with_5_and_1_each_is_closed_at_5_to_7_seconds(self):
        self.assertTrue(5 <= self.silent_for(kick=True, beside=encode(ECHO)) <= 7)

    def flooded(self, pause: float, data: bytes, count: int) -> FakeConnection:
        """A connection that has sent C{data} so often with 100/10."""
        client = self.connect(SessionLimits(flood=FloodLimit(0.1, 10)))
        for _ in range(count):
            client.receive_bytes(data)
            client.clock.advance(pause)
        return client

    def test_the_11th_quick_packet_closes(self):
        client = self.flooded(0.01, encode(ECHO), 10)
        self.assertIsNone(client.session.close_reason)
        client.receive((ECHO, b""))
        self.assertEqual(client.session.close_reason, "flood")
        self.assertEqual(len(client.sent()), 10)

    def test_20_packets_130_ms_apart_do_not(self):
        client = self.flooded(0.13, encode(ECHO), 20)
        self.assertIsNone(client.session.close_reason)
        self.assertEqual(len(client.sent()), 20)

    def test_packets_with_a_wrong_checksum_count(self):
        client = self.flooded(0.01, spoiled(ECHO, b"x"), 11)
        self.assertEqual(client.session.close_reason, "flood")


class EmptyReadsTests(LimitsCase):
    LIMITS = SessionLimits(empty_reads=100)

    def test_a_flood_of_single_bytes_closes(self):
        client = self.connect(self.LIMITS)
        for byte in encode(ECHO, bytes(101))[:101]:
            client.receive_bytes(bytes([byte]))
        self.assertEqual(client.session.close_reason, "flood")
        self.let_end(client)
        self.assertEnded(client, "flood")

    def test_reads_that_complete_a_packet_do_not_count(self):
        client = self.connect(self.LIMITS)
        for _ in range(1000):
            client.receive((ECHO, b""))
            client.receive_bytes(spoiled(ECHO, b"x"))
        self.assertIsNone(client.session.close_reason)

    def test_slow_ones_do_not_close(self):
        client = self.connect(self.LIMITS)
        for byte in encode(ECHO, bytes(1000)):
            client.receive_bytes(bytes([byte]))
            client.clock.advance(0.01)
        self.assertIsNone(client.session.close_reason)
        self.assertEqual(client.bodies(), [bytes(1000)])

    def test_what_is_thrown_away_behind_our_end_does_not_count(self):
        client = self.connect(self.LIMITS)
        client.protocol.close(CloseReason.KICKED)
        for _ in range(1000):
            client.receive_bytes(b"x")
        self.assertEqual(client.session.close_reason, "kicked")


class StrangerTests(LimitsCase):
    """Of clients that the application does not know yet, less is accepted."""

    def test_what_is_longer_than_theirs_may_be_is_refused(self):
        client = self.connect(SessionLimits(stranger_packet_length=20))
        client.receive((ECHO, bytes(12)))
        client.receive((ECHO, bytes(13)))
        self.assertEqual(client.bodies(), [bytes(12)])
        self.assertEqual(client.session.close_reason, "bad_length")

    def test_who_is_known_may_send_as_much_as_others_and_as_long_as_he_is(self):
        client = self.connect(SessionLimits(max_packet_length=30, stranger_packet_length=20))
        client.session.known = True
        client.receive((ECHO, bytes(22)))
        client.session.known = False
        client.receive((ECHO, bytes(13)))
        self.assertEqual(client.bodies(), [bytes(22)])
        self.assertEqual(client.session.close_reason, "bad_length")

    def test_it_is_never_more_than_of_others(self):
        client = self.connect(SessionLimits(max_packet_length=20, stranger_packet_length=30))
        client.receive((ECHO, bytes(13)))
        self.assertEqual(client.session.close_reason, "bad_length")

    def test_who_is_not_known_in_time_is_closed_whatever_he_sends(self):
        client = self.connect(SessionLimits(login_timeout=10))
        for _ in range(12):
            client.receive((ECHO, b""))
            self.pass_time(1)
        self.let_end(client)
        self.assertEnded(client, "login_timeout")

    def test_who_is_known_stays(self):
        client = self.connect(SessionLimits(login_timeout=10))
        self.pass_time(9)
        client.session.known = True
        self.pass_time(1000)
        self.assertIsNone(client.session.close_reason)

    def test_nothing_is_kept_of_who_is_gone(self):
        client = self.connect(SessionLimits(login_timeout=10))
        client.reset()
        self.assertEqual(len(self.worker.connections._strangers), 0)


class FirstPacketTests(LimitsCase):
    LIMITS = SessionLimits(first_packet_timeout=10)

    def test_a_connection_without_a_packet_is_closed(self):
        client = self.connect(self.LIMITS)
        self.pass_time(9)
        self.assertIsNone(client.session.close_reason)
        self.pass_time(3)
        self.let_end(client)
        self.assertEnded(client, "first_packet_timeout")

    def test_bytes_are_no_packet(self):
        client = self.connect(self.LIMITS)
        for byte in encode(ECHO, bytes(100))[:12]:
            client.receive_bytes(bytes([byte]))
            self.pass_time(1)
        self.assertEqual(client.session.close_reason, "first_packet_timeout")

    def test_one_packet_is_enough(self):
        client = self.connect(self.LIMITS)
        self.pass_time(9)
        client.receive((ECHO, b"a"))
        self.pass_time(1000)
        self.assertIsNone(client.session.close_reason)

    def test_nothing_is_kept_of_who_is_gone(self):
        client = self.connect(self.LIMITS)
        client.reset()
        self.assertEqual(len(self.worker.connections._unheard), 0)

    def test_without_the_limit_nobody_is_looked_at(self):
        self.connect()
        self.assertEqual(len(self.worker.connections._unheard), 0)


class PacketTimeoutTests(LimitsCase):
    LIMITS = SessionLimits(packet_timeout=10)

    def test_a_packet_that_stays_incomplete_closes(self):
        client = self.connect(self.LIMITS)
        client.receive_bytes(encode(ECHO)[:3])
        self.pass_time(9)
        self.assertIsNone(client.session.close_reason)
        self.pass_time(3)
        self.let_end(client)
        self.assertEnded(client, "packet_timeout")

    def test_dribbling_does_not_renew_it(self):
        client = self.connect(self.LIMITS)
        client.receive((ECHO, b"first"))
        for byte in encode(ECHO, bytes(100))[:12]:
            client.receive_bytes(bytes([byte]))
            self.pass_time(1)
        self.assertEqual(client.session.close_reason, "packet_timeout")

    def test_the_next_packet_has_its_own_time(self):
        client = self.connect(self.LIMITS)
        packet = encode(ECHO, bytes(100))
        client.receive_bytes(packet[:50])
        for _ in range(10):
            self.pass_time(9)
            client.receive_bytes(packet[50:] + packet[:50])
        self.assertIsNone(client.session.close_reason)
        self.pass_time(12)
        self.assertEqual(client.session.close_reason, "packet_timeout")

    def test_who_is_between_two_packets_has_all_time(self):
        client = self.connect(self.LIMITS)
        for data in (encode(ECHO)[:3], encode(ECHO)[3:]):
            client.receive_bytes(data)
        self.pass_time(1000)
        self.assertIsNone(client.session.close_reason)

    def test_while_we_do_not_read_it_is_not_his_fault(self):
        client = self.connect(self.LIMITS, lane_packets=1)
        client.receive((WAIT, b""))
        client.receive_bytes(encode(ECHO) + encode(ECHO)[:3])
        self.assertFalse(client.reading)
        self.pass_time(100)
        self.waits.pop().callback(None)
        self.assertTrue(client.reading)
        self.assertIsNone(client.session.close_reason)
        self.pass_time(12)
        self.assertEqual(client.session.close_reason, "packet_timeout")

    def test_nor_is_it_where_the_connection_moves_to(self):
        client = self.connect(self.LIMITS, lane_packets=1)
        client.receive((WAIT, b""))
        client.receive_bytes(encode(ECHO) + encode(ECHO)[:3])
        self.pass_time(100)
        carried = client.session.carry([], client.session.dump_state())
        assert carried.begun is not None
        self.assertLess(client.clock.seconds() - carried.begun, 12)

    def test_only_those_with_an_incomplete_packet_are_looked_at(self):
        self.connect(self.LIMITS)
        for _ in range(10):
            self.worker.connect().receive((ECHO, b""))
        self.assertEqual(len(self.worker.connections._incomplete), 0)

    def test_nothing_is_kept_of_who_is_gone(self):
        client = self.connect(self.LIMITS)
        client.receive_bytes(b"\0")
        client.reset()
        self.assertEqual(len(self.worker.connections._incomplete), 0)


class RateTests(LimitsCase):
    """10 packets a second, and 20 at once."""

    def limits(self, action: RateAction = RateAction.DELAY, **more: Any) -> SessionLimits:
        return SessionLimits(rate=Rate(10, 20), rate_action=action, **more)

    def flood(self, client: FakeConnection, count: int = 50) -> None:
        client.receive(*[(ECHO, bytes([n])) for n in range(count)])

    def test_delayed_they_are_answered_at_their_rate_and_in_order(self):
        client = self.connect(self.limits())
        self.flood(client)
        self.assertEqual(len(client.transport.value()) // 9, 20)
        self.assertFalse(client.reading)
        self.pace(client, 1)
        self.assertIn(len(client.transport.value()) // 9, (29, 30))
        self.pace(client, 1.9)
        self.assertFalse(client.reading)
        self.pace(client, 0.3)
        self.assertTrue(client.reading)
        self.assertEqual(client.bodies(), [bytes([n]) for n in range(50)])
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_who_keeps_to_the_rate_is_never_delayed(self):
        client = self.connect(self.limits())
        for _ in range(100):
            client.receive((ECHO, b"a"))
            self.assertEqual(client.bodies(), [b"a"])
            client.clock.advance(0.1)
        self.assertTrue(client.reading)

    def test_a_lane_that_is_done_does_not_make_it_read_on(self):
        client = self.connect(self.limits(), lane_packets=1)
        client.receive((WAIT, b""), *[(ECHO, b"")] * 30)
        self.waits.pop().callback(None)
        self.assertEqual(len(client.sent()), 20)
        self.assertFalse(client.reading)

    def test_and_the_rate_does_not_while_the_lane_is_full(self):
        client = self.connect(self.limits(), lane_packets=4)
        client.receive((WAIT, b""), *[(ECHO, b"")] * 30)
        self.pace(client, 3)
        self.assertFalse(client.reading)
        self.waits.pop().callback(None)
        self.assertTrue(client.reading)
        self.assertEqual(len(client.sent()), 31)

    def test_who_waits_is_not_silent(self):
        client = self.connect(
            SessionLimits(rate=Rate(1, 1), heartbeat=Heartbeat(5), packet_timeout=10)
        )
        client.receive_bytes(encode(ECHO) * 100 + b"\0")
        self.pass_time(60)
        self.assertIsNone(client.session.close_reason)

    def test_a_worker_that_stops_answers_all(self):
        client = self.connect(self.limits())
        self.flood(client)
        self.assertFalse(client.protocol.idle)
        client.protocol.finish()
        self.assertEqual(len(client.sent()), 50)
        self.let_end(client)
        self.assertEnded(client, "drain")

    def test_behind_the_end_of_the_stream_they_are_answered_at_their_rate_too(self):
        client = self.connect(self.limits())
        self.flood(client)
        client.end()
        self.assertEqual(len(client.sent()), 20)
        self.pace(client, 1)
        self.assertIn(len(client.sent()), (9, 10))
        self.assertFalse(client.reading)
        self.pace(client, 2.2)
        self.assertIn(len(client.sent()), (20, 21))
        client.turn()
        self.assertEnded(client, "client_closed")

    def test_who_waits_for_them_at_his_end_is_not_silent(self):
        client = self.connect(SessionLimits(rate=Rate(1, 1), heartbeat=Heartbeat(5)))
        client.receive(*[(ECHO, b"")] * 100)
        client.end()
        for _ in range(110):
            self.pace(client, 1)
            self.worker.connections.check_heartbeats()
        self.assertEqual(len(client.sent()), 100)
        client.turn()
        self.assertEnded(client, "client_closed")

    def test_a_worker_that_stops_behind_the_end_of_the_stream_answers_all(self):
        client = self.connect(self.limits())
        self.flood(client)
        client.end()
        client.protocol.finish()
        self.assertEqual(len(client.sent()), 50)
        client.turn()
        self.assertEnded(client, "client_closed")

    def test_who_is_cut_behind_the_end_of_the_stream_leaves_nothing(self):
        client = self.connect(self.limits())
        self.flood(client)
        client.end()
        client.reset()
        self.assertEnded(client, "client_closed")

    def test_who_has_ended_and_waits_for_the_rate_does_not_move(self):
        client = self.connect(self.limits())
        self.flood(client)
        client.end()
        self.patch(protocol, "DirectServer", type(client.transport))
        client.transport.TLS = False
        self.assertEqual(client.protocol.reason_to_stay, "closing")

    def test_who_goes_leaves_nothing(self):
        client = self.connect(self.limits())
        self.flood(client)
        client.reset()
        self.assertEnded(client, "client_reset")

    def test_who_is_closed_leaves_nothing(self):
        client = self.connect(self.limits())
        self.flood(client)
        client.protocol.close(CloseReason.KICKED)
        self.assertEqual(len(client.sent()), 20)
        self.let_end(client)
        self.assertEnded(client, "kicked")

    def test_a_bad_length_behind_them_closes_when_they_are_answered(self):
        client = self.connect(self.limits())
        client.receive_bytes(encode(ECHO) * 50 + b"\0" * 8)
        self.assertEqual(len(client.sent()), 19)
        self.assertEqual(self.worker.counts.refused, {"bad_length": 1})
        self.pace(client, 3)
        self.assertFalse(client.transport.ended)
        self.pace(client, 0.3)
        self.assertEqual(len(client.sent()), 31)
        self.assertTrue(client.transport.ended)
        self.let_end(client)
        self.assertEnded(client, "bad_length")

    def test_dropped_they_are_counted_and_logged_not_too_often(self):
        client = self.connect(self.limits(RateAction.DROP))
        events = logged(self)
        for _ in range(20):
            self.flood(client, 50)
        self.assertEqual(len(client.sent()), 20)
        self.assertTrue(client.reading)
        self.assertEqual(self.worker.counts.refused, {"rate": 980})
        self.assertEqual(len(events), LINES_PER_SECOND)
        self.assertEqual(texts(events)[0], "refused rate: 30 packets dropped")

    def test_none_are_dropped_where_only_wrong_checksums_were_too_many(self):
        client = self.connect(self.limits(RateAction.DROP))
        events = logged(self)
        client.receive_bytes(spoiled(ECHO, b"x") * 50)
        self.assertEqual(self.worker.counts.refused, {"bad_crc": 50})
        self.assertFalse([text for text in texts(events) if "dropped" in text])

    def test_kicked_they_close(self):
        client = self.connect(self.limits(RateAction.KICK))
        self.flood(client)
        self.assertEqual(len(client.sent()), 20)
        self.let_end(client)
        self.assertEnded(client, "rate")

    def test_packets_with_a_wrong_checksum_are_delayed_too(self):
        client = self.connect(self.limits())
        client.receive_bytes(spoiled(ECHO, b"x") * 40)
        self.assertFalse(client.reading)
        self.pace(client, 1.9)
        self.assertFalse(client.reading)
        self.pace(client, 0.5)
        self.assertTrue(client.reading)


class TurnstileTests(LimitsCase):
    """Two connections whose time comes in the same turn, and the first ends the other."""

    def ended_by(self, how: Callable[[Any], object]) -> None:
        others: list[FakeConnection] = []

        @self.app.message(9)
        async def end_the_other(session: Any, request: bytes) -> None:
            how(others[0].protocol)

        first = self.connect(SessionLimits(rate=Rate(10, 20)))
        others.append(self.worker.connect(5001))
        first.receive(*[(ECHO, b"")] * 20, (9, b""))
        others[0].receive(*[(ECHO, b"")] * 25)
        self.pace(first, 0.5)
        self.assertEqual(len(others[0].sent()), 20)
        self.assertIsNotNone(others[0].session.close_reason)
        self.assertIsNone(first.session.close_reason)
        self.assertFalse(self.worker.factory.turnstile._waiting)

    def test_one_that_it_closes_is_left_alone(self):
        self.ended_by(lambda connection: connection.close(CloseReason.KICKED))

    def test_one_that_it_cuts_is_left_alone(self):
        self.ended_by(lambda connection: connection.abort())


class AddressRateTests(LimitsCase):
    def setUp(self) -> None:
        LimitsCase.setUp(self)
        self.client = self.connect(
            SessionLimits(address_rate=True),
            origins=Origins(AddressLimits(packets=Rate(10, 20)), AccessList()),
        )

    def test_connections_of_an_address_share_it(self):
        other, apart = self.worker.connect(5001), self.worker.connect(host="192.0.2.7")
        for client in (self.client, other, apart):
            client.receive(*[(ECHO, b"")] * 15)
        self.assertEqual([len(c.sent()) for c in (self.client, other, apart)], [15, 5, 15])
        self.assertEqual([c.reading for c in (self.client, other, apart)], [True, False, True])
        self.pace(other, 1.2)
        self.assertEqual(len(other.sent()), 10)
        self.assertTrue(other.reading)

    def test_connections_that_end_one_after_the_other_get_no_more_than_it(self):
        for number in range(10):
            client = self.worker.connect(5001 + number)
            client.receive(*[(ECHO, bytes([n])) for n in range(100)])
            client.end()
        self.pace(self.client, 1)
        connections = list(self.worker.connections)
        self.assertEqual(len(connections), 11)
        through = sum(c.session.packets_out for c in connections)
        self.assertTrue(25 <= through <= 30, through)
        for connection in connections:
            connection.abort()
        self.assertEqual(self.client.clock.getDelayedCalls(), [])

    def test_wrong_checksums_do_not_lock_the_others_out_for_long(self):
        for action in (RateAction.DELAY, RateAction.DROP):
            self.client = self.connect(
                SessionLimits(address_rate=True, rate_action=action),
                origins=Origins(AddressLimits(packets=Rate(10, 20)), AccessList()),
            )
            self.client.receive_bytes(spoiled(ECHO, b"x") * 5000)
            self.client.reset()
            good = self.worker.connect(5001)
            self.pace(good, DEBT + 0.2)
            good.receive((ECHO, b"good"))
            self.assertEqual(good.bodies(), [b"good"])

    def test_nor_those_that_wait_already_however_many_they_are(self):
        guilty, *clients = (self.worker.connect(5001 + n) for n in range(11))
        guilty.receive_bytes(spoiled(ECHO, b"x") * 5000)
        for client in clients:
            client.receive((ECHO, b""))
        self.pace(self.client, DEBT + 1.5)
        self.assertEqual([len(client.sent()) for client in clients], [1] * 10)

    def test_many_that_wait_get_no_more_together_and_all_get_some(self):
        clients = [self.client, *(self.worker.connect(5001 + n) for n in range(9))]
        for client in clients:
            client.receive(*[(ECHO, b"")] * 30)
        self.pace(self.client, 20)
        sent = [len(client.sent()) for client in clients]
        self.assertTrue(210 <= sum(sent) <= 221, sent)
        self.assertGreater(min(sent), 0)
        for client in clients:
            client.reset()
        self.assertEqual(self.client.clock.getDelayedCalls(), [])


class EndingTests(LimitsCase):
    """Who ends in order is answered, however long that takes his handlers."""

    def test_the_heartbeat_leaves_it_alone(self):
        ends = {
            "client_closed": FakeConnection.end,
            "drain": lambda client: client.protocol.finish(),
        }
        for reason, end in ends.items():
            self.lost.clear()
            client = self.connect(SessionLimits(heartbeat=Heartbeat(5)))
            client.receive((WAIT, b"1"), (WAIT, b"2"), (ECHO, b"3"))
            end(client)
            for _ in range(2):
                self.pass_time(28)
                self.waits.pop().callback(None)
            self.assertEqual(client.bodies(), [b"1", b"2", b"3"])
            self.let_end(client)
            self.assertEnded(client, reason)


class AddressTests(LimitsCase):
    address = IPv4Address("TCP", "127.0.0.1", 5000)

    def start(self, limits: AddressLimits | None = None, deny: str = "") -> FakeConnection:
        networks = [ip_network(deny)] if deny else []
        origins = Origins(limits or AddressLimits(), AccessList(deny=networks))
        return self.connect(origins=origins)

    def test_a_connection_too_many_of_an_address_is_closed_at_once(self):
        client = self.start(AddressLimits(connections=2))
        self.worker.connect(5001)
        self.assertIsNone(self.worker.try_connect(5002))
        self.assertIsNotNone(self.worker.try_connect(host="192.0.2.7"))
        self.assertEqual(self.worker.counts.closed, {"address_limit": 1})
        client.reset()
        self.assertIsNotNone(self.worker.try_connect(5003))

    def test_so_is_one_that_was_not_too_many_before_its_handshake(self):
        client = self.start(AddressLimits(connections=2))
        coming = [self.worker.factory.buildProtocol(self.address) for _ in range(3)]
        made = [FakeConnection(self.worker, each) for each in coming]
        self.assertEqual([each.transport.ended for each in made], [False, True, True])
        self.assertEqual(made[1].session.close_reason, "address_limit")
        self.assertIsNone(client.session.close_reason)

    def test_who_is_denied_is_closed_at_once(self):
        self.start(deny="192.0.2.0/24")
        self.assertIsNone(self.worker.try_connect(host="192.0.2.7"))
        self.assertEqual(self.worker.counts.closed, {"denied": 1})
        self.assertEqual(len(self.worker.connections), 1)

    def test_who_connects_too_quickly_is_closed_at_once(self):
        client = self.start(AddressLimits(accepts=Rate(2, 2)))
        self.worker.connect(5001)
        self.assertIsNone(self.worker.try_connect(5002))
        self.assertEqual(self.worker.counts.closed, {"address_rate": 1})
        client.clock.advance(0.6)
        self.assertIsNotNone(self.worker.try_connect(5002))

    def test_refusals_are_logged_and_not_too_often(self):
        self.start(deny="192.0.2.0/24")
        events = logged(self)
        for _ in range(100):
            self.worker.try_connect(host="192.0.2.7")
        self.assertEqual(len(events), LINES_PER_SECOND)
        self.assertEqual(texts(events)[0], "denied: 192.0.2.7:5000 refused")


class CostTests(MovingCase):
    def test_an_idle_connection_does_not_hold_its_last_reply(self):
        self.old = self.machine.worker(self.app, SessionLimits())
        client = self.client = self.old.connect()
        client.send((1, bytes(16384)))
        client.expect(bytes(16384))
        self.assertEqual(sum(map(len, self.old.only.lane.out)), 0)

    def test_a_transport_says_what_it_is_also_when_it_is_closed(self):
        self.old = self.machine.worker(self.app, SessionLimits())
        client = self.client = self.old.connect()
        transport = client.protocol.transport
        self.assertEqual(repr(transport), "<PacketProtocol,192.0.2.1:5000>")
        client.sock.close()
        self.machine.until(lambda: self.old.counts.closed)
        self.assertEqual(repr(transport), "<NoneType,192.0.2.1:5000>")


class MovedTests(MovingCase):
    """What a limit has counted goes along to another process."""

    def start_with(self, limits: SessionLimits) -> Any:
        self.old = self.machine.worker(self.app, limits)
        self.new = self.machine.worker(self.app, limits)
        self.client = self.old.connect()
        return self.client

    def tick(self, seconds: int) -> None:
        for _ in range(seconds):
            self.machine.now += 1
            self.new.connections.check_deadlines()

    def test_the_age_of_an_incomplete_packet(self):
        client = self.start_with(SessionLimits(packet_timeout=20))
        client.send_bytes(encode(1, b"x")[:3])
        self.machine.turn(2)
        self.machine.now += 15
        self.assert_moved()
        client.send_bytes(encode(1, b"x")[3:5])
        self.machine.turn(2)
        self.tick(4)
        self.assertIsNone(self.new.only.session.close_reason)
        self.tick(3)
        self.assertEqual(self.new.only.session.close_reason, "packet_timeout")

    def test_the_time_without_a_packet(self):
        self.start_with(SessionLimits(first_packet_timeout=20))
        self.machine.now += 15
        self.assert_moved()
        self.tick(4)
        self.assertIsNone(self.new.only.session.close_reason)
        self.tick(3)
        self.assertEqual(self.new.only.session.close_reason, "first_packet_timeout")

    def test_that_a_client_is_known_and_the_time_of_one_who_is_not(self):
        limits = SessionLimits(stranger_packet_length=20, login_timeout=20)
        for known in (True, False):
            client = self.start_with(limits)
            self.old.only.session.known = known
            client.send_bytes(encode(1, bytes(100 if known else 12))[:9])
            self.machine.turn(2)
            self.machine.now += 15
            self.assert_moved()
            session = self.new.only.session
            self.tick(4)
            self.assertEqual((session.known, session.close_reason), (known, None))
            self.tick(3)
            self.assertEqual(session.close_reason, None if known else "login_timeout")

    def test_the_tokens_of_the_rate_and_the_packets_that_wait_for_them(self):
        client = self.start_with(SessionLimits(rate=Rate(10, 20)))
        client.send(*[(1, b"")] * 50)
        client.expect(*[b""] * 20)
        self.assert_moved()
        client.expect(*[b""] * 30)
        self.assertAlmostEqual(self.new.only.session.wait(self.machine.now), 3.1)
        self.assertEqual(self.old.reactor.getDelayedCalls(), [])
