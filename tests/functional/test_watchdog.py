"""The watch over workers and handlers that do not come back."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.operator import Operator
from tests.functional.server import ServerProcess, measured, wait_until
from tests.functional.stopwatch import Stopwatch

TIMEOUT = 1.0
PATIENT = 3.0
"""A timeout that no worker misses for want of a CPU."""
BLOCKED = b"60000"


class BlockedReactorTests(SynchronousTestCase):
    def blocked(self, workers: int) -> ServerProcess:
        """A server one of whose workers is blocked from now on."""
        server = ServerProcess(workers=workers, WorkerTimeout=TIMEOUT, RebalanceInterval=0)
        self.addCleanup(server.close)
        server.start()
        client = server.connect()
        self.addCleanup(client.close)
        client.ask(apps.PING)
        client.send((apps.BLOCK, BLOCKED))
        self.since = time.monotonic()
        return server

    def waits(self, server: ServerProcess) -> list[tuple[float, float]]:
        """From when to when each of many connections waits for its first reply."""
        found = []
        while time.monotonic() - self.since < TIMEOUT + 2.0:
            began = time.monotonic()
            with server.connect() as client:
                client.ask(apps.PING)
            found.append((began, time.monotonic()))
        return found

    def served_in_time(self, workers: int) -> None:
        server = self.blocked(workers)
        with Stopwatch(server) as watch:
            waits = self.waits(server)
        what = f"longest wait of a connection with one of {workers} workers blocked, s"
        measured(what, max(end - began for began, end in waits))
        self.assertLess(max(watch.own(*wait) for wait in waits), TIMEOUT + 1.0)
        for text in ("has given no sign of life for", "in block_reactor", "apps.py"):
            wait_until(lambda text=text: text in server.log, text)
        wait_until(lambda: len(server.workers()) == workers, "the replacement")

    def test_its_stacks_are_logged_and_its_slot_is_served_by_another_in_time(self):
        self.served_in_time(2)

    def test_also_the_only_one_is_replaced_in_time(self):
        self.served_in_time(1)

    def test_new_clients_are_served_long_before_it_is_killed(self):
        with ServerProcess(workers=2, WorkerTimeout=20, RebalanceInterval=0) as server:
            stopped, _ = server.workers().values()
            os.kill(stopped, signal.SIGSTOP)
            operator = Operator(server)

            def all_served() -> bool:
                clients = [server.connect() for _ in range(16)]
                for client in clients:
                    client.ask(apps.PING)
                    client.close()
                return True

            with Stopwatch(server) as watch:
                wait_until(all_served, "16 clients at once to be served")
            measured("new clients wait for a worker that is stopped, s", watch.elapsed)
            self.assertLess(watch.seconds, 10.0)
            self.assertEqual(operator.status()["workers"][0]["state"], "silent")
            with Stopwatch(server) as watch:
                self.assertEqual(operator.ask("connections")["total"], 0)
            self.assertLess(watch.seconds, 5.0)
            self.assertIn(stopped, server.workers().values())
            os.kill(stopped, signal.SIGCONT)

    def test_a_worker_that_is_stopped_from_outside_is_replaced(self):
        server = ServerProcess(workers=1, WorkerTimeout=TIMEOUT)
        self.addCleanup(server.close)
        server.start()
        (pid,) = server.workers().values()
        os.kill(pid, signal.SIGSTOP)
        with server.connect() as client:
            client.ask(apps.PING)
        self.assertNotIn(pid, server.workers().values())

    def test_a_master_that_was_stopped_itself_kills_nobody(self):
        server = ServerProcess(workers=2, WorkerTimeout=PATIENT)
        self.addCleanup(server.close)
        server.start()
        pids, operator = server.workers(), Operator(server)
        operator.status()  # its workers have been told to serve, which it says before it sends it
        os.kill(server.master, signal.SIGSTOP)
        stopped = time.monotonic()
        with server.connect() as client:  # the workers serve on meanwhile
            wait_until(lambda: time.monotonic() - stopped > 2 * PATIENT, "the timeout to be over")
            client.ask(apps.PING)
            os.kill(server.master, signal.SIGCONT)
            checked = operator.status()["uptime"]
            wait_until(lambda: operator.status()["uptime"] > checked + PATIENT, "some checks")
            client.ask(apps.PING)
        self.assertEqual(server.workers(), pids)
        self.assertNotIn("no sign of life", server.log)


class StuckHandlerTests(SynchronousTestCase):
    def serve(self, **options: Any) -> ServerProcess:
        server = ServerProcess(workers=1, HandlerTimeout=1, ProcMsgRecvWorkThreadCount=1, **options)
        self.addCleanup(server.close)
        server.start()
        return server

    def test_its_stack_is_logged_once_its_connection_closed_and_others_are_served(self):
        server = self.serve()
        stuck = server.connect()
        self.addCleanup(stuck.close)
        stuck.send((apps.THREAD, b"before it"), (apps.SLEEP, b"8000"))
        with Stopwatch(server) as watch:
            began = time.monotonic()
            self.assertEqual(stuck.receive(), (apps.THREAD, b"before it"))
            with server.connect() as other:  # there is one thread, and it is taken
                self.assertEqual(other.ask(apps.THREAD, b"beside it"), b"beside it")
            measured("a handler beside a stuck one, with one thread, s", time.monotonic() - began)
            self.assertEqual(stuck.rest(), [])
        self.assertLess(watch.seconds, 5.0)
        stuck.close()
        wait_until(lambda: "closed: handler" in server.log, "its end in the log")
        self.assertEqual(server.log.count("time.sleep(int(request) / 1000)"), 1)

    def test_a_stop_does_not_wait_for_it(self):
        server = self.serve(ShutdownTimeout=30)
        stuck = server.connect()
        self.addCleanup(stuck.close)
        stuck.send((apps.SLEEP, b"60000"))
        wait_until(lambda: "time.sleep(int(request) / 1000)" in server.log, "its stack")
        with Stopwatch(server) as watch:
            server.stop()
        self.assertLess(watch.seconds, 15.0)
