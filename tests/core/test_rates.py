"""Token buckets, against a model that counts each token with fractions."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.rates import COARSEST, DEBT, Rate, SharedBucket, TokenBucket


class ExactBucket:
    """The same with numbers that are exact."""

    def __init__(self, per_second: int, capacity: Fraction) -> None:
        self.per_second = per_second
        self.capacity = self.tokens = capacity

    def pass_time(self, seconds: Fraction) -> None:
        self.tokens = min(self.capacity, self.tokens + seconds * self.per_second)


class TokenBucketTests(SynchronousTestCase):
    def test_at_first_the_whole_burst_is_there(self):
        self.assertEqual(TokenBucket(Rate(10, 50), 0.0).available(0.0), 50)

    def test_then_the_rate(self):
        bucket = TokenBucket(Rate(10, 50), 0.0)
        bucket.take(50)
        self.assertEqual([bucket.available(n / 10) for n in range(4)], [0, 1, 2, 3])

    def test_no_more_than_the_burst_gathers(self):
        bucket = TokenBucket(Rate(10, 50), 0.0)
        self.assertEqual(bucket.available(1000.0), 50)

    def test_who_waits_loses_nothing_by_a_small_burst(self):
        """Looked at each tenth of a second, as connections that wait are."""
        bucket = TokenBucket(Rate(1000, 1), 0.0)
        bucket.take(bucket.available(0.0))
        through = 0
        for tenth in range(1, 101):
            now = tenth / 10 + COARSEST / 4
            count = bucket.available(now)
            bucket.take(count)
            through += count
        self.assertAlmostEqual(through, 10_050, delta=1)

    def test_what_was_taken_beyond_is_owed(self):
        bucket = TokenBucket(Rate(10, 50), 0.0)
        bucket.take(150)
        self.assertEqual(bucket.available(0.0), -100)
        self.assertAlmostEqual(bucket.wait(0.0), 10.1)
        self.assertEqual(bucket.available(10.11), 1)

    def test_of_what_is_shared_no_more_is_owed_than_a_few_seconds_bring(self):
        bucket = SharedBucket(Rate(10, 50), 0.0)
        for _ in range(3):
            bucket.take(10_000)
        self.assertAlmostEqual(bucket.wait(0.0), DEBT + 0.1)
        self.assertEqual(bucket.available(DEBT + 0.11), 1)

    def test_who_waits_among_others_waits_for_what_is_owed_once(self):
        bucket = SharedBucket(Rate(100, 100), 0.0)
        bucket.take(100)
        self.assertAlmostEqual(bucket.wait_among(1000, 0.0), 10.0)
        self.assertAlmostEqual(bucket.wait_among(0, 0.0), 0.01)
        bucket.take(10_000)
        self.assertAlmostEqual(bucket.wait_among(1000, 0.0), DEBT + 10.0)
        self.assertEqual(bucket.wait_among(1000, DEBT + 0.02), 0)

    def test_what_is_given_back_is_there_again(self):
        bucket = TokenBucket(Rate(10, 50), 0.0)
        bucket.take(50)
        bucket.take(-20)
        self.assertEqual(bucket.available(0.0), 20)

    def test_time_that_stands_still_or_goes_back_brings_nothing(self):
        bucket = TokenBucket(Rate(10, 50), 5.0)
        bucket.take(50)
        self.assertEqual([bucket.available(now) for now in (5.0, 4.0, 5.0)], [0, 0, 0])

    def test_it_is_full_when_all_is_there_again(self):
        bucket = TokenBucket(Rate(10, 50), 0.0)
        bucket.take(1)
        self.assertFalse(bucket.is_full(0.05))
        self.assertTrue(bucket.is_full(0.11))

    def test_another_goes_on_where_it_was(self):
        bucket, other = TokenBucket(Rate(10, 50), 0.0), TokenBucket(Rate(5, 20), 7.0)
        bucket.take(60)
        other.restore(bucket.save())
        self.assertEqual(other.available(4.0), 10)

    def test_and_has_no_more_than_its_own_burst(self):
        bucket, other = TokenBucket(Rate(10, 50), 0.0), TokenBucket(Rate(5, 20), 0.0)
        other.restore(bucket.save())
        self.assertEqual(other.available(0.0), 20)

    @given(
        st.integers(1, 1000),
        st.integers(1, 300),
        st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 400), st.booleans()), max_size=40),
    )
    @settings(deadline=None, max_examples=300)
    def test_it_lets_through_what_an_exact_one_does(
        self, rate: int, burst: int, steps: list[tuple[int, int, bool]]
    ):
        bucket = TokenBucket(Rate(rate, burst), 1000.0)
        exact = ExactBucket(rate, max(Fraction(burst), Fraction(rate) / 5))
        milliseconds = 1_000_000
        for pause, count, how in steps:
            milliseconds += pause
            exact.pass_time(Fraction(pause, 1000))
            now = milliseconds / 1000
            available = bucket.available(now)
            nearly = exact.tokens - available
            self.assertTrue(-1e-6 < nearly < 1 + 1e-6, (available, exact.tokens))
            wait = bucket.wait(now)
            self.assertEqual(wait > 0, available < 1)
            if wait:
                self.assertAlmostEqual(wait, float((1 - exact.tokens) / rate), places=4)
            if how:
                bucket.take(count)
                exact.tokens -= count
            elif abs(exact.tokens - count) > 1e-5:
                enough = exact.tokens >= count
                self.assertEqual(bucket.spend(count, now), enough)
                exact.tokens -= count * enough
