"""The stopwatch: it counts what the server does, and not what others do."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps, stopwatch
from tests.functional.server import ServerProcess
from tests.functional.stopwatch import Interval, Stopwatch, lost
from tests.functional.traffic import LONGEST_PAUSE, Traffic
from tests.support import folder

STALL = 0.5

BUSY = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
while time.process_time() < float(sys.argv[2]):
    pass
"""
"""Uses so many seconds of one CPU."""


class LostTests(SynchronousTestCase):
    def lost(self, *waits, others=0.0, stood=0.0, until=1.0):
        """Of the last of three seconds, and of all three."""
        seen = [
            Interval(until + number, 1.0, others, stood, dict(enumerate(waits)))
            for number in range(3)
        ]
        return lost(seen, until + 1.1, until + 2.0), lost(seen, until - 1.0, until + 2.0)

    def assert_lost(self, last, whole, *waits, **seen):
        found = self.lost(*waits, **seen)
        self.assertAlmostEqual(found[0], last)
        self.assertAlmostEqual(found[1], whole)

    def test_a_machine_of_our_own_loses_nothing(self):
        self.assert_lost(0.0, 0.0)

    def test_what_our_threads_take_from_each_other_is_not_lost(self):
        self.assert_lost(0.0, 0.0, 0.5, 0.5)
        self.assert_lost(0.0, 0.0, 0.5, 0.5, others=-0.01)  # nobody counts that exactly

    def test_others_that_keep_nobody_waiting_take_nothing(self):
        self.assert_lost(0.0, 0.0, others=2.0)

    def test_what_others_had_while_we_waited_is_lost(self):
        self.assert_lost(0.3, 0.9, 0.3, others=2.0)
        self.assert_lost(0.2, 0.6, 0.1, 0.2, others=0.2)

    def test_threads_that_wait_at_the_same_time_are_waited_for_once(self):
        self.assert_lost(0.9, 3.0, 0.8, 0.9, 0.9, others=2.0)

    def test_a_machine_that_stood_still_loses_that(self):
        self.assert_lost(0.4, 1.2, stood=0.4)
        self.assert_lost(0.5, 1.5, 0.3, stood=0.2, others=0.9)
        self.assert_lost(0.9, 3.0, stood=2.0)


class QuotaTests(SynchronousTestCase):
    def test_what_a_quota_keeps_from_us_is_told_in_seconds(self):
        path = os.path.join(folder(self), "cpu.stat")
        for line, key, unit in (
            ("throttled_usec 1500000", "throttled_usec", 1e-6),
            ("throttled_time 1500000000", "throttled_time", 1e-9),
        ):
            with open(path, "w") as file:
                print(f"nr_periods 7\n{line}", file=file)
            self.patch(stopwatch, "QUOTAS", [("/nowhere", key, unit), (path, key, unit)])
            self.assertAlmostEqual(stopwatch.throttled(), 1.5)
        self.patch(stopwatch, "QUOTAS", [(path, "another", 1.0)])
        self.assertEqual(stopwatch.throttled(), 0.0)

    def test_it_is_looked_for_where_the_kernel_tells_it(self):
        path = os.path.join(folder(self), "cgroup")
        with open(path, "w") as file:
            file.write("3:cpuset:/\n2:cpu,cpuacct:/a/b\n0::/c\n")
        found = [quota[0] for quota in stopwatch._quotas(path)]
        self.assertIn("/sys/fs/cgroup/cpu/a/b/cpu.stat", found)
        self.assertIn("/sys/fs/cgroup/c/cpu.stat", found)


class NoteTests(SynchronousTestCase):
    def test_a_wait_is_where_the_thread_had_not_waited_already(self):
        watch = Stopwatch()
        watch.intervals = [Interval(1.0 + number, 1.0, 9.0, 0.0, {}) for number in range(4)]
        later = [watch.intervals.pop(), watch.intervals.pop()]
        watch._note("ours", 1.5)
        watch.intervals += reversed(later)
        watch._note("ours", 2.25)
        watch._note("another", 0.5)
        noted = [each.waits for each in watch.intervals]
        self.assertEqual(
            noted, [{"ours": 0.75}, {"ours": 1.0}, {"ours": 1.0}, {"ours": 1.0, "another": 0.5}]
        )


class StopwatchTests(SynchronousTestCase):
    def test_what_others_take_does_not_count(self):
        cpu = str(min(os.sched_getaffinity(0)))
        # they are not ours: their parent has ended
        script = 'for n in 1 2 3; do "$0" -c "$1" $2 0.6 </dev/null >/dev/null & done'
        subprocess.run(["sh", "-c", script, sys.executable, BUSY, cpu], check=True)
        with Stopwatch() as watch:
            ours = [sys.executable, "-c", BUSY, cpu, "0.3"]
            subprocess.run(ours, check=True)
        self.assertGreater(watch.elapsed, 0.6)
        self.assertGreater(watch.cores, 0.3)
        self.assertLess(watch.seconds, 0.45)

    def test_a_worker_that_stalls_for_half_a_second_is_seen_in_the_traffic(self):
        with (
            ServerProcess(LogLevel=6) as server,
            Traffic(server.port, 13, rate=100.0) as traffic,
            server.connect() as client,
        ):
            client.ask(apps.PING)
            with Stopwatch(server) as watch:
                traffic.mark()
                began = time.monotonic()
                client.ask(apps.BLOCK, b"%d" % (1000 * STALL))
                ended = time.monotonic()
                counts = traffic.counts()
        self.assertGreater(watch.own(began, ended), LONGEST_PAUSE)
        self.assertGreater(watch.longest_pause(counts), LONGEST_PAUSE, (watch.cores, counts.long))

    def test_what_was_before_is_for_who_measured_then(self):
        before = time.monotonic()
        with Stopwatch() as watch:
            began = time.monotonic()
        ended = time.monotonic()
        self.assertLessEqual(watch.own(before - 10.0, ended + 10.0), watch.elapsed)
        self.assertLessEqual(watch.elapsed, ended - before)
        self.assertLessEqual(watch.own(before - 10.0, began), watch.elapsed)
