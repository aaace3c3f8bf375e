"""The traffic: a good server passes, and no fault of a bad one gets past it."""

from __future__ import annotations

import time
from typing import ClassVar

from ccserver.core.framing import encode
from tests.functional import codes, stamps
from tests.functional.conversations import HEADER, KINDS, kind_of
from tests.functional.faulty_relay import relay
from tests.functional.server import ServerCase, wait_until
from tests.functional.traffic import Traffic

CONNECTIONS = 13
"""So few have one of every kind."""

BAD = 12  # the packet of a stream on which the fault shows
DELAY = 0.4


def only_at_bad(fault, kind="echo"):
    """The fault shows on one packet of every conversation of a kind."""

    def spoil(stream, packet):
        number = stamps.STAMP.unpack_from(packet, HEADER.size)[0]
        if stream.index == BAD and kind_of(number % CONNECTIONS) == kind:
            return fault(stream, packet)
        return [packet]

    return spoil


def flipped(packet, position):
    changed = bytearray(packet)
    changed[position] ^= 1
    return bytes(changed)


def resealed(packet, position):
    """One bit of the body is another, and the checksum fits."""
    body = flipped(packet, position)[HEADER.size :]
    return encode(HEADER.unpack_from(packet)[1], body)


class TrafficTests(ServerCase):
    options: ClassVar = {"workers": 2, "LogLevel": 6}

    def after(self, spoil, kind="echo", **options):
        """What the traffic saw of a server whose replies a relay spoils, all in all."""
        with (
            relay(self.server.port, only_at_bad(spoil, kind)) as port,
            Traffic(port, CONNECTIONS, rate=1500.0, patience=2.0, **options) as traffic,
        ):
            before = traffic.counts().replies
            wait_until(
                lambda: (counts := traffic.counts()).replies > before + 600 or counts.errors,
                "replies",
            )
            return traffic.stop()

    def assert_seen(self, kind, spoil, conversations="echo", more=()):
        counts = self.after(spoil, conversations)
        self.assertEqual(set(counts.errors), {kind, *more}, counts.details)

    def test_a_good_server_is_not_blamed_and_all_kinds_of_conversations_take_part(self):
        self.assertEqual({kind_of(number) for number in range(CONNECTIONS)}, set(KINDS))
        counts = self.after(lambda stream, packet: [packet])
        self.assertEqual((counts.errors, counts.owed, counts.open), ({}, 0, 0), counts.details)
        self.assertEqual(counts.connected, CONNECTIONS)

    def test_a_lost_reply(self):
        for kind in ("echo", "nap", "bulk", "split"):
            self.assert_seen("lost", lambda stream, packet: [], kind)

    def test_a_lost_last_reply(self):
        def hold_back(stream, packet):
            stream.held = True
            return []

        def spoil(stream, packet):
            return [] if stream.held else only_at_bad(hold_back)(stream, packet)

        with (
            relay(self.server.port, spoil) as port,
            Traffic(port, CONNECTIONS, rate=1500.0, patience=2.0) as traffic,
        ):
            wait_until(lambda: traffic.counts().replies > 1500, "replies")
            counts = traffic.stop()
        self.assertEqual(set(counts.errors), {"lost"}, counts.details)

    def test_a_duplicated_reply(self):
        for kind in ("echo", "chatter", "bulk"):
            self.assert_seen("duplicated", lambda stream, packet: [packet, packet], kind)

    def test_reordered_replies(self):
        def swap(stream, packet):
            number = stamps.STAMP.unpack_from(packet, HEADER.size)[0]
            if kind_of(number) == "echo" and stream.index == BAD:
                stream.held = packet
                return []
            if stream.held:
                held, stream.held = stream.held, None
                return [packet, held]
            return [packet]

        with (
            relay(self.server.port, swap) as port,
            Traffic(port, CONNECTIONS, rate=1500.0, patience=2.0) as traffic,
        ):
            wait_until(lambda: traffic.counts().errors, "an error")
            counts = traffic.stop()
        self.assertEqual(set(counts.errors), {"reordered"}, counts.details)

    def test_a_flipped_bit(self):
        self.assert_seen("wrong", lambda stream, packet: [flipped(packet, -1)])
        self.assert_seen("wrong", lambda stream, packet: [flipped(packet, 7)])
        self.assert_seen("wrong", lambda stream, packet: [flipped(packet, 3)])

    def test_a_flipped_bit_under_a_matching_checksum(self):
        self.assert_seen("wrong", lambda stream, packet: [resealed(packet, -1)], "bulk")

    def test_a_wrong_tally(self):
        def forget(stream, packet):
            if HEADER.unpack_from(packet)[1] not in codes.TALLIES:
                return [packet]
            return [encode(codes.TALLY, packet[HEADER.size : -4] + stamps.COUNT.pack(1))]

        def spoil(stream, packet):
            return forget(stream, packet) if stream.index > BAD else [packet]

        with (
            relay(self.server.port, spoil) as port,
            Traffic(port, CONNECTIONS, rate=1500.0, patience=2.0) as traffic,
        ):
            wait_until(lambda: traffic.counts().errors, "an error")
            self.assertEqual(set(traffic.stop().errors), {"wrong"})

    def test_a_reply_that_is_meant_for_another_connection(self):
        # the one that gets it has not got its own
        position = HEADER.size + 3
        stray = lambda stream, packet: [resealed(packet, position)]  # noqa: E731
        self.assert_seen("mixed", stray, more=("lost",))

    def test_a_reply_that_nobody_has_asked_for(self):
        self.assert_seen("wrong", lambda stream, packet: [packet, encode(1, b"news")])

    def test_a_stream_that_is_out_of_step(self):
        counts = self.after(lambda stream, packet: [packet[:-1]])
        self.assertIn("wrong", counts.errors, counts.details)

    def test_a_closed_connection(self):
        counts = self.after(lambda stream, packet: None)
        # who has been told to end when it is closed, misses what it was owed
        self.assertEqual(set(counts.errors) - {"lost"}, {"closed"}, counts.details)

    def test_a_reset_connection(self):
        def reset(stream, packet):
            stream.reset()

        self.assert_seen("reset", reset)

    def test_whoever_is_closed_comes_back_and_is_not_owed_what_the_first_one_was(self):
        with (
            relay(self.server.port, only_at_bad(lambda stream, packet: None)) as port,
            Traffic(port, CONNECTIONS, rate=1500.0, reconnect=True) as traffic,
        ):
            wait_until(lambda: traffic.counts().connected > CONNECTIONS * 2, "them to come back")
            counts = traffic.stop()
        self.assertEqual(set(counts.errors), {"closed"}, counts.details)

    def test_a_pause_is_measured(self):
        def wait(stream, packet):
            delays.append(time.monotonic())
            time.sleep(DELAY)
            return [packet]

        for kind in ("echo", "chatter", "split"):
            delays = []
            counts = self.after(wait, kind)
            self.assertEqual(counts.errors, {})
            self.assertGreater(counts.pause, DELAY * 0.9, counts.pauses)
            self.assertEqual(counts.pauses[0][1], kind)
            # what is over a bound is told with its place in time
            self.assertAlmostEqual(max(end - began for began, end in counts.long), counts.pause)
            self.assertTrue(any(b < delays[0] + DELAY / 2 < e for b, e in counts.long), counts.long)
