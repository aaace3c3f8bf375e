"""What the kernel is asked for when it gives a worker its time: on which CPUs, and how eagerly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ccserver.config import ProcessSettings
from ccserver.config.affinity import Affinity, quoted
from ccserver.core.usage import Usage
from ccserver.process.logs import ProcessLogger

log = ProcessLogger()


def schedule(settings: ProcessSettings, slot: int) -> Eagerness | None:
    """Bind this process, the worker of C{slot}, to its CPUs, and set its policy (sched(7)).

    To be called before there are threads, which inherit both. What is not granted is logged, and
    the worker does without.

    @return: what is to be looked at while it serves; None: nothing.
    """
    try:
        _bind(settings.affinity, slot)
    except OSError as error:
        text = "worker process {slot}: worker_cpu_affinity is not granted{of}: {error}"
        cpus = settings.affinity.of(slot)
        of = f", none of the CPUs of {quoted(cpus)}" if cpus else ""
        log.error(text, slot=slot, of=of, error=error)
    if settings.scheduling == "auto":
        return Eagerness(slot)
    try:
        if settings.scheduling == "batch":
            _set_policy(os.SCHED_BATCH)
    except OSError as error:
        text = "worker process {slot}: WorkerScheduling = batch is not granted: {error}"
        log.error(text, slot=slot, error=error)
    return None


class Eagerness:
    """Whether this thread interrupts what runs on its CPU when it wakes up: not while it is busy.

    Its policy is SCHED_OTHER, and SCHED_BATCH meanwhile (sched(7)). One that it has from somebody
    else stays as it is, and so does one that may not be changed.
    """

    def __init__(
        self,
        slot: int,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        """
        @param slot: the worker's number, for the log.
        @param used: seconds of CPU that this thread has used.
        """
        self._slot = slot
        self._clock = clock
        self._used = used
        self._usage: Usage | None = None  # from the first look on: a start is not what is served
        self._batch = False  # by us
        self._refused = False

    def look(self) -> None:
        """See how busy the thread is, and have it scheduled like that: once in a second or so."""
        now, used = self._clock(), self._used()
        if self._usage is None:
            self._usage = Usage(now, used)
        busy = self._usage.look(now, used)
        if busy == self._batch or (busy and self._refused):
            return
        before, after = os.SCHED_OTHER, os.SCHED_BATCH
        if not busy:
            before, after = after, before
        try:
            ours = os.sched_getscheduler(0) == before
            if ours:
                _set_policy(after)
            self._batch = busy and ours
        except OSError as error:
            if not self._refused:
                text = "worker process {slot}: WorkerScheduling = auto is not granted: {error}"
                log.notice(text, slot=self._slot, error=error)
            self._refused = True  # a batch goes on asking whether it may be none


def _set_policy(policy: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(0))


def _bind(affinity: Affinity, slot: int) -> None:
    cpus = affinity.of(slot)
    if cpus:
        os.sched_setaffinity(0, cpus)  # the kernel leaves out what there is not, if any is left
    if affinity.automatic:
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[slot % len(usable)]})
