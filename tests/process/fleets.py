"""Fleets with fake workers, and who administers them, for tests."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.defer import Deferred, succeed

from ccserver.config import Config
from ccserver.errors import OperationFailed
from ccserver.process.administration import Administration
from ccserver.process.fleet import Fleet
from ccserver.process.listening import Listening
from ccserver.process.logs import LineObserver
from ccserver.process.workers import Spawner, WorkerOfMaster, WorkerState
from tests.process.workers import FakeWorkerProcess, WorkersCase


class FakeOwner:
    """Who decides over a fleet, and notes what it is told."""

    def __init__(self) -> None:
        self.ready: list[tuple[WorkerOfMaster, bool]] = []
        self.rooms: list[WorkerOfMaster] = []
        self.gone: list[WorkerOfMaster] = []
        self.refusals: list[tuple[int, str]] = []

    def worker_ready(self, process: WorkerOfMaster, first: bool) -> None:
        self.ready.append((process, first))

    def worker_room(self, process: WorkerOfMaster) -> None:
        self.rooms.append(process)

    def worker_leaves(self, process: WorkerOfMaster) -> bool:
        return False

    def worker_gone(self, process: WorkerOfMaster) -> None:
        self.gone.append(process)

    def cannot_start(self, status: int, reason: str) -> None:
        self.refusals.append((status, reason))


class FleetCase(WorkersCase):
    """A fleet with fake workers."""

    def setUp(self) -> None:
        super().setUp()
        self.owner = FakeOwner()
        self.progress: list[str] = []

    def made(self, workers: int = 2, more: str = "") -> Fleet:
        config = self.config(workers, more)
        listening = Listening(config.listen.addresses, config.listen.backlog)
        listening.open(workers)
        spawner = Spawner(self.reactor, {"A": "B"}, True)
        fleet = self.fleet = Fleet(self.reactor, self.owner, config, listening, spawner)
        self.addCleanup(lambda: fleet.listening.close())
        self.addCleanup(fleet.stop, False)
        return fleet

    def started(self, workers: int = 2, more: str = "") -> list[FakeWorkerProcess]:
        """A fleet that has spawned its workers."""
        self.made(workers, more).start()
        return self.workers()

    def serving(self, workers: int = 2, more: str = "") -> list[FakeWorkerProcess]:
        """A fleet whose workers serve."""
        spawned = self.started(workers, more)
        for each in spawned:
            each.ready()
        self.turn()
        return spawned

    def prepared(self, *numbers: int, config: Config | None = None) -> Deferred[Any]:
        """Workers for these slots, when they are ready."""
        fleet = self.fleet
        return self.begin(fleet.prepare(numbers, 2, config or fleet.config, fleet.listening))

    def committed(self, fresh: list[WorkerOfMaster], count: int, listening: Any = None) -> Any:
        """The hand-over to C{fresh}."""
        listening = listening or self.fleet.listening
        return self.begin(self.fleet.commit(fresh, count, listening, self.progress.append))

    def resized(self, count: int) -> Any:
        """The hand-over, or growth, from the workers there are to C{count}."""
        fleet, had = self.fleet, len(self.fleet.places)
        listening = fleet.listening.follow(
            fleet.config.listen.addresses, count, fleet.config.listen.backlog
        )
        spawned = len(self.workers())
        prepared = self.begin(fleet.prepare(range(had, count), 1, fleet.config, listening))
        for each in self.workers(spawned):
            each.ready()
        return self.committed(self.successResultOf(prepared), count, listening)

    def replaced(self, *slots: int) -> Any:
        """The hand-over to new workers, which are ready, for C{slots}, or for all."""
        slots = slots or tuple(range(len(self.fleet.places)))
        spawned = len(self.workers())
        prepared = self.prepared(*slots)
        for each in self.workers(spawned):
            each.ready()
        return self.committed(self.successResultOf(prepared), len(self.fleet.places))


class FakeServer:
    """The server, for an administration: notes what it is asked for."""

    def __init__(self) -> None:
        self.stops: list[bool] = []
        self.reopened = 0
        self.configs: list[Config] = []

    def stop_later(self, graceful: bool) -> None:
        self.stops.append(graceful)

    def open_log_anew(self) -> Deferred[None]:
        self.reopened += 1
        return succeed(None)

    def configured(self, config: Config) -> None:
        self.configs.append(config)


class FakeSystemd:
    """A service manager that notes what it is told."""

    watchdog_interval: float | None = None

    def __init__(self) -> None:
        self.told: list[Any] = []

    def ready(self) -> None:
        self.told.append("ready")

    def reloading(self) -> None:
        self.told.append("reloading")

    def stopping(self) -> None:
        self.told.append("stopping")

    def watchdog(self) -> None:
        self.told.append("watchdog")

    def main_pid(self, pid: int) -> None:
        self.told.append(pid)

    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": "/run/notify"}

    def sockets(self) -> list[tuple[str, socket.socket]]:
        return []


class FakeSuccession:
    """An upgrade that ends when the test says so."""

    def __init__(self) -> None:
        self.heir: int | None = None
        self.done: Deferred[Any] = Deferred()
        self.begun = 0
        self.stopped = False

    async def upgrade(self, fleet: Fleet, progress: Any) -> Any:
        self.begun += 1
        progress("starting a new master")
        return await self.done

    def stop(self) -> None:
        self.stopped = True


class AdministrationCase(FleetCase):
    """An administration of a fleet with fake workers."""

    def setUp(self) -> None:
        super().setUp()
        self.path = os.path.join(self.folder, "a.conf")
        self.log_path = os.path.join(self.folder, "error.log")
        self.server = FakeServer()
        self.systemd = FakeSystemd()
        self.succession = FakeSuccession()

    def administered(self, workers: int = 2, more: str = "") -> Administration:
        """The administration of a fleet whose workers serve."""
        self.serving(workers, more)
        self.write(workers, more)
        self.observer = LineObserver(self.log_path, 6, False)
        self.observer.open()
        self.addCleanup(self.observer.close)
        self.administration = Administration(
            self.reactor,
            self.fleet,
            self.observer,
            self.path,
            self.succession,
            self.server,
            self.systemd,
        )
        return self.administration

    def write(self, workers: int = 2, more: str = "") -> None:
        """Write the file of the configuration."""
        with open(self.path, "w") as file:
            file.write(self.text(workers, more))

    def did(self, operation: Deferred[Any]) -> Any:
        """The result of an operation whose new workers are ready."""
        self._begun.append(operation)
        self.let_start()
        self.turn(2)
        return self.successResultOf(operation)

    def refusal(self, operation: Deferred[Any]) -> str:
        """Why an operation fails."""
        self.turn()
        return str(self.failureResultOf(operation, OperationFailed).value)

    def let_start(self) -> None:
        """All that still start are ready."""
        for each, process in self.by_process():
            if process.state is WorkerState.STARTING:
                each.ready()

    def by_process(self) -> list[tuple[FakeWorkerProcess, WorkerOfMaster]]:
        """The worker processes that live, with what the master knows of them."""
        known = {process.pid: process for process in self.fleet.workers}
        lives = [each for each in self.workers() if each.process.pid in known]
        return [(each, known[each.process.pid]) for each in lives]
