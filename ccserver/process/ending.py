"""Ending: workers are told to stop, and killed if they do not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from ccserver.process.logs import ProcessLogger
from ccserver.process.serving import HOOK_TIMEOUT
from ccserver.process.workers import WorkerOfMaster

KILL_GRACE = 1.0
"""Seconds that a worker gets beyond the time it has to stop, and that its stop hooks have where
it stops gracefully, before it is killed."""

SILENCE = 1.5
"""Seconds without a beat, behind the time it has to stop, after which a worker is taken for
blocked: it beats once a second while it runs its stop hooks."""

LOOK_INTERVAL = 0.1
"""Seconds between two looks for those."""


class Ending:
    """Ends workers, one of them or all.

    @ivar begun: all are to end, and no other one is to be begun.
    """

    log = ProcessLogger()

    def __init__(self, reactor: Any, workers: Collection[WorkerOfMaster]) -> None:
        """@param workers: every worker process there is, at any time."""
        self.begun = False
        self._reactor = reactor
        self._workers = workers
        self._all_gone: Deferred[None] | None = None
        self._kill: IDelayedCall | None = None
        self._silent: IDelayedCall | None = None

    def retire(self, process: WorkerOfMaster, timeout: float) -> None:
        """Let a worker end what it has within C{timeout}, and go."""
        if not self.begun:
            process.stop(True, timeout)
        end = timeout + HOOK_TIMEOUT + KILL_GRACE
        kill = self._reactor.callLater(end, self._kill_one, process)
        process.gone.wait().addCallback(lambda reason: kill.active() and kill.cancel())

    def stop(self, graceful: bool, timeout: float) -> Deferred[None]:
        """Let all workers stop; fires when they are gone.

        @param graceful: what they have received is answered first, within C{timeout}.
        """
        self.begun = True
        gone: Deferred[None] = Deferred()
        self._all_gone = gone
        self._stop(graceful, timeout)
        self.look()
        return gone

    def hasten(self) -> None:
        """A graceful stop is under way: let all workers stop at once."""
        if self._workers:
            self._stop(False, 0.0)

    def look(self) -> None:
        """A worker has ended: see whether it was the last one."""
        if self._all_gone is not None and not self._workers:
            for call in (self._kill, self._silent):
                if call is not None and call.active():
                    call.cancel()
            gone, self._all_gone = self._all_gone, None
            gone.callback(None)

    def _stop(self, graceful: bool, timeout: float) -> None:
        for process in list(self._workers):
            process.stop(graceful, timeout)
        patience = timeout + HOOK_TIMEOUT + KILL_GRACE if graceful else KILL_GRACE
        end = self._reactor.seconds() + patience
        if self._kill is not None and self._kill.active():
            if self._kill.getTime() <= end:
                return  # signals that keep coming do not put it off
            self._kill.cancel()
        self._kill = self._reactor.callLater(patience, self._kill_all)
        if graceful:
            self._silent = self._reactor.callLater(timeout + KILL_GRACE, self._kill_silent)

    def _kill_silent(self) -> None:
        """Kill who runs no stop hooks, for his reactor is blocked."""
        for process in list(self._workers):
            if process.silence > SILENCE:
                self._kill_one(process)
        self._silent = self._reactor.callLater(LOOK_INTERVAL, self._kill_silent)

    def _kill_all(self) -> None:
        for process in list(self._workers):
            self._kill_one(process)

    def _kill_one(self, process: WorkerOfMaster) -> None:
        self.log.alert("{worker}, does not stop: killed", worker=process)
        process.kill()
