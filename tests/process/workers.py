"""Workers for tests of the master's side: they live, speak and die when the test says so."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Config
from ccserver.errors import OperationFailed
from ccserver.process import link, worker
from ccserver.process.administration import Administration
from ccserver.process.fleet import Fleet
from ccserver.process.listening import Listening
from ccserver.process.logs import LineObserver
from ccserver.process.worker import Order
from ccserver.process.workers import Spawner, WorkerOfMaster, WorkerState
from tests.process.test_listening import free_port
from tests.support import FakeProcess, FakeReactor, FakeTransport, folder, logged, texts

STEP = 0.1
"""Seconds that pass between two moments at which everybody speaks."""


class WorkerEnd(link.Line):
    """The worker's end of the link: does as it is told at once, unless it is to hold that back.

    @ivar told: what the master has said, all but the beats' answers.
    @ivar holding: the names of the commands that it does not answer.
    @ivar connections: how many it has.
    @ivar stays: of them, those that do not move, by reason.
    @ivar answers: what else it says when it is to give: how many moved, and the reasons.
    @ivar channels: those that were sent to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []
        self.holding: set[str] = set()
        self.connections = 0
        self.stays: dict[str, int] = {}
        self.answers: list[tuple[int, dict[str, int]]] = []
        self.rows: list[dict[str, Any]] = []
        self.channels: list[socket.socket] = []
        self.lent: list[socket.socket] = []

    def _answer(self, name: str, answer: dict[str, Any], *told: Any) -> Any:
        self.told.append((name, *told) if told else name)
        return Deferred() if name in self.holding else answer

    @link.Serve.responder
    def serve(self) -> Any:
        return self._answer("serve", {})

    @link.StopAccepting.responder
    def stop_accepting(self) -> Any:
        return self._answer("stop accepting", {"connections": self.connections})

    @link.Take.responder
    def take(self, channel: int) -> Any:
        self.channels.append(socket.socket(fileno=channel))
        return self._answer("take", {})

    @link.Give.responder
    def give(self, channel: int, count: int) -> Any:
        self.channels.append(socket.socket(fileno=channel))
        here = self.connections - sum(self.stays.values())
        moved = 0 if "give" in self.holding else here if count == link.ALL else min(count, here)
        left = self.stays
        if self.answers:
            moved, left = self.answers.pop(0)
        self.connections -= moved
        return self._answer("give", {"moved": moved, "left": json.dumps(left)}, count)

    @link.Lend.responder
    def lend(self, slot: int, address: str, listening: int) -> Any:
        self.lent.append(socket.socket(fileno=listening))
        return self._answer("lend", {}, slot, address)

    @link.Return.responder
    def give_back(self, slot: int) -> Any:
        return self._answer("return", {}, slot)

    @link.Stop.responder
    def stop(self, graceful: bool, timeout: float) -> Any:
        return self._answer("stop", {}, graceful, timeout)

    @link.Reopen.responder
    def reopen(self) -> Any:
        return self._answer("reopen", {})

    @link.SetLogLevel.responder
    def set_log_level(self, level: int) -> Any:
        return self._answer("log level", {}, level)

    @link.List.responder
    def list_connections(self, file: int) -> Any:
        link.write_json(file, self.rows)
        os.close(file)
        return self._answer("list", {})

    @link.Kick.responder
    def kick(self, id: int) -> Any:
        found = any(row["id"] == id for row in self.rows)
        return self._answer("kick", {"found": found}, id)


class FakeWorkerProcess:
    """A worker process as it sees its master."""

    def __init__(self, process: FakeProcess, adopted: Any) -> None:
        self.process = process
        self.adopted = adopted
        self.masters = adopted.transport
        self.end = WorkerEnd()
        self.transport = FakeTransport()
        self.transport.protocol = self.end
        self.end.makeConnection(self.transport)

    @property
    def order(self) -> Order:
        return Order(**link.read_json(self.process.given[worker.ORDER_FD]))

    @property
    def told(self) -> list[Any]:
        """What the master has said to it."""
        return self.end.told

    @property
    def killed(self) -> bool:
        return signal.SIGKILL in self.process.killed

    def talk(self) -> bool:
        """Let both ends hear what the other has said; whether there was anything."""
        heard = False
        if self.transport.connected:
            heard |= self.transport.deliver(self.masters.protocol)
            heard |= self.masters.deliver(self.end)
        return heard

    def ready(self) -> None:
        self.end.callRemote(link.Ready)
        self.talk()

    def failed(self, status: int, reason: str) -> None:
        """It says why it cannot start, and ends."""
        self.end.callRemote(link.Failed, status=status, reason=reason)
        self.talk()
        self.die(status)

    def beat(self, **figures: Any) -> None:
        """It gives a sign of life, with these figures."""
        if "connections" in figures:
            self.end.connections = figures["connections"]
        self.end.callRemote(link.Beat, figures=json.dumps(figures))
        self.talk()

    def unlink(self) -> None:
        """Its end of the link is closed."""
        self.masters.lose(ConnectionDone())
        self.transport.lose(ConnectionDone())

    def die(self, status: int | None = 1, signal: int | None = None) -> None:
        """Its process ends: the link first, as mostly in life."""
        self.close()
        self.unlink()
        self.process.end(status, signal)

    def close(self) -> None:
        """Close what it has."""
        for each in (*self.end.channels, *self.end.lent):
            each.close()
        self.adopted.close()
        self.transport.close_descriptors()
        self.process.close()


class WorkersCase(SynchronousTestCase):
    """A reactor that spawns L{FakeWorkerProcess}es.

    @ivar immortal: processes that a signal does not end.
    """

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.masks: list[int] = []
        self.immortal: set[FakeWorkerProcess] = set()
        self.patch(signal, "pthread_sigmask", lambda how, mask: self.masks.append(how))
        self.folder = folder(self)
        self.ports = [free_port()]
        self.events = logged(self)
        self._workers: list[FakeWorkerProcess] = []
        self._begun: list[Deferred[Any]] = []
        self.addCleanup(self.end)

    def end(self) -> None:
        """Let all processes end, and what waits for them."""
        for _ in range(5):
            for each in self.workers():
                if not each.process.ended:
                    each.die(0)
            self.reactor.advance(1)
        for begun in self._begun:
            begun.addErrback(lambda failure: None)

    def begin(self, coroutine: Any) -> Deferred[Any]:
        """Begin what may take until the end of the test."""
        begun = Deferred.fromCoroutine(coroutine)
        self._begun.append(begun)
        return begun

    def config(self, workers: int = 2, more: str = "") -> Config:
        return Config.parse(self.text(workers, more), "a.conf", self.folder)

    def text(self, workers: int = 2, more: str = "") -> str:
        """What stands in the file of the configuration."""
        addresses = ", ".join(f"127.0.0.1:{port}" for port in self.ports)
        usual = f"WorkerProcesses = {workers}\nShutdownTimeout = 9\nReadyTimeout = 20\n"
        return f"{usual}Listen = {addresses}\nControl = {self.folder}/control\n{more}"

    def workers(self, since: int = 0) -> list[FakeWorkerProcess]:
        """The worker processes that were spawned."""
        known = len(self._workers)
        pairs = zip(self.reactor.processes[known:], self.reactor.adopted[known:], strict=False)
        self._workers.extend(FakeWorkerProcess(*pair) for pair in pairs)
        return self._workers[since:]

    def turn(self, seconds: float = 0.0) -> None:
        """Let everybody speak, until all has been said, now and every L{STEP} seconds."""
        self.talk()
        end = self.reactor.seconds() + seconds
        while end - self.reactor.seconds() > 1e-6:
            self.reactor.advance(min(STEP, end - self.reactor.seconds()))
            self.talk()

    def talk(self) -> None:
        for _ in range(100):
            self.reactor.advance(0)
            heard = [each.talk() for each in self.workers()]
            for each in self.workers():
                if each.killed and not each.process.ended and each not in self.immortal:
                    each.die(None, signal.SIGKILL)
                    heard.append(True)
            if not any(heard):
                return
        raise AssertionError("they never stop talking")

    def said(self) -> str:
        """What is in the log."""
        return "\n".join(texts(self.events))

    def descriptors(self) -> int:
        """How many this process has open."""
        return len(os.listdir("/proc/self/fd"))


class FakeOwner:
    """Who decides over a fleet, and notes what it is told."""

    def __init__(self) -> None:
        self.ready: list[tuple[WorkerOfMaster, bool]] = []
        self.beats: list[WorkerOfMaster] = []
        self.gone: list[WorkerOfMaster] = []
        self.refusals: list[tuple[int, str]] = []

    def worker_ready(self, process: WorkerOfMaster, first: bool) -> None:
        self.ready.append((process, first))

    def worker_beat(self, process: WorkerOfMaster) -> None:
        self.beats.append(process)

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

    def open_log_anew(self) -> None:
        self.reopened += 1

    def configured(self, config: Config) -> None:
        self.configs.append(config)


class FakeSystemd:
    """A service manager that notes what it is told."""

    watchdog_interval: float | None = None

    def __init__(self) -> None:
        self.told: list[Any] = []

    def ready(self, status: str = "") -> None:
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
        self.done: Deferred[Any] = Deferred()
        self.begun = 0

    async def upgrade(self, fleet: Fleet, progress: Any) -> Any:
        self.begun += 1
        progress("starting a new master")
        return await self.done


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
