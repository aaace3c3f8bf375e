"""Succession: how this master lets a new one take over, or takes over itself."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import TimeoutError as DeferredTimeout

from ccserver.errors import OperationFailed
from ccserver.process.fleet import Fleet
from ccserver.process.host import Host
from ccserver.process.logs import ProcessLogger
from ccserver.process.operations import Progress
from ccserver.process.upgrade import Inheritance, Successor

START_GRACE = 10.0
"""Seconds that a new master has to start, beside those that its workers have."""

MORE_WORKERS = 1024
"""Numbers that are left for workers which this master replaces before it is replaced itself."""


class Succession:
    """Lets a new master take over (nginx's upgrade of the executable on the fly)."""

    log = ProcessLogger()

    def __init__(self, reactor: Any, host: Host, folder: str) -> None:
        """@param folder: where this process was executed."""
        self._reactor = reactor
        self._host = host
        self._folder = folder

    async def upgrade(self, fleet: Fleet, progress: Progress) -> dict[str, Any]:
        """Execute a new master, and hand everything over to it; then this one has to end.

        @raise OperationFailed: the new one cannot serve; nothing has changed.
        """
        if os.getpid() == 1:
            raise OperationFailed(
                "process 1 cannot be upgraded, its container ends with it: reload, or start another"
            )
        successor = Successor()
        self._host.pid_file.step_aside()
        try:
            workers = await self._loaded(successor, fleet, progress)
        except BaseException as error:
            successor.withdraw()
            try:
                self._host.pid_file.come_back()
            except OperationFailed as worse:
                self.log.error("{why}", why=str(worse))
            if isinstance(error, OSError):
                raise OperationFailed(f"cannot execute a new master: {error}") from None
            raise
        self.log.notice("process {pid} is the master now", pid=successor.pid)
        if successor.pid is not None:
            self._host.systemd.main_pid(successor.pid)
        successor.accepted.happen(None)
        handed = await fleet.depart(successor.slots(workers), progress)
        return {
            "pid": successor.pid,
            "workers": workers,
            "handed_over": handed.moved,
            "left": handed.left,
        }

    async def _loaded(self, successor: Successor, fleet: Fleet, progress: Progress) -> int:
        """How many workers of the new master can serve, when they can."""
        progress("starting a new master")
        successor.start(
            self._reactor,
            fleet.listening,
            Inheritance(fleet.spawned + MORE_WORKERS, fleet.generation + 1),
            {**os.environ, **self._host.systemd.environment()},
            self._folder,
        )
        timeout = fleet.config.process.ready_timeout + START_GRACE
        try:
            return await successor.loaded.wait().addTimeout(timeout, self._reactor)
        except DeferredTimeout:
            raise OperationFailed(f"the new master was not ready within {timeout:g} s") from None
