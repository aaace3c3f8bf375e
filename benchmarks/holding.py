"""Takes a core away from all others for a while, again and again: what neighbours do, on time."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PRIORITY = 1
"""Of the real-time policy SCHED_FIFO: above all that have none."""


class HoldingError(Exception):
    """The core cannot be held."""


@contextmanager
def holding(core: int, held: float, every: float) -> Iterator[None]:
    """Hold C{core} for C{held} of each C{every} seconds, in a process of its own.

    @raise HoldingError: it is not permitted.
    """
    command = [sys.executable, "-m", __name__, str(core), str(held), str(every)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise HoldingError("a real-time process is not permitted: run it as root")
            yield
        finally:
            process.kill()


def hold(core: int, held: float, every: float) -> None:
    """Hold C{core} until we are killed, or have no parent any more."""
    parent = os.getppid()
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    print("ready", flush=True)
    while os.getppid() == parent:
        time.sleep(every - held)
        end = time.perf_counter() + held
        while time.perf_counter() < end:
            pass


if __name__ == "__main__":
    hold(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
