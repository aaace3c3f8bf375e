"""Drain: ends spread evenly over a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.drain import Spread


class SpreadTests(SynchronousTestCase):
    def test_the_first_comes_at_once_and_the_others_evenly(self):
        spread = Spread("abcd", 8.0, 100.0)
        self.assertEqual(
            [spread.due(100.0 + n) for n in range(8)],
            [["a"], [], ["b"], [], ["c"], [], ["d"], []],
        )

    def test_a_late_look_makes_up_for_the_time(self):
        spread = Spread("abcd", 8.0, 100.0)
        self.assertEqual(spread.due(105.0), ["a", "b", "c"])

    def test_without_a_time_all_come_at_once(self):
        self.assertEqual(Spread("abc", 0.0, 1.0).due(1.0), ["a", "b", "c"])

    def test_it_says_how_many_wait(self):
        spread = Spread("abcd", 8.0, 0.0)
        spread.due(0.0)
        self.assertEqual(len(spread), 3)

    def test_of_nobody_nobody_comes(self):
        self.assertEqual(Spread("", 8.0, 0.0).due(4.0), [])

    @given(
        st.integers(0, 200),
        st.floats(0.0, 100.0),
        st.lists(st.floats(0.0, 120.0), max_size=30),
    )
    def test_everybody_comes_once_in_order_and_nobody_early(self, count, seconds, looks):
        spread = Spread(range(count), seconds, 0.0)
        seen: list[int] = []
        for now in sorted(looks):
            seen += spread.due(now)
            if now < seconds:
                self.assertLessEqual(len(seen), count * now / seconds + 1)
                self.assertGreaterEqual(len(seen), min(count, count * now / seconds - 1e-6))
        seen += spread.due(seconds)
        self.assertEqual(seen, list(range(count)))
