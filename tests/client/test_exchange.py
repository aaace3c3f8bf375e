from itertools import pairwise
from math import inf

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.client.exchange import Answered, Exchange, Pushed, Refused, packet
from ccserver.core.framing import encode
from ccserver.errors import BadChecksum, BadLength, PacketTooLong, TooMuchWaiting, Truncated
from ccserver.message import Message, field


class Point(Message):
    x: int = field.i16()


def exchange_of(*codes):
    """An exchange with requests under C{codes}, whose tickets are their positions."""
    exchange = Exchange(max_waiting=100)
    for ticket, code in enumerate(codes):
        exchange.expect(code, ticket)
    return exchange


class AnswersTests(SynchronousTestCase):
    def test_a_packet_under_the_oldest_request_s_code_answers_it(self):
        self.assertEqual(exchange_of(5).receive_data(encode(5, b"yes")), [Answered(0, b"yes")])

    def test_requests_under_one_code_are_answered_in_their_order(self):
        events = exchange_of(5, 5).receive_data(encode(5, b"a") + encode(5, b"b"))
        self.assertEqual(events, [Answered(0, b"a"), Answered(1, b"b")])

    def test_a_packet_under_another_code_is_a_push(self):
        events = exchange_of(5, 6).receive_data(encode(6) + encode(5))
        self.assertEqual(events, [Pushed(6, b""), Answered(0, b"")])

    def test_without_a_request_everything_is_a_push(self):
        self.assertEqual(exchange_of().receive_data(encode(0)), [Pushed(0, b"")])

    def test_a_wrong_checksum_is_refused_behind_the_good_packets(self):
        bad = bytearray(encode(5, b"body"))
        bad[-1] ^= 1
        events = exchange_of(5, 5).receive_data(encode(5) + bytes(bad) + encode(5))
        self.assertEqual(events[0], Answered(0, b""))
        self.assertIsInstance(events[1].error, BadChecksum)
        self.assertEqual(len(events), 2)

    def test_nothing_is_read_behind_a_refusal(self):
        exchange = exchange_of(5)
        (refused,) = exchange.receive_data(b"\0" * 8)
        self.assertIsInstance(refused.error, BadLength)
        self.assertEqual(exchange.receive_data(encode(5)), [])

    def test_an_answer_as_long_as_a_packet_can_be_is_taken(self):
        body = bytes(0xFFFF - 8)
        self.assertEqual(exchange_of(5).receive_data(encode(5, body)), [Answered(0, body)])


class BoundsTests(SynchronousTestCase):
    def test_more_requests_than_may_wait_are_refused(self):
        exchange = Exchange(max_waiting=1)
        exchange.expect(5, "first")
        with self.assertRaises(TooMuchWaiting):
            exchange.expect(5, "second")
        self.assertEqual(exchange.waiting, 1)

    def test_an_answer_makes_room(self):
        exchange = Exchange(max_waiting=1)
        exchange.expect(5, "first")
        exchange.receive_data(encode(5))
        exchange.expect(5, "second")


class DeadlineTests(SynchronousTestCase):
    def test_nobody_waiting_has_no_deadline(self):
        self.assertEqual(exchange_of().next_deadline, inf)

    def test_the_earliest_counts_although_it_came_later(self):
        exchange = Exchange(max_waiting=10)
        exchange.expect(5, "slow", 30.0)
        exchange.expect(5, "quick", 10.0)
        self.assertEqual(exchange.next_deadline, 10.0)

    def test_an_answered_request_has_no_deadline(self):
        exchange = Exchange(max_waiting=10)
        exchange.expect(5, "first", 10.0)
        exchange.expect(5, "second", 20.0)
        exchange.receive_data(encode(5))
        self.assertEqual(exchange.next_deadline, 20.0)

    @given(st.lists(st.one_of(st.none(), st.integers(0, 5))))
    def test_it_is_always_the_least_of_those_that_wait(self, steps):
        exchange = Exchange(max_waiting=1000)
        model = []
        for step in steps:
            if step is None:
                exchange.receive_data(encode(5))
                del model[:1]
            else:
                exchange.expect(5, None, float(step))
                model.append(float(step))
            self.assertEqual(exchange.next_deadline, min(model, default=inf))


class EndTests(SynchronousTestCase):
    def test_the_end_within_a_packet_has_that_as_its_cause(self):
        exchange = exchange_of(5)
        exchange.receive_data(encode(5, b"body")[:-1])
        self.assertIsInstance(exchange.end_of_stream("gone").__cause__, Truncated)

    def test_the_end_between_packets_has_no_cause(self):
        error = exchange_of(5).end_of_stream("gone")
        self.assertEqual((str(error), error.__cause__), ("gone", None))

    def test_what_waits_is_given_up_once(self):
        exchange = exchange_of(5, 6)
        self.assertEqual([waiting.ticket for waiting in exchange.give_up()], [0, 1])
        self.assertEqual(exchange.give_up(), [])
        self.assertEqual(exchange.next_deadline, inf)


class PacketTests(SynchronousTestCase):
    def test_a_message_is_encoded(self):
        self.assertEqual(packet(7, Point(x=1)), encode(7, b"\0\1"))

    def test_a_body_may_be_anything_bytes_like_with_the_compiled_part_as_without(self):
        for body in (b"ab", bytearray(b"ab"), memoryview(b"xaby")[1:3]):
            self.assertEqual(packet(7, body), encode(7, b"ab"))
            self.assertIs(type(packet(7, body)), bytes)

    def test_what_is_no_body_is_a_type_error(self):
        for body in ("text", None, 5):
            with self.assertRaises(TypeError):
                packet(7, body)

    def test_a_code_that_is_none_is_refused(self):
        for code in (-1, 0x10000):
            with self.assertRaises(ValueError):
                packet(code, b"")

    def test_a_body_that_is_too_long_is_refused(self):
        with self.assertRaises(PacketTooLong):
            packet(7, bytes(65528))


def segments(data, cuts):
    """C{data} cut at the positions C{cuts}, taken modulo its length."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


class SegmentationTests(SynchronousTestCase):
    @given(
        st.lists(st.integers(0, 2)),
        st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=20))),
        st.lists(st.integers(0, 10_000)),
    )
    def test_any_segmentation_gives_the_same_events(self, codes, packets, cuts):
        stream = b"".join(encode(code, body) for code, body in packets)
        whole = exchange_of(*codes).receive_data(stream)
        exchange = exchange_of(*codes)
        events = [e for part in segments(stream, cuts) for e in exchange.receive_data(part)]
        self.assertEqual(events, whole)

    @given(
        st.lists(st.integers(0, 2), min_size=1),
        st.lists(st.binary(max_size=20)),
        st.lists(st.integers(0, 10_000)),
    )
    def test_answers_in_order_reach_their_requests_between_pushes(self, codes, pushes, cuts):
        stream, expected = b"", []
        for ticket, code in enumerate(codes):
            if ticket < len(pushes):
                stream += encode(9, pushes[ticket])
                expected.append(Pushed(9, pushes[ticket]))
            stream += encode(code, b"%d" % ticket)
            expected.append(Answered(ticket, b"%d" % ticket))
        exchange = exchange_of(*codes)
        events = [e for part in segments(stream, cuts) for e in exchange.receive_data(part)]
        self.assertEqual(events, expected)

    @given(st.lists(st.binary(max_size=100)))
    def test_any_bytes_give_events_and_at_most_one_refusal_at_the_end(self, parts):
        exchange = exchange_of(*range(20))
        events = [e for part in parts for e in exchange.receive_data(part)]
        self.assertNotIn(Refused, [type(event) for event in events[:-1]])
