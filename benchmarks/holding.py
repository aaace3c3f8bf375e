"""Takes a core away from all others for a while, again and again: what neighbours do, on time."""

import os
import subprocess
import sys
import time
from types import TracebackType

PRIORITY = 1
"""Of the real-time policy SCHED_FIFO: above all that have none."""

END_DEADLINE = 5.0


class HoldingError(Exception):
    """The core cannot be held."""


class Holding:
    """Holds a core for C{held} of each C{every} seconds, in a process of its own."""

    def __init__(self, core: int, held: float, every: float) -> None:
        self._command = [sys.executable, "-m", __name__, str(core), str(held), str(every)]

    def __enter__(self) -> "Holding":
        """@raise HoldingError: it is not permitted."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.__exit__(None, None, None)
            raise HoldingError("a real-time process is not permitted: run it as root")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate(timeout=END_DEADLINE)


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
