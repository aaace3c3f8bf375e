"""A log that takes nothing: clients are served, and the gap is told when it takes lines again."""

from __future__ import annotations

import os
import re
import resource
from typing import ClassVar

from tests.functional import apps
from tests.functional.server import ServerCase, wait_until


class LogFaultCase(ServerCase):
    options: ClassVar = {"workers": 1}

    def connect(self, count: int) -> None:
        for _ in range(count):
            with self.server.connect() as client:
                client.ask(apps.PING)


class FullDiskTests(LogFaultCase):
    """The kernel lets the worker's files grow no more."""

    def test_it_serves_and_says_how_many_lines_are_lost(self):
        ((_, worker),) = self.server.workers().items()
        self.connect(5)
        wait_until(lambda: self.server.log.count(" closed: ") == 5, "five lines")
        size = os.path.getsize(self.server.path("error.log"))
        _, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (size, hard))
        self.connect(20)
        self.assertEqual(self.server.log.count(" closed: "), 5)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (hard, hard))
        self.connect(20)
        lost = wait_until(
            lambda: re.search(r"\] [0-9]+: ([0-9]+) lines of the log were lost", self.server.log),
            "the gap to be told",
        )
        wait_until(
            lambda: self.server.log.count(" closed: ") + int(lost[1]) == 45, "all to be accounted"
        )
        self.assertEqual(list(self.server.workers().values()), [worker])


class RemovedTests(LogFaultCase):
    def test_a_file_that_was_removed_is_made_anew(self):
        os.remove(self.server.path("error.log"))

        def anew() -> bool:
            self.connect(1)
            return "the log file was removed" in self.server.log

        wait_until(anew, "a new file")
        self.connect(1)
        wait_until(lambda: " closed: " in self.server.log, "lines in it")
