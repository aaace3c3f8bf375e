"""The watch: who is silent too long, and who only was not listened to."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.watch import BEATS, Watch


class WatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.watch: Watch[str] = Watch(10.0)

    def check(self, first: float, last: float) -> list[str]:
        """Who was overdue at one of the checks from C{first} to C{last}, made when they are due."""
        overdue, now = set(), first
        while now <= last:
            overdue.update(worker for worker, _ in self.watch.overdue(now))
            now += self.watch.interval
        return sorted(overdue)

    def test_who_is_silent_for_the_timeout_is_overdue_just_behind_it(self):
        self.watch.add("a", 0.0)
        self.assertEqual(self.check(0.0, 10.0), [])
        self.assertEqual(self.watch.overdue(10.5), [("a", 10.5)])

    def test_a_beat_begins_the_time_anew(self):
        self.watch.add("a", 0.0)
        self.check(0.0, 9.0)
        self.watch.beat("a", 9.0)
        self.assertEqual(self.check(10.0, 19.0), [])
        self.assertEqual(self.check(20.0, 20.0), ["a"])

    def test_each_has_a_time_of_its_own(self):
        self.watch.add("a", 0.0)
        self.watch.add("b", 5.0)
        self.assertEqual(self.check(0.0, 11.0), ["a"])

    def test_who_is_overdue_stays_so_until_removed(self):
        self.watch.add("a", 0.0)
        self.check(0.0, 11.0)
        self.assertEqual(self.check(12.0, 12.0), ["a"])
        self.watch.remove("a")
        self.assertEqual(self.check(13.0, 13.0), [])

    def test_nobody_watches_over_who_was_not_added_or_is_removed(self):
        self.watch.beat("stranger", 0.0)
        self.watch.remove("stranger")
        self.assertEqual(self.check(0.0, 100.0), [])

    def test_a_timeout_of_0_is_never(self):
        self.watch.timeout = 0.0
        self.watch.add("a", 0.0)
        self.assertEqual(self.check(0.0, 1000.0), [])

    def test_time_in_which_nobody_checked_is_no_silence(self):
        self.watch.add("a", 0.0)
        self.check(0.0, 2.0)
        self.assertEqual(self.watch.overdue(1000.0), [], "we were stopped from 2 on")
        self.assertEqual(self.check(1001.0, 1004.0), [])

    def test_but_who_does_not_beat_then_is_overdue_all_the_same(self):
        self.watch.add("a", 0.0)
        self.watch.add("b", 0.0)
        self.check(0.0, 2.0)
        self.check(1000.0, 1000.0)
        self.watch.beat("b", 1000.1)
        self.assertEqual(self.check(1001.0, 1009.0), ["a"])

    def test_who_is_added_after_such_a_time_has_his_whole_timeout(self):
        self.watch.add("a", 0.0)
        self.check(0.0, 0.0)
        self.check(1000.0, 1000.0)
        self.watch.add("b", 1000.0)
        self.watch.remove("a")
        self.assertEqual(self.check(1001.0, 1010.0), [])
        self.assertEqual(self.check(1011.0, 1011.0), ["b"])

    def test_being_stopped_again_and_again_saves_nobody(self):
        self.watch.add("a", 0.0)
        overdue = [self.watch.overdue(now) for now in (0.0, 5.0, 10.0, 15.0, 20.0)]
        self.assertEqual(overdue, [[]] * 5)
        self.assertEqual(self.check(21.0, 40.0), ["a"])

    def test_a_clock_that_is_set_saves_nobody_and_kills_nobody(self):
        for jump in (86400.0, -86400.0):
            self.setUp()
            self.watch.add("a", 0.0)
            self.watch.add("b", 0.0)
            self.assertEqual(self.check(0.0, 5.0), [])
            self.assertEqual(self.check(jump + 5.0, jump + 9.0), [])
            self.watch.beat("b", jump + 9.0)
            self.assertEqual(self.check(jump + 10.0, jump + 14.0), ["a"])

    def test_there_are_several_beats_within_a_timeout(self):
        self.assertEqual(Watch(60.0).interval, 1.0)
        self.assertEqual(Watch(1.0).interval, 0.25)
        self.assertGreater(Watch(0.0).interval, 0.0)

    @given(
        st.floats(0.5, 100.0),
        st.lists(st.one_of(st.just(0.0), st.floats(0.0, 0.9), st.floats(2.0, 500.0)), max_size=60),
    )
    @settings(deadline=None, max_examples=50)
    def test_who_beats_before_each_check_is_never_overdue(self, timeout, delays):
        watch: Watch[str] = Watch(timeout)
        now = 0.0
        watch.add("a", now)
        for delay in delays:
            now += watch.interval * (1.0 + delay)
            self.assertEqual(watch.overdue(now), [], "the check comes before the beat is read")
            watch.beat("a", now)

    @given(
        st.floats(0.5, 100.0),
        st.lists(
            st.tuples(st.one_of(st.just(0.0), st.floats(0.0, 500.0)), st.floats(0.0, 1.0)),
            max_size=30,
        ),
        st.sampled_from([0.0, 86400.0, -86400.0]),
    )
    @settings(deadline=None, max_examples=100)
    def test_a_beat_of_the_last_interval_counts_and_no_more_than_that(self, timeout, checks, jump):
        """Beats are seen at the check, each of some part of an interval ago."""
        watch: Watch[str] = Watch(timeout)
        now = 0.0
        watch.add("a", now)
        for delay, part in checks:
            now += watch.interval * (1.0 + delay)
            watch.beat("a", now - part * watch.interval)
            self.assertEqual(watch.overdue(now), [])
        now += jump
        for _ in range(BEATS + 1):
            now += watch.interval
            watch.overdue(now)
        if timeout > BEATS * watch.interval:  # there are more beats in it
            now += timeout
            watch.overdue(now)
            for _ in range(int(timeout / watch.interval) + 2):
                now += watch.interval
                watch.overdue(now)
        self.assertEqual([worker for worker, _ in watch.overdue(now)], ["a"])
