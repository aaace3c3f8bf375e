"""Reloads that cannot be: the old generation serves on, the reason is told, and nothing leaks."""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.operator import Operator, Refused, resident, resources, settle_resources
from tests.functional.server import ECHO, ServerProcess, measured
from tests.functional.traffic import Traffic

ATTEMPTS = 50
MOST_GROWTH = 4 << 20
"""Bytes by which a process may grow in all attempts: a tenth of what it has."""

SOURCES = {
    "missing": None,
    "broken": b"def broken(:\n",
    "raises": b"raise ValueError('no licence')\n",
    "empty": b"app = 5\n",
    "refuses": b"from ccserver import App\napp = App()\n@app.on_worker_start\n"
    b"async def start(worker):\n    raise ValueError('no licence')\n",
    "hangs": b"import time\ntime.sleep(600)\n",
    "dies": b"import os\nos._exit(7)\n",
}


class FailureCase(SynchronousTestCase):
    def setUp(self):
        self.server = ServerProcess(workers=2, LogLevel=6)
        self.addCleanup(self.server.close)
        for name, source in SOURCES.items():
            if source is not None:
                self.server.write(f"{name}.py", source)
        self.server.start()
        self.operator = Operator(self.server)
        self.text = self.server.read("ccserver.conf")
        self.foreign = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.foreign.close)

    def configure(self, text: str) -> None:
        self.server.write("ccserver.conf", text.encode())

    def with_app(self, name: str) -> Callable[[], None]:
        return lambda: self.configure(self.text.replace(ECHO, f"{name}:app"))

    def with_taken_port(self) -> None:
        port = self.foreign.getsockname()[1]
        mine = f"127.0.0.1:{self.server.port}"
        self.configure(self.text.replace(mine, f"{mine}, 127.0.0.1:{port}"))

    def attempts(self) -> dict[str, tuple[Callable[[], None], str]]:
        """What is tried, and a word of the reason for which it cannot be."""
        return {
            "a line that is none": (lambda: self.configure(self.text + "nonsense\n"), "setting"),
            "a wrong key": (lambda: self.configure(self.text + "Wrokers = 2\n"), "Wrokers"),
            "a wrong number": (lambda: self.configure(self.text + "LanePackets = x\n"), "not a"),
            "a taken port": (self.with_taken_port, "cannot listen on"),
            "a log that is a folder": (lambda: self.configure(self.text + "Log = /\n"), "/"),
            "no workers": (
                lambda: self.configure(self.text.replace("Processes = 2", "Processes = 0")),
                "needs a restart",
            ),
            "no such application": (self.with_app("missing"), "no module missing"),
            "an application with an error": (self.with_app("broken"), "SyntaxError"),
            "an application that raises": (self.with_app("raises"), "no licence"),
            "an application that is none": (self.with_app("empty"), "not an App"),
            "a start hook that raises": (self.with_app("refuses"), "no licence"),
            "an application that ends": (self.with_app("dies"), "status 7"),
            "an application that hangs": (self.with_one_that_hangs, "not ready within 1 s"),
        }

    def with_one_that_hangs(self) -> None:
        text = self.text.replace(ECHO, "hangs:app")
        self.configure(text + "ReadyTimeout = 1\n")  # of the new workers, who have to be ready

    def refused(self, prepare: Callable[[], None], word: str) -> None:
        prepare()
        with self.assertRaises(Refused) as caught:
            self.operator.reload()
        self.assertIn(word, str(caught.exception))


class FailureTests(FailureCase):
    def test_fifty_failures_leave_the_old_generation_and_nothing_else(self):
        self.operator.reload()  # what is made at the first time only is made
        self.operator.wait_for_rest()
        pids = self.server.workers()
        before = resources(self.server)
        sizes: dict[int, int] = {}
        with Traffic(self.server.port, 100) as traffic:
            attempts = list(self.attempts().items())
            for number in range(ATTEMPTS + len(attempts)):
                if number == len(attempts):  # all caches have been filled
                    sizes = self.sizes()
                what, (prepare, word) = attempts[number % len(attempts)]
                self.refused(prepare, word)
                counts = traffic.counts()
                self.assertEqual(counts.errors, {}, (what, counts.details))
            counts = traffic.stop()
        self.assertEqual((counts.errors, counts.owed, counts.connected), ({}, 0, 100))
        settle_resources(self.server, before)
        self.assertEqual(self.server.workers(), pids)
        growth = max(size - sizes[pid] for pid, size in self.sizes().items())
        measured(f"growth of a process in {ATTEMPTS} reloads that failed, KiB", growth / 1024)
        self.assertLess(growth, MOST_GROWTH)
        self.assertEqual(self.operator.status()["generation"], 2)
        self.configure(self.text)
        self.operator.reload()
        with self.server.connect() as client:
            client.ask(apps.PING)

    def sizes(self) -> dict[int, int]:
        """The resident bytes of master and workers."""
        pids = (self.server.master, *self.server.workers().values())
        return {pid: resident(pid) for pid in pids}

    def test_the_command_says_the_reason_in_one_line_and_fails(self):
        self.with_app("raises")()
        done = self.operator.command("reload", "--wait")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        (line,) = [line for line in done.stderr.splitlines() if "no licence" in line]
        self.assertIn("raises", line)
        self.assertIn("reload failed: ", self.server.log)
        last = self.operator.status()["last_reload"]
        self.assertEqual(last["result"], "failed")
        self.assertIn("no licence", last["reason"])
