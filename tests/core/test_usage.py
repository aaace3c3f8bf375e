"""Usage: a thread that has used much of a core is busy until it uses little."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.usage import BUSY, CALM, Usage


class UsageTests(SynchronousTestCase):
    def looks(self, *shares: float) -> list[bool]:
        """What is found second by second where such shares of a core were used."""
        usage, now, used, found = Usage(3.0, 7.0), 3.0, 7.0, []
        for share in shares:
            now, used = now + 1.0, used + share
            found.append(usage.look(now, used))
        return found

    def test_it_begins_calm(self):
        self.assertFalse(Usage(0.0, 100.0).busy)

    def test_from_a_share_on_it_is_busy(self):
        self.assertEqual(self.looks(BUSY - 0.01, BUSY + 0.01, 1.0), [False, True, True])

    def test_between_the_bounds_it_stays_what_it_is(self):
        between = (BUSY + CALM) / 2
        self.assertEqual(self.looks(between, 1.0, between, between), [False, True, True, True])

    def test_with_little_to_do_it_is_busy_no_more(self):
        found = self.looks(1.0, CALM - 0.01, BUSY - 0.01)
        self.assertEqual(found, [True, False, False])

    def test_it_is_the_share_that_counts_however_late_the_look(self):
        usage = Usage(0.0, 0.0)
        self.assertFalse(usage.look(10.0, 10 * BUSY - 0.1))
        self.assertTrue(usage.look(10.1, 10 * BUSY - 0.1 + 0.1))

    def test_a_clock_that_stands_still_changes_nothing(self):
        usage = Usage(5.0, 0.0)
        self.assertFalse(usage.look(5.0, 1.0))
        self.assertTrue(usage.look(6.0, 1.0), "it is counted at the next look")
