"""The system's time may be set at any moment: it is asked for what people are shown, no more."""

from __future__ import annotations

import ast
import os
import time
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.trial.unittest import SynchronousTestCase

from ccserver.tap import Options, makeService
from tests.support import folder
from tests.test_layers import modules

OF_THE_CALENDAR = {
    "accounts.store": "when an account was made",
    "certificates": "when certificates end",
    "process.logs": "the stamps of lines",
    "process.status": "how many days a certificate has left",
}
"""Modules that need the time of day, and what for."""


class ClockTests(SynchronousTestCase):
    def test_the_masters_clock_is_the_monotonic_one(self):
        reactor: Any = global_reactor
        self.patch(reactor, "seconds", time.time)
        path = os.path.join(folder(self), "ccserver.conf")
        with open(path, "w") as file:
            file.write("[Net]\nListen = 127.0.0.1:5678\n[Proc]\nWorkerProcesses = 1\n")
        options = Options()
        options.parseOptions(["--config", path])
        makeService(options)
        self.assertIs(reactor.seconds, time.monotonic)

    def test_only_what_is_shown_to_people_asks_for_the_time_of_day(self):
        askers = {
            name
            for name, path in modules().items()
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Attribute)
            and node.attr in ("time", "localtime", "strftime", "now", "utcnow", "today")
            and isinstance(node.value, ast.Name)
            and node.value.id in ("time", "datetime", "date")
        }
        self.assertLessEqual(askers, set(OF_THE_CALENDAR))
