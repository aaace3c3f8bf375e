"""Balance: plans that move no more than they must."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.balance import Move, plan, plan_slowly

COUNTS = st.dictionaries(st.integers(0, 255), st.integers(0, 20000), max_size=40)


def after(counts: Mapping[int, int], moves: list[Move]) -> dict[int, int]:
    """What C{moves} make of C{counts}, made one after the other."""
    left = dict(counts)
    for move in moves:
        left[move.source] -= move.count
        left[move.target] += move.count
        assert left[move.source] >= 0, "nobody gives what he has not"
    return left


def spread(counts: Mapping[int, int]) -> int:
    return max(counts.values(), default=0) - min(counts.values(), default=0)


class PlanTests(SynchronousTestCase):
    def test_a_new_worker_gets_its_share(self):
        self.assertEqual(
            after({0: 300, 1: 300, 2: 0}, plan({0: 300, 1: 300, 2: 0})),
            dict.fromkeys(range(3), 200),
        )

    def test_equals_are_left_alone(self):
        self.assertEqual(plan({0: 5, 1: 5, 2: 4}), [])

    def test_nobody_and_a_single_one_have_nothing_to_move(self):
        self.assertEqual(plan({}) + plan({3: 1000}), [])

    @given(COUNTS)
    def test_workers_differ_by_at_most_one(self, counts):
        self.assertLessEqual(spread(after(counts, plan(counts))), 1)

    @given(COUNTS)
    def test_nothing_is_moved_that_need_not_be(self, counts):
        moved = sum(move.count for move in plan(counts))
        if counts:
            mean, more = divmod(sum(counts.values()), len(counts))
            above = sorted((max(count - mean, 0) for count in counts.values()), reverse=True)
            kept = sum(1 for count in above[:more] if count)
            self.assertEqual(moved, sum(above) - kept)

    @given(COUNTS)
    def test_there_are_fewer_moves_than_workers_each_of_some_and_to_another(self, counts):
        moves = plan(counts)
        self.assertLessEqual(len(moves), max(len(counts) - 1, 0))
        self.assertTrue(all(m.count > 0 and m.source != m.target for m in moves))


class SlowPlanTests(SynchronousTestCase):
    def test_a_small_difference_is_left_alone(self):
        self.assertEqual(plan_slowly({0: 1000, 1: 910}), [])
        self.assertEqual(plan_slowly({0: 10, 1: 0}), [])

    def test_a_larger_one_is_not(self):
        self.assertNotEqual(plan_slowly({0: 1000, 1: 890}), [])
        self.assertNotEqual(plan_slowly({0: 11, 1: 0}), [])

    def test_a_round_moves_a_share_of_all(self):
        counts = {0: 10000, 1: 10000, 2: 0}
        self.assertEqual(sum(move.count for move in plan_slowly(counts, 0.05)), 1000)

    def test_and_one_connection_at_least(self):
        self.assertEqual(plan_slowly({0: 12, 1: 0}, 0.001), [Move(0, 1, 1)])

    @given(COUNTS)
    def test_rounds_come_to_an_end_where_workers_differ_by_little(self, counts):
        rounds = 0
        while moves := plan_slowly(counts):
            closer = after(counts, moves)
            self.assertLessEqual(max(closer.values()), max(counts.values()))
            self.assertGreaterEqual(min(closer.values()), min(counts.values()))
            counts = closer
            rounds += 1
            self.assertLess(rounds, 25)
        mean = sum(counts.values()) / max(len(counts), 1)
        self.assertLessEqual(spread(counts), max(0.1 * mean, 10))
