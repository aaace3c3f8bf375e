"""The load generators: what they report of a good server, and that no bad one gets past them."""

from __future__ import annotations

import json
import socketserver
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable
from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.generator import compiled_generator, compiler, python_generator

HEADER = struct.Struct(">HHI")
BAD = 10  # the packet of each connection on which a server's fault shows
DEADLINE = 60

# What is sent, packet by packet, for the nth packet of a connection.
Answer = Callable[[int, bytes], list[bytes]]


def good(index: int, packet: bytes) -> list[bytes]:
    return [packet]


def packed(code: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), code, zlib.crc32(body)) + body


def flipped(packet: bytes, position: int) -> bytes:
    """One bit of the packet is another."""
    changed = bytearray(packet)
    changed[position] ^= 1
    return bytes(changed)


def only_at_bad(fault: Callable[[bytes], list[bytes]]) -> Answer:
    """The fault shows on one packet; before and after it all is well."""
    return lambda index, packet: fault(packet) if index == BAD else [packet]


class EchoConnection(socketserver.StreamRequestHandler):
    """Reads whole packets and sends what the server's C{answer} says."""

    server: EchoServer
    disable_nagle_algorithm = True

    def handle(self) -> None:
        index = 0
        try:
            while header := self.rfile.read(HEADER.size):
                body = self.rfile.read(HEADER.unpack(header)[0] - HEADER.size)
                for reply in self.server.answer(index, header + body):
                    self.wfile.write(reply)
                index += 1
        except ConnectionError:
            pass  # the generator has seen enough; a fault may also end a connection so


class EchoServer(socketserver.ThreadingTCPServer):
    """A server with one fault."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), EchoConnection)
        self.answer = answer
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class GeneratorTests:
    """What holds for both generators."""

    command: Callable[[], list[str]]

    def generate(self, answer: Answer, *options: str) -> subprocess.CompletedProcess[str]:
        server = EchoServer(answer)
        self.addCleanup(server.stop)
        arguments = ["--warmup=0", "--stall=0.3", *options, *map(str, server.server_address)]
        return subprocess.run(
            [*self.command(), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )

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


class PythonGeneratorTests(GeneratorTests, SynchronousTestCase):
    """load.py."""

    command = staticmethod(python_generator)
