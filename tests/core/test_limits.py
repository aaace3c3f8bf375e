"""Limits: the flood rule and the heartbeat rule of the family (PROTOCOL.md 4)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.limits import FloodCount, FloodLimit, Heartbeat, HeartbeatWheel, SessionLimits

USUAL = FloodLimit(0.1, 10)


class FamilyFloodCount:
    """The family's rule as PROTOCOL.md words it, packet by packet."""

    def __init__(self, limit: FloodLimit) -> None:
        self.limit = limit
        self.last: float | None = None
        self.count = 0

    def admits(self, now: float) -> bool:
        if self.last is not None and now - self.last < self.limit.interval:
            self.count += 1
        else:
            self.count = 0
        self.last = now
        return self.count < self.limit.count


class FloodTests(SynchronousTestCase):
    def test_the_eleventh_quick_packet_of_one_read_is_dropped(self):
        self.assertEqual(FloodCount(USUAL).admit(11, 0.0), 10)

    def test_ten_packets_at_once_are_let_through(self):
        self.assertEqual(FloodCount(USUAL).admit(10, 0.0), 10)

    def test_reads_in_quick_succession_count_together(self):
        flood = FloodCount(USUAL)
        self.assertEqual([flood.admit(1, n * 0.05) for n in range(11)], [1] * 10 + [0])

    def test_a_packet_after_the_interval_starts_anew(self):
        flood = FloodCount(USUAL)
        flood.admit(10, 0.0)
        self.assertEqual(flood.admit(10, 0.1), 10)

    def test_a_slow_client_is_never_kicked(self):
        flood = FloodCount(USUAL)
        self.assertTrue(all(flood.admit(1, n * 0.1) for n in range(1, 1000)))

    def test_a_read_without_a_packet_changes_nothing(self):
        flood = FloodCount(FloodLimit(1.0, 2))
        flood.admit(1, 0.0)
        self.assertEqual(flood.admit(0, 0.5), 0)
        self.assertEqual(flood.admit(1, 1.0), 1)
        self.assertEqual(flood.admit(1, 2.0), 1)

    def test_an_interval_of_zero_lets_everything_through(self):
        flood = FloodCount(FloodLimit(0.0, 1))
        self.assertEqual([flood.admit(1000, 0.0), flood.admit(1000, 0.0)], [1000, 1000])

    @given(
        st.lists(st.tuples(st.integers(0, 30), st.integers(0, 250)), max_size=30),
        st.integers(0, 200),
        st.integers(1, 25),
    )
    @settings(deadline=None, max_examples=300)
    def test_reads_are_judged_as_the_familys_rule_judges_packets(
        self, reads: list[tuple[int, int]], interval: int, count: int
    ):
        limit = FloodLimit(float(interval), count)
        flood, family = FloodCount(limit), FamilyFloodCount(limit)
        now = 0.0
        for packets, pause in reads:
            now += pause
            admitted = flood.admit(packets, now)
            expected = 0
            while expected < packets and family.admits(now):
                expected += 1
            self.assertEqual(admitted, expected)
            if admitted < packets:
                return  # the connection is closed


class HeartbeatTests(SynchronousTestCase):
    def test_silence_is_three_intervals_and_ten_seconds(self):
        self.assertEqual(Heartbeat(20).silence, 70)

    def test_silent_for_just_so_long_is_not_yet_too_long(self):
        self.assertFalse(Heartbeat(5).expired(heard=0.0, now=25.0))
        self.assertTrue(Heartbeat(5).expired(heard=0.0, now=25.001))

    def test_kick_expires_whatever_was_heard(self):
        self.assertTrue(Heartbeat(5, kick=True).expired(heard=9.0, now=9.0))


class LimitsTests(SynchronousTestCase):
    def test_time_matters_where_a_rule_looks_at_it(self):
        self.assertFalse(SessionLimits().timed)
        self.assertTrue(SessionLimits(flood=USUAL).timed)
        self.assertTrue(SessionLimits(heartbeat=Heartbeat(5)).timed)


class WheelTests(SynchronousTestCase):
    """Ticks come once a second, at any fraction of it and a little late."""

    def ages_of_checks(self, started: float, ticks: list[float], interval: int = 5) -> list[float]:
        """How old the connection, made at C{started}, is at its checks."""
        wheel: HeartbeatWheel[str] = HeartbeatWheel(Heartbeat(interval), ticks[0])
        ages, added = [], False
        for now in ticks:
            if not added and now >= started:
                wheel.add("it", started)
                added = True
            ages += [now - started for _ in wheel.due(now)]
        return ages

    def closed_at(self, heartbeat: Heartbeat, started: float, heard: float, tick: float) -> float:
        """The age at which a connection is closed, with ticks each second from C{tick} on."""
        wheel: HeartbeatWheel[str] = HeartbeatWheel(heartbeat, tick)
        added = False
        for second in range(100):
            now = tick + second
            if not added and now >= started:
                wheel.add("it", started)
                added = True
            if wheel.due(now) and heartbeat.expired(heard, now):
                return now - started
        raise AssertionError("never closed")

    @given(st.integers(0, 9999), st.integers(0, 999))
    @settings(deadline=None, max_examples=300)
    def test_with_kick_it_is_closed_at_five_to_seven_seconds(self, started: int, tick: int):
        start = 1000 + started / 1000
        age = self.closed_at(Heartbeat(5, kick=True), start, start, 1000 + tick / 1000)
        self.assertGreaterEqual(age, 5)
        self.assertLess(age, 7)

    @given(st.integers(0, 9999), st.integers(0, 999), st.integers(0, 9999))
    @settings(deadline=None, max_examples=300)
    def test_without_kick_it_is_closed_at_25_to_31_seconds_of_silence(
        self, started: int, tick: int, heard: int
    ):
        start = 1000 + started / 1000
        last = start + heard / 1000
        silence = self.closed_at(Heartbeat(5), start, last, 1000 + tick / 1000) - heard / 1000
        self.assertGreater(silence, 25 - 1e-6)
        self.assertLessEqual(silence, 31)

    def test_silent_from_the_start_it_is_closed_at_25_to_27_seconds(self):
        for started in (1000.0, 1000.5, 1000.999):
            age = self.closed_at(Heartbeat(5), started, started, 1000.0)
            self.assertGreater(age, 25)
            self.assertLessEqual(age, 31)

    def test_checks_come_each_interval(self):
        ages = self.ages_of_checks(1000.3, [1000.0 + n for n in range(40)])
        self.assertEqual([round(age, 1) for age in ages], [5.7 + 5 * n for n in range(len(ages))])
        self.assertEqual(len(ages), 7)

    def test_ticks_that_drift_lose_no_check(self):
        ticks = [1000.95]
        while ticks[-1] < 1100:
            ticks.append(ticks[-1] + 1.03)
        self.assertIn(len(self.ages_of_checks(1001.0, ticks)), (18, 19))

    def test_after_a_pause_of_the_process_everyone_is_looked_at_once(self):
        wheel: HeartbeatWheel[int] = HeartbeatWheel(Heartbeat(5), 1000.0)
        for second in range(5):
            wheel.add(second, 1000.0 + second)
        self.assertEqual(sorted(wheel.due(2000.0)), [0, 1, 2, 3, 4])

    def test_who_was_removed_is_not_looked_at(self):
        wheel: HeartbeatWheel[str] = HeartbeatWheel(Heartbeat(5), 1000.0)
        wheel.add("gone", 1000.2)
        wheel.add("there", 1000.2)
        wheel.remove("gone", 1000.2)
        self.assertEqual(wheel.due(1100.0), ["there"])

    def test_removing_twice_is_no_fault(self):
        wheel: HeartbeatWheel[str] = HeartbeatWheel(Heartbeat(5), 1000.0)
        wheel.add("gone", 1000.2)
        wheel.remove("gone", 1000.2)
        wheel.remove("gone", 1000.2)

    def test_a_tick_looks_only_at_its_share(self):
        wheel: HeartbeatWheel[int] = HeartbeatWheel(Heartbeat(10), 1000.0)
        for n in range(1000):
            wheel.add(n, 1000.0 + n / 100)
        looks = [len(wheel.due(1011.0 + n)) for n in range(1, 11)]
        self.assertEqual(looks[1:], [100] * 9)
