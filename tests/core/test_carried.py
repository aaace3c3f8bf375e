"""Carried connections: to bytes and back, and nothing but a ValueError for other bytes."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core import plain
from ccserver.core.carried import Carried
from ccserver.core.framing import encode
from ccserver.errors import NotCarried

CARRIED = Carried(
    id=(3 << 40) + 7,
    peer="192.0.2.1:5000",
    server="0.0.0.0:5678",
    started=1000.5,
    heard=1001.25,
    flood=(1001.25, 3),
    bytes_in=100,
    packets_in=5,
    bytes_out=2**40,
    packets_out=4,
    incomplete=b"\x00\x10",
    pending=[(1, b"one"), (0xFFFF, b"")],
    state=b"N",
    rate=(-3.5, 1001.0),
    begun=1001.25,
    known=False,
)

PENDING = encode(1, b"one") + encode(0xFFFF)
VALUES = {**asdict(CARRIED), "pending": PENDING}
"""As they travel."""


LATER = {"rate", "begun", "known"}
"""What the first version did not carry."""


class CarriedTests(SynchronousTestCase):
    def test_it_comes_out_as_it_went_in(self):
        for carried in (CARRIED, replace(CARRIED, heard=None, flood=None, pending=[])):
            self.assertEqual(Carried.load(carried.dump()), carried)
        never = replace(CARRIED, flood=(None, 0))
        self.assertEqual(Carried.load(never.dump()), never)

    def test_what_one_does_not_know_is_left_out(self):
        data = plain.dump({**VALUES, "more": 1}, "it", 10000)
        self.assertEqual(Carried.load(data), CARRIED)

    def test_what_is_missing_is_named(self):
        for name in VALUES.keys() - LATER:
            values = dict(VALUES)
            del values[name]
            error = self.assertRaises(ValueError, Carried.load, plain.dump(values, "it", 10000))
            self.assertIn(f"{name} is missing", str(error))

    def test_each_field_must_be_what_it_is(self):
        wrong: list[Any] = ["x", -1, None, 1.5, [(1, 2)], [(0x10000, b"")], (1, 2), {}, True]
        right = {
            "peer": {0},
            "server": {0},
            "started": {3},
            "heard": {2, 3},
            "flood": {2},
            "rate": {2},
            "begun": {2, 3},
            "known": {8},
        }
        for name in VALUES:
            for number, value in enumerate(wrong):
                if number in right.get(name, ()):
                    continue
                data = plain.dump({**VALUES, name: value}, "it", 10000)
                error = self.assertRaises(ValueError, Carried.load, data)
                self.assertIn(name, str(error))

    def test_a_time_is_one_that_can_be(self):
        for never in (float("inf"), float("-inf"), float("nan")):
            for more in ({"started": never}, {"heard": never}, {"flood": (never, 1)}):
                data = plain.dump({**VALUES, **more}, "it", 10000)
                error = self.assertRaises(ValueError, Carried.load, data)
                self.assertIn(next(iter(more)), str(error))

    def test_what_an_older_version_did_not_know_is_not_missed(self):
        values = dict(VALUES)
        for name in LATER:
            del values[name]
        loaded = Carried.load(plain.dump(values, "it", 10000))
        self.assertEqual(loaded, replace(CARRIED, rate=None, begun=None, known=True))

    def test_what_waits_travels_as_on_the_wire(self):
        self.assertEqual(plain.load(CARRIED.dump()), VALUES)

    def test_what_waits_is_whole_good_packets(self):
        damaged = (
            PENDING[:-1],
            PENDING + b"\0",
            PENDING.replace(b"one", b"two"),
            b"\0\x07" + bytes(6),
        )
        for pending in (*damaged, CARRIED.pending):
            data = plain.dump({**VALUES, "pending": pending}, "it", 10000)
            error = self.assertRaises(ValueError, Carried.load, data)
            self.assertIn("pending", str(error))

    def test_many_that_wait_are_one_value(self):
        calls = []
        patched = plain._Output.add

        def add(out: Any, *arguments: Any) -> None:
            calls.append(arguments)
            patched(out, *arguments)

        self.patch(plain._Output, "add", add)
        few, many = replace(CARRIED, pending=[]), replace(CARRIED, pending=[(0, b"")] * 8192)
        few.dump()
        before = len(calls)
        data = many.dump()
        self.assertEqual(len(calls), 2 * before)
        self.assertEqual(Carried.load(data), many)

    def test_what_is_none_at_all_is_an_error(self):
        for value in (None, [], 5):
            self.assertRaises(ValueError, Carried.load, plain.dump(value, "it", 100))

    def test_one_that_is_too_big_is_refused(self):
        big = replace(CARRIED, pending=[(1, bytes(60000))] * 1200)
        self.assertRaises(NotCarried, big.dump)

    @given(st.integers(0, len(CARRIED.dump()) - 1), st.integers(0, 255))
    @settings(max_examples=300)
    def test_a_changed_byte_is_another_connection_or_an_error(self, place, value):
        data = bytearray(CARRIED.dump())
        data[place] = value
        try:
            Carried.load(bytes(data))
        except ValueError:
            pass
