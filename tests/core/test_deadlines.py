"""Deadlines: nobody early, nobody late by more than a step, nobody twice."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.deadlines import Deadlines


class DeadlinesTests(SynchronousTestCase):
    def test_who_is_due_is_told_once(self):
        deadlines: Deadlines[str] = Deadlines(100.0)
        deadlines.set("it", 105.5)
        told = [deadlines.due(100.0 + second) for second in range(10)]
        self.assertEqual(told, [[], [], [], [], [], [], ["it"], [], [], []])

    def test_the_last_moment_that_was_set_counts(self):
        deadlines: Deadlines[str] = Deadlines(100.0)
        deadlines.set("later", 101.0)
        deadlines.set("later", 104.0)
        deadlines.set("sooner", 104.0)
        deadlines.set("sooner", 101.0)
        self.assertEqual(deadlines.due(102.0), ["sooner"])
        self.assertEqual(deadlines.due(105.0), ["later"])

    def test_who_was_removed_is_not_due(self):
        deadlines: Deadlines[str] = Deadlines(100.0)
        deadlines.set("it", 101.0)
        self.assertIn("it", deadlines)
        deadlines.remove("it")
        deadlines.remove("it")
        self.assertNotIn("it", deadlines)
        self.assertEqual(deadlines.due(200.0), [])

    def test_a_moment_that_is_over_is_due_at_the_next_look(self):
        deadlines: Deadlines[str] = Deadlines(100.0)
        deadlines.due(150.0)
        deadlines.set("late", 120.0)
        self.assertEqual(deadlines.due(150.9), [])
        self.assertEqual(deadlines.due(151.0), ["late"])

    def test_nothing_is_left_of_those_who_are_gone(self):
        deadlines: Deadlines[int] = Deadlines(100.0)
        for n in range(100):
            deadlines.set(n, 100.0 + n)
        for n in range(0, 100, 2):
            deadlines.remove(n)
        self.assertEqual(len(deadlines.due(300.0)), 50)
        self.assertEqual(len(deadlines), 0)
        self.assertEqual(deadlines._turns, {})

    def test_a_look_after_a_long_time_costs_no_more_than_there_are(self):
        class Counting(dict[int, dict[str, None]]):
            asked = 0

            def pop(self, *arguments: Any) -> Any:
                self.asked += 1
                if self.asked > 100:
                    raise AssertionError("it walks through time")
                return dict.pop(self, *arguments)

        deadlines: Deadlines[str] = Deadlines(0.0, 0.1)
        turns = deadlines._turns = Counting()
        deadlines.set("b", 1e9)
        deadlines.set("a", 5e8)
        deadlines.set("c", 1e9 + 5)
        self.assertEqual(deadlines.due(1e9 + 0.3), ["a", "b"])
        self.assertEqual(turns.asked, 2)
        self.assertEqual(deadlines.due(1e9 + 6), ["c"])

    @given(
        st.sampled_from([0.1, 1.0]),
        st.lists(
            st.tuples(st.sampled_from("abcd"), st.integers(0, 9000), st.integers(0, 2500)),
            max_size=40,
        ),
    )
    @settings(deadline=None, max_examples=300)
    def test_each_is_told_at_the_first_look_a_step_behind_its_moment(
        self, step: float, steps: list[tuple[str, int, int]]
    ):
        now = 1000.0
        deadlines: Deadlines[str] = Deadlines(now, step)
        model: dict[str, float] = {}
        for item, ahead, pause in steps:
            model[item] = now + ahead / 1000
            deadlines.set(item, model[item])
            now += pause / 1000
            told = deadlines.due(now)
            self.assertEqual(len(told), len(set(told)))
            for each in told:
                self.assertLessEqual(model.pop(each), now)
            self.assertTrue(all(at > now - step - 1e-6 for at in model.values()), (model, now))
            self.assertEqual(set(model), {each for each in "abcd" if each in deadlines})
