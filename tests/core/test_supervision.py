"""Supervision: who dies is replaced, at once, and slower the oftener."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.supervision import LONGEST_DELAY, SETTLED_AFTER, Slot, SlotState


class SlotTests(SynchronousTestCase):
    def setUp(self):
        self.slot = Slot(0)

    def life(self, ready: float | None, died: float) -> float | None:
        """A worker of the slot that was ready at C{ready}, if ever, and died at C{died}."""
        self.slot.started()
        if ready is not None:
            self.slot.ready(ready)
        return self.slot.exited(died)

    def test_a_worker_is_starting_until_it_is_ready(self):
        self.slot.started()
        self.assertIs(self.slot.state, SlotState.STARTING)
        self.slot.ready(1.0)
        self.assertIs(self.slot.state, SlotState.READY)

    def test_a_slot_remembers_that_a_worker_was_ready(self):
        self.life(None, 1.0)
        self.assertFalse(self.slot.was_ready)
        self.life(2.0, 3.0)
        self.slot.started()
        self.assertTrue(self.slot.was_ready)

    def test_the_first_death_is_followed_by_a_start_at_once(self):
        self.assertEqual(self.life(0.0, 0.5), 0.0)

    def test_quick_deaths_are_followed_by_ever_longer_pauses_up_to_the_longest(self):
        delays = [self.life(float(n), n + 0.5) for n in range(12)]
        expected = [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
        self.assertEqual([round(delay, 3) for delay in delays], expected)

    def test_a_worker_that_was_never_ready_died_quickly_however_long_it_took(self):
        self.life(None, 100.0)
        self.assertEqual(self.life(None, 1000.0), 0.1)

    def test_a_worker_that_served_a_while_is_replaced_at_once(self):
        for n in range(5):
            self.life(float(n), float(n))
        self.assertEqual(self.life(10.0, 10.0 + SETTLED_AFTER), 0.0)

    def test_and_the_pauses_begin_anew(self):
        for n in range(5):
            self.life(float(n), float(n))
        self.life(10.0, 10.0 + SETTLED_AFTER)
        self.assertEqual([self.life(20.0, 20.1), self.life(20.2, 20.3)], [0.0, 0.1])

    def test_nobody_follows_a_worker_that_was_asked_to_stop(self):
        self.slot.started()
        self.slot.ready(0.0)
        self.slot.stopping()
        self.assertIsNone(self.slot.exited(1.0))

    def test_ready_after_being_asked_to_stop_changes_nothing(self):
        self.slot.started()
        self.slot.stopping()
        self.slot.ready(1.0)
        self.assertIsNone(self.slot.exited(2.0))
        self.assertFalse(self.slot.was_ready)

    def test_deaths_are_counted_and_stops_are_not(self):
        self.life(0.0, 1.0)
        self.life(2.0, 3.0)
        self.slot.started()
        self.slot.stopping()
        self.slot.exited(4.0)
        self.assertEqual(self.slot.restarts, 2)

    def test_slots_do_not_share_their_deaths(self):
        self.life(0.0, 0.0)
        self.life(0.0, 0.0)
        other = Slot(1)
        other.started()
        self.assertEqual(other.exited(1.0), 0.0)

    @given(st.lists(st.booleans(), max_size=2000))
    @settings(deadline=None, max_examples=30)
    def test_there_is_always_a_next_start_within_the_longest_delay(self, settled: list[bool]):
        slot, now = Slot(0), 0.0
        for long in settled:
            slot.started()
            slot.ready(now)
            now += SETTLED_AFTER if long else 0.001
            delay = slot.exited(now)
            self.assertIsNotNone(delay)
            self.assertLessEqual(0.0, delay)
            self.assertLessEqual(delay, LONGEST_DELAY)
            now += delay
