import resource
from collections import Counter
from typing import ClassVar
from unittest import SkipTest

from tests.functional import apps
from tests.functional.server import ServerCase, measured

CONNECTIONS = 2000
WORKERS = 4

WORST = 1.15
"""The kernel draws the worker of a connection by lot: at 500 each, the busiest of four is 15 %
above the mean once in 4,000 runs."""


class SpreadingTests(ServerCase):
    options: ClassVar = {"workers": WORKERS, "LogLevel": 6}

    def test_connections_are_spread_evenly_over_the_workers(self):
        needed = CONNECTIONS + 100
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < needed:
            if hard not in (-1, resource.RLIM_INFINITY) and hard < needed:
                raise SkipTest(f"only {hard} descriptors are allowed, {needed} are needed")
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        clients = []
        for _ in range(CONNECTIONS):
            clients.append(self.connect())
        for client in clients:
            client.send((apps.PID, b""))
        counts = Counter(client.receive()[1] for client in clients)
        worst = max(counts.values()) / (CONNECTIONS / WORKERS)
        measured(f"busiest of {WORKERS} workers, {CONNECTIONS} connections, max/mean", worst)
        self.assertEqual(len(counts), WORKERS)
        self.assertLessEqual(worst, WORST, counts)
