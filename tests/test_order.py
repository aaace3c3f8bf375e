"""The order in which several processes take the tests."""

from __future__ import annotations

from importlib import import_module

from twisted.trial.unittest import SynchronousTestCase

from tests import order


class PlaceTests(SynchronousTestCase):
    def test_the_longest_come_first_then_those_with_real_processes_then_the_others(self):
        tests = [
            "tests/core/test_framing.py::CostTests::test_a",
            "tests/functional/test_drain.py::DrainTests::test_b",
            *(f"{order.FUNCTIONAL}{name}::test_c" for name in reversed(order.LONGEST)),
            "tests/functional/test_clock.py::ClockTests::test_a",
            "tests/test_app.py::AppTests::test_a",
        ]
        longest = [f"{order.FUNCTIONAL}{name}::test_c" for name in order.LONGEST]
        rest = [tests[place] for place in (1, -2, 0, -1)]
        self.assertEqual(sorted(tests, key=order.place), longest + rest)

    def test_the_longest_are_there(self):
        for name in order.LONGEST:
            file, _, case = name.partition("::")
            module = import_module(order.FUNCTIONAL.replace("/", ".") + file.removesuffix(".py"))
            self.assertTrue(issubclass(getattr(module, case), SynchronousTestCase), name)
