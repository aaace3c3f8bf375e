"""Recycling: when a worker is to be replaced by a fresh one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.recycling import LEAST_AGE, RecycleReason, RecycleRule

OLD = 1e9


class RecycleRuleTests(SynchronousTestCase):
    def test_without_limits_nobody_is_recycled(self):
        self.assertIsNone(RecycleRule().due(10**15, OLD, 1 << 50))

    def test_at_so_many_packets(self):
        rule = RecycleRule(max_requests=100)
        self.assertIsNone(rule.due(99, OLD, 1 << 50))
        self.assertIs(rule.due(100, 0.0, 0), RecycleReason.MAX_REQUESTS)

    def test_at_an_age(self):
        rule = RecycleRule(max_age=5.0)
        self.assertIsNone(rule.due(10**9, 4.9, 1 << 50))
        self.assertIs(rule.due(0, 5.0, 0), RecycleReason.MAX_AGE)

    def test_above_a_memory(self):
        rule = RecycleRule(max_memory=1000)
        self.assertIsNone(rule.due(10**9, OLD, 1000))
        self.assertIs(rule.due(0, OLD, 1001), RecycleReason.MAX_MEMORY)

    def test_memory_that_a_fresh_one_needs_is_no_loop(self):
        rule = RecycleRule(max_memory=1000)
        self.assertIsNone(rule.due(0, LEAST_AGE - 0.1, 2000))

    def test_without_a_limit_of_packets_jitter_is_none(self):
        self.assertIsNone(RecycleRule(jitter=100).drawn(0.0).due(0, OLD, 0))

    def test_the_other_limits_are_kept(self):
        drawn = RecycleRule(100, 10, 5.0, 1000).drawn(0.5)
        self.assertEqual((drawn.max_age, drawn.max_memory), (5.0, 1000))

    def test_all_of_the_jitter_is_drawn(self):
        rule = RecycleRule(100, 4)
        limits = {rule.drawn(n / 1000).max_requests for n in range(1000)}
        self.assertEqual(limits, {100, 101, 102, 103, 104})

    @given(st.integers(1, 10**12), st.integers(0, 10**12), st.floats(0.0, 1.0))
    def test_a_worker_serves_its_limit_and_at_most_the_jitter_more(self, limit, jitter, random):
        rule = RecycleRule(limit, jitter).drawn(random)
        self.assertIsNone(rule.due(limit - 1, OLD, 0))
        self.assertIsNotNone(rule.due(limit + jitter, 0.0, 0))
