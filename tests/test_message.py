"""Message: a class is the layout of a body, both ways."""

from __future__ import annotations

import math
import struct
import traceback
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import tests.properties  # noqa: F401
from ccserver.errors import BadBody
from ccserver.message import Message, field

KINDS = {
    "i8": ("b", -(2**7), 2**7 - 1),
    "i16": ("h", -(2**15), 2**15 - 1),
    "i32": ("i", -(2**31), 2**31 - 1),
    "i64": ("q", -(2**63), 2**63 - 1),
    "u8": ("B", 0, 2**8 - 1),
    "u16": ("H", 0, 2**16 - 1),
    "u32": ("I", 0, 2**32 - 1),
    "u64": ("Q", 0, 2**64 - 1),
}


class Login(Message):
    username: str = field.chars(56)
    password: str = field.chars(40)


class Everything(Message):
    a: int = field.i8()
    b: int = field.i16()
    c: int = field.i32()
    d: int = field.i64()
    e: int = field.u8()
    f: int = field.u16()
    g: int = field.u32()
    h: int = field.u64()
    i: float = field.f32()
    j: float = field.f64()
    k: bool = field.bool()
    l: str = field.chars(9)  # noqa: E741
    m: bytes = field.raw(5)
    n: list[int] = field.array(field.u16(), 3)
    o: list[str] = field.array(field.chars(4), 2)
    p: bytes = field.tail()


class Readings(Message, byteorder="little"):
    sensor: int = field.u16()
    values: list[int] = field.tail(field.i16())


class Names(Message):
    names: list[str] = field.tail(field.chars(4))


def one(made: Any, name: str = "One", **options: Any) -> type[Message]:
    """A message with the one field C{x}."""
    return type(name, (Message,), {"x": made}, **options)


def integers(kind: str) -> st.SearchStrategy[int]:
    return st.integers(KINDS[kind][1], KINDS[kind][2])


def text(size: int) -> st.SearchStrategy[str]:
    """What fits into C{chars(size)}."""
    plain = st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=size
    )
    return plain.filter(lambda text: len(text.encode()) < size)


class IntegerTests(SynchronousTestCase):
    def test_each_kind_has_its_format_big_endian(self):
        for kind, (code, low, high) in KINDS.items():
            cls = one(getattr(field, kind)())
            for value in (low, high, 1):
                self.assertEqual(cls(x=value).encode(), struct.pack(">" + code, value))
                self.assertEqual(cls.decode(struct.pack(">" + code, value)).x, value)

    def test_each_kind_has_its_bounds(self):
        for kind, (_, low, high) in KINDS.items():
            cls = one(getattr(field, kind)())
            for value in (low - 1, high + 1):
                self.assertRaises(ValueError, cls(x=value).encode)

    def test_what_is_no_integer_is_refused(self):
        for value in ("5", 5.0, None, b"5", [5]):
            error = self.assertRaises(ValueError, one(field.u8())(x=value).encode)
            self.assertIn("One.x", str(error))


class OtherKindsTests(SynchronousTestCase):
    def test_floats_are_ieee_754(self):
        self.assertEqual(one(field.f32())(x=1.5).encode(), struct.pack(">f", 1.5))
        self.assertEqual(one(field.f64())(x=0.1).encode(), struct.pack(">d", 0.1))

    def test_a_number_too_big_for_an_f32_is_refused(self):
        self.assertRaises(ValueError, one(field.f32())(x=1e300).encode)

    def test_nan_and_infinity_travel(self):
        cls = one(field.f64())
        self.assertTrue(math.isnan(cls.decode(cls(x=math.nan).encode()).x))
        self.assertEqual(cls.decode(cls(x=-math.inf).encode()).x, -math.inf)

    def test_a_bool_is_written_as_0_or_1(self):
        cls = one(field.bool())
        self.assertEqual((cls(x=True).encode(), cls(x=False).encode()), (b"\x01", b"\x00"))

    def test_any_byte_but_0_is_true(self):
        cls = one(field.bool())
        values = [cls.decode(bytes([n])).x for n in range(256)]
        self.assertEqual(values, [False] + [True] * 255)
        self.assertTrue(all(type(value) is bool for value in values))

    def test_raw_is_filled_up(self):
        self.assertEqual(one(field.raw(4))(x=b"ab").encode(), b"ab\0\0")

    def test_raw_that_is_too_long_is_refused(self):
        error = self.assertRaises(ValueError, one(field.raw(4))(x=b"abcde").encode)
        self.assertIn("One.x", str(error))

    def test_raw_of_something_else_is_refused(self):
        for value in ("ab", 5, None):
            self.assertRaises(ValueError, one(field.raw(4))(x=value).encode)

    def test_raw_comes_back_with_what_filled_it_up(self):
        self.assertEqual(one(field.raw(4)).decode(b"ab\0\0").x, b"ab\0\0")


class CharsTests(SynchronousTestCase):
    cls = one(field.chars(6))

    def test_text_is_utf_8_filled_with_nuls(self):
        self.assertEqual(self.cls(x="né").encode(), b"n\xc3\xa9\0\0\0")

    def test_reading_stops_at_the_first_nul(self):
        self.assertEqual(self.cls.decode(b"ab\0cd\0").x, "ab")

    def test_the_last_byte_is_never_text(self):
        self.assertEqual(self.cls.decode(b"abcdef").x, "abcde")

    def test_what_stands_behind_the_nul_need_not_be_utf_8(self):
        self.assertEqual(self.cls.decode(b"ab\0\xff\xfe\xff").x, "ab")

    def test_text_that_fills_it_but_for_the_nul_fits(self):
        self.assertEqual(self.cls(x="abcde").encode(), b"abcde\0")

    def test_longer_text_is_refused_by_its_bytes(self):
        for text in ("abcdef", "ééé"):
            error = self.assertRaises(ValueError, self.cls(x=text).encode)
            self.assertIn("One.x", str(error))

    def test_text_with_a_nul_is_refused(self):
        self.assertRaises(ValueError, self.cls(x="a\0b").encode)

    def test_lone_surrogates_are_refused(self):
        self.assertRaises(ValueError, self.cls(x="\udcff").encode)

    def test_what_is_no_text_is_refused(self):
        for value in (b"abc", 5, None):
            error = self.assertRaises(ValueError, self.cls(x=value).encode)
            self.assertIn("One.x", str(error))

    def test_a_body_that_is_not_utf_8_is_a_bad_body(self):
        self.assertRaises(BadBody, self.cls.decode, b"\xff\0\0\0\0\0")

    def test_a_character_cut_in_two_is_a_bad_body(self):
        self.assertRaises(BadBody, self.cls.decode, b"abcd\xc3\xa9")

    def test_stray_bytes_come_through_where_that_is_asked_for(self):
        cls = one(field.chars(6, errors="surrogateescape"))
        message = cls.decode(b"a\xff\0\0\0\0")
        self.assertEqual(message.x, "a\udcff")
        self.assertEqual(message.encode(), b"a\xff\0\0\0\0")

    def test_no_room_for_the_nul_is_refused_at_once(self):
        self.assertRaises(ValueError, field.chars, 0)


class LayoutTests(SynchronousTestCase):
    def test_fields_stand_in_their_order_unpadded(self):
        class Mixed(Message):
            a: int = field.u8()
            b: int = field.u32()
            c: int = field.u8()

        self.assertEqual(Mixed(a=1, b=2, c=3).encode(), b"\x01\0\0\0\x02\x03")
        self.assertEqual(Mixed.size, 6)

    def test_sizes_are_those_of_the_familys_messages(self):
        self.assertEqual(Login.size, 96)

    def test_the_byte_order_can_be_chosen(self):
        cls = one(field.u16(), byteorder="little")
        self.assertEqual(cls(x=1).encode(), b"\x01\0")
        self.assertEqual(cls.decode(b"\x01\0").x, 1)

    def test_the_byte_order_holds_for_arrays_and_tails_too(self):
        self.assertEqual(Readings(sensor=1, values=[2]).encode(), b"\x01\0\x02\0")
        cls = one(field.array(field.u16(), 2), byteorder="little")
        self.assertEqual(cls(x=[1, 2]).encode(), b"\x01\0\x02\0")

    def test_there_is_no_other_byte_order(self):
        self.assertRaises(KeyError, one, field.u16(), byteorder="middle")

    def test_a_message_without_fields_is_empty(self):
        class Empty(Message):
            pass

        self.assertEqual(Empty().encode(), b"")
        self.assertEqual(Empty.decode(b""), Empty())
        self.assertRaises(BadBody, Empty.decode, b"x")

    def test_fields_are_told_by_name_in_their_order(self):
        kinds = {name: f.kind for name, f in Login.fields().items()}
        self.assertEqual(kinds, {"username": "chars(56)", "password": "chars(40)"})

    def test_fields_are_told_as_a_copy(self):
        Login.fields().clear()
        self.assertEqual(len(Login.fields()), 2)


class InheritanceTests(SynchronousTestCase):
    def test_the_parents_fields_come_first(self):
        class Parent(Message):
            a: int = field.u8()

        class Child(Parent):
            b: int = field.u8()

        self.assertEqual(Child(a=1, b=2).encode(), b"\x01\x02")
        self.assertEqual(Parent.size, 1)

    def test_the_byte_order_is_inherited_and_may_be_changed(self):
        class Child(Readings):
            pass

        class Other(Readings, byteorder="big"):
            pass

        self.assertEqual(Child(sensor=1).encode(), b"\x01\0")
        self.assertEqual(Other(sensor=1).encode(), b"\0\x01")

    def test_a_field_may_be_given_anew_in_its_place(self):
        class Parent(Message):
            a: int = field.u8()
            b: int = field.u8()

        class Child(Parent):
            a: int = field.u16()

        self.assertEqual(Child(a=1, b=2).encode(), b"\0\x01\x02")

    def test_a_field_cannot_hide_what_a_message_needs(self):
        for name in ("encode", "decode", "parse", "fields", "_layout", "self", "__eq__"):
            with self.assertRaises(TypeError) as refused:
                type("Wrong", (Message,), {name: field.u8()})
            self.assertIn(f"Wrong.{name}: ", str(refused.exception))

    def test_a_field_may_be_called_size(self):
        class Sized(Message):
            size: int = field.u16()

        self.assertEqual(Sized(size=7).encode(), b"\0\x07")
        self.assertEqual(Sized.decode(b"\0\x07").size, 7)
        self.assertRaises(BadBody, Sized.decode, b"\0")
        self.assertEqual(Sized.size, 2)

    def test_nothing_can_come_behind_a_tail(self):
        def child() -> None:
            class Child(Readings):
                more: int = field.u8()

        self.assertIn("Child.values", str(self.assertRaises(TypeError, child)))

    def test_methods_and_constants_are_left_alone(self):
        class Point(Message):
            ORIGIN = 0
            x: int = field.u8()

            def doubled(self) -> int:
                return self.x * 2

        self.assertEqual(Point(x=2).doubled(), 4)
        self.assertEqual(Point.ORIGIN, 0)
        self.assertEqual(list(Point.fields()), ["x"])


class SecretTests(SynchronousTestCase):
    """What a secret field holds is in no repr and no error."""

    KINDS = (
        (field.chars(7, secret=True), "sesame"),
        (field.raw(6, secret=True), b"sesame"),
        (field.array(field.chars(7, secret=True), 1), ["sesame"]),
        (field.tail(field.chars(7, secret=True)), ["sesame"]),
    )

    def test_it_travels_as_any_other(self):
        for kind, value in self.KINDS:
            cls = one(kind)
            self.assertEqual(cls.decode(cls(x=value).encode()).x, value)

    def test_the_repr_has_stars_instead(self):
        for kind, value in self.KINDS:
            self.assertEqual(repr(one(kind)(x=value)), "One(x=***)")

    def test_fields_beside_it_are_shown(self):
        class Pair(Message):
            name: str = field.chars(7)
            word: str = field.chars(7, secret=True)

        self.assertEqual(repr(Pair(name="ann", word="sesame")), "Pair(name='ann', word=***)")

    def test_an_error_names_the_field_and_not_its_value(self):
        for kind, value in self.KINDS:
            wrong = [value[0] * 2] if isinstance(value, list) else value * 2
            error = self.assertRaises(ValueError, one(kind)(x=wrong).encode)
            told = "".join(traceback.format_exception(error))
            self.assertIn("One.x: not a value of ", told)
            self.assertNotIn("sesame", told)

    def test_a_text_that_is_none_of_its_values_is_not_quoted(self):
        error = self.assertRaises(ValueError, one(self.KINDS[1][0]).parse, {"x": "sesame"})
        self.assertEqual(str(error), "x=***: not a value of raw(6)")


class ArrayTests(SynchronousTestCase):
    def test_values_stand_one_behind_the_other(self):
        self.assertEqual(one(field.array(field.u16(), 2))(x=[1, 2]).encode(), b"\0\x01\0\x02")

    def test_a_shorter_list_is_filled_up(self):
        cls = one(field.array(field.u16(), 3))
        self.assertEqual(cls(x=[1]).encode(), b"\0\x01\0\0\0\0")
        self.assertEqual(cls.decode(cls(x=[1]).encode()).x, [1, 0, 0])

    def test_a_longer_one_is_refused(self):
        error = self.assertRaises(ValueError, one(field.array(field.u8(), 2))(x=[1, 2, 3]).encode)
        self.assertIn("One.x", str(error))

    def test_a_value_out_of_bounds_is_refused(self):
        self.assertRaises(ValueError, one(field.array(field.u8(), 2))(x=[256]).encode)

    def test_texts_may_be_repeated(self):
        cls = one(field.array(field.chars(3), 2))
        self.assertEqual(cls(x=["a", "bc"]).encode(), b"a\0\0bc\0")
        self.assertEqual(cls.decode(b"a\0\0bc\0").x, ["a", "bc"])

    def test_any_sequence_will_do(self):
        self.assertEqual(one(field.array(field.u8(), 2))(x=(1, 2)).encode(), b"\x01\x02")

    def test_what_is_no_sequence_is_refused(self):
        for value in (5, None):
            self.assertRaises(ValueError, one(field.array(field.u8(), 2))(x=value).encode)

    def test_arrays_and_tails_cannot_be_repeated(self):
        self.assertRaises(TypeError, field.array, field.array(field.u8(), 2), 2)
        self.assertRaises(TypeError, field.array, field.tail(), 2)
        self.assertRaises(TypeError, field.tail, field.tail())


class TailTests(SynchronousTestCase):
    def test_bytes_of_any_length(self):
        cls = one(field.tail())
        for body in (b"", b"a", bytes(1000)):
            self.assertEqual(cls.decode(body).x, body)
            self.assertEqual(cls(x=body).encode(), body)

    def test_what_is_no_bytes_is_refused(self):
        for value in (5, "ab", None, [1]):
            self.assertRaises(ValueError, one(field.tail())(x=value).encode)

    def test_values_of_any_number(self):
        for values in ([], [1], [-2, 3]):
            body = Readings(sensor=1, values=values).encode()
            self.assertEqual(len(body), 2 + 2 * len(values))
            self.assertEqual(Readings.decode(body).values, values)

    def test_texts(self):
        self.assertEqual(Names.decode(b"abc\0d\0\0\0").names, ["abc", "d"])
        self.assertEqual(Names(names=["abc", "d"]).encode(), b"abc\0d\0\0\0")

    def test_half_a_value_is_a_bad_body(self):
        error = self.assertRaises(BadBody, Readings.decode, b"\0\0\0")
        self.assertIn("tail" if "tail" in str(error) else "i16", str(error))

    def test_the_fixed_part_must_be_there(self):
        self.assertRaises(BadBody, Readings.decode, b"\0")

    def test_a_value_that_does_not_fit_is_refused(self):
        error = self.assertRaises(ValueError, Readings(values=[1, 70000]).encode)
        self.assertIn("Readings.values", str(error))

    def test_only_the_last_field_can_be_one(self):
        def make() -> None:
            class Wrong(Message):
                a: bytes = field.tail()
                b: int = field.u8()

        self.assertIn("Wrong.a", str(self.assertRaises(TypeError, make)))

    def test_the_size_is_that_of_the_fixed_part(self):
        self.assertEqual(Readings.size, 2)


class ValuesTests(SynchronousTestCase):
    def test_what_is_not_given_is_zero(self):
        message = Everything()
        self.assertEqual(message.encode(), bytes(Everything.size))
        self.assertEqual(
            [message.a, message.i, message.k, message.l, message.m, message.n, message.o],
            [0, 0.0, False, "", bytes(5), [0, 0, 0], ["", ""]],
        )

    def test_lists_are_each_messages_own(self):
        first = Everything()
        first.n.append(9)
        self.assertEqual(Everything().n, [0, 0, 0])

    def test_an_unknown_field_is_a_type_error_that_names_it(self):
        self.assertIn("'name'", str(self.assertRaises(TypeError, Login, name="x")))

    def test_values_can_be_changed(self):
        message = Login(username="ada")
        message.username = "bob"
        self.assertEqual(message.encode()[:4], b"bob\0")

    def test_equal_is_what_has_the_same_class_and_values(self):
        class Other(Login):
            pass

        self.assertEqual(Login(username="a"), Login(username="a"))
        self.assertNotEqual(Login(username="a"), Login(username="b"))
        self.assertNotEqual(Login(username="a"), Other(username="a"))
        self.assertNotEqual(Login(), b"")

    def test_messages_are_not_hashable_for_they_can_change(self):
        self.assertRaises(TypeError, hash, Login())

    def test_repr_is_the_call_that_makes_it(self):
        message = Readings(sensor=1, values=[2, 3])
        self.assertEqual(repr(message), "Readings(sensor=1, values=[2, 3])")
        self.assertEqual(eval(repr(message)), message)

    def test_the_first_field_that_does_not_fit_is_blamed(self):
        error = self.assertRaises(ValueError, Everything(a=1000, g=-1).encode)
        self.assertIn("Everything.a", str(error))

    def test_a_wrong_size_is_told(self):
        for length in (0, 95, 97):
            text = str(self.assertRaises(BadBody, Login.decode, bytes(length)))
            self.assertIn(f"{length} bytes", text)
            self.assertIn("96", text)


class ParseTests(SynchronousTestCase):
    """Values as texts, as on a command line."""

    def parsed(self, made: Any, text: str) -> Any:
        return one(made).parse({"x": text}).x

    def test_integers_in_any_base(self):
        for text, value in (("7", 7), ("0x10", 16), ("0b11", 3), ("-1", -1)):
            self.assertEqual(self.parsed(field.i32(), text), value)

    def test_floats_text_and_hexadecimal_bytes(self):
        self.assertEqual(self.parsed(field.f64(), "1.5"), 1.5)
        self.assertEqual(self.parsed(field.chars(9), "1.5"), "1.5")
        self.assertEqual(self.parsed(field.raw(4), "00ff"), b"\0\xff")
        self.assertEqual(self.parsed(field.tail(), "00ff"), b"\0\xff")

    def test_truths(self):
        for text in ("1", "true", "YES", "on"):
            self.assertIs(self.parsed(field.bool(), text), True)
        for text in ("0", "False", "no", "off"):
            self.assertIs(self.parsed(field.bool(), text), False)

    def test_lists_are_separated_by_commas(self):
        self.assertEqual(self.parsed(field.array(field.u8(), 3), "1,0x2"), [1, 2])
        self.assertEqual(self.parsed(field.tail(field.chars(4)), "a,b"), ["a", "b"])
        self.assertEqual(self.parsed(field.tail(field.u8()), ""), [])

    def test_what_is_no_value_is_told_with_its_field_and_kind(self):
        for made, text, kind in (
            (field.u8(), "ten", "u8"),
            (field.f32(), "x", "f32"),
            (field.bool(), "maybe", "bool"),
            (field.raw(2), "xy", "raw(2)"),
            (field.array(field.u8(), 2), "1,x", "array(u8, 2)"),
        ):
            said = str(self.assertRaises(ValueError, self.parsed, made, text))
            self.assertIn(f"x={text}", said)
            self.assertIn(kind, said)

    def test_an_unknown_field_is_told_with_those_there_are(self):
        said = str(self.assertRaises(ValueError, Login.parse, {"name": "x"}))
        self.assertIn("'name'", said)
        self.assertIn("username, password", said)

    def test_what_is_not_given_is_zero(self):
        self.assertEqual(Login.parse({"username": "ada"}), Login(username="ada"))


class AnyValueTests(SynchronousTestCase):
    @given(
        st.fixed_dictionaries(
            {
                "a": integers("i8"),
                "b": integers("i16"),
                "c": integers("i32"),
                "d": integers("i64"),
                "e": integers("u8"),
                "f": integers("u16"),
                "g": integers("u32"),
                "h": integers("u64"),
                "i": st.floats(width=32, allow_nan=False),
                "j": st.floats(allow_nan=False),
                "k": st.booleans(),
                "l": text(9),
                "m": st.binary(min_size=5, max_size=5),
                "n": st.lists(integers("u16"), min_size=3, max_size=3),
                "o": st.lists(text(4), min_size=2, max_size=2),
                "p": st.binary(max_size=50),
            }
        )
    )
    @settings(deadline=None)
    def test_what_is_encoded_is_decoded(self, values: dict[str, Any]):
        message = Everything(**values)
        self.assertEqual(Everything.decode(message.encode()), message)

    @given(st.binary(max_size=120), st.sampled_from([Login, Everything, Readings, Names]))
    @settings(deadline=None, max_examples=300)
    def test_any_bytes_are_a_message_or_a_bad_body(self, body: bytes, cls: type[Message]):
        try:
            message = cls.decode(body)
        except BadBody:
            return
        self.assertEqual(set(vars(message)), set(cls.fields()))
        self.assertEqual(len(message.encode()), len(body))

    @given(st.binary(min_size=Everything.size, max_size=Everything.size + 9))
    @settings(deadline=None, max_examples=300)
    def test_a_body_of_the_right_size_is_decoded_to_what_encodes_to_the_same_again(
        self, body: bytes
    ):
        try:
            message = Everything.decode(body)
        except BadBody:
            return
        again = Everything.decode(message.encode())
        self.assertEqual(repr(again), repr(message))  # repr, for a NaN is not equal to itself

    @given(
        st.sampled_from("abcdefghijklmnop"),
        st.none() | st.text() | st.binary() | st.floats() | st.integers(),
    )
    @settings(deadline=None, max_examples=300)
    def test_any_value_is_encoded_or_a_value_error(self, name: str, value: object):
        message = Everything(**{name: value})
        try:
            self.assertGreaterEqual(len(message.encode()), Everything.size)
        except ValueError as error:
            self.assertIn(f"Everything.{name}", str(error))
