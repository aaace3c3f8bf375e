"""The load generators: what they report of a good server, and that no bad one gets past them."""

from __future__ import annotations

import json
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.generator import compiled_generator, compiler, python_generator
from tests.functional.faulty_echo import (
    BAD,
    DEADLINE,
    HEADER,
    Answer,
    EchoServer,
    flipped,
    good,
    only_at_bad,
    packed,
    run_generator,
)


class GeneratorTests:
    """What holds for both generators."""

    command: Callable[[], list[str]]

    def generate(self, answer: Answer, *options: str) -> subprocess.CompletedProcess[str]:
        return run_generator(self, self.command(), answer, *options)

    def assert_seen(self, message: str, answer: Answer, *options: str) -> None:
        done = self.generate(answer, "--connections=2", "--packets=100", *options)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertIn(message, done.stderr)

    def test_good_server_is_measured(self) -> None:
        done = self.generate(good, "--connections=3", "--depth=4", "--body=40", "--packets=500")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        result = json.loads(done.stdout)
        shape = [result[key] for key in ("connections", "depth", "body", "packets")]
        self.assertEqual(shape, [3, 4, 40, 500])
        self.assertLessEqual(0, result["p50_us"])
        self.assertLessEqual(result["p50_us"], result["p99_us"])
        self.assertLessEqual(result["p99_us"], result["p999_us"])
        self.assertAlmostEqual(
            result["packets_per_second"] * result["seconds"] / 500, 1.0, places=3
        )

    def test_requests_are_sealed_and_carry_connection_and_sequence(self) -> None:
        sent: list[bytes] = []

        def remember(index: int, packet: bytes) -> list[bytes]:
            sent.append(packet)
            return [packet]

        done = self.generate(remember, "--code=7", "--depth=2", "--body=20", "--packets=9")
        self.assertEqual(done.returncode, 0, done.stderr)
        bodies = [packet[HEADER.size :] for packet in sent]
        self.assertEqual(sent, [packed(7, body) for body in bodies])
        self.assertEqual([struct.unpack_from("<II", body) for body in bodies],
                         [(sequence, 0) for sequence in range(9)])  # fmt: skip

    def test_bodies_shorter_than_the_stamp_and_very_long_ones_are_echoed(self) -> None:
        for body in (0, 1, 5, 8, 28992):
            done = self.generate(good, f"--body={body}", "--depth=3", "--packets=30")
            self.assertEqual((done.returncode, done.stderr), (0, ""), body)

    def test_warmup_is_not_counted(self) -> None:
        done = self.generate(good, "--warmup=0.05", "--depth=2", "--packets=20")
        self.assertEqual(json.loads(done.stdout)["packets"], 20)

    def test_marks_enclose_the_counted_packets(self) -> None:
        answered = 0

        def count(index: int, packet: bytes) -> list[bytes]:
            nonlocal answered
            answered += 1
            return [packet]

        server = EchoServer(count)
        self.addCleanup(server.stop)
        with subprocess.Popen(
            [*self.command(), "--warmup=0.05", "--depth=2", "--packets=20", "--marks"]
            + [str(part) for part in server.server_address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            self.addCleanup(process.kill)
            self.assertEqual(process.stdout.readline(), "start\n")
            before = answered
            process.stdin.write("\n")
            process.stdin.flush()
            self.assertEqual(process.stdout.readline(), "end\n")
            self.assertEqual(answered - before, 20)
            output, _ = process.communicate("\n", timeout=DEADLINE)
        self.assertEqual(json.loads(output)["packets"], 20)

    def test_swapped_replies_are_seen(self) -> None:
        self.assert_seen("swapped", self.swap(), "--depth=4")

    def test_swapped_replies_are_accepted_where_order_is_not_promised(self) -> None:
        done = self.generate(self.swap(), "--depth=4", "--packets=100", "--unordered")
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_lost_reply_is_seen(self) -> None:
        lost = only_at_bad(lambda packet: [])
        self.assert_seen("lost", lost)
        self.assert_seen("lost", lost, "--depth=4")
        self.assert_seen("lost", lost, "--depth=4", "--unordered")

    def test_duplicated_reply_is_seen(self) -> None:
        twice = only_at_bad(lambda packet: [packet, packet])
        self.assert_seen("duplicated", twice)
        self.assert_seen("duplicated", twice, "--depth=4")
        self.assert_seen("duplicated", twice, "--depth=4", "--unordered")

    def test_duplicate_of_the_last_reply_is_seen(self) -> None:
        last = 99

        def answer(index: int, packet: bytes) -> list[bytes]:
            return [packet, packet] if index == last else [packet]

        done = self.generate(answer, "--packets=100")
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertIn("duplicated", done.stderr)

    def test_flipped_bit_of_the_body_is_seen(self) -> None:
        self.assert_seen("reply's body differs", only_at_bad(lambda packet: [flipped(packet, -1)]))
        self.assert_seen("reply's body differs", only_at_bad(lambda packet: [flipped(packet, 16)]))

    def test_flipped_bit_of_the_stamp_is_seen(self) -> None:
        for position in range(HEADER.size, HEADER.size + 8):
            fault = partial(lambda position, packet: [flipped(packet, position)], position)
            self.assert_seen("stamp", only_at_bad(fault))

    def test_flipped_bit_under_a_matching_checksum_is_seen(self) -> None:
        sealed = only_at_bad(lambda packet: [packed(1, flipped(packet, -1)[HEADER.size :])])
        self.assert_seen("reply's body differs", sealed)

    def test_wrong_checksum_is_seen(self) -> None:
        self.assert_seen("checksum", only_at_bad(lambda packet: [flipped(packet, 7)]))

    def test_wrong_code_is_seen(self) -> None:
        self.assert_seen("code 0", only_at_bad(lambda packet: [flipped(packet, 3)]))

    def test_wrong_length_is_seen(self) -> None:
        self.assert_seen("length 8", only_at_bad(lambda packet: [packed(1, b"")]))

    def test_reply_meant_for_another_connection_is_seen(self) -> None:
        stray = only_at_bad(
            lambda packet: [packed(1, flipped(packet, HEADER.size + 4)[HEADER.size :])]
        )
        self.assert_seen("stamp", stray)

    def test_connection_closed_by_the_server_is_seen(self) -> None:
        def close(packet: bytes) -> list[bytes]:
            raise ConnectionError

        self.assert_seen("closed by the server", only_at_bad(close))

    def swap(self) -> Answer:
        """Each connection's replies to packets C{BAD} and the one after change places."""
        held: dict[int, bytes] = {}

        def answer(index: int, packet: bytes) -> list[bytes]:
            here = threading.get_ident()
            if index == BAD:
                held[here] = packet
                return []
            return [packet, held.pop(here)] if index == BAD + 1 else [packet]

        return answer


class CompiledGeneratorTests(GeneratorTests, SynchronousTestCase):
    """load.c."""

    skip = None if compiler() else "no C compiler"
    command = staticmethod(compiled_generator)

    def test_what_the_socket_does_not_take_is_sent_later_in_order(self) -> None:
        began = time.monotonic()

        def late(index: int, packet: bytes) -> list[bytes]:
            if index == 0:
                time.sleep(0.2)  # meanwhile 4096 packets are more than the socket's buffers hold
            return [packet]

        done = self.generate(late, "--depth=4096", "--body=4096", "--packets=6000", "--stall=5")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertGreater(time.monotonic() - began, 0.2)


class PythonGeneratorTests(GeneratorTests, SynchronousTestCase):
    """load.py."""

    command = staticmethod(python_generator)
