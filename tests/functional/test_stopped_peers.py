"""Processes that are stopped and go on, on both sides: nothing is lost, nobody else waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import codes
from tests.functional.server import ROOT, ServerProcess, measured, wait_until
from tests.functional.stopwatch import Stopwatch

READER = """
import hashlib, sys
from tests.functional import codes
from tests.functional.server import Client
client = Client(int(sys.argv[1]))
body = bytes(range(256)) * 100
for number in range(200):
    client.send((codes.REACTOR, number.to_bytes(4, "big") + body))
    if not number:
        print("begun", flush=True)
        sys.stdin.read(1)
    if number >= 20:
        assert client.receive() == (codes.REACTOR, (number - 20).to_bytes(4, "big") + body)
for number in range(180, 200):
    assert client.receive() == (codes.REACTOR, number.to_bytes(4, "big") + body)
print("all", flush=True)
"""
"""A client with 20 requests of 25 KB under way, all the time."""

STOPS = 40


class StoppedClientTests(SynchronousTestCase):
    def test_it_gets_all_when_it_goes_on_and_nobody_waits_for_it(self):
        with ServerProcess() as server:
            reader = subprocess.Popen(
                [sys.executable, "-c", READER, str(server.port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=server.folder,
                env={**os.environ, "PYTHONPATH": ROOT},
            )
            self.addCleanup(reader.wait)
            self.addCleanup(reader.kill)
            assert reader.stdin is not None
            assert reader.stdout is not None
            with reader.stdin, reader.stdout:
                self.assertEqual(reader.stdout.readline(), b"begun\n")
                reader.stdin.write(b"x")
                reader.stdin.flush()
                waits = []
                with server.connect() as client, Stopwatch(server) as watch:
                    for number in range(STOPS):
                        reader.send_signal(signal.SIGSTOP)
                        start = time.monotonic()
                        body = b"%d" % number
                        self.assertEqual(client.ask(codes.REACTOR, body), body)
                        waits.append((start, time.monotonic()))
                        reader.send_signal(signal.SIGCONT)
                self.assertEqual(reader.stdout.readline(), b"all\n")
            slowest = max(end - start for start, end in waits)
            measured("slowest reply beside a client that is stopped, seconds", slowest)
            self.assertLess(max(watch.own(*wait) for wait in waits), 1.0)


class StoppedWorkerTests(SynchronousTestCase):
    def test_no_request_is_lost_while_it_is_stopped_and_continued(self):
        """A continued process finds its waiting system calls interrupted."""
        with ServerProcess() as server, server.connect() as client:
            ((_, worker),) = server.workers().items()
            answered = stops = 0

            def ask() -> None:
                nonlocal answered
                while answered < 4000 or stops < 4:
                    kind = codes.ECHOES[answered % len(codes.ECHOES)]
                    body = b"%d" % answered
                    if client.ask(kind, body) != body:
                        return
                    answered += 1

            thread = Thread(target=ask)
            thread.start()
            while thread.is_alive():
                os.kill(worker, signal.SIGSTOP)
                wait_until(lambda: _state(worker) == "T", "it to stop")
                os.kill(worker, signal.SIGCONT)
                stops += 1
                before = answered
                wait_until(lambda: answered > before or not thread.is_alive(), "an answer")  # noqa: B023
            thread.join()
            self.assertGreaterEqual(answered, 4000)
            self.assertGreaterEqual(stops, 4)
            self.assertEqual(list(server.workers().values()), [worker])

    def test_signals_of_every_kind_that_it_ignores_or_handles_disturb_nobody(self):
        with ServerProcess() as server, server.connect() as client:
            for number in range(100):
                server.send_signal(signal.SIGUSR1)
                os.kill(server.master, signal.SIGCHLD)
                body = b"%d" % number
                self.assertEqual(client.ask(codes.THREAD, body), body)
            self.assertTrue(server.is_alive())


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
