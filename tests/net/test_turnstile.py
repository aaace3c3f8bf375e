"""The turnstile: each is woken in its time, with one timer for all."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ccserver.net.turnstile import STEP, Turnstile


class Waiting:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.woken: list[float] = []

    def go_on(self) -> None:
        self.woken.append(self.clock.seconds())


class TurnstileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.turnstile = Turnstile(self.clock)

    def pump(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds * 20))

    def test_each_is_woken_once_and_not_before_its_time(self):
        waiting = [Waiting(self.clock) for _ in range(20)]
        for n, each in enumerate(waiting):
            self.turnstile.wait(each, n / 10)
        self.pump(5)
        for n, each in enumerate(waiting):
            self.assertEqual(len(each.woken), 1)
            self.assertTrue(n / 10 <= each.woken[0] <= n / 10 + 2 * STEP + 1e-6, each.woken)

    def test_a_thousand_have_one_timer_and_nobody_has_none(self):
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for _ in range(1000):
            self.turnstile.wait(Waiting(self.clock), 1.0)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.pump(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_was_removed_is_not_woken(self):
        gone, there = Waiting(self.clock), Waiting(self.clock)
        self.turnstile.wait(gone, 0.5)
        self.turnstile.wait(there, 0.5)
        self.turnstile.remove(gone)
        self.pump(1)
        self.assertEqual((gone.woken, len(there.woken)), ([], 1))

    def test_the_last_one_who_is_removed_stops_the_timer(self):
        waiting = Waiting(self.clock)
        self.turnstile.wait(waiting, 0.5)
        self.turnstile.remove(waiting)
        self.turnstile.remove(waiting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_raises_keeps_no_other_waiting(self):
        bad, good = Waiting(self.clock), Waiting(self.clock)
        bad.go_on = lambda: 1 / 0
        for each in (bad, good):
            self.turnstile.wait(each, 0.5)
        self.pump(1)
        self.assertEqual(len(good.woken), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_one_that_waits_again_is_woken_again(self):
        waiting = Waiting(self.clock)
        go_on = waiting.go_on

        def again() -> None:
            go_on()
            if len(waiting.woken) < 3:
                self.turnstile.wait(waiting, 0)

        waiting.go_on = again
        self.turnstile.wait(waiting, 0)
        self.pump(3)
        self.assertEqual(len(waiting.woken), 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])
