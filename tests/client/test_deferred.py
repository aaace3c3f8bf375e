from math import inf

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ccserver.client.deferred import MAX_UNSENT, connect
from ccserver.core.framing import encode
from ccserver.errors import (
    BadBody,
    BadChecksum,
    ConnectionClosed,
    PacketTooLong,
    RequestTimeout,
    TooMuchWaiting,
)
from ccserver.message import Message, field


class Point(Message):
    x: int = field.i16()


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects when the test says so."""

    def __init__(self):
        self.cancelled = False
        self.result = Deferred(self._cancel)

    def connect(self, factory):
        self.factory = factory
        return self.result

    def _cancel(self, deferred):
        self.cancelled = True

    def succeed(self):
        protocol = self.factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.result.callback(protocol)
        return transport


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.endpoint = Endpoint()

    def connected(self, **options):
        """A connection to nobody; C{self.transport} is its other side."""
        made = connect(self.clock, self.endpoint, **options)
        self.transport = self.endpoint.succeed()
        return self.successResultOf(made)

    def timers(self):
        return [call.getTime() for call in self.clock.getDelayedCalls()]


class ConnectTests(Case):
    def test_nothing_ticks_once_it_is_connected(self):
        self.connected()
        self.assertEqual(self.timers(), [])

    def test_refused_is_connection_closed_with_its_cause(self):
        made = connect(self.clock, self.endpoint)
        refused = ConnectionRefusedError()
        self.endpoint.result.errback(refused)
        self.assertIs(self.failureResultOf(made, ConnectionClosed).value.__cause__, refused)

    def test_it_gives_up_at_the_timeout_not_before(self):
        made = connect(self.clock, self.endpoint, timeout=5)
        self.clock.advance(4.9)
        self.assertNoResult(made)
        self.clock.advance(0.1)
        self.failureResultOf(made, ConnectionClosed)
        self.assertTrue(self.endpoint.cancelled)

    def test_it_can_be_cancelled(self):
        made = connect(self.clock, self.endpoint)
        made.cancel()
        self.failureResultOf(made, CancelledError)
        self.assertEqual(self.timers(), [])

    def test_without_a_limit_no_timer_is_set(self):
        connect(self.clock, self.endpoint, timeout=inf)
        self.assertEqual(self.timers(), [])


class RequestTests(Case):
    def test_it_is_sent_at_once(self):
        self.connected().request(5, b"body")
        self.assertEqual(self.transport.value(), encode(5, b"body"))

    def test_it_fires_with_the_answer(self):
        answer = self.connected().request(5)
        self.assertNoResult(answer)
        self.transport.protocol.dataReceived(encode(5, b"yes"))
        self.assertEqual(self.successResultOf(answer), b"yes")

    def test_it_can_be_awaited(self):
        connection = self.connected()

        async def add():
            return (await connection.request(5)) + (await connection.request(5))

        total = ensureDeferred(add())
        self.transport.protocol.dataReceived(encode(5, b"a"))
        self.transport.protocol.dataReceived(encode(5, b"b"))
        self.assertEqual(self.successResultOf(total), b"ab")

    def test_messages_are_encoded_and_decoded(self):
        answer = self.connected().request(5, Point(x=1), reply=Point)
        self.assertEqual(self.transport.value(), encode(5, b"\0\1"))
        self.transport.protocol.dataReceived(encode(5, b"\0\2"))
        self.assertEqual(self.successResultOf(answer), Point(x=2))

    def test_many_are_under_way_and_answered_in_order(self):
        connection = self.connected()
        answers = [connection.request(5, b"%d" % n) for n in range(3)]
        self.transport.protocol.dataReceived(self.transport.value())
        self.assertEqual([self.successResultOf(a) for a in answers], [b"0", b"1", b"2"])

    def test_a_cancelled_one_keeps_its_place(self):
        connection = self.connected()
        first, second = connection.request(5), connection.request(5)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.transport.protocol.dataReceived(encode(5, b"a") + encode(5, b"b"))
        self.assertEqual(self.successResultOf(second), b"b")

    def test_a_cancelled_one_is_not_told_of_the_end(self):
        connection = self.connected()
        answer = connection.request(5)
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.successResultOf(connection.close())

    def test_an_answer_that_is_no_reply_fails_it_alone(self):
        connection = self.connected()
        first, second = connection.request(5, reply=Point), connection.request(5)
        self.transport.protocol.dataReceived(encode(5, b"x") + encode(5, b"yes"))
        self.failureResultOf(first, BadBody)
        self.assertEqual(self.successResultOf(second), b"yes")

    def test_what_cannot_be_encoded_is_not_sent_and_not_waited_for(self):
        connection = self.connected()
        self.failureResultOf(connection.request(5, Point(x=1 << 20)), ValueError)
        self.failureResultOf(connection.request(5, bytes(65536)), PacketTooLong)
        self.failureResultOf(connection.request(-1), ValueError)
        self.assertEqual((self.transport.value(), self.timers()), (b"", []))

    def test_more_than_may_wait_are_not_sent(self):
        connection = self.connected(max_waiting=1)
        connection.request(5)
        self.failureResultOf(connection.request(6), TooMuchWaiting)
        self.assertEqual(self.transport.value(), encode(5))

    def test_an_answer_s_callback_may_send_the_next(self):
        connection = self.connected(max_waiting=1)
        following = connection.request(5).addCallback(lambda _: connection.request(6))
        self.transport.protocol.dataReceived(encode(5))
        self.transport.protocol.dataReceived(encode(6, b"next"))
        self.assertEqual(self.successResultOf(following), b"next")


class TimeoutTests(Case):
    def test_it_fails_at_its_deadline_not_before(self):
        answer = self.connected().request(5, timeout=3)
        self.clock.advance(2.9)
        self.assertNoResult(answer)
        self.clock.advance(0.1)
        self.failureResultOf(answer, RequestTimeout)

    def test_the_connection_s_timeout_is_the_default(self):
        answer = self.connected(timeout=7).request(5)
        self.clock.advance(7)
        self.failureResultOf(answer, RequestTimeout)

    def test_it_closes_the_connection(self):
        connection = self.connected(timeout=7)
        connection.request(5).addErrback(lambda _: None)
        self.clock.advance(7)
        self.assertFalse(self.transport.connected)
        self.assertIsInstance(self.successResultOf(connection.closed), RequestTimeout)
        self.assertEqual(self.timers(), [])

    def test_those_whose_time_is_not_over_fail_with_connection_closed(self):
        connection = self.connected()
        late, other = connection.request(5, timeout=3), connection.request(5, timeout=9)
        self.clock.advance(3)
        self.failureResultOf(late, RequestTimeout)
        self.failureResultOf(other, ConnectionClosed)

    def test_a_younger_request_with_less_time_counts(self):
        connection = self.connected()
        older, younger = connection.request(5, timeout=9), connection.request(5, timeout=3)
        self.clock.advance(3)
        self.failureResultOf(younger, RequestTimeout)
        self.failureResultOf(older, ConnectionClosed)

    def test_many_requests_share_one_timer(self):
        connection = self.connected(timeout=7)
        for _ in range(5):
            connection.request(5)
            self.clock.advance(0.1)
        self.assertEqual(self.timers(), [7])

    def test_an_answered_request_s_timer_becomes_that_of_the_next(self):
        connection = self.connected(timeout=7)
        connection.request(5)
        self.clock.advance(1)
        waiting = connection.request(5)
        self.transport.protocol.dataReceived(encode(5))
        self.clock.advance(6)
        self.assertEqual(self.timers(), [8])
        self.clock.advance(1)
        self.failureResultOf(waiting, RequestTimeout)

    def test_nothing_ticks_for_long_when_all_is_answered(self):
        connection = self.connected(timeout=7)
        connection.request(5)
        self.transport.protocol.dataReceived(encode(5))
        self.clock.advance(7)
        self.assertEqual((self.timers(), self.transport.connected), ([], True))

    def test_without_a_limit_no_timer_is_set(self):
        self.connected(timeout=inf).request(5)
        self.assertEqual(self.timers(), [])


class PushTests(Case):
    def test_a_push_is_told(self):
        connection = self.connected()
        told = []
        connection.on_push = lambda code, body: told.append((code, body))
        self.transport.protocol.dataReceived(encode(9, b"news"))
        self.assertEqual(told, [(9, b"news")])

    def test_nobody_asked_it_is_dropped(self):
        connection = self.connected()
        answer = connection.request(5)
        self.transport.protocol.dataReceived(encode(9, b"news") + encode(5))
        self.assertEqual(self.successResultOf(answer), b"")

    def test_on_push_that_raises_is_logged_and_takes_no_answer_along(self):
        connection = self.connected()
        connection.on_push = lambda code, body: 1 / 0
        answer = connection.request(5)
        self.transport.protocol.dataReceived(encode(9) + encode(5))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.successResultOf(answer), b"")

    def test_what_is_sent_is_not_waited_for(self):
        connection = self.connected()
        connection.send(8, Point(x=1))
        self.assertEqual(self.transport.value(), encode(8, b"\0\1"))
        self.assertEqual(self.timers(), [])


class EndTests(Case):
    def test_what_waits_fails_when_the_server_closes(self):
        connection = self.connected()
        answers = [connection.request(5), connection.request(6)]
        self.transport.protocol.connectionLost(Failure(ConnectionDone()))
        for answer in answers:
            self.failureResultOf(answer, ConnectionClosed)
        self.assertEqual(self.timers(), [])

    def test_each_that_waited_has_an_exception_of_its_own(self):
        connection = self.connected()
        answers = [connection.request(5), connection.request(6)]
        self.transport.protocol.connectionLost(Failure(ConnectionDone()))
        first, second = (self.failureResultOf(answer).value for answer in answers)
        self.assertIsNot(first, second)

    def test_the_end_within_a_packet_is_told(self):
        answer = self.connected().request(5)
        self.transport.protocol.dataReceived(encode(5, b"body")[:-1])
        self.transport.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertIn("11 bytes of an incomplete packet", str(self.failureResultOf(answer).value))

    def test_what_is_no_packet_closes_and_fails_what_waits(self):
        answer = self.connected().request(5)
        self.transport.protocol.dataReceived(b"\0\x09\0\5\0\0\0\0x")
        self.failureResultOf(answer, BadChecksum)
        self.assertFalse(self.transport.connected)

    def test_good_answers_before_it_are_delivered(self):
        connection = self.connected()
        good, bad = connection.request(5), connection.request(5)
        self.transport.protocol.dataReceived(encode(5, b"yes") + b"\0\x09\0\5\0\0\0\0x")
        self.assertEqual(self.successResultOf(good), b"yes")
        self.failureResultOf(bad, BadChecksum)

    def test_close_fails_what_waits_and_fires_at_the_end(self):
        connection = self.connected()
        answer = connection.request(5)
        self.successResultOf(connection.close())
        self.failureResultOf(answer, ConnectionClosed)
        self.assertEqual((self.transport.connected, self.timers()), (False, []))

    def test_a_server_that_does_not_take_the_rest_is_cut_off(self):
        connection = self.connected(timeout=7)
        self.patch(self.transport, "abortConnection", self.transport.loseConnection)
        self.patch(self.transport, "loseConnection", lambda: None)
        closed = connection.close()
        self.clock.advance(6.9)
        self.assertNoResult(closed)
        self.clock.advance(0.1)
        self.successResultOf(closed)
        self.assertEqual(self.timers(), [])

    def test_close_can_be_called_again(self):
        connection = self.connected()
        self.successResultOf(connection.close())
        self.successResultOf(connection.close())

    def test_closed_is_for_each_who_asks(self):
        connection = self.connected()
        first, second = connection.closed, connection.closed
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.transport.loseConnection()
        self.assertIsInstance(self.successResultOf(second), ConnectionClosed)
        self.assertIsInstance(self.successResultOf(connection.closed), ConnectionClosed)

    def test_who_is_told_of_the_end_may_cancel_another(self):
        connection = self.connected()
        first, second, third = connection.closed, connection.closed, connection.closed
        first.addCallback(lambda error: second.cancel())
        self.transport.loseConnection()
        self.assertIsNone(self.successResultOf(first))
        self.failureResultOf(second, CancelledError)
        self.assertIsInstance(self.successResultOf(third), ConnectionClosed)

    def test_nothing_can_be_sent_afterwards(self):
        connection = self.connected()
        connection.close()
        self.failureResultOf(connection.request(5), ConnectionClosed)
        with self.assertRaises(ConnectionClosed):
            connection.send(5)

    def test_a_callback_may_close_between_two_answers(self):
        connection = self.connected()
        first, second = connection.request(5), connection.request(6)
        first.addCallback(lambda _: connection.close())
        self.transport.protocol.dataReceived(encode(5) + encode(6, b"yes"))
        self.assertEqual(self.successResultOf(second), b"yes")


class SlowServerTests(Case):
    def test_it_holds_so_many_unsent_bytes_and_no_more(self):
        connection = self.connected()
        self.transport.producer.pauseProducing()
        body = bytes(60_000)
        for _ in range(MAX_UNSENT // (len(body) + 8)):
            connection.send(8, body)
        with self.assertRaises(TooMuchWaiting):
            connection.send(8, body)
        self.failureResultOf(connection.request(8, body), TooMuchWaiting)

    def test_it_goes_on_when_the_server_reads_again(self):
        connection = self.connected()
        self.transport.producer.pauseProducing()
        while True:
            try:
                connection.send(8, bytes(60_000))
            except TooMuchWaiting:
                break
        self.transport.producer.resumeProducing()
        connection.send(8, bytes(60_000))
