"""How much of the machine others take: what a pause tells of the server depends on it."""

from __future__ import annotations

import os
import threading
import time
from typing import Self

from tests.functional.server import ServerProcess

LONGEST_PAUSE = 0.25
"""Seconds that a connection may wait for what it is owed, whatever the server does meanwhile."""

STALL = 2.0
"""Seconds that it may wait where others take the CPUs. With 1.3 of 2 cores taken, workers waited
four times as long for a CPU as they ran, and the longest pauses of reloads were 0.2 to 0.6 s."""

OTHERS = 0.5
"""Cores that others may take before the longer one holds. Up to 1.1 of 2, the longest pause of any
of 2000 connections in a reload was 244 ms."""

INTERVAL = 0.05
TICK = os.sysconf("SC_CLK_TCK")


class Disturbance:
    """Watches, as a context manager, the CPUs that neither a server nor its traffic nor we use.

    @ivar cores: how many others took, on average, steal included.
    """

    def __init__(self, server: ServerProcess, *pids: int) -> None:
        """@param pids: of further processes that are ours."""
        self.cores = 0.0
        self._server = server
        self._pids = (os.getpid(), *pids)
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._first = dict(self._last)
        self._busy, self._since = _busy(), time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        ours = sum(used - self._first.get(pid, 0.0) for pid, used in self._last.items())
        cores = (_busy() - self._busy - ours) / (time.monotonic() - self._since)
        self.cores = max(cores, 0.0)  # of a moment, below what the kernel counts in

    @property
    def longest_pause(self) -> float:
        """Seconds that a connection may have waited meanwhile."""
        return LONGEST_PAUSE if self.is_quiet else STALL

    @property
    def is_quiet(self) -> bool:
        """Whether the machine was ours."""
        return self.cores < OTHERS

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        for pid in (*self._pids, *self._server.processes()):
            try:
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue  # its last figure counts
            self._last[pid] = (int(fields[11]) + int(fields[12])) / TICK


def _busy() -> float:
    """CPU seconds that have been used on this machine, or kept from it."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, *interrupts_and_steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(interrupts_and_steal)) / TICK
