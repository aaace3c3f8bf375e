"""The fuzz targets on their corpus and a little more, and that they find what is there to find."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from zlib import crc32

from twisted.trial.unittest import SynchronousTestCase

from ccserver.core import carried as carried_module
from ccserver.core import plain
from ccserver.core import proxy as proxy_module
from ccserver.core.framing import HEADER, FrameDecoder, Packet
from ccserver.net import taker as taker_module
from ccserver.process.requests import ControlConnection
from tests.fuzz import framing, mutation
from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
EXECUTIONS = 400


def corpus(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def cut_without_looking(
    data: bytes, start: int, longest: int, packets: list[Packet], _: object
) -> int:
    """A cut that takes packets whatever their checksum is."""
    while len(data) - start >= 8:
        length, code, _ = HEADER.unpack_from(data, start)
        if not 8 <= length <= min(longest, len(data) - start):
            break
        packets.append((code, data[start + 8 : start + length]))
        start += length
    return start


def cut_and_forget(data: bytes, start: int, longest: int, packets: list[Packet], _: object) -> int:
    """A cut that does not tell of what it refuses."""
    return framing.cut_in_python(data, start, longest, packets, [])


def signed_header(code: int, body: bytes) -> bytes:
    """A header whose checksum has no sign bit."""
    return HEADER.pack(8 + len(body), code, crc32(body) & 0x7FFFFFFF)


class CorpusTests(SynchronousTestCase):
    def tearDown(self) -> None:
        self.flushLoggedErrors()  # those that the taker is to log

    def test_each_target_has_one(self):
        folders = {path.name for path in CORPUS.iterdir()}
        self.assertEqual(folders, set(TARGETS))
        for name in TARGETS:
            self.assertTrue(corpus(name), name)

    def test_nothing_is_found_in_it(self):
        for name, target in TARGETS.items():
            for data in corpus(name):
                target(data)

    def test_nothing_is_found_near_it(self):
        for name, target in TARGETS.items():
            count = mutation.run(target, corpus(name), Random(7), 60.0, EXECUTIONS, _nothing)
            self.assertEqual(count, EXECUTIONS)

    def test_nothing_is_found_in_nothing(self):
        for target in TARGETS.values():
            target(b"")


class FindingTests(SynchronousTestCase):
    """Each target finds a fault that is put in front of it."""

    def tearDown(self) -> None:
        self.flushLoggedErrors()

    def assert_found(self, name: str, executions: int = 20000) -> None:
        found: list[bytes] = []
        target: Target = TARGETS[name]

        def run() -> None:
            mutation.run(target, corpus(name), Random(7), 60.0, executions, found.append)

        self.assertRaises((AssertionError, ValueError), run)
        self.assertRaises((AssertionError, ValueError), target, *found)

    def test_a_checksum_that_is_not_looked_at(self):
        self.patch(framing, "cut_in_python", cut_without_looking)
        self.assert_found("decoder")

    def test_an_incomplete_packet_that_is_forgotten_on_the_way(self):
        restore = FrameDecoder.restore

        def forget(decoder: Any, incomplete: bytes, bytes: int, packets: int) -> None:
            restore(decoder, incomplete[:4], bytes, packets)

        self.patch(FrameDecoder, "restore", forget)
        self.assert_found("decoder")

    def test_ways_to_cut_that_differ(self):
        self.patch(framing, "native", SimpleNamespace(cut=cut_without_looking))
        self.assert_found("cutter")

    def test_refusals_that_are_not_told(self):
        self.patch(framing, "native", SimpleNamespace(cut=cut_and_forget))
        self.assert_found("cutter")

    def test_headers_that_differ(self):
        self.patch(framing, "native", SimpleNamespace(header=signed_header))
        self.assert_found("header")

    def test_a_value_that_is_not_what_was_written(self):
        unpack = struct.Struct(">d").unpack
        self.patch(plain, "_FLOAT", SimpleNamespace(size=8, pack=_without_sign, unpack=unpack))
        self.assert_found("values")

    def test_an_error_that_is_none_of_those_promised(self):
        self.patch(carried_module, "_is_time", lambda value: isinstance(value, float))
        self.assert_found("carried")

    def test_a_descriptor_that_is_left_open(self):
        self.patch(taker_module.os, "close", _nothing)
        self.assert_found("taker")

    def test_a_header_that_is_believed_too_early(self):
        self.patch(proxy_module, "_parse_v2", lambda data: proxy_module.Header(len(data), None))
        self.assert_found("proxy")

    def test_a_request_without_an_answer(self):
        begin: Callable[[Any, bytes], None] = ControlConnection._begin

        def ignore(connection: Any, line: bytes) -> None:
            if b"kick" not in line:
                begin(connection, line)

        self.patch(ControlConnection, "_begin", ignore)
        self.assert_found("control")


class MutationTests(SynchronousTestCase):
    def test_the_same_seed_does_the_same(self):
        def inputs(seed: int) -> list[bytes]:
            seen: list[bytes] = []
            mutation.run(seen.append, [b"abc", b"defgh"], Random(seed), 60.0, 200, _nothing)
            return seen

        self.assertEqual(inputs(1), inputs(1))
        self.assertNotEqual(inputs(1), inputs(2))
        self.assertGreater(len(set(inputs(1))), 150)

    def test_the_corpus_comes_first(self):
        seen: list[bytes] = []
        mutation.run(seen.append, [b"abc", b"defgh"], Random(1), 60.0, 2, _nothing)
        self.assertEqual(seen, [b"abc", b"defgh"])

    def test_the_time_ends_it(self):
        self.assertEqual(mutation.run(_nothing, [b"abc"], Random(1), 0.0, 10, _nothing), 0)


def _without_sign(value: float) -> bytes:
    return struct.pack(">d", abs(value))


def _nothing(data: Any) -> None:
    """Finds nothing."""
