"""Succession: how this master lets a new one take over, and is it again if that one dies."""

from __future__ import annotations

import os
from typing import Any, Protocol

from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure

from ccserver.errors import OperationFailed
from ccserver.process import worker
from ccserver.process.fleet import STOPPING, Fleet
from ccserver.process.host import Host
from ccserver.process.logs import ProcessLogger
from ccserver.process.operations import Progress
from ccserver.process.upgrade import Inheritance, Successor
from ccserver.process.workers import ANSWER_TIMEOUT

START_GRACE = 10.0
"""Seconds that a new master has to start, beside those that its workers have."""

MORE_WORKERS = 1024
"""Numbers that are left for workers which this master replaces before it is replaced itself."""


class OldMaster(Protocol):
    """This master, for who lets another one take its place."""

    def open_control(self) -> None:
        """Have the control socket again."""

    def fail(self, status: int, reason: str) -> None:
        """End with an exit status that says why nobody serves."""


class Succession:
    """Lets a new master take over (nginx's upgrade of the executable on the fly).

    @ivar heir: the process that is the master now; C{None}: this one is.
    """

    log = ProcessLogger()

    def __init__(
        self, reactor: Any, host: Host, folder: str, control: str, master: OldMaster
    ) -> None:
        """
        @param folder: where this process was executed.
        @param control: the path of its control socket.
        """
        self.heir: int | None = None
        self._reactor = reactor
        self._host = host
        self._folder = folder
        self._control = control
        self._master = master
        self._successor: Successor | None = None
        self._stops = False  # this master does

    async def upgrade(self, fleet: Fleet, progress: Progress) -> dict[str, Any]:
        """Execute a new master, and hand everything over to it; then L{heir} is set, and we end.

        @raise OperationFailed: the new one cannot serve, or dies before all is handed over; this
            one serves.
        """
        if os.getpid() == 1:
            raise OperationFailed(
                "process 1 cannot be upgraded, its container ends with it: reload, or start another"
            )
        successor = self._successor = Successor()
        self._host.pid_file.step_aside()
        try:
            workers = await self._loaded(successor, fleet, progress)
        except BaseException as error:
            successor.withdraw()
            self._have_pid_file()
            if isinstance(error, OSError):
                raise OperationFailed(f"cannot execute a new master: {error}") from None
            raise
        assert successor.pid is not None  # it says so first
        self.heir = successor.pid
        self.log.notice("process {pid} is the master now", pid=self.heir)
        self._host.systemd.main_pid(self.heir)
        successor.accepted.happen(None)
        successor.gone.wait().addCallback(lambda result: self._bereft(successor, fleet))
        timeout = fleet.config.process.ready_timeout + ANSWER_TIMEOUT  # it may wait for a worker
        handed = await fleet.depart(successor.slots(workers, timeout), progress)
        if self.heir is None:
            raise OperationFailed(f"{_died(successor)}: this one serves again")
        return {
            "pid": successor.pid,
            "workers": workers,
            "handed_over": handed.moved,
            "left": handed.left,
        }

    def stop(self) -> None:
        """This master stops: who is not the master yet does not become it, nor we it again."""
        self._stops = True
        if self._successor is not None:
            self._successor.loaded.happen(Failure(OperationFailed(STOPPING)))

    def _bereft(self, successor: Successor, fleet: Fleet) -> None:
        """The new master is gone: be the master again, or say that there is none."""
        if successor.retires:
            return
        if self._stops:
            if fleet.workers:  # else we are at our own end, which ends the link too
                self._master.fail(worker.EXIT_START, f"{_died(successor)}, and this one stops")
            return
        self.log.alert("{died}: this one is the master again", died=_died(successor))
        self.heir = None
        self._have_pid_file()
        self._host.systemd.main_pid(os.getpid())
        self._master.open_control()
        fleet.resume(fleet.spawned + 2 * MORE_WORKERS)

    def _have_pid_file(self) -> None:
        """Take the name of the pid file back."""
        try:
            self._host.pid_file.come_back()
        except OperationFailed as error:
            self.log.error("{why}", why=str(error))

    async def _loaded(self, successor: Successor, fleet: Fleet, progress: Progress) -> int:
        """How many workers of the new master can serve, when they can."""
        progress("starting a new master")
        successor.start(
            self._reactor,
            fleet.listening,
            Inheritance(fleet.spawned + MORE_WORKERS, fleet.generation + 1, self._control),
            {**os.environ, **self._host.systemd.environment()},
            self._folder,
        )
        timeout = fleet.config.process.ready_timeout + START_GRACE
        try:
            return await successor.loaded.wait().addTimeout(timeout, self._reactor)
        except DeferredTimeout:
            raise OperationFailed(f"the new master was not ready within {timeout:g} s") from None


def _died(successor: Successor) -> str:
    return f"the new master, process {successor.pid}, has ended"
