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


def schedule(settings: ProcessSettings, slot: int) -> None:
    """Bind this process, the worker of C{slot}, to its CPUs, and set its policy (sched(7)).

    To be called before there are threads, which inherit both. What is not granted is logged, and
    the worker does without.
    """
    try:
        _bind(settings.affinity, slot)
    except OSError as error:
        text = "worker process {slot}: worker_cpu_affinity is not granted{of}: {error}"
        cpus = settings.affinity.of(slot)
        of = f", none of the CPUs of {quoted(cpus)}" if cpus else ""
        log.error(text, slot=slot, of=of, error=error)
    try:
        if settings.scheduling == "batch":
            _set_policy(os.SCHED_BATCH)
    except OSError as error:
        text = "worker process {slot}: WorkerScheduling = batch is not granted: {error}"
        log.error(text, slot=slot, error=error)


class Eagerness:
    """Whether this thread interrupts what runs on its CPU when it wakes up: not while it is busy.

    Its policy is SCHED_OTHER, and SCHED_BATCH meanwhile (sched(7)). One that it has from somebody
    else stays as it is, and so does one that may not be changed.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        """@param used: seconds of CPU that this thread has used."""
        self._clock = clock
        self._used = used
        self._usage = Usage(clock(), used())
        self._batch = False  # by us
        self._granted = True

    def look(self) -> None:
        """See how busy the thread is, and have it scheduled like that: once in a second or so."""
        busy = self._usage.look(self._clock(), self._used())
        if busy == self._batch or not self._granted:
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
            self._granted = False
            log.info("WorkerScheduling = auto is not granted: {error}", error=error)


def _set_policy(policy: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(0))


def _bind(affinity: Affinity, slot: int) -> None:
    cpus = affinity.of(slot)
    if cpus:
        os.sched_setaffinity(0, cpus)  # the kernel leaves out what there is not, if any is left
    if affinity.automatic:
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[slot % len(usable)]})
