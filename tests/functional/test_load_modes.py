"""The load generator's open loop and its connections for one packet: what they show and see."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.generator import compiled_generator, compiler
from tests.functional.faulty_echo import (
    BAD,
    Answer,
    flipped,
    good,
    only_at_bad,
    packed,
    run_generator,
)

PAUSE = 1.0
"""Seconds that a server stands still: longer than others may keep a packet from a CPU."""


class OpenLoopTests(SynchronousTestCase):
    """load.c with C{--rate}: packets go when they are due."""

    skip = None if compiler() else "no C compiler"

    def generate(self, answer: Answer, *options: str) -> subprocess.CompletedProcess[str]:
        return run_generator(self, compiled_generator(), answer, "--rate=2000", *options)

    def assert_seen(self, message: str, answer: Answer) -> None:
        done = self.generate(answer, "--connections=2", "--packets=100")
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertIn(message, done.stderr)

    def test_packets_are_sent_at_the_rate_asked_for(self) -> None:
        done = self.generate(good, "--connections=4", "--rate=400", "--seconds=0.5")
        result = json.loads(done.stdout)
        self.assertEqual(result["packets"], 200)
        self.assertGreater(result["seconds"], 199 / 400)

    def test_pause_of_the_server_is_in_the_latency_of_every_packet_due_in_it(self) -> None:
        def pause(index: int, packet: bytes) -> list[bytes]:
            if index == BAD:
                time.sleep(PAUSE)
            return [packet]

        load = ["--connections=1", "--stall=5", "--packets=400"]
        opened = json.loads(self.generate(pause, *load, "--rate=1000").stdout)
        closed = json.loads(run_generator(self, compiled_generator(), pause, *load).stdout)
        self.assertGreater(min(opened["max_us"], closed["max_us"]), 1e6 * PAUSE)
        self.assertGreater(opened["p99_us"], 0.75e6 * PAUSE)  # most of them were due in the pause
        self.assertLess(closed["p99_us"], 0.75e6 * PAUSE)  # one was

    def test_server_that_does_not_keep_up_is_seen(self) -> None:
        def slow(index: int, packet: bytes) -> list[bytes]:
            time.sleep(0.01)
            return [packet]

        done = self.generate(slow, "--rate=2000", "--depth=50", "--packets=1000", "--stall=5")
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertIn("50 packets unanswered", done.stderr)

    def test_lost_reply_is_seen(self) -> None:
        self.assert_seen("lost", only_at_bad(lambda packet: []))

    def test_lost_last_reply_is_seen(self) -> None:
        self.assert_seen("lost", lambda index, packet: [packet] if index < 49 else [])

    def test_duplicated_reply_is_seen(self) -> None:
        self.assert_seen("duplicated", only_at_bad(lambda packet: [packet, packet]))

    def test_altered_reply_is_seen(self) -> None:
        self.assert_seen("reply's body differs", only_at_bad(lambda packet: [flipped(packet, -1)]))
        self.assert_seen("checksum", only_at_bad(lambda packet: [flipped(packet, 7)]))


class ChurnTests(SynchronousTestCase):
    """load.c with C{--churn}: a connection for each packet."""

    skip = None if compiler() else "no C compiler"

    def generate(self, answer: Answer, *options: str) -> subprocess.CompletedProcess[str]:
        return run_generator(self, [*compiled_generator(), "--churn"], answer, *options)

    def assert_seen(self, message: str, fault: Callable[[bytes], list[bytes]]) -> None:
        """The fault shows on each tenth connection."""
        count = itertools.count(1)

        def answer(index: int, packet: bytes) -> list[bytes]:
            return fault(packet) if next(count) % BAD == 0 else [packet]

        done = self.generate(answer, "--connections=2", "--packets=100")
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertIn(message, done.stderr)

    def test_each_packet_has_a_connection_of_its_own(self) -> None:
        places: list[int] = []

        def remember(index: int, packet: bytes) -> list[bytes]:
            places.append(index)
            return [packet]

        done = self.generate(remember, "--connections=3", "--packets=100", "--warmup=0.05")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(json.loads(done.stdout)["packets"], 100)
        self.assertEqual(set(places), {0})
        self.assertGreater(len(places), 100)

    def test_long_replies_are_read_whole(self) -> None:
        done = self.generate(good, "--connections=3", "--packets=30", "--body=28992")
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_lost_reply_is_seen(self) -> None:
        self.assert_seen("no reply", lambda packet: [])

    def test_duplicated_reply_is_seen(self) -> None:
        self.assert_seen("duplicated", lambda packet: [packet, packet])

    def test_reply_of_an_earlier_connection_is_seen(self) -> None:
        first: list[bytes] = []

        def stale(packet: bytes) -> list[bytes]:
            first.append(packet)
            return [first[0]]

        self.assert_seen("another packet's stamp", stale)

    def test_altered_reply_is_seen(self) -> None:
        self.assert_seen("reply's body differs", lambda packet: [flipped(packet, -1)])
        self.assert_seen("checksum", lambda packet: [flipped(packet, 7)])
        self.assert_seen("length 8", lambda packet: [packed(1, b"")])

    def test_connection_closed_by_the_server_without_a_whole_reply_is_seen(self) -> None:
        def close(packet: bytes) -> list[bytes]:
            raise ConnectionError

        self.assert_seen("closed by the server", close)
