"""What the kernel is asked for when it gives a worker its time: on which CPUs, and how eagerly."""

from __future__ import annotations

import os

from ccserver.config import ProcessSettings
from ccserver.config.affinity import Affinity, quoted
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
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        text = "worker process {slot}: WorkerScheduling = batch is not granted: {error}"
        log.error(text, slot=slot, error=error)


def _bind(affinity: Affinity, slot: int) -> None:
    cpus = affinity.of(slot)
    if cpus:
        os.sched_setaffinity(0, cpus)  # the kernel leaves out what there is not, if any is left
    if affinity.automatic:
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[slot % len(usable)]})
