"""The master: keeps the workers alive, and serves no client itself."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed

from ccserver.config import Config
from ccserver.errors import OperationFailed, StartError
from ccserver.process import worker
from ccserver.process.administration import Administration
from ccserver.process.control import ControlSocket
from ccserver.process.descriptors import keep_high_ones
from ccserver.process.fleet import Fleet
from ccserver.process.host import Host
from ccserver.process.logs import LineObserver, ProcessLogger
from ccserver.process.orphans import Orphans, adopts_orphans
from ccserver.process.pulse import Pulse
from ccserver.process.service import ServerService
from ccserver.process.succession import Succession
from ccserver.process.upgrade import Predecessor
from ccserver.process.upkeep import Upkeep
from ccserver.process.workers import Spawner, WorkerOfMaster

REFUSAL_TIMEOUT = 1.0
"""Seconds that an old master has to hear why the new one cannot serve."""


class Master(ServerService):
    """Keeps a worker in each slot, and lets operators change that.

    At first start a worker that cannot start, or load the application, ends the server with
    its exit status; later on the slot is tried again, slower each time.
    """

    log = ProcessLogger()

    def __init__(
        self,
        reactor: Any,
        config: Config,
        observer: LineObserver,
        host: Host,
        stderr: bool,
        environment: dict[str, str],
        predecessor: Predecessor | None = None,
    ) -> None:
        """
        @param stderr: workers log to stderr as well.
        @param environment: of the workers.
        @param predecessor: the master to take over from.
        """
        ServerService.__init__(self, reactor, config, observer, host)
        self._predecessor = predecessor
        inheritance = predecessor.inheritance if predecessor is not None else None
        spawner = Spawner(
            reactor, environment, stderr, inheritance.spawned if inheritance is not None else 0
        )
        self._fleet = Fleet(
            reactor,
            self,
            config,
            self._listening,
            spawner,
            inheritance.generation if inheritance is not None else 1,
        )
        self._administration = Administration(
            reactor,
            self._fleet,
            observer,
            os.path.abspath(config.path),
            Succession(reactor, host, os.getcwd(), config.control.path, self),
            self,
            host.systemd,
        )
        self._control = ControlSocket(reactor, config.control.path, self._administration)
        self._upkeep = Upkeep(reactor, self._fleet, self._administration)
        self._orphans = Orphans(reactor)
        self._dog = Pulse(reactor, "watchdog of systemd", host.systemd.watchdog)
        self._told: Deferred[Any] = succeed(None)  # the predecessor, why we cannot
        self._was_ready = False
        self._is_master = predecessor is None

    def worker_ready(self, process: WorkerOfMaster, first: bool) -> None:
        """A worker serves."""
        self._upkeep.serves(process)
        if self._was_ready:
            self.log.notice("{worker}, serves", worker=process)
        elif self._fleet.was_ready:
            self._was_ready = True
            self.log.notice(
                "ready: {workers} worker processes, listening on {addresses}",
                workers=len(self._fleet.places),
                addresses=", ".join(map(str, self._config.listen.addresses)),
            )
            self._host.systemd.ready()

    def worker_room(self, process: WorkerOfMaster) -> None:
        """A worker has said whether it may have more connections."""
        self._upkeep.relieve()

    def worker_leaves(self, process: WorkerOfMaster) -> bool:
        """A signal asks a worker to stop; whether another takes its place first."""
        return self._upkeep.leaves(process)

    def worker_gone(self, process: WorkerOfMaster) -> None:
        """A worker's process has ended."""
        self._upkeep.gone(process)

    def cannot_start(self, status: int, reason: str) -> None:
        """No worker of a slot could start."""
        self.fail(status, reason)

    def configured(self, config: Config) -> None:
        """C{config} holds from now on."""
        self._config = config

    def fail(self, status: int, reason: str) -> None:
        if self._predecessor is not None and not self._predecessor.gone.over:
            self._host.pid_file.disown()  # the old master has its name back now
            told = self._predecessor.refuse(reason)
            self._told = told.addTimeout(REFUSAL_TIMEOUT, self._reactor)
        ServerService.fail(self, status, reason)

    def open_control(self) -> None:
        """Have the control socket, which belongs to a master that leaves or is gone."""
        try:
            self._control.open(take_over=True)
        except StartError as error:  # serve without it
            self.log.error("{error}", error=error)

    def privilegedStartService(self) -> None:
        """Open the log, the ports and the control socket, which may need root's rights.

        @raise StartError: one of them cannot be opened.
        """
        if self._predecessor is not None:
            self._host.pid_file.disown()
        keep_high_ones()
        try:
            ServerService.privilegedStartService(self)
        except StartError as error:
            if self._predecessor is not None:
                self._predecessor.refuse_early(str(error))
            raise
        if self._predecessor is None:
            owner = self._host.owner
            self._control.open(owner=None if owner is None else (owner.uid, owner.gid))

    def _slots(self) -> int:
        return self._config.process.workers

    def _begin(self) -> None:
        if adopts_orphans():
            self._orphans.start()
        self._upkeep.start()
        interval = self._host.systemd.watchdog_interval
        if interval is not None:
            self._dog.start(interval, now=True)
        if self._predecessor is None:
            self._fleet.start()
        else:
            Deferred.fromCoroutine(self._take_over(self._predecessor)).addErrback(
                lambda failure: self.fail(worker.EXIT_START, failure.getErrorMessage())
            )

    async def _take_over(self, predecessor: Predecessor) -> None:
        """Become the master in place of C{predecessor}, when all workers can serve."""
        fleet, count = self._fleet, self._slots()
        has_its_path = self._control.path == predecessor.inheritance.control
        predecessor.attach(self._reactor, self._take)
        predecessor.gone.wait().addCallback(lambda result: self._left_alone())
        try:
            if count == 0:
                raise OperationFailed("WorkerProcesses = 0 needs a restart")
            fresh = await fleet.prepare(
                range(count), fleet.generation, self._config, self._listening
            )
            if not has_its_path:
                self._control.open()
        except (OperationFailed, StartError) as error:
            if self._stopping:
                return  # that is why, and it is in the log
            status = getattr(error.__cause__, "status", worker.EXIT_START)
            self.fail(status, f"cannot start: {error}")
            return
        if not await predecessor.loaded(count):
            return
        self._is_master = True
        self._host.pid_file.own()
        if has_its_path:
            self.open_control()
        if self._listening.surplus:
            self._listening.steer(count)  # its workers accept what waits in the others
        await fleet.commit(fresh, count, self._listening, _nobody)

    def _left_alone(self) -> None:
        """The old master is gone: well, if we have taken over."""
        if self._stopping:
            return
        if not self._is_master:
            self.fail(worker.EXIT_START, "the old master has ended, or goes on without us")
        elif self._listening.surplus:
            self._listening.drop_surplus()
            self._listening.unsteer()

    def _take(self, slot: int, channel: socket.socket) -> Deferred[bool]:
        """Let the worker of a slot adopt what comes through C{channel} from the old master.

        While nobody serves, it waits: for who died in the moment of the upgrade, the next comes.
        """

        async def take() -> bool:
            serving = await self._fleet.any_serving()
            return bool(serving) and await serving[slot % len(serving)].take(channel)

        return Deferred.fromCoroutine(take())

    def _ask_to_stop(self) -> None:
        ServerService._ask_to_stop(self)
        self._administration.begin_stop()

    def _end(self, graceful: bool) -> Deferred[None]:
        if self._predecessor is not None and self._is_master and not self._failed:
            self._predecessor.retire()
        self._administration.begin_stop()
        self._upkeep.stop()
        self._orphans.stop()
        self._fleet.listening.close()
        gone = self._fleet.stop(graceful)
        gone.addBoth(lambda result: self._told.addErrback(lambda failure: None))
        return gone.addBoth(lambda result: self._closed())

    def _closed(self) -> Deferred[None]:
        self._dog.stop()
        return self._control.close()

    def _hasten(self) -> None:
        self._fleet.hasten()

    def _others_reopen(self) -> Deferred[list[str]]:
        return gatherResults([process.reopen() for process in self._fleet.workers])

    def _operate(self, number: signal.Signals) -> None:
        administration = self._administration
        operations: dict[int, Callable[[], Deferred[Any]]] = {
            signal.SIGHUP: lambda: administration.reload(_nobody),
            signal.SIGUSR2: lambda: administration.upgrade(_nobody),
            signal.SIGWINCH: administration.stop_workers,
            signal.SIGTTIN: lambda: administration.change_workers(1, _nobody),
            signal.SIGTTOU: lambda: administration.change_workers(-1, _nobody),
        }
        operations[number]().addErrback(lambda failure: None)  # it is in the log


def _nobody(text: str) -> None:
    """The progress of what nobody waits for."""
