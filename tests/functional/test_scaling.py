"""Scaling, balance and recycling under traffic: workers come and go, and nobody notices."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.operator import Operator, Refused
from tests.functional.server import ECHO, ServerProcess, measured, wait_until
from tests.functional.stopwatch import Stopwatch
from tests.functional.traffic import LONGEST_PAUSE, Traffic

CONNECTIONS = 2000


class ScalingCase(SynchronousTestCase):
    def serve(self, app: str = ECHO, **options: Any) -> ServerProcess:
        server = ServerProcess(app, **options)
        self.addCleanup(server.close)
        server.start()
        self.operator = Operator(server)
        return server

    @contextlib.contextmanager
    def unnoticed(self, traffic: Traffic, what: str) -> Iterator[None]:
        """Nothing happens to the traffic in the block."""
        with Stopwatch(self.operator.server) as watch:
            traffic.mark()
            yield
            counts = traffic.counts()
        self.assertEqual((counts.errors, counts.open), ({}, CONNECTIONS), (what, counts.details))
        own = watch.longest_pause(counts)
        self.assertLess(own, LONGEST_PAUSE, (what, watch.cores, counts.pauses))
        measured(f"longest pause of {CONNECTIONS} connections, {what}, s", counts.pause)
        measured(f"without what others took, {what}, s", own)

    def balanced(self) -> bool:
        shares = [row["connections"] for row in self.operator.serving()]
        mean = sum(shares) / len(shares)
        return sum(shares) == CONNECTIONS and max(shares) - min(shares) <= 0.1 * mean


class TrafficTests(ScalingCase):
    def test_more_and_fewer_workers_and_balance(self):
        server = self.serve(workers=2, LogLevel=6, RebalanceInterval=0)
        operator = self.operator
        with Traffic(server.port, CONNECTIONS) as traffic:
            with self.unnoticed(traffic, "TTIN"):
                operator.signal_and_wait(signal.SIGTTIN, " scaling done: ")
            self.assertEqual(len(operator.serving()), 3)
            wait_until(self.balanced, "the third one to have its share")
            with self.unnoticed(traffic, "TTOU"):
                operator.signal_and_wait(signal.SIGTTOU, " scaling done: ")
            with self.unnoticed(traffic, "workers 1"):
                operator.ask("workers", count=1)
            self.assertEqual(len(operator.serving()), 1)
            wait_until(lambda: operator.serving()[0]["connections"] == CONNECTIONS, "all in one")
            with self.unnoticed(traffic, "workers 3"):
                operator.ask("workers", count=3)
            wait_until(self.balanced, "them to be spread")
            with self.unnoticed(traffic, "rebalance"):
                operator.ask("rebalance")
            counts = traffic.stop()
        self.assertEqual((counts.errors, counts.owed, counts.connected), ({}, 0, CONNECTIONS))
        self.assertEqual(set(operator.status()["left"]) - {"closing"}, set())

    def test_workers_that_have_served_enough_are_recycled_one_at_a_time(self):
        server = self.serve(workers=2, LogLevel=6, MaxRequests=3000, MaxRequestsJitter=2000)
        with Traffic(server.port, CONNECTIONS) as traffic:
            with self.unnoticed(traffic, "recycling"):
                wait_until(lambda: server.log.count("(max_requests) done") >= 3, "recyclings")
            counts = traffic.stop()
        self.assertEqual((counts.errors, counts.owed, counts.connected), ({}, 0, CONNECTIONS))
        lines = [line for line in server.log.splitlines() if "recycling of worker" in line]
        self.assertGreater(len({line.split("recycling of worker ")[1][0] for line in lines}), 1)

    def test_the_only_worker_is_replaced_before_a_signal_ends_it(self):
        server = self.serve(workers=1, LogLevel=6)
        with Traffic(server.port, CONNECTIONS) as traffic:
            with self.unnoticed(traffic, "a worker's SIGTERM"):
                (old,) = server.workers().values()
                os.kill(old, signal.SIGTERM)
                done = "recycling of worker 0 (signal) done"
                wait_until(lambda: done in server.log, "the recycling")
            with server.connect() as client:
                self.assertNotEqual(int(client.ask(apps.PID)), old)
            counts = traffic.stop()
        self.assertEqual((counts.errors, counts.owed, counts.connected), ({}, 0, CONNECTIONS))
        wait_until(lambda: old not in server.processes(), "the old one to be gone")


class SecondSignalTests(ScalingCase):
    def served_by(self, server: ServerProcess) -> int:
        """Who answers a new client; 0: who accepted it has closed it, for it stops."""
        with contextlib.suppress(OSError), server.connect() as client:
            client.send((apps.PID, b""))
            reply = client.receive()
            return 0 if reply is None else int(reply[1])
        return 0

    def is_busy(self) -> bool:
        rows = self.operator.ask("connections")["connections"]
        return [row["state"] for row in rows] == ["busy"]

    def test_who_stops_by_itself_is_replaced_while_it_ends_what_it_has(self):
        server = self.serve(workers=1)
        (old,) = server.workers().values()

        def stops() -> bool:
            os.kill(old, signal.SIGTERM)
            return "SIGTERM again: stopping" in server.log

        with server.connect() as slow:
            slow.send((apps.SLEEP, b"20000"))  # milliseconds
            wait_until(self.is_busy, "its handler to run")
            wait_until(stops, "the worker to have had enough")
            wait_until(lambda: self.served_by(server) not in (old, 0), "another to serve")
            self.assertIn(old, server.processes())


class ScalingTests(ScalingCase):
    def test_the_automatic_balance_moves_connections_until_all_have_their_share(self):
        server = self.serve(workers=2, RebalanceInterval="200ms")
        clients = [server.connect() for _ in range(300)]
        for client in clients:
            self.addCleanup(client.close)
            client.ask(apps.PING)
        rows = self.operator.ask("connections", limit=300)["connections"]
        first = {row["peer"] for row in rows if row["worker"] == 0}
        for client in clients:
            if client.address in first:
                client.close()
        left = 300 - len(first)

        def shares() -> list[int]:
            return [row["connections"] for row in self.operator.serving()]

        wait_until(
            lambda: sum(shares()) == left and max(shares()) - min(shares()) <= 0.1 * left,
            "an even share",
        )
        for client in clients:
            if client.address not in first:
                client.ask(apps.PING)

    def test_there_is_at_least_one_worker(self):
        server = self.serve(workers=1)
        self.operator.signal_and_wait(signal.SIGTTOU, " scaling done: ")
        self.assertEqual(len(self.operator.serving()), 1)
        with self.assertRaises(Refused):
            self.operator.ask("workers", count=0)
        with server.connect() as client:
            client.ask(apps.PING)

    def test_an_old_worker_is_recycled(self):
        server = self.serve(workers=2, MaxWorkerAge=1)
        with server.connect() as client:
            wait_until(lambda: server.log.count("(max_age) done") >= 2, "two recyclings")
            client.ask(apps.PING)

    def test_without_workers_the_ports_stay_and_reload_brings_others(self):
        server = self.serve(workers=2)
        served = server.connect()
        self.addCleanup(served.close)
        served.send((apps.SLEEP, b"200"))
        server.connect().ask(apps.PING)
        self.operator.signal_and_wait(signal.SIGWINCH, " stop of all workers done")
        self.assertEqual(served.rest(), [(apps.SLEEP, b"200")])
        wait_until(lambda: len(server.processes()) == 1, "the workers to be gone")
        with server.connect() as waiting:  # in the kernel's queue
            waiting.send((apps.REACTOR, b"later"))
            self.operator.reload()
            self.assertEqual(waiting.receive(), (apps.REACTOR, b"later"))
        self.assertEqual(len(self.operator.serving()), 2)
