"""Killed in the middle of hand-overs: connections may end, but no reply is ever wrong."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.operator import Operator
from tests.functional.server import ServerProcess, measured, title, wait_until
from tests.functional.traffic import Traffic

CONNECTIONS = 600
KILLS, MOST_KILLS = 22, 60
HITS = 8
"""Kills in the middle of a hand-over; who gets no CPU in time misses one."""
MASTER_KILLS = 5
UPGRADE_KILLS = 3
EARLY = 5
"""Every so many kills, one comes while the new workers still start."""

LONGEST = 0.25
"""Seconds, about, that so many connections take to be handed over: the moments are spread over it,
from its begin on, which is seen and not guessed."""

ALLOWED = {"reset", "closed"}
"""What may happen to connections of a process that is killed."""


class KillTests(SynchronousTestCase):
    def setUp(self):
        self.random = random.Random(20)
        self.server = ServerProcess(workers=2, LogLevel=6)
        self.addCleanup(self.server.close)
        self.server.start()
        self.operator = Operator(self.server)
        self.hits = 0  # kills in the middle of a hand-over

    def rows(self):
        return self.operator.status()["workers"]

    def is_handing_over(self):
        return any(row["state"] == "leaving" for row in self.rows())

    def wait_for_moment(self, number):
        """Begin a reload and wait for a moment at random, of its hand-over but for a few."""
        self.server.send_signal(signal.SIGHUP)
        if number % EARLY:
            wait_until(self.is_handing_over, "the hand-over")
        time.sleep(self.random.uniform(0, LONGEST))  # a moment, and no condition

    def kill(self, pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def kill_worker(self, number):
        """Begin a reload, and kill an old worker or a new one at some moment of it."""
        old = set(self.server.workers().values())
        self.wait_for_moment(number)
        rows = self.rows()
        pids = [row["pid"] for row in rows if (row["pid"] in old) != bool(number % 2)]
        if pids:
            self.kill(pid := self.random.choice(pids))
            wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "it to be gone")
            self.hits += any(row["state"] == "leaving" for row in rows)
        self.operator.wait_for_rest()

    def test_workers_killed_at_random_moments_of_reloads(self):
        begun = time.monotonic()
        with Traffic(self.server.port, CONNECTIONS, reconnect=True) as traffic:
            for number in range(MOST_KILLS):
                if number >= KILLS and self.hits >= HITS:
                    break
                self.kill_worker(number)
                counts = traffic.counts()
                self.assertLessEqual(set(counts.errors), ALLOWED, counts.details)
            wait_until(lambda: traffic.settled(CONNECTIONS), "all to be connected again")
            counts = traffic.stop()
        self.assertLessEqual(set(counts.errors), ALLOWED, counts.details)
        measured(f"{number} kills of workers in reloads, seconds", time.monotonic() - begun)
        measured("connections that ended in them", float(sum(counts.errors.values())))
        measured("kills that met a hand-over", self.hits)
        self.assertGreaterEqual(self.hits, HITS, "the moments miss the hand-overs")
        self.assertEqual(len(self.server.workers()), 2)

    def test_masters_killed_at_random_moments_of_reloads(self):
        with Traffic(self.server.port, CONNECTIONS, reconnect=True) as traffic:
            for number in range(MASTER_KILLS):
                self.wait_for_moment(number)
                self.kill(self.server.master)
                self.server.wait()
                self.restart(traffic)
            wait_until(lambda: traffic.settled(CONNECTIONS), "all to be connected again")
            counts = traffic.stop()
        self.assertLessEqual(set(counts.errors), ALLOWED | {"refused"}, counts.details)
        with self.server.connect() as client:
            client.ask(apps.PING)

    def restart(self, traffic):
        """Start the server again that has no master any more."""
        wait_until(lambda: not self.server.processes(), "the workers to be gone")
        ready = self.server.log.count(" ready: ")
        self.server.launch()
        wait_until(lambda: self.server.log.count(" ready: ") > ready, "the server to be back")
        counts = traffic.counts()
        self.assertLessEqual(set(counts.errors), ALLOWED | {"refused"}, counts.details)

    def test_a_new_master_killed_before_it_is_one_is_not_noticed(self):
        old, workers = self.server.master, self.server.workers()
        with Traffic(self.server.port, CONNECTIONS) as traffic:
            for _ in range(UPGRADE_KILLS):
                failed = self.server.log.count(" upgrade failed: ")
                self.server.send_signal(signal.SIGUSR2)
                (new,) = wait_until(self.new_masters, "the new master")
                time.sleep(self.random.uniform(0, LONGEST))
                self.kill(new)
                wait_until(
                    lambda failed=failed: self.server.log.count(" upgrade failed: ") > failed,
                    "the upgrade to fail",
                )
                wait_until(lambda: len(self.server.processes()) == 3, "its workers to be gone")
                counts = traffic.counts()
                self.assertEqual((counts.errors, counts.open), ({}, CONNECTIONS), counts.details)
            counts = traffic.stop()
        self.assertEqual((counts.errors, counts.owed), ({}, 0), counts.details)
        self.assertEqual((self.operator.status()["pid"], self.server.workers()), (old, workers))
        self.assertEqual(int(self.server.read("twistd.pid")), old)

    def new_masters(self):
        known = {self.server.master, *self.server.workers().values()}
        return [
            pid
            for pid in self.server.processes()
            if pid not in known and "worker" not in title(pid) and title(pid)
        ][:1]
