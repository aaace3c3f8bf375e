"""Worker processes as the master sees them: started, talked to, ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.protocols import amp
from twisted.python.failure import Failure

from ccserver.config import Config
from ccserver.core.watch import Watch
from ccserver.errors import StartError
from ccserver.process import link, worker
from ccserver.process.board import Board
from ccserver.process.logs import ProcessLogger
from ccserver.process.moment import Moment

COMMAND = (sys.executable, "-P", "-m", worker.__name__)
"""How a worker is started; without C{-P} files in the current folder would shadow modules."""


ANSWER_TIMEOUT = 10.0
"""Seconds that a worker has to answer what takes it no time."""

MISSED = 1.5
"""The time between two beats, so many times of which without one make a worker silent."""

GIVE_TIMEOUT = 120.0
"""Seconds that it has to hand connections over, beside the time that each of them may take."""


class WorkerState(Enum):
    """What a worker process is doing."""

    STARTING = "starting"  # loading the application
    LOADED = "loaded"  # can serve, and waits to be told to
    READY = "ready"  # serving
    LEAVING = "leaving"  # handing its connections over
    BLOCKED = "blocked"  # its reactor gives no sign of life
    STOPPING = "stopping"


class NotReady(StartError):
    """A worker ended, or was ended, before it could serve.

    @ivar status: what the server ends with, if it cannot start without.
    """

    def __init__(self, text: str, status: int = worker.EXIT_START) -> None:
        super().__init__(text)
        self.status = status


class Ended(NamedTuple):
    """How a process ended.

    @ivar status: its exit status; None if a signal ended it, or it was never started.
    @ivar how: in words.
    """

    status: int | None
    how: str


class Handed(NamedTuple):
    """What became of connections that were to be handed over.

    @ivar moved: how many have gone.
    @ivar left: how many have not, by reason.
    """

    moved: int
    left: dict[str, int]


class _Link(link.Line):
    """The master's end of the link to a worker."""

    def __init__(self, process: WorkerOfMaster) -> None:
        super().__init__()
        self._process = process

    @link.Ready.responder
    def ready(self) -> dict[str, Any]:
        self._process.is_loaded()
        return {}

    @link.Failed.responder
    def failed(self, status: int, reason: str) -> dict[str, Any]:
        self._process.reason, self._process.exit_status = reason, status
        return {}

    @link.Leave.responder
    def leave(self) -> dict[str, Any]:
        return {"accepted": self._process.on_leave(self._process)}

    @link.Stopping.responder
    def stopping(self) -> dict[str, Any]:
        self._process.on_stopping(self._process)
        return {}

    @link.Room.responder
    def room(self, full: bool) -> dict[str, Any]:
        self._process.has_room(not full)
        return {}


class WorkerOfMaster(ProcessProtocol):
    """A worker process as the master sees it.

    @ivar slot: the number of the place it works in.
    @ivar generation: of which reload it is.
    @ivar pid: its process id, also when it has ended.
    @ivar state: what it is doing.
    @ivar reason: why it cannot start, if it has said so.
    @ivar exit_status: what it then ends with, and a server that cannot start without it.
    @ivar config: what it serves with.
    @ivar board: where it says how it is, from its start on.
    @ivar full: it has as many connections as it may; None: it has not said so yet.
    @ivar on_room: is called when it has said so.
    @ivar on_leave: is called when a signal asks it to stop; whether that is seen to.
    @ivar on_stopping: is called when it stops by itself.
    @ivar since: the time it was started.
    @ivar loaded: it can serve; fails with L{NotReady}.
    @ivar gone: its process has ended.
    """

    log = ProcessLogger()

    transport: IProcessTransport

    def __init__(
        self, slot: int, generation: int, config: Config, clock: Callable[[], float]
    ) -> None:
        self.slot = slot
        self.generation = generation
        self.config = config
        self.since = clock()
        self._clock = clock
        self._interval = Watch(config.process.worker_timeout).interval
        self.board: Board | None = None
        self.state = WorkerState.STARTING
        self.pid: int | None = None
        self.reason: str | None = None
        self.exit_status: int | None = None
        self.full: bool | None = None
        self.on_room: Callable[[WorkerOfMaster], None] = lambda process: None
        self.on_leave: Callable[[WorkerOfMaster], bool] = lambda process: False
        self.on_stopping: Callable[[WorkerOfMaster], None] = lambda process: None
        self.loaded: Moment[None] = Moment()
        self.gone: Moment[Ended] = Moment()
        self._link: Any = _Link(self)
        self._reactor: Any = None  # once it is attached

    def __str__(self) -> str:
        process = "" if self.pid is None else f", pid {self.pid}"
        return f"worker process {self.slot}{process}"

    @property
    def connections(self) -> int:
        """How many connections it had at its last beat."""
        return int(self.figures.get("connections", 0))

    @property
    def linked(self) -> bool:
        """Whether it can be talked to."""
        return self._link.transport is not None

    @property
    def lives(self) -> bool:
        """Whether it has neither ended nor been asked to stop."""
        return not self.gone.over and self.state is not WorkerState.STOPPING

    @property
    def figures(self) -> dict[str, Any]:
        """How it was at its last beat; nothing before it serves."""
        return {} if self.board is None else self.board.figures

    @property
    def beat(self) -> float | None:
        """What tells its last beat from others; None: it has not beaten yet."""
        return None if self.board is None else self.board.written

    @property
    def silence(self) -> float:
        """Seconds since its last beat, or its start."""
        age = None if self.board is None else self.board.age
        return self._clock() - self.since if age is None else age

    @property
    def silent(self) -> bool:
        """Whether a beat is missing: its reactor is blocked, or it is stopped, maybe for long."""
        return self.silence > MISSED * self._interval

    def connectionMade(self) -> None:
        self.pid = self.transport.pid

    def attach(self, reactor: Any, end: socket.socket) -> None:
        """Talk to the process over C{end}."""
        self._reactor = reactor
        factory = Factory.forProtocol(lambda: self._link)
        factory.noisy = False
        reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, factory)

    def is_loaded(self) -> None:
        """The process has said that it can serve."""
        if self.state is WorkerState.STARTING:
            self.state = WorkerState.LOADED
            self.loaded.happen(None)

    def has_room(self, room: bool) -> None:
        """The process has said whether it may have more connections."""
        self.full = not room
        self.on_room(self)

    def processEnded(self, reason: Failure) -> None:
        self.end(ended(reason))

    def end(self, ended: Ended) -> None:
        """Its process is gone, or could not be started."""
        why = self.reason or f"worker process {self.slot} {ended.how}"
        if self.board is not None:
            self.board.close()
        self.loaded.happen(Failure(NotReady(why, self.exit_status or worker.EXIT_START)))
        self.gone.happen(ended)

    def serve(self) -> None:
        """Let it accept connections."""
        if self.state is WorkerState.LOADED:
            self.state = WorkerState.READY
            self._tell(link.Serve)

    def stop_accepting(self) -> Deferred[int]:
        """Let it accept no more; fires with how many connections it has, 0 if it is gone."""
        self.state = WorkerState.LEAVING
        return self._ask(link.StopAccepting, ANSWER_TIMEOUT).addCallbacks(
            lambda answer: int(answer["connections"]),
            lambda failure: self.connections if failure.check(DeferredTimeout) else 0,
        )

    def take(self, channel: socket.socket) -> Deferred[bool]:
        """Let it adopt what comes through C{channel}; fires with whether it has got that."""
        taken = self._ask(link.Take, ANSWER_TIMEOUT, channel=channel.fileno())
        return taken.addCallbacks(lambda answer: True, lambda failure: False)

    def give(self, channel: socket.socket, count: int) -> Deferred[Handed | None]:
        """Let it hand C{count} connections over through C{channel}; None: it cannot have that."""
        # it ends by itself where the target does nothing; this is for a source that does not
        timeout = GIVE_TIMEOUT + 2 * self.config.process.handover_timeout
        return self._ask(link.Give, timeout, channel=channel.fileno(), count=count).addCallbacks(
            lambda answer: Handed(answer["moved"], json.loads(answer["left"])),
            lambda failure: (
                None if failure.check(link.NoDescriptor) else Handed(0, {"lost": self.connections})
            ),
        )

    def lend(self, slot: int, address: str, listening: socket.socket) -> Deferred[bool]:
        """Let it accept from C{listening}, of another C{slot}, too; fires with whether it does."""
        lent = self._ask(link.Lend, None, slot=slot, address=address, listening=listening.fileno())
        return lent.addCallbacks(lambda answer: True, lambda failure: False)

    def give_back(self, slot: int) -> None:
        """Let it accept from the sockets of another C{slot} no more."""
        self._tell(link.Return, slot=slot)

    def keep_waiting(self, wait: bool) -> None:
        """Let connections beyond C{worker_connections} wait, as others have room, or close."""
        self._tell(link.KeepWaiting, wait=wait)

    def connection_rows(self) -> Deferred[list[dict[str, Any]]]:
        """A row for each of its connections; none if it does not answer."""
        try:
            fd = link.memory_file("connections")
        except OSError as error:
            self.log.error("no connections listed: {error}", error=error)
            return succeed([])

        def close(result: Any) -> Any:
            os.close(fd)
            return result

        asked = self._ask(link.List, ANSWER_TIMEOUT, file=fd)
        asked.addCallback(lambda answer: link.read_json(fd))
        asked.addErrback(self._nothing_listed)
        return asked.addBoth(close)

    def _nothing_listed(self, failure: Failure) -> list[dict[str, Any]]:
        """Nothing, or nothing whole, was written."""
        if failure.check(link.NoDescriptor):
            self.log.error("{worker}, lists no connections: {why}", worker=self, why=failure.value)
        return []

    def kick(self, id: int) -> Deferred[bool]:
        """Close a connection; fires with whether there was one."""
        return self._ask(link.Kick, ANSWER_TIMEOUT, id=id).addCallbacks(
            lambda answer: bool(answer["found"]), lambda failure: False
        )

    def renew_certificates(self) -> Deferred[tuple[str, str]]:
        """Let it read the certificates anew; fires with what they are, and why it could not."""
        return self._ask(link.RenewCertificates, ANSWER_TIMEOUT).addCallbacks(
            lambda answer: (answer["what"], answer["error"]),
            lambda failure: ("", f"{self}, does not answer"),
        )

    def set_log_level(self, level: int) -> Deferred[None]:
        """Let it log up to C{level}; fires when it does, or does not answer."""
        asked = self._ask(link.SetLogLevel, ANSWER_TIMEOUT, level=level)
        return asked.addBoth(lambda result: None)

    def reopen(self) -> Deferred[str]:
        """Let it open the log file anew; fires with why it could not, if it lives."""
        return self._ask(link.Reopen, ANSWER_TIMEOUT).addCallbacks(
            lambda answer: str(answer["error"]),
            lambda failure: f"{self}, does not answer" if self.linked else "",
        )

    def stay(self) -> None:
        """Tell it that no other can take its place."""
        self._tell(link.Stay)

    def stop(self, graceful: bool, timeout: float) -> None:
        """Ask it to stop within C{timeout} seconds."""
        self.state = WorkerState.STOPPING
        self._tell(link.Stop, graceful=graceful, timeout=timeout)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.pid is None:
            return  # it could not be started
        try:
            self.transport.signalProcess(number)
        except ProcessExitedAlready:
            pass

    def _tell(self, command: type[amp.Command], **arguments: Any) -> None:
        self._ask(command, None, **arguments).addErrback(lambda failure: None)

    def _ask(
        self, command: type[amp.Command], timeout: float | None, /, **arguments: Any
    ) -> Deferred[Any]:
        """Fires with its answer; fails if there is none, within C{timeout} seconds."""
        try:
            asked: Deferred[Any] = self._link.callRemote(command, **arguments)
        except Exception:  # the link is gone, and the process with it
            asked = Deferred()
            asked.errback()
        return asked if timeout is None else asked.addTimeout(timeout, self._reactor)


class Spawner:
    """Starts worker processes, each with just the descriptors it needs.

    @ivar spawned: how many it has started, and how many others before it had: no two workers of a
        server have the same number, so that connection ids are never used again.
    """

    def __init__(
        self, reactor: Any, environment: dict[str, str], stderr: bool, spawned: int = 0
    ) -> None:
        """
        @param environment: of the workers.
        @param stderr: workers log to stderr as well.
        """
        self.spawned = spawned
        self._reactor = reactor
        self._environment = environment
        self._stderr = stderr

    def spawn(
        self,
        process: WorkerOfMaster,
        sockets: Sequence[socket.socket],
        log_level: int,
        gone: Callable[[WorkerOfMaster, Ended], None],
    ) -> None:
        """Start C{process}, which listens on C{sockets}.

        @param gone: is called when it has ended, also if it could not be started.
        """
        order = worker.Order(
            process.config.text,
            process.config.path,
            process.config.base,
            process.slot,
            self.spawned,
            self._stderr,
            log_level,
        )
        self.spawned += 1
        process.gone.wait().addCallback(lambda ended: gone(process, ended))
        try:
            self._start(process, order, sockets)
        except OSError as error:
            process.reason = f"{COMMAND[0]} cannot be run: {error}"
            if process.pid is None:
                process.end(Ended(None, f"was not started: {process.reason}"))
            else:
                process.log.alert("{reason}", reason=process.reason)
                process.kill()  # it runs, but cannot be talked to: its end is reported

    def _start(
        self, process: WorkerOfMaster, order: worker.Order, sockets: Sequence[socket.socket]
    ) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, open(os.devnull, "rb") as null:
            process.board = Board.made()
            paper = link.memory_file("order", asdict(order))
            try:
                descriptors = {0: null.fileno(), 1: 1, 2: 2}
                descriptors[worker.LINK_FD] = theirs.fileno()
                descriptors[worker.ORDER_FD] = paper
                descriptors[worker.BOARD_FD] = process.board.fileno()
                for place, listening in enumerate(sockets):
                    descriptors[worker.SOCKETS_FD + place] = listening.fileno()
                # a signal that came before the worker has its handlers would kill it
                signal.pthread_sigmask(signal.SIG_BLOCK, worker.SIGNALS)
                try:
                    self._reactor.spawnProcess(
                        process, COMMAND[0], COMMAND, self._environment, childFDs=descriptors
                    )
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, worker.SIGNALS)
            finally:
                os.close(paper)
            process.attach(self._reactor, ours)


def ended(reason: Failure) -> Ended:
    """How a process ended, as Twisted says it."""
    error = reason.value
    if isinstance(error, ProcessTerminated) and error.signal:
        names = {int(number): number.name for number in signal.Signals}
        name = names.get(error.signal, "a real-time signal")
        return Ended(None, f"was killed by signal {error.signal} ({name})")
    status = int(getattr(error, "exitCode", None) or 0)
    return Ended(status, f"exited with status {status}")
