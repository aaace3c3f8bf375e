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
from ccserver.process import board, link, worker
from ccserver.process.board import Board
from ccserver.process.worker import Order
from tests.ports import free_port
from tests.support import (
    FakeProcess,
    FakeReactor,
    FakeTransport,
    folder,
    logged,
    open_descriptors,
    texts,
)

STEP = 0.1
"""Seconds that pass between two moments at which everybody speaks."""


class WorkerEnd(link.Line):
    """The worker's end of the link: does as it is told at once, unless it is to hold that back.

    @ivar told: what the master has said.
    @ivar holding: the names of the commands that it does not answer.
    @ivar connections: how many it has.
    @ivar stays: of them, those that do not move, by reason.
    @ivar answers: what else it says when it is to give: how many moved, and the reasons.
    @ivar certificates: what they are, and why they cannot be read.
    @ivar reopens: why the log cannot be opened anew.
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
        self.certificates = ("a until 2027; b until 2028", "")
        self.reopens = ""
        self.channels: list[socket.socket] = []
        self.lent: list[socket.socket] = []

    def _answer(self, name: str, answer: dict[str, Any], *told: Any) -> Any:
        self.told.append((name, *told) if told else name)
        return Deferred() if name in self.holding else answer

    @link.Serve.responder
    def serve(self) -> Any:
        return self._answer("serve", {})

    @link.Stay.responder
    def stay(self) -> Any:
        return self._answer("stay", {})

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

    @link.KeepWaiting.responder
    def keep_waiting(self, wait: bool) -> Any:
        return self._answer("wait", {}, wait)

    @link.Stop.responder
    def stop(self, graceful: bool, timeout: float) -> Any:
        return self._answer("stop", {}, graceful, timeout)

    @link.Reopen.responder
    def reopen(self) -> Any:
        return self._answer("reopen", {"error": self.reopens})

    @link.RenewCertificates.responder
    def renew_certificates(self) -> Any:
        what, error = self.certificates
        return self._answer("certificates", {"what": what, "error": error})

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
        self.full: bool | None = None  # as it has said
        self.transport = FakeTransport()
        self.transport.protocol = self.end
        self.end.makeConnection(self.transport)

    @property
    def board(self) -> Board:
        return Board(self.process.given[worker.BOARD_FD])

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
        self.board.write({})
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
        self.board.write(figures)
        full = figures.get("full")
        if full is not self.full:
            self.full = full
            if full is not None:
                self.end.callRemote(link.Room, full=full)
        self.talk()

    def leave(self) -> bool:
        """A signal asks it to stop; whether the master sees to that."""
        answers: list[dict[str, Any]] = []
        self.end.callRemote(link.Leave).addCallback(answers.append)
        self.talk()
        (answer,) = answers
        accepted: bool = answer["accepted"]
        return accepted

    def stops(self) -> None:
        """It stops by itself."""
        self.end.callRemote(link.Stopping)
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
        self.patch(board, "monotonic", self.reactor.seconds)
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
        return open_descriptors()


def lose_descriptors(test: SynchronousTestCase, process: FakeWorkerProcess) -> None:
    """Let C{process} have no descriptor left for what the master sends it, as the kernel does."""
    test.patch(process.end, "fileDescriptorReceived", os.close)
