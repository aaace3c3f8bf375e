"""Plain values: what goes in comes out, of the same type; what is none is refused by name."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict, defaultdict, namedtuple
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.plain import DEPTH, dump, load
from ccserver.errors import NotCarried

LIMIT = 1 << 20

FLOATS = st.floats(allow_nan=False)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    FLOATS,
    st.text(st.characters()),  # surrogates too
    st.binary(),
)
KEYS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
    ),
    max_leaves=20,
)


def exact(value: Any) -> Any:
    """C{value} with its types, so that 1, 1.0 and True differ, and -0.0 from 0.0."""
    kind = type(value)
    if kind is float:
        return kind, struct.pack(">d", value)
    if kind is dict:
        return kind, [(exact(key), exact(item)) for key, item in value.items()]
    if kind in (list, tuple):
        return kind, [exact(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted((exact(item) for item in value), key=repr)
    return kind, value


def round_trip(value: Any) -> Any:
    return load(dump(value, "value", LIMIT))


class RoundTripTests(SynchronousTestCase):
    @given(VALUES)
    @example("\ud800\udc00")
    @example([-(2**63), 2**63 - 1, 2**63, -(2**63) - 1, 0, -1, 255, -256, 1 << 5000])
    @example([0.0, -0.0, math.inf, -math.inf, 5e-324])
    @example({1: "int", "1": "str", b"1": "bytes", (1,): "tuple", None: "none"})
    @example([1, 1.0, True])
    def test_what_goes_in_comes_out(self, value):
        self.assertEqual(exact(round_trip(value)), exact(value))

    def test_not_a_number_is_kept_to_its_last_bit(self):
        for bits in (b"\x7f\xf8" + bytes(6), b"\xff\xf8\0\0\0\0\0\x01"):
            (value,) = struct.unpack(">d", bits)
            self.assertEqual(struct.pack(">d", round_trip(value)), bits)

    def test_two_keys_that_are_no_number_stay_two(self):
        self.assertEqual(len(round_trip({float("nan"): 1, float("nan"): 2})), 2)

    def test_a_dict_keeps_its_order(self):
        value = {"z": 1, "a": 2, "m": 3}
        self.assertEqual(list(round_trip(value)), ["z", "a", "m"])

    def test_it_may_be_nested_so_deep_and_no_deeper(self):
        value: Any = 1
        for _ in range(DEPTH):
            value = [value]
        self.assertEqual(round_trip(value), value)
        self.assertRaises(NotCarried, dump, [value], "value", LIMIT)

    def test_it_may_be_so_big_and_no_bigger(self):
        size = len(dump(["x" * 100, {1: 2}], "value", LIMIT))
        self.assertEqual(load(dump(["x" * 100, {1: 2}], "value", size)), ["x" * 100, {1: 2}])
        for limit in range(size):
            error = self.assertRaises(NotCarried, dump, ["x" * 100, {1: 2}], "it", limit)
            self.assertEqual(str(error), f"it: more than {limit} bytes")


class Number(int):
    pass


class Text(str):
    pass


class Mapping(dict):
    pass


class Colour(IntEnum):
    RED = 1


class Word(StrEnum):
    YES = "yes"


class Plain(Enum):
    ONE = 1


class Sly:
    """Says that it is an int."""

    @property
    def __class__(self) -> type:
        return int


Pair = namedtuple("Pair", "left right")


class RefusalTests(SynchronousTestCase):
    def refusal(self, value: Any) -> str:
        return str(self.assertRaises(NotCarried, dump, value, "state", LIMIT))

    def test_subclasses_are_not_plain(self):
        for value in (
            Number(1),
            Text("x"),
            Mapping(a=1),
            Colour.RED,
            Word.YES,
            Plain.ONE,
            Pair(1, 2),
            OrderedDict(a=1),
            defaultdict(int),
            Sly(),
        ):
            self.assertIn(f"{type(value).__qualname__} is not plain", self.refusal({"x": value}))

    def test_other_types_are_not_plain(self):
        for value in (object(), bytearray(), memoryview(b""), 1j, Decimal(1), print, int, ...):
            self.assertIn("is not plain", self.refusal([value]))

    def test_the_place_is_named(self):
        it = object()
        for value, place in (
            (it, "state: object"),
            ({"user": {"socket": it}}, "state['user']['socket']: object"),
            ({"a": [1, (2, it)]}, "state['a'][1][1]: object"),
            ({b"k": {3: it}}, "state[b'k'][3]: object"),
            ({(1, it): 1}, "state{tuple}[1]: object"),
            ({"s": {it}}, "state['s']{object}: object"),
            ({it: 1}, "state{object}: object"),
            ({1.5: it}, "state[float]: object"),
            ({"x" * 100: it}, f"state['{'x' * 36}...]: object"),
        ):
            self.assertEqual(self.refusal(value), f"{place} is not plain")

    def test_a_deep_place_is_shortened(self):
        value: Any = object()
        for _ in range(30):
            value = [value]
        said = self.refusal(value)
        self.assertEqual(said, "state[0][0][0][0]...[0][0][0][0]: object is not plain")

    def test_the_type_is_named_with_its_module(self):
        self.assertIn(": decimal.Decimal is not plain", self.refusal(Decimal(1)))

    def test_what_contains_itself_is_refused(self):
        value: list[Any] = []
        value.append(value)
        self.assertIn(f"nested deeper than {DEPTH} levels", self.refusal(value))

    def test_what_grows_by_being_there_often_is_refused(self):
        value: list[Any] = []
        for _ in range(DEPTH - 1):
            value = [value, value]
        self.assertEqual(self.refusal(value), f"state: more than {LIMIT} bytes")


class DamageTests(SynchronousTestCase):
    @given(st.binary(max_size=60))
    @example(b"l\xff\xff\xff\xff")
    @example(b"d\x00\x00\x00\x01l\x00\x00\x00\x00N")  # a list as a key
    @example(b"e\x00\x00\x00\x01e\x00\x00\x00\x00")  # a set in a set
    @example(b"s\x00\x00\x00\x01\xff")
    @example(b"e\x00\x00\x00\x02TT")
    @example(b"d\x00\x00\x00\x02TNTN")
    @example(b"l\x00\x00\x00\x01" * 100 + b"N")
    @settings(max_examples=500)
    def test_any_bytes_are_a_value_or_an_error(self, data):
        try:
            value = load(data)
        except ValueError:
            return
        self.assertEqual(exact(round_trip(value)), exact(value))

    @given(VALUES, st.data())
    def test_a_value_with_a_changed_byte_is_a_value_or_an_error(self, value, draw):
        data = bytearray(dump(value, "value", LIMIT))
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
        try:
            load(bytes(data))
        except ValueError:
            pass

    @given(VALUES)
    def test_a_value_that_is_cut_or_followed_is_an_error(self, value):
        data = dump(value, "value", LIMIT)
        for wrong in (data[:-1], data + b"N"):
            self.assertRaises(ValueError, load, wrong)
