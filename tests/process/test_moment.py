"""Moments: they come once, for all who wait, before and after."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ccserver.process.moment import Moment


class MomentTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.moment: Moment[int] = Moment()

    def test_all_who_wait_are_told_each_on_his_own(self):
        waiting = [self.moment.wait() for _ in range(3)]
        self.assertFalse(self.moment.over)
        waiting[0].addCallback(lambda value: value * 10)
        self.moment.happen(5)
        self.assertEqual([self.successResultOf(each) for each in waiting], [50, 5, 5])
        self.assertTrue(self.moment.over)

    def test_who_comes_later_is_told_at_once(self):
        self.moment.happen(5)
        self.assertEqual(self.successResultOf(self.moment.wait()), 5)
        self.assertEqual(self.successResultOf(self.moment.wait()), 5)

    def test_a_failure_is_told_as_one_before_and_after(self):
        before = self.moment.wait()
        self.moment.happen(Failure(ValueError("no")))
        self.assertTrue(self.moment.over)
        for each in (before, self.moment.wait()):
            self.assertEqual(str(self.failureResultOf(each, ValueError).value), "no")

    def test_a_failure_that_nobody_waits_for_is_no_fault(self):
        self.moment.happen(Failure(ValueError("no")))
        del self.moment
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_only_the_first_time_counts(self):
        self.moment.happen(5)
        self.moment.happen(6)
        self.moment.happen(Failure(ValueError("no")))
        self.assertEqual(self.successResultOf(self.moment.wait()), 5)

    def test_who_waits_no_longer_is_not_told(self):
        impatient, patient = self.moment.wait(), self.moment.wait()
        impatient.cancel()
        self.moment.happen(5)
        self.failureResultOf(impatient, CancelledError)
        self.assertEqual(self.successResultOf(patient), 5)

    def test_what_one_does_when_told_keeps_nothing_from_the_others(self):
        waiting: list[Deferred[int]] = [self.moment.wait() for _ in range(3)]
        waiting[0].addCallback(lambda value: waiting[1].cancel())
        self.moment.happen(5)
        self.failureResultOf(waiting[1], CancelledError)
        self.assertEqual(self.successResultOf(waiting[2]), 5)

    def test_who_asks_while_the_others_are_told_is_told_too(self):
        late: list[Deferred[int]] = []
        self.moment.wait().addCallback(lambda value: late.append(self.moment.wait()))
        self.moment.happen(5)
        self.assertEqual(self.successResultOf(late[0]), 5)
