"""A stopwatch that does not count what others take: bounds on a server's time hold on any machine.

A process that others keep from a CPU is late, and so is everybody who waits for it. That is no
fault of the server. So the kernel is asked how long the threads of the server and of the test could
run and were not let: as much of that as others used the CPUs meanwhile is not counted, nor is what
a quota of the container keeps from us. What our own
threads take from each other is, and so is all time in which none of them wants to run: a server
that stands still is seen whatever others do.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from tests.functional.server import ServerProcess, children
from tests.functional.traffic_process import Counts

INTERVAL = 0.02
"""Seconds between two looks at all threads. One at 90 threads takes 0.8 ms."""

STANDSTILL = 0.01
"""Seconds by which a look is too late, though no thread of ours ran or waited for a CPU, before the
machine is taken to have stood still."""

TICK = os.sysconf("SC_CLK_TCK")
NANOSECOND = 1e-9


@dataclass(slots=True)
class Interval:
    """The time between two looks; all in seconds.

    @ivar until: when it ended, monotonic.
    @ivar length: how long it was.
    @ivar others: what others used of all CPUs.
    @ivar stood: for how long the machine stood still, or CPUs of it did, or a quota kept them.
    @ivar waits: for how long which threads of ours could run and were not let.
    """

    until: float
    length: float
    others: float
    stood: float
    waits: dict[Hashable, float]


def lost(intervals: Iterable[Interval], since: float, until: float) -> float:
    """How many of the seconds from C{since} to C{until} others took.

    Whoever waits for several threads that are not let waits for as long as one of them is; and
    nobody is kept from a CPU by others for longer than they use it.
    """
    waited = others = stood = 0.0
    for each in intervals:
        if each.until > since and each.until - each.length < until:
            waited += min(sum(each.waits.values()), each.length)
            others += each.others
            stood += each.stood
    return min(max(min(waited, others), 0.0) + stood, until - since)


class Stopwatch:
    """Measures, as a context manager, how long its block takes.

    @ivar intervals: what was seen meanwhile.
    """

    def __init__(self, server: ServerProcess | None = None) -> None:
        """@param server: whose processes are ours, besides this one and its descendants."""
        self.intervals: list[Interval] = []
        self._server = server
        self._began = self._ended = 0.0
        self._threads = _Threads()
        self._enough = threading.Event()
        self._watch = threading.Thread(target=self._look_on, daemon=True)
        self._failed: BaseException | None = None

    def __enter__(self) -> Self:
        self._threads.look(self._pids())
        self._began, *self._last = _machine()
        self._ended = self._began
        self._watch.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._enough.set()
        self._watch.join()
        if self._failed is not None:
            raise self._failed
        self._look()
        self._threads.close()

    @property
    def elapsed(self) -> float:
        """The seconds that the block took."""
        return self._ended - self._began

    @property
    def seconds(self) -> float:
        """The seconds that the block took, less what others took of them."""
        return self.own(self._began, self._ended)

    @property
    def cores(self) -> float:
        """How many CPUs others used on average."""
        return sum(each.others for each in self.intervals) / self.elapsed

    def own(self, since: float, until: float) -> float:
        """The seconds from C{since} to C{until}, monotonic, less what others took of them.

        Those outside the block do not count.
        """
        since, until = max(since, self._began), min(until, self._ended)
        return until - since - lost(self.intervals, since, until)

    def longest_pause(self, counts: Counts) -> float:
        """The longest pause of the traffic in the block, less what others took of it."""
        return max((self.own(*pause) for pause in counts.long), default=counts.pause)

    def _pids(self) -> set[int]:
        ours = _descendants(os.getpid())
        return ours if self._server is None else ours | set(self._server.processes())

    def _look_on(self) -> None:
        try:
            while not self._enough.wait(INTERVAL):
                self._look(INTERVAL)
        except BaseException as error:
            self._failed = error

    def _look(self, planned: float | None = None) -> None:
        """@param planned: for how many seconds we wanted to sleep."""
        ran, waits, own, gone = self._threads.look(self._pids())
        now, idle, stolen = _machine()
        length = now - self._ended
        idle_before, stolen_before = self._last
        self._ended, self._last = now, [idle, stolen]
        late = 0.0 if planned is None else length - planned - own
        self.intervals.append(
            Interval(
                until=now,
                length=length,
                others=CPUS * length - (idle - idle_before) - ran,
                stood=max(late if late > STANDSTILL else 0.0, stolen - stolen_before),
                waits=dict.fromkeys(gone, length),  # nobody tells how long they did
            )
        )
        for thread, seconds in waits.items():
            self._note(thread, seconds)

    def _note(self, thread: Hashable, seconds: float) -> None:
        """Waits are over. The kernel tells only then: they may have begun before the last look."""
        for each in reversed(self.intervals):
            had = each.waits.get(thread, 0.0)
            part = min(seconds, each.length - had)
            each.waits[thread] = had + part
            seconds -= part
            if seconds <= 0:
                break


class _Threads:
    """The figures that the kernel keeps of threads."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], int] = {}
        self._figures: dict[tuple[int, int], tuple[int, int]] = {}
        self._looked = False

    def look(self, pids: set[int]) -> tuple[float, dict[Hashable, float], float, list[Hashable]]:
        """What has been since the last look, in seconds.

        @return: how long they ran, in sum; how long those that waited for a CPU did, but for the
            thread that looks; how long those of this process did either; and which have ended.
        """
        for pid in pids:
            with suppress(OSError):  # it has ended, or does so now
                for name in os.listdir(f"/proc/{pid}/task"):
                    if (key := (pid, int(name))) not in self._files:
                        path = f"/proc/{pid}/task/{name}/schedstat"
                        self._files[key] = os.open(path, os.O_RDONLY)
        ran = own = 0
        gone: list[Hashable] = []
        waits: dict[Hashable, float] = {}
        for key, file in list(self._files.items()):
            try:
                now = list(map(int, os.pread(file, 100, 0).split()[:2]))
            except ProcessLookupError:
                os.close(self._files.pop(key))
                gone.append(key)
                continue
            # those that come later have no figures from before
            before = self._figures.get(key, (0, 0) if self._looked else now)
            self._figures[key] = (now[0], now[1])
            ran_now, waited_now = now[0] - before[0], now[1] - before[1]
            ran += ran_now
            if waited_now and key[1] != threading.get_native_id():
                waits[key] = waited_now * NANOSECOND
            if key[0] == os.getpid():
                own += ran_now + waited_now
        self._looked = True
        return ran * NANOSECOND, waits, own * NANOSECOND, gone

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])


def _descendants(pid: int) -> set[int]:
    """A process, its children, their children, and so on."""
    found: set[int] = set()
    new = {pid}
    while new:
        found.add(one := new.pop())
        with suppress(OSError):
            new.update(set(children(one)) - found)
    return found


def _machine() -> tuple[float, float, float]:
    """Now, how long CPUs have had nothing to do, and how long they were kept from the machine."""
    with open("/proc/stat") as file:
        figures = list(map(int, file.readline().split()[1:9]))
    kept = figures[7] / TICK + throttled()
    return time.monotonic(), (figures[3] + figures[4]) / TICK, kept


def throttled() -> float:
    """For how many seconds the quota of our container has kept CPUs from it, in sum."""
    for path, key, unit in QUOTAS:
        with suppress(OSError), open(path) as file:
            figures = dict(line.split() for line in file)
            if key in figures:
                return int(figures[key]) * unit
    return 0.0


def _quotas(groups: str = "/proc/self/cgroup") -> list[tuple[str, str, float]]:
    """Where the kernel may tell that: the file, the key and the seconds in one of it."""
    found = []
    with suppress(OSError), open(groups) as file:
        for line in file:
            number, controllers, path = line.rstrip("\n").split(":", 2)
            if number == "0":
                root, key, unit = "/sys/fs/cgroup", "throttled_usec", 1e-6
            elif "cpu" in controllers.split(","):
                root, key, unit = "/sys/fs/cgroup/cpu", "throttled_time", NANOSECOND
            else:
                continue
            # a container may see the tree of the whole machine, or its own part as the root
            found += [(f"{root}{path}/cpu.stat", key, unit), (f"{root}/cpu.stat", key, unit)]
    return found


QUOTAS = _quotas()


def _count_cpus() -> int:
    with open("/proc/stat") as file:
        return sum(line.startswith("cpu") for line in file) - 1  # and a line for all


CPUS = _count_cpus()
