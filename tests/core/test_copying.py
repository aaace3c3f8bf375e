"""Copying: both ways make what the constructor makes."""

from __future__ import annotations

import gc
import sys
import weakref
from functools import partial
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.core import session as sessions
from ccserver.core.framing import FrameDecoder
from ccserver.core.limits import FloodLimit, SessionLimits
from ccserver.core.rates import Rate
from ccserver.core.session import Session
from ccserver.native import native


class Slots:
    __slots__ = ("a", "b")


class More(Slots):
    __slots__ = ("c",)


class Mixed(More):
    """With a dict, and weak references."""


class MixedMore(Mixed):
    __slots__ = ("d",)


def values(thing: Any) -> dict[str, Any]:
    """What is in its slots; of an object in one of them, its class and the same of it."""
    found = {}
    for parent in type(thing).__mro__:
        for name in getattr(parent, "__slots__", ()):
            if hasattr(thing, name):
                value = getattr(thing, name)
                inner = hasattr(type(value), "__slots__") and type(value).__module__ != "enum"
                found[name] = (type(value), values(value)) if inner else value
    return found


def another_in_python(pattern: Any) -> Any:
    """An object of the class of C{pattern}, with the same in its slots, and no attributes else.

    @raise TypeError: objects of that class are not made of slots alone.
    """
    kind = pattern.__class__
    made = object.__new__(kind)
    for parent in kind.__mro__:
        for name in parent.__dict__.get("__slots__", ()):
            if hasattr(pattern, name):
                setattr(made, name, getattr(pattern, name))
    return made


class AnotherTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ways = [another_in_python] if native is None else [another_in_python, native.another]

    def test_it_has_the_same_in_its_slots_and_nothing_where_there_is_nothing(self):
        for another in self.ways:
            for kind in (Slots, More, Mixed, MixedMore):
                pattern: Any = kind()
                pattern.a = [1]
                made = another(pattern)
                self.assertIs(type(made), kind)
                self.assertIs(made.a, pattern.a)
                self.assertFalse(hasattr(made, "b"))
                made.b = 2
                self.assertFalse(hasattr(pattern, "b"))
                self.assertTrue(gc.is_tracked(made))

    def test_other_attributes_and_weak_references_stay_with_the_pattern(self):
        for another in self.ways:
            pattern: Any = MixedMore()
            pattern.c, pattern.other = 1, 2
            reference = weakref.ref(pattern)
            made = another(pattern)
            self.assertEqual((made.c, vars(made), weakref.getweakrefcount(made)), (1, {}, 0))
            self.assertIs(reference(), pattern)
            del pattern
            self.assertIsNone(reference())

    def test_it_holds_what_it_has_as_long_as_it_is_there(self):
        for another in self.ways:
            pattern: Any = More()
            pattern.a = held = object()
            before = sys.getrefcount(held)
            made = [another(pattern) for _ in range(100)]
            self.assertEqual(sys.getrefcount(held), before + 100)
            del made
            self.assertEqual(sys.getrefcount(held), before)

    def test_what_is_more_than_slots_is_refused(self):
        for another in self.ways:
            for thing in (
                1,
                "x",
                [],
                {},
                (),
                partial(int),
                int,
                lambda: 0,
                type("Ints", (list,), {})(),
            ):
                self.assertRaises(TypeError, another, thing)


class PatternTests(SynchronousTestCase):
    LIMITS = (
        SessionLimits(),
        SessionLimits(max_packet_length=100, close_on_bad_checksum=True),
        SessionLimits(flood=FloodLimit(0.1, 3), rate=Rate(5, 9)),
    )

    def check(self) -> None:
        for limits in self.LIMITS:
            pattern = Session(0, "-", "10.0.0.1:5678", limits, 0.0)
            made = pattern.another(7, "192.0.2.1:5000", 99.5)
            own = Session(7, "192.0.2.1:5000", "10.0.0.1:5678", limits, 99.5)
            self.assertEqual(values(made), values(own))
            self.assertIsNot(made.decoder, pattern.decoder)
            for name in ("_flood", "_rate"):
                if getattr(pattern, name) is not None:
                    self.assertIsNot(getattr(made, name), getattr(pattern, name))

    def test_a_session_after_a_pattern_is_as_its_constructor_makes_it(self):
        self.check()

    def test_so_it_is_in_python(self):
        self.patch(sessions, "another", another_in_python)
        self.check()
        self.patch(sessions, "another", None)
        self.check()

    def test_so_is_a_decoder(self):
        for limits in ((100, False), (29000, True)):
            decoder = FrameDecoder(*limits)
            self.assertEqual(values(another_in_python(decoder)), values(FrameDecoder(*limits)))
