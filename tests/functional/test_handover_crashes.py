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
from tests.functional.server import ServerProcess, measured, wait_until
from tests.functional.traffic import Traffic

CONNECTIONS = 300
KILLS = 24
MASTER_KILLS = 6
LONGEST = 0.7
"""Seconds, about, that a reload takes: the moments are spread over it."""

ALLOWED = {"reset", "closed"}
"""What may happen to connections of a process that is killed."""


class KillTests(SynchronousTestCase):
    def setUp(self):
        self.random = random.Random(20)
        self.server = ServerProcess(workers=2, LogLevel=6)
        self.addCleanup(self.server.close)
        self.server.start()
        self.operator = Operator(self.server)

    def kill_at_random(self, choose):
        """Begin a reload, and at some moment of it kill a worker that C{choose} picks."""
        self.server.send_signal(signal.SIGHUP)
        moment = time.monotonic() + self.random.uniform(0, LONGEST)
        wait_until(lambda: time.monotonic() > moment, "the moment")
        pid = choose()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.operator.wait_for_rest()

    def test_workers_killed_at_random_moments_of_reloads(self):
        begun = time.monotonic()
        with Traffic(self.server.port, CONNECTIONS, reconnect=True) as traffic:
            for number in range(KILLS):
                pids = self.server.workers()

                def old(pids=pids):
                    return self.random.choice(list(pids.values()))

                def new(pids=pids):
                    rows = self.operator.status()["workers"]
                    pids = [row["pid"] for row in rows if row["pid"] not in pids.values()]
                    return self.random.choice(pids) if pids else None

                self.kill_at_random(new if number % 2 else old)
                counts = traffic.counts()
                self.assertLessEqual(set(counts.errors), ALLOWED, counts.details)
            wait_until(lambda: traffic.counts().open == CONNECTIONS, "all to be connected again")
            counts = traffic.stop()
        self.assertLessEqual(set(counts.errors), ALLOWED, counts.details)
        measured(f"{KILLS} kills of workers in reloads, seconds", time.monotonic() - begun)
        measured("connections that ended in them", float(sum(counts.errors.values())))
        self.assertEqual(len(self.server.workers()), 2)

    def test_masters_killed_at_random_moments_of_reloads(self):
        with Traffic(self.server.port, CONNECTIONS, reconnect=True) as traffic:
            for number in range(MASTER_KILLS):
                self.server.send_signal(signal.SIGHUP)
                moment = time.monotonic() + self.random.uniform(0, LONGEST)
                wait_until(lambda moment=moment: time.monotonic() > moment, "the moment")
                os.kill(self.server.master, signal.SIGKILL)
                self.server.wait()
                wait_until(self.server.is_gone, "the workers to be gone", 10)
                self.server.launch()
                wait_until(
                    lambda number=number: self.server.log.count(" ready: ") == number + 2,
                    "the server to be back",
                )
                counts = traffic.counts()
                self.assertLessEqual(set(counts.errors), ALLOWED | {"refused"}, counts.details)
            wait_until(lambda: traffic.counts().open == CONNECTIONS, "all to be connected again")
            counts = traffic.stop()
        self.assertLessEqual(set(counts.errors), ALLOWED | {"refused"}, counts.details)
        with self.server.connect() as client:
            client.ask(apps.PING)
