"""The packet: whatever the segments, the same packets and refusals (PROTOCOL.md 1 and 2)."""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Any
from zlib import crc32

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core import framing
from ccserver.core.framing import (
    FULL,
    HEADER_LENGTH,
    MOST_CHUNKS,
    FrameDecoder,
    Packet,
    Refusal,
    encode,
)
from ccserver.errors import BadChecksum, BadLength, PacketTooLong, ProtocolError, Truncated
from ccserver.native import native

BIG = 0xFFFF

# the same properties hold for the reference and the compiled part
thoroughly = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.differing_executors]
)
codes = st.integers(0, 0xFFFF)
packets = st.tuples(codes, st.binary(max_size=40))


def header(length: int, code: int = 1, checksum: int = 0) -> bytes:
    return struct.pack(">HHI", length, code, checksum)


def spoiled(code: int, body: bytes) -> bytes:
    """A packet whose checksum is wrong."""
    return header(HEADER_LENGTH + len(body), code, crc32(body) ^ 1) + body


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def told(decoder: FrameDecoder, chunks: list[bytes]) -> list[object]:
    """What the decoder makes of C{chunks}: packets and refusals, in the order of the stream."""
    seen: list[object] = []
    for chunk in chunks:
        feed: list[object] = list(decoder.feed(chunk))
        refused, decoder.refused = decoder.refused, []
        for refusal in refused:
            feed.insert(
                refusal.position, (refusal.error.reason, refusal.code, refusal.fatal is not None)
            )
        seen += feed
    return seen


class ReferenceCase(SynchronousTestCase):
    """Tests of the reference in Python, which L{compiled_too} repeats on the compiled part."""

    def setUp(self) -> None:
        self.patch(framing, "cut", framing.cut_in_python)
        self.patch(framing, "header", framing.header_in_python)


def compiled_too(case: type[ReferenceCase]) -> type[ReferenceCase]:
    """Let the tests of C{case} be run on the compiled part as well."""

    def set_up(self: ReferenceCase) -> None:
        self.patch(framing, "cut", native.cut)
        self.patch(framing, "header", native.header)

    body = {"setUp": set_up, "__module__": __name__}
    if native is None:
        body["skip"] = "the compiled part has not been built"
    name = f"Compiled{case.__name__}"
    globals()[name] = type(name, (case,), body)
    return case


@compiled_too
class EncodeTests(ReferenceCase):
    def test_a_packet_is_header_and_body(self):
        self.assertEqual(encode(5, b"abc"), b"\x00\x0b\x00\x05\x35\x24\x41\xc2abc")

    def test_an_empty_body_has_checksum_zero(self):
        self.assertEqual(encode(0), b"\x00\x08\x00\x00\x00\x00\x00\x00")

    def test_the_longest_packet_fits(self):
        self.assertEqual(encode(1, bytes(BIG - 8))[:2], b"\xff\xff")

    def test_a_longer_one_is_refused(self):
        self.assertRaises(PacketTooLong, encode, 1, bytes(BIG - 7))

    def test_a_code_that_does_not_exist_is_a_value_error(self):
        for code in (-1, 0x10000):
            self.assertRaises(ValueError, encode, code)


@compiled_too
class DecodeTests(ReferenceCase):
    def decoded(self, *chunks: bytes, maximum: int = BIG) -> list[object]:
        return told(FrameDecoder(maximum), list(chunks))

    def test_several_packets_in_one_segment(self):
        data = encode(1, b"a") + encode(2) + encode(3, b"ccc")
        self.assertEqual(self.decoded(data), [(1, b"a"), (2, b""), (3, b"ccc")])

    def test_a_packet_in_single_bytes(self):
        self.assertEqual(self.decoded(*bytewise(encode(7, b"hello"))), [(7, b"hello")])

    def test_nothing_comes_before_the_last_byte(self):
        decoder = FrameDecoder(BIG)
        for byte in bytewise(encode(7, b"hello")[:-1]):
            self.assertEqual(decoder.feed(byte), [])

    def test_codes_are_unsigned(self):
        for code in (0x7FFF, 0x8000, 0xFFFF):
            self.assertEqual(self.decoded(encode(code, b"x")), [(code, b"x")])

    def test_checksums_are_unsigned(self):
        bodies = [body for body in bytewise(bytes(range(256))) if crc32(body) >= 1 << 31]
        self.assertTrue(bodies)
        for body in bodies:
            self.assertEqual(self.decoded(encode(1, body)), [(1, body)])

    def test_lengths_are_unsigned(self):
        for length in (0x7FFF, 0x8000, 0xFFFF):
            body = bytes(length - HEADER_LENGTH)
            self.assertEqual(self.decoded(encode(1, body)), [(1, body)])

    def test_a_packet_of_the_greatest_length_is_good(self):
        self.assertEqual(self.decoded(encode(1, bytes(92)), maximum=100), [(1, bytes(92))])

    def test_bodies_are_plain_bytes(self):
        decoder = FrameDecoder(BIG)
        got = [p for chunk in bytewise(encode(1, b"abc")) for p in decoder.feed(chunk)]
        self.assertIs(type(got[0][1]), bytes)


@compiled_too
class BadInputTests(ReferenceCase):
    """The rows of PROTOCOL.md 2."""

    def refusals(self, data: bytes, maximum: int = 29000, close: bool = False) -> list[object]:
        self.decoder = FrameDecoder(maximum, close)
        self.good = self.decoder.feed(data)
        return [
            (r.error.reason, r.code, r.position, r.fatal is not None) for r in self.decoder.refused
        ]

    def test_a_length_below_the_headers_is_fatal(self):
        for length in range(HEADER_LENGTH):
            self.assertEqual(self.refusals(header(length, 9)), [("bad_length", 9, 0, True)])

    def test_a_length_above_the_maximum_is_fatal(self):
        for length in (29001, 0x7FFF, 0x8000, 0xFFFF):
            self.assertEqual(self.refusals(header(length, 9)), [("bad_length", 9, 0, True)])

    def test_a_length_is_refused_from_the_header_alone(self):
        self.refusals(header(29001))
        self.assertEqual(self.decoder.buffered, 0)

    def test_the_error_says_the_length_and_what_is_allowed(self):
        self.refusals(header(29001))
        text = str(self.decoder.refused[0].error)
        self.assertIn("29001", text)
        self.assertIn("8 to 29000", text)

    def test_what_is_before_a_fatal_packet_is_good(self):
        self.assertEqual(
            self.refusals(encode(1, b"a") + encode(2) + header(7, 9)),
            [("bad_length", 9, 2, True)],
        )
        self.assertEqual(self.good, [(1, b"a"), (2, b"")])

    def test_nothing_behind_a_fatal_packet_is_decoded(self):
        self.refusals(header(7) + encode(1, b"a"))
        self.assertEqual(self.good, [])
        self.assertEqual(self.decoder.feed(encode(1, b"a")), [])
        self.assertTrue(self.decoder.closed)

    def test_a_wrong_checksum_drops_the_packet_alone(self):
        data = encode(1, b"a") + spoiled(2, b"b") + encode(3, b"c")
        self.assertEqual(self.refusals(data), [("bad_crc", 2, 1, False)])
        self.assertEqual(self.good, [(1, b"a"), (3, b"c")])

    def test_a_checksum_of_an_empty_body_must_be_zero(self):
        self.assertEqual(self.refusals(header(8, 0, 1)), [("bad_crc", 0, 0, False)])

    def test_a_checksum_of_zero_is_wrong_for_a_body(self):
        self.assertEqual(self.refusals(header(9, 1) + b"a"), [("bad_crc", 1, 0, False)])

    def test_a_checksum_in_the_other_byte_order_is_wrong(self):
        swapped = struct.pack(">HH", 9, 1) + struct.pack("<I", crc32(b"a")) + b"a"
        self.assertEqual(self.refusals(swapped), [("bad_crc", 1, 0, False)])

    def test_a_wrong_checksum_closes_where_that_is_asked_for(self):
        data = encode(1, b"a") + spoiled(2, b"b") + encode(3, b"c")
        self.assertEqual(self.refusals(data, close=True), [("bad_crc", 2, 1, True)])
        self.assertEqual(self.good, [(1, b"a")])

    def test_positions_count_good_and_refused_packets(self):
        data = spoiled(1, b"a") + encode(2) + spoiled(3, b"") + encode(4) + spoiled(5, b"c")
        positions = [position for _, _, position, _ in self.refusals(data)]
        self.assertEqual(positions, [0, 2, 4])

    def test_the_end_of_the_stream_between_packets_is_no_fault(self):
        self.refusals(encode(1, b"a"))
        self.assertIsNone(self.decoder.end())

    def test_the_end_of_the_stream_inside_a_packet_is(self):
        whole = encode(1, b"abc")
        for length in range(1, len(whole)):
            self.refusals(whole[:length])
            self.assertIsInstance(self.decoder.end(), Truncated)

    def test_other_protocols_are_no_packets(self):
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
            refusals = self.refusals(data, maximum=4096)
            self.assertEqual([reason for reason, *_ in refusals], ["bad_length"])

    def test_a_limit_that_is_raised_meanwhile_makes_no_bad_checksum_of_a_good_packet(self):
        decoder = Examined(20)
        self.assertEqual(decoder.feed(encode(1, b"short") + encode(2, bytes(50))), [(1, b"short")])
        (refusal,) = decoder.refused
        self.assertIsInstance(refusal.error, BadLength)


@compiled_too
class CountTests(ReferenceCase):
    def test_bytes_are_counted(self):
        decoder = FrameDecoder(BIG)
        decoder.feed(b"\0" * 3)
        decoder.feed(b"\0" * 4)
        self.assertEqual(decoder.bytes, 7)

    def test_a_full_feed_says_whether_packets_are_long(self):
        decoder, found = FrameDecoder(BIG), []
        steps = (300, True), (10, False), (10, True), (300, False), (300, True), (247, True)
        for length, is_full in steps:
            packet = encode(1, bytes(length))
            decoder.feed(packet * (FULL // len(packet) + 1 if is_full else 1))
            found.append(decoder.long)
        self.assertEqual(found, [True, True, False, False, True, False])

    def test_complete_packets_are_counted_the_refused_ones_too(self):
        decoder = FrameDecoder(BIG)
        decoder.feed(encode(1) + spoiled(2, b"b") + encode(3) + encode(4)[:5])
        self.assertEqual(decoder.packets, 3)

    def test_what_is_buffered_is_the_incomplete_packet(self):
        decoder = FrameDecoder(BIG)
        decoder.feed(encode(1, b"a") + encode(2, b"b")[:5])
        self.assertEqual(decoder.buffered, 5)
        decoder.feed(encode(2, b"b")[5:])
        self.assertEqual(decoder.buffered, 0)

    def test_a_stopped_decoder_holds_nothing_and_gives_nothing(self):
        decoder = FrameDecoder(BIG)
        decoder.feed(encode(1)[:5])
        decoder.stop()
        self.assertEqual(decoder.buffered, 0)
        self.assertEqual(decoder.feed(encode(1)[5:] + encode(2)), [])
        self.assertIsNone(decoder.end())


class Counted(bytes):
    """Bytes that count what is cut out of them, and when they are no longer held."""

    copied = dropped = 0

    def __getitem__(self, place):
        part = super().__getitem__(place)
        if isinstance(place, slice):
            Counted.copied += len(part)
        return part

    def __del__(self):
        Counted.dropped += 1


class CostTests(ReferenceCase):
    """The work is linear in the bytes."""

    def setUp(self):
        super().setUp()
        Counted.copied = Counted.dropped = 0

    def test_what_comes_in_single_bytes_is_joined_once_for_many_of_them(self):
        decoder = FrameDecoder(BIG)
        data = encode(1, bytes(5000))
        joins = []
        for place in range(len(data)):
            before = Counted.dropped
            decoder.feed(Counted(data[place : place + 1]))
            if Counted.dropped > before:  # the decoder holds what it has not joined
                joins.append(place + 1)
        self.assertIn(8, joins)
        self.assertEqual(joins[-1], 5008)
        self.assertLessEqual(len(joins), 3 + 5000 / (MOST_CHUNKS - 1))

    def test_an_incomplete_packet_costs_little_more_than_its_bytes(self):
        for size in (1, 2, 7):
            decoder = FrameDecoder(BIG)
            data = encode(1, bytes(29000 - 8))[:-1]
            for place in range(0, len(data), size):
                decoder.feed(data[place : place + size])
                chunks = decoder._chunks
                assert chunks is not None
                held = sum(map(sys.getsizeof, chunks)) + sys.getsizeof(chunks)
                self.assertLess(held, decoder.buffered + 3200)

    def test_of_an_incomplete_packet_its_beginning_alone_is_noted(self):
        decoder = FrameDecoder(BIG)
        data = encode(1, b"body") + encode(2, b"another")
        noted = []
        for place in range(len(data)):
            decoder.feed(data[place : place + 1])
            noted.append(decoder.noted)
            decoder.noted = False
        self.assertEqual([place for place, it in enumerate(noted) if it], [0, 12])

    def test_one_that_begins_behind_another_is_noted(self):
        decoder = FrameDecoder(BIG)
        packet = encode(1, b"body")
        for data in (packet[:3], packet[3:] + packet[:3], packet[3:] + packet + packet[:9]):
            decoder.feed(data)
            self.assertTrue(decoder.noted)
            decoder.noted = False

    def test_a_refusal_is_noted(self):
        decoder = FrameDecoder(BIG)
        decoder.feed(spoiled(1, b"body"))
        self.assertTrue(decoder.noted)

    def test_one_read_costs_one_cut_for_each_packet_and_one_for_the_rest(self):
        data = Counted(b"".join(encode(n, bytes(50)) for n in range(1000)) + encode(1)[:5])
        FrameDecoder(BIG).feed(data)
        self.assertEqual(Counted.copied, 1000 * 50 + 5)


@compiled_too
class AnySegmentationTests(ReferenceCase):
    @given(st.lists(packets, max_size=8), st.lists(st.integers(1, 30), max_size=40))
    @thoroughly
    def test_any_chunking_of_packets_gives_the_same_packets(
        self, sent: list[Packet], sizes: list[int]
    ):
        data = b"".join(encode(code, body) for code, body in sent)
        chunks = []
        for size in sizes:
            chunks.append(data[:size])
            data = data[size:]
        self.assertEqual(told(FrameDecoder(BIG), [*chunks, data]), sent)

    @given(
        st.lists(
            packets.map(lambda p: encode(*p))
            | packets.map(lambda p: spoiled(*p))
            | st.integers(0, 7).map(header)
            | st.binary(max_size=20),
            max_size=8,
        ).map(b"".join),
        st.data(),
        st.integers(8, 60),
        st.booleans(),
    )
    @thoroughly
    def test_any_chunking_of_any_bytes_gives_the_same_packets_and_refusals(
        self, data: bytes, draw: st.DataObject, maximum: int, close: bool
    ):
        cuts = sorted(draw.draw(st.sets(st.integers(0, len(data)), max_size=20)))
        chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        at_once, in_chunks = FrameDecoder(maximum, close), FrameDecoder(maximum, close)
        self.assertEqual(told(in_chunks, chunks), told(at_once, [data]))
        self.assertEqual(in_chunks.packets, at_once.packets)
        self.assertEqual(str(in_chunks.end()), str(at_once.end()))

    @given(st.lists(st.binary(max_size=64), max_size=20), st.integers(8, 100), st.booleans())
    @example([b"\x00\x08\x00\x00\x00\x00\x00\x00"], 8, False)
    @thoroughly
    def test_any_bytes_give_packets_or_protocol_errors_within_the_bound(
        self, chunks: list[bytes], maximum: int, close: bool
    ):
        decoder = FrameDecoder(maximum, close)
        for chunk in chunks:
            for code, body in decoder.feed(chunk):
                self.assertIn(code, range(0x10000))
                self.assertLessEqual(HEADER_LENGTH + len(body), maximum)
            self.assertLess(decoder.buffered, maximum)
            for refusal in decoder.refused:
                self.assertIsInstance(refusal.error, ProtocolError)
                self.assertIn(type(refusal.error), (BadLength, BadChecksum))


class Examined(FrameDecoder):
    """A decoder whose limit a thread raises behind the cutting, and before the look at its end."""

    def _examine(self, *arguments: Any) -> None:
        self.limit(100)
        super()._examine(*arguments)


class CompiledTests(SynchronousTestCase):
    """The compiled part does what its reference does."""

    if native is None:
        skip = "the compiled part has not been built"

    @given(codes, st.binary(max_size=200))
    @thoroughly
    def test_headers_are_the_same(self, code: int, body: bytes):
        self.assertEqual(native.header(code, body), framing.header_in_python(code, body))

    def test_what_is_no_code_is_the_same_error(self):
        for code in (-1, 65536, 1 << 70, 5.0, "1", None):
            for header in (native.header, framing.header_in_python):
                error = self.assertRaises(ValueError, header, code, b"")
                self.assertEqual(str(error), f"{code} is no message code")

    def test_a_limit_that_is_raised_while_it_is_received(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        theirs.send(encode(1, b"short") + encode(2, bytes(50)))
        decoder = Examined(20)
        self.assertEqual(native.feed_from(ours, decoder, 1000), [(1, b"short")])
        (refusal,) = decoder.refused
        self.assertIsInstance(refusal.error, BadLength)

    def test_so_they_are_for_long_bodies(self):
        for length in (*range(200, 400), 1023, 1024, 4096, 65527):
            body = os.urandom(length)
            self.assertEqual(native.header(1, body), framing.header_in_python(1, body))

    def test_nobody_keeps_what_was_refused(self):
        references = []
        for cut in (native.cut, framing.cut_in_python):
            refused: list[Refusal] = []
            cut(spoiled(1, b"a") + spoiled(2, b"b"), 0, 100, [], refused)
            references.append([sys.getrefcount(each) for each in refused])
            del refused
        self.assertEqual(*references)

    @given(
        st.lists(packets.map(lambda p: encode(*p)) | st.binary(max_size=12), max_size=6),
        st.integers(0, 40),
        st.integers(8, 70),
    )
    @thoroughly
    def test_any_bytes_are_cut_in_the_same_places(
        self, parts: list[bytes], start: int, maximum: int
    ):
        data = b"".join(parts)
        for refused in (list, lambda: None):
            one: list[Packet] = []
            other: list[Packet] = []
            refused_by_one, refused_by_other = refused(), refused()
            self.assertEqual(
                native.cut(data, start, maximum, one, refused_by_one),
                framing.cut_in_python(data, start, maximum, other, refused_by_other),
            )
            self.assertEqual(one, other)
            self.assertEqual(refused_by_one, refused_by_other)
            self.assertTrue(all(type(each) is Refusal for each in refused_by_one or ()))
