"""A master with fake workers, as twistd runs it, for tests."""

from __future__ import annotations

import atexit
import os
import signal
from typing import Any

from ccserver.config import Config
from ccserver.process import service
from ccserver.process.host import Host
from ccserver.process.logs import LineObserver
from ccserver.process.master import Master
from ccserver.process.pidfile import PidFile
from ccserver.process.upgrade import Predecessor
from tests.process.fleets import FakeSystemd
from tests.process.workers import FakeWorkerProcess, WorkersCase


class MasterCase(WorkersCase):
    """A master on a fake reactor.

    @ivar handlers: of signals.
    @ivar exits: the statuses with which the process is to end.
    """

    def setUp(self) -> None:
        super().setUp()
        self.handlers: dict[int, Any] = {}
        self.exits: list[int] = []
        self.titles: list[str] = []
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.patch(atexit, "register", lambda function, *status: self.exits.extend(status))
        self.patch(service, "setproctitle", self.titles.append)
        self.patch(service, "bridge_stdlib", lambda: None)
        self.path = os.path.join(self.folder, "error.log")
        self.config_path = os.path.join(self.folder, "a.conf")
        self.systemd = FakeSystemd()

    def master_config(self, workers: int, more: str) -> Config:
        """The configuration, in a file."""
        text = self.text(workers, more)
        with open(self.config_path, "w") as file:
            file.write(text)
        return Config.parse(text, self.config_path, self.folder)

    def made(
        self, workers: int = 2, more: str = "", predecessor: Predecessor | None = None
    ) -> Master:
        config = self.settings = self.master_config(workers, more)
        observer = LineObserver(config.log.file, 8, False)
        self.addCleanup(observer.close)
        systemd: Any = self.systemd
        host = Host(systemd, PidFile(None))
        master = self.master = Master(
            self.reactor, config, observer, host, True, {"A": "B"}, predecessor
        )
        self.addCleanup(self.close_master, master)
        return master

    def close_master(self, master: Master) -> None:
        """Whatever the test has made of it, nothing stays."""
        stopped = master.stopService() if not master._stopping else None
        for each in self.workers():
            if not each.process.ended:
                each.die(0)
        self.reactor.advance(1)
        master._fleet.listening.close()
        if stopped is not None:
            stopped.addErrback(lambda failure: None)

    def started(self, workers: int = 2, more: str = "") -> list[FakeWorkerProcess]:
        """The workers of a master that has spawned them."""
        made = self.made(workers, more)
        made.privilegedStartService()
        made.startService()
        self.reactor.advance(0)
        return self.workers()

    def serving(self, workers: int = 2, more: str = "") -> list[FakeWorkerProcess]:
        """The workers of a master, which are ready."""
        spawned = self.started(workers, more)
        for each in spawned:
            each.ready()
        self.turn()
        return spawned

    def send(self, number: int) -> None:
        """The process gets a signal."""
        self.handlers[number](number, None)
        self.turn()
