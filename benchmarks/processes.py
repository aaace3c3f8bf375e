"""What /proc and the kernel's clocks tell about the processes of a server."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_CPU_CLOCK_OF_ALL_THREADS = 2  # CPUCLOCK_SCHED in the kernel's encoding of a process's CPU clock


class ProcessesChangedError(Exception):
    """A server's processes were not the same before and after: its CPU time is not known."""


def server_processes(leader: int) -> frozenset[int]:
    """All living processes of C{leader}'s session, and their descendants elsewhere."""
    found: set[int] = set()
    table = _process_table()
    while True:
        more = {
            pid
            for pid, (parent, session) in table.items()
            if pid not in found and (session == leader or parent in found or pid == leader)
        }
        if not more:
            return frozenset(found)
        found |= more


def leaves(pids: frozenset[int]) -> frozenset[int]:
    """Those without a child among C{pids}: the workers, not their master."""
    parents = {parent for pid, (parent, _) in _process_table().items() if pid in pids}
    return pids - parents


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of all threads that these processes ever had; nanosecond clocks."""
    try:
        return sum(time.clock_gettime((~pid << 3) | _CPU_CLOCK_OF_ALL_THREADS) for pid in pids)
    except OSError as error:
        raise ProcessesChangedError(
            "a process of the server ended while it was measured"
        ) from error


def busy_seconds(cores: Iterable[int]) -> float:
    """How long these cores have not been idle since the machine started, in steps of 10 ms."""
    lines = (_PROC / "stat").read_text().splitlines()
    ticks = {name: counts for name, *counts in (line.split() for line in lines)}
    busy = 0
    for core in cores:
        user, nice, system, _idle, _iowait, *interrupts_and_stolen = map(int, ticks[f"cpu{core}"])
        busy += user + nice + system + sum(interrupts_and_stolen[:3])
    return busy / os.sysconf("SC_CLK_TCK")


def threads(pid: int) -> list[int]:
    """The thread ids of a process."""
    return [int(entry.name) for entry in (_PROC / str(pid) / "task").iterdir()]


def traced(thread: int) -> bool:
    """Whether a tracer is attached to the thread."""
    status = (_PROC / str(thread) / "status").read_text()
    return "TracerPid:\t0\n" not in status


def runs_only_on(pids: Iterable[int], core: int) -> bool:
    """Whether every thread of these processes may run on C{core} and nowhere else."""
    for thread in (thread for pid in pids for thread in threads(pid)):
        try:
            if os.sched_getaffinity(thread) != {core}:
                return False
        except ProcessLookupError:
            continue  # it ended since the threads were listed
    return True


def _process_table() -> dict[int, tuple[int, int]]:
    """Parent and session by process id; the dead that nobody reaped are left out."""
    table = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue  # it ended since the folder was listed
        state, parent, _, session = stat.rpartition(")")[2].split()[:4]
        if state not in "ZX":
            table[int(entry.name)] = int(parent), int(session)
    return table
