"""Upkeep: what a master does of its own accord to keep its workers well."""

from __future__ import annotations

import random
from typing import Any

from twisted.python.failure import Failure

from ccserver.core.balance import plan_slowly
from ccserver.core.recycling import RecycleRule
from ccserver.core.watch import LONGEST_INTERVAL, Watch
from ccserver.process.administration import Administration
from ccserver.process.fleet import Fleet
from ccserver.process.logs import ProcessLogger
from ccserver.process.pulse import Pulse
from ccserver.process.relief import Relief
from ccserver.process.workers import WorkerOfMaster, WorkerState

GROUP_GRACE = 0.5
"""Seconds after a worker's signal in which the master may be asked to stop as well: C{timeout},
terminals and supervisors signal all processes of a group."""

RETRY = 60.0
"""Seconds before a recycling that failed is tried again."""


class Upkeep:
    """Replaces workers that are blocked, recycles those that are due, and balances the rest.

    Who is full or silent is relieved at any time; all else waits for what operators do.
    """

    log = ProcessLogger()

    def __init__(self, reactor: Any, fleet: Fleet, administration: Administration) -> None:
        self._reactor = reactor
        self._fleet = fleet
        self._administration = administration
        # by timeout: workers beat as the configuration that they were started with says
        self._watches: dict[float, Watch[WorkerOfMaster]] = {}
        self._rules: dict[WorkerOfMaster, RecycleRule] = {}
        self._leavers: dict[WorkerOfMaster, float] = {}  # since when
        self._not_before = 0.0
        self._balanced = reactor.seconds()
        self._relief = Relief(fleet)
        self._beats: dict[WorkerOfMaster, float | None] = {}  # the last that was seen
        self._looking = Pulse(
            reactor, "upkeep", self._relief.look, self._look_for_blocked, self._look_who_is_due
        )

    def start(self) -> None:
        """Look after them from now on."""
        self._looking.start(LONGEST_INTERVAL)

    def stop(self) -> None:
        """Leave them alone."""
        self._looking.stop()

    def serves(self, process: WorkerOfMaster) -> None:
        """A worker serves."""
        settings = process.config.process
        rule = RecycleRule(
            settings.max_requests,
            settings.max_requests_jitter,
            settings.max_worker_age,
            settings.max_worker_memory,
        )
        rule = rule.drawn(random.random())
        if rule != RecycleRule():  # else nobody need look at its figures
            self._rules[process] = rule
        if settings.worker_timeout and self._looking.running:
            watch = self._watches.setdefault(
                settings.worker_timeout, Watch(settings.worker_timeout)
            )
            watch.add(process, self._reactor.seconds())
            self._set_pace()
        self._relief.look()

    def relieve(self) -> None:
        """A worker has become full, or has room again: let others accept for it, or not."""
        self._relief.look()

    def leaves(self, process: WorkerOfMaster) -> bool:
        """A signal asks a worker to stop; whether it may wait until it is told to."""
        if process.state in (WorkerState.LEAVING, WorkerState.STOPPING):
            return True  # it has been
        if process.state is not WorkerState.READY:
            return False
        self._leavers.setdefault(process, self._reactor.seconds())
        return True

    def gone(self, process: WorkerOfMaster) -> None:
        """A worker's process has ended."""
        self._rules.pop(process, None)
        self._leavers.pop(process, None)
        self._beats.pop(process, None)
        self._relief.gone(process)
        for watch in self._watches.values():
            watch.remove(process)

    def _set_pace(self) -> None:
        """Look as often as the shortest timeout needs it."""
        pace = min(watch.interval for watch in self._watches.values())
        if self._looking.interval != pace:
            self._looking.start(pace)

    def _look_for_blocked(self) -> None:
        now = self._reactor.seconds()
        for process in self._fleet.workers:
            beat, watch = process.beat, self._watches.get(process.config.process.worker_timeout)
            if watch is not None and beat != self._beats.get(process):
                self._beats[process] = beat
                watch.beat(process, now - process.silence)
        for watch in list(self._watches.values()):
            for process, silence in watch.overdue(now):
                watch.remove(process)
                self._fleet.replace_blocked(process, silence)

    def _look_who_is_due(self) -> None:
        now = self._reactor.seconds()
        if self._administration.busy:
            return
        for process, since in self._leavers.items():
            if process in self._fleet.serving and now - since >= GROUP_GRACE:
                self._replace(process)
                return  # one at a time
        if now < self._not_before:
            return
        for process in self._fleet.serving:
            rule = self._rules.get(process)
            if rule is None:
                continue
            packets, memory = (process.figures.get(key) or 0 for key in ("packets", "memory"))
            reason = rule.due(packets, now - process.since, memory)
            if reason:
                recycling = self._administration.recycle(process, reason.value)
                recycling.addErrback(self._put_off)
                return  # one at a time
        interval = self._fleet.config.process.rebalance_interval
        if interval and now - self._balanced >= interval:
            self._balanced = now
            moves = plan_slowly({each.slot: each.connections for each in self._fleet.awake})
            if moves:
                self._administration.shift(moves).addErrback(lambda failure: None)

    def _replace(self, leaver: WorkerOfMaster) -> None:
        del self._leavers[leaver]
        recycling = self._administration.recycle(leaver, "signal")
        recycling.addErrback(lambda failure: leaver.stay())  # why, is in the log

    def _put_off(self, failure: Failure) -> None:
        """It is in the log already."""
        self._not_before = self._reactor.seconds() + RETRY
