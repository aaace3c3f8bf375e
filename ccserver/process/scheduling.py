"""What the kernel is asked for when it gives a worker its time: on which CPUs, and how eagerly."""

from __future__ import annotations

import os

from ccserver.config import ProcessSettings
from ccserver.process.logs import ProcessLogger

log = ProcessLogger()


def schedule(settings: ProcessSettings, slot: int) -> None:
    """Bind this process, the worker of C{slot}, to its CPUs, and set its policy (sched(7)).

    To be called before there are threads, which inherit both. What is not granted is logged, and
    the worker does without.
    """
    cpus = settings.affinity.of(slot, os.sched_getaffinity(0))
    if cpus:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            numbers = ", ".join(map(str, sorted(cpus)))
            log.error("worker_cpu_affinity: CPU {numbers}: {error}", numbers=numbers, error=error)
    if settings.scheduling == "batch":
        try:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except OSError as error:
            log.error("worker_scheduling: {error}", error=error)
