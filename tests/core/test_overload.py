"""Overload: a worker that stays behind is overloaded, one that is late once is not."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.overload import CALM, PATIENCE, Load


class LoadTests(SynchronousTestCase):
    def look(self, times: list[float], crowded: bool = False, limit: float = 0.5) -> Load:
        """What has become of a load that was looked at, at C{times}, from 0 on."""
        load = Load(0.0, limit)
        for now in times:
            load.look(now, crowded)
        return load

    def test_looks_on_time_have_no_lag(self):
        load = self.look([float(n) for n in range(20)])
        self.assertEqual((load.lag, load.overloaded), (0.0, False))

    def test_the_lag_is_that_of_the_last_look(self):
        self.assertAlmostEqual(self.look([0, 1, 2.25]).lag, 0.25)
        self.assertAlmostEqual(self.look([0, 1, 2.25, 3.0]).lag, 0.0)

    def test_looks_that_fell_out_are_not_made_up_for(self):
        self.assertAlmostEqual(self.look([0, 3.5]).lag, 2.5)
        self.assertAlmostEqual(self.look([0, 3.5, 4.0]).lag, 0.0)

    def test_one_stall_is_no_overload(self):
        self.assertFalse(self.look([0, 1, 30.9, 31, 32]).overloaded)

    def test_who_stays_late_is_overloaded(self):
        self.assertFalse(self.look([n + 0.6 for n in range(int(PATIENCE))]).overloaded)
        self.assertTrue(self.look([n + 0.6 for n in range(int(PATIENCE) + 1)]).overloaded)

    def test_so_is_one_with_too_many_jobs(self):
        self.assertTrue(self.look([float(n) for n in range(int(PATIENCE) + 1)], True).overloaded)

    def test_without_a_limit_lag_does_not_count(self):
        self.assertFalse(self.look([n + 0.9 for n in range(20)], limit=0).overloaded)

    def test_it_ends_when_it_has_kept_up_for_a_while(self):
        load = self.look([float(n) for n in range(10)], True)
        self.assertTrue(load.look(10.0, False))
        self.assertTrue(load.look(11.0, True))
        self.assertTrue(load.look(12.0, False))
        self.assertTrue(load.look(13.0, False))
        self.assertFalse(load.look(12.0 + CALM, False))
