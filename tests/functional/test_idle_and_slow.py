"""The benchmarks of idle connections and of slow handlers: that they measure what they say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import ccserver
from benchmarks.generator import compiler
from benchmarks.servers import RunningServer, ServerError
from benchmarks.slow_app import LONG, QUICK
from benchmarks.slow_clients import SlowClients
from benchmarks.slow_handlers import server
from benchmarks.table import aligned
from ccserver.core.framing import encode
from tests.functional.packet_server import Respond, listening
from tests.functional.server import wait_until
from tests.support import folder

ROOT = Path(ccserver.__file__).parent.parent
DEADLINE = 60


class CommandCase(SynchronousTestCase):
    """Runs a command."""

    def run_command(self, *arguments: str) -> tuple[str, dict]:
        """What it prints, and its JSON."""
        written = Path(folder(self)) / "written"
        done = subprocess.run(
            [sys.executable, "-m", *arguments, f"--json={written}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
            cwd=ROOT,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout, json.loads(written.read_text())


class IdleTests(CommandCase):
    """python -m benchmarks.idle --servers."""

    def test_each_server_has_its_samples_and_its_ratio(self):
        servers = ["ccserver-thread", "asyncio"]
        printed, samples = self.run_command(
            "benchmarks.idle", "--connections=600", "--rounds=1", "--servers", *servers
        )
        self.assertEqual([*samples], servers)
        for (sample,) in samples.values():
            self.assertGreater(sample["whole"], 5 << 20)
        self.assertIn("600 connections", printed)


class SlowHandlersTests(CommandCase):
    """python -m benchmarks.slow_handlers."""

    skip = None if compiler() else "no C compiler"

    def test_shares_are_of_what_the_threads_could_do(self):
        printed, samples = self.run_command(
            "benchmarks.slow_handlers", "--rounds=1", "--seconds=0.3", "--threads=3", "--rate=500"
        )
        (sleeping,) = samples["sleeping"]
        self.assertLess(0.001, sleeping["slept"])
        # a sleep of each thread may have begun before
        self.assertLess(sleeping["per_second"], 3 / sleeping["slept"] * 1.05 + 3 / 0.3)
        self.assertLess(sleeping["bare"], 3 / 0.001)
        alone, beside = samples["waiting"]
        self.assertEqual((alone["beside"], alone["slow_packets"]), (False, 0))
        self.assertTrue(beside["beside"])
        self.assertLess(0.05, beside["slow_waited"])
        self.assertIn("beside / alone", printed)


class SlowClientsTests(SynchronousTestCase):
    """The clients of slow handlers."""

    def test_they_come_at_their_rate_and_wait_for_their_handler(self):
        with RunningServer(server(8), None) as running:
            began = time.monotonic()
            with SlowClients(running.port, LONG, 50, seed=1) as clients:
                wait_until(lambda: len(clients.waited) >= 50, "50 replies")
            self.assertLess(0.5, time.monotonic() - began)
        self.assertLessEqual(0.05, min(clients.waited))

    def test_a_wrong_reply_is_seen(self):
        self.assert_seen("wrong reply", lambda code, body: encode(code, body + b"!"))

    def test_replies_that_do_not_come_are_seen(self):
        self.assert_seen("wait on all", lambda code, body: b"")

    def assert_seen(self, message: str, respond: Respond) -> None:
        with listening(respond) as port:
            clients = SlowClients(port, QUICK, 2000, seed=1)
            clients.__enter__()
            wait_until(clients.ended, "the clients' end")
            with self.assertRaisesRegex(ServerError, message):
                clients.__exit__(None, None, None)


class TableTests(SynchronousTestCase):
    """Tables."""

    def test_the_first_column_is_to_the_left_and_the_others_to_the_right(self):
        table = aligned([["name", "us"], ["a", "100"]])
        self.assertEqual(table, "name   us\na     100")
