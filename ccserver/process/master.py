"""The master: keeps the workers alive, and serves no client itself."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IProcessTransport
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.protocols import amp
from twisted.python.failure import Failure

from ccserver.config import Config
from ccserver.core.supervision import Slot, SlotState
from ccserver.process import link, worker
from ccserver.process.logs import LineObserver, ProcessLogger
from ccserver.process.service import ServerService

KILL_GRACE = 1.0
"""Seconds that a worker gets beyond the time it has to stop, before it is killed."""

COMMAND = (sys.executable, "-P", "-m", worker.__name__)
"""How a worker is started; without C{-P} files in the current folder would shadow modules."""


class _Link(amp.AMP):
    """The master's end of the link to a worker."""

    def __init__(self, process: WorkerOfMaster) -> None:
        amp.AMP.__init__(self)
        self._process = process

    @link.Ready.responder
    def ready(self) -> dict[str, Any]:
        self._process.ready()
        return {}

    @link.Failed.responder
    def failed(self, status: int, reason: str) -> dict[str, Any]:
        self._process.reason = reason
        return {}


class WorkerOfMaster(ProcessProtocol):
    """A worker process as the master sees it.

    @ivar slot: where it works.
    @ivar pid: its process id, also when it has ended.
    @ivar reason: why it cannot start, if it has said so.
    """

    transport: IProcessTransport

    def __init__(self, master: Master, slot: Slot) -> None:
        self.slot = slot
        self.reason: str | None = None
        self.pid: int | None = None
        self._master = master
        self._link: Any = _Link(self)

    def connectionMade(self) -> None:
        self.pid = self.transport.pid

    def attach(self, reactor: Any, end: socket.socket) -> None:
        """Talk to the process over C{end}."""
        factory = Factory.forProtocol(lambda: self._link)
        factory.noisy = False
        reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, factory)

    def ready(self) -> None:
        """The process has said that it serves."""
        self._master.worker_ready(self)

    def processEnded(self, reason: Failure) -> None:
        self._master.worker_ended(self, reason)

    def stop(self, graceful: bool, timeout: float) -> None:
        """Ask it to stop within C{timeout} seconds."""
        self._ask(link.Stop, graceful=graceful, timeout=timeout)

    def reopen(self) -> None:
        """Ask it to open the log file anew."""
        self._ask(link.Reopen)

    def kill(self) -> None:
        """End it at once."""
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass

    def _ask(self, command: type[amp.Command], **arguments: Any) -> None:
        try:
            asked = self._link.callRemote(command, **arguments)
        except Exception:
            return  # the link is gone, and the process with it
        asked.addErrback(lambda failure: None)


class Master(ServerService):
    """Spawns a worker for each slot and replaces those that die (DESIGN 1).

    At first start a worker that cannot start, or load the application, ends the server with
    its exit status; later on the slot is tried again, slower each time.
    """

    log = ProcessLogger()

    def __init__(
        self,
        reactor: Any,
        config: Config,
        observer: LineObserver,
        stderr: bool,
        environment: dict[str, str],
    ) -> None:
        """
        @param stderr: workers log to stderr as well.
        @param environment: of the workers.
        """
        ServerService.__init__(self, reactor, config, observer)
        self._stderr = stderr
        self._environment = environment
        self._workers: dict[int, WorkerOfMaster] = {}
        self._slot_states = [Slot(number) for number in range(config.process.workers)]
        self._spawned = 0
        self._respawns: dict[int, IDelayedCall] = {}
        self._all_gone: Deferred[None] | None = None
        self._kill: IDelayedCall | None = None

    def worker_ready(self, process: WorkerOfMaster) -> None:
        """A worker serves."""
        slot, first = process.slot, not process.slot.was_ready
        slot.ready(self._reactor.seconds())
        if not first:
            self.log.notice(
                "worker process {slot} is back, pid {pid}", slot=slot.number, pid=process.pid
            )
        elif all(slot.was_ready for slot in self._slot_states):
            self.log.notice(
                "ready: {workers} worker processes, listening on {addresses}",
                workers=len(self._slot_states),
                addresses=", ".join(map(str, self._config.listen.addresses)),
            )

    def worker_ended(self, process: WorkerOfMaster, reason: Failure) -> None:
        """A worker is gone."""
        slot = process.slot
        expected = slot.state is SlotState.STOPPING
        report = self.log.notice if expected else self.log.alert
        how = described(reason)
        report(
            "worker process {slot}, pid {pid}, {how}",
            slot=slot.number,
            pid=process.pid,
            how=how,
        )
        del self._workers[slot.number]
        why = process.reason or f"worker process {slot.number} {how}"
        self._vacant(slot, exit_status(reason), f"cannot start: {why}")

    def _vacant(self, slot: Slot, status: int | None, reason: str) -> None:
        """A slot has no worker any more, or could not get one: what now?"""
        delay = slot.exited(self._reactor.seconds())
        if self._stopping:
            self._look_for_end()
        elif delay is not None and not all(slot.was_ready for slot in self._slot_states):
            known = status == worker.EXIT_APP
            self.fail(worker.EXIT_APP if known else worker.EXIT_START, reason)
        elif delay is not None:
            self._respawns[slot.number] = self._reactor.callLater(delay, self._spawn, slot)

    def _slots(self) -> int:
        return len(self._slot_states)

    def _begin(self) -> None:
        for slot in self._slot_states:
            if not self._stopping:
                self._spawn(slot)

    def _end(self, graceful: bool) -> Deferred[None]:
        self._listening.close()
        for respawn in self._respawns.values():
            if respawn.active():
                respawn.cancel()
        for slot in self._slot_states:
            slot.stopping()
        gone: Deferred[None] = Deferred()
        self._all_gone = gone
        self._stop_workers(graceful)
        self._look_for_end()
        return gone

    def _hasten(self) -> None:
        self._stop_workers(False)

    def _stop_workers(self, graceful: bool) -> None:
        timeout = self._config.process.shutdown_timeout if graceful else 0.0
        for process in list(self._workers.values()):
            process.stop(graceful, timeout)
        end = self._reactor.seconds() + timeout + KILL_GRACE
        if self._kill is not None and self._kill.active():
            if self._kill.getTime() <= end:
                return  # signals that keep coming do not put it off
            self._kill.cancel()
        self._kill = self._reactor.callLater(timeout + KILL_GRACE, self._kill_workers)

    def _kill_workers(self) -> None:
        for process in list(self._workers.values()):
            self.log.alert(
                "worker process {slot}, pid {pid}, does not stop: killed",
                slot=process.slot.number,
                pid=process.pid,
            )
            process.kill()

    def _look_for_end(self) -> None:
        if self._all_gone is not None and not self._workers:
            if self._kill is not None and self._kill.active():
                self._kill.cancel()
            gone, self._all_gone = self._all_gone, None
            gone.callback(None)

    def _reopen(self) -> None:
        ServerService._reopen(self)
        for process in self._workers.values():
            process.reopen()

    def _spawn(self, slot: Slot) -> None:
        """Start a worker in C{slot}, with just the descriptors it needs."""
        self._respawns.pop(slot.number, None)
        order = worker.Order(
            self._config.text,
            self._config.path,
            self._config.base,
            slot.number,
            self._spawned,
            self._stderr,
        )
        self._spawned += 1
        slot.started()
        process = WorkerOfMaster(self, slot)
        self._workers[slot.number] = process  # before the spawn: it may end within it
        try:
            self._start_process(process, order)
        except OSError as error:
            self.log.alert("cannot start a process: {error}", error=error)
            if process.pid is not None:
                process.kill()  # it runs, but cannot be talked to: its end is reported
                return
            del self._workers[slot.number]
            self._vacant(slot, None, f"cannot start {COMMAND[0]}: {error}")

    def _start_process(self, process: WorkerOfMaster, order: worker.Order) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, open(os.devnull, "rb") as null, _memory(order.dump()) as paper:
            descriptors = {0: null.fileno(), 1: 1, 2: 2}
            descriptors[worker.LINK_FD] = theirs.fileno()
            descriptors[worker.ORDER_FD] = paper.fileno()
            for place, listening in enumerate(self._listening.of_slot(process.slot.number)):
                descriptors[worker.SOCKETS_FD + place] = listening.fileno()
            # a signal that came before the worker has its handlers would kill it (FACTS 32)
            signal.pthread_sigmask(signal.SIG_BLOCK, worker.SIGNALS)
            try:
                self._reactor.spawnProcess(
                    process, COMMAND[0], COMMAND, self._environment, childFDs=descriptors
                )
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, worker.SIGNALS)
            process.attach(self._reactor, ours)


def described(reason: Failure) -> str:
    """How a process ended, in words."""
    error = reason.value
    if isinstance(error, ProcessTerminated) and error.signal:
        return f"was killed by signal {error.signal} ({signal.Signals(error.signal).name})"
    return f"exited with status {exit_status(reason)}"


def exit_status(reason: Failure) -> int | None:
    """The exit status of a process that ended; None if a signal ended it."""
    status = getattr(reason.value, "exitCode", None)
    return None if status is None else int(status)


def _memory(data: bytes) -> Any:
    """An open file in memory that holds C{data}."""
    file = os.fdopen(os.memfd_create("order"), "r+b")
    file.write(data)
    file.seek(0)
    return file
