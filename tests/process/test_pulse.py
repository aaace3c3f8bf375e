"""The pulse: one step in a turn, all of them once in an interval, whatever one of them raises."""

from __future__ import annotations

from itertools import pairwise

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ccserver.process.pulse import Pulse


class PulseCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.done: list[tuple[str, float]] = []
        self.fails = False

    def pulse(self, *names: str) -> Pulse:
        pulse = Pulse(self.clock, "what is done", *[self.step(name) for name in names])
        self.addCleanup(pulse.stop)
        return pulse

    def step(self, name: str):
        def step() -> None:
            self.done.append((name, self.clock.seconds()))
            if self.fails:
                raise ValueError(name)

        return step

    def taken(self) -> list[tuple[str, float]]:
        """What was done since the last call."""
        done, self.done = self.done, []
        return done


class PulseTests(PulseCase):
    def test_all_steps_are_done_once_in_each_interval(self):
        self.pulse("a", "b").start(2.0)
        self.clock.pump([0.5] * 3)
        self.assertEqual(self.taken(), [])
        self.clock.pump([0.5] + [0.0] * 3)
        self.assertEqual(self.taken(), [("a", 2.0), ("b", 2.0)])
        self.clock.pump([2.0] + [0.0] * 3)
        self.assertEqual(self.taken(), [("a", 4.0), ("b", 4.0)])

    def test_each_step_has_a_turn_of_its_own(self):
        def first() -> None:
            self.clock.callLater(0, self.step("what was there before"))

        pulse = Pulse(self.clock, "", first, self.step("second"))
        self.addCleanup(pulse.stop)
        pulse.start(1.0)
        self.clock.advance(1.0)
        self.assertEqual([name for name, _ in self.taken()], ["what was there before", "second"])

    def test_one_that_raises_is_logged_and_the_others_go_on(self):
        self.fails = True
        self.pulse("a", "b").start(1.0)
        for _ in range(2):
            self.clock.pump([1.0, 0.0, 0.0])
            self.assertEqual([name for name, _ in self.taken()], ["a", "b"])
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_what_was_missed_is_not_made_up_for(self):
        self.pulse("a").start(1.0)
        self.clock.advance(5.3)
        self.assertEqual(self.taken(), [("a", 5.3)])
        self.clock.pump([0.6, 0.2])
        self.assertEqual(self.taken(), [("a", 6.1)])

    def test_it_does_not_drift(self):
        self.pulse("a").start(1.0)
        self.clock.pump([0.3] * 100)
        self.assertEqual(len(self.done), 30)
        for number, (_, time) in enumerate(self.taken(), 1):
            self.assertTrue(number - 1e-6 <= time < number + 0.3, (number, time))

    def test_a_clock_that_goes_back_stops_nothing(self):
        self.pulse("a").start(1.0)
        self.clock.advance(1.0)
        self.clock.rightNow -= 100  # within a step, say: what waits is on the new time
        self.clock.calls[0].time -= 100
        self.taken()
        self.clock.pump([0.5] * 6)
        self.assertEqual(len(self.taken()), 3)

    def test_stopped_it_does_nothing(self):
        pulse = self.pulse("a", "b")
        self.assertFalse(pulse.running)
        pulse.start(1.0)
        self.assertTrue(pulse.running)
        pulse.stop()
        pulse.stop()
        self.assertFalse(pulse.running)
        self.clock.pump([1.0] * 3)
        self.assertEqual((self.taken(), self.clock.getDelayedCalls()), ([], []))

    def test_a_step_may_stop_it_or_start_it_anew(self):
        changes = [lambda: pulse.start(5.0), lambda: pulse.stop()]
        pulse = Pulse(self.clock, "", lambda: changes.pop()(), self.step("next"))
        self.addCleanup(pulse.stop)
        for left in (0, 1):
            pulse.start(1.0)
            self.clock.advance(1.0)
            self.assertEqual(self.taken(), [])
            self.assertEqual(len(self.clock.getDelayedCalls()), left)

    def turn(self, seconds: float) -> None:
        """A turn of a reactor that takes so long: what is asked for in it comes in the next."""
        calls = [each for each in self.clock.getDelayedCalls() if each.time <= self.clock.seconds()]
        due = [(each, each.func, each.args) for each in calls]
        self.clock.rightNow += seconds
        for call, function, arguments in due:
            call.cancel()
            function(*arguments)

    def test_where_turns_are_long_it_does_not_count_them(self):
        for length in (0.01, 0.1, 0.3, 0.5, 2.0, 8.0):
            with self.subTest(length=length):
                self.pulse("a", "b", "c", "last").start(1.0)
                for _ in range(int(20 / length) + 5):
                    self.turn(length)
                times = [time for name, time in self.taken() if name == "last"]
                gaps = [after - before for before, after in pairwise(times)]
                self.assertLess(max(gaps), 1.0 + 2 * length)
                self.doCleanups()

    def test_it_may_begin_in_the_next_turn(self):
        self.pulse("a").start(2.0, now=True)
        self.assertEqual(self.taken(), [])
        self.clock.advance(0)
        self.assertEqual(self.taken(), [("a", 0.0)])
        self.clock.pump([1.0] * 4)
        self.assertEqual(self.taken(), [("a", 2.0), ("a", 4.0)])

    def test_started_anew_it_has_the_new_interval(self):
        pulse = self.pulse("a")
        pulse.start(10.0)
        pulse.start(1.0)
        self.assertEqual((pulse.interval, len(self.clock.getDelayedCalls())), (1.0, 1))
        self.clock.pump([1.0] * 3)
        self.assertEqual(len(self.taken()), 3)
