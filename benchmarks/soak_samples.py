"""What the soak looks at: descriptors, threads, memory and timers of processes, over time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_PROC = Path("/proc")
PAGE = os.sysconf("SC_PAGESIZE")

MEMORY_GROWTH = 0.02
"""The share by which memory may be higher at the end of a phase than at its beginning."""


@dataclass(frozen=True)
class Sample:
    """One process at one moment.

    @ivar at: seconds since the beginning.
    @ivar own: descriptors that are no sockets; clients come and go.
    @ivar timers: calls that the reactor is to make later; None where nobody could be asked.
    """

    at: float
    phase: str
    process: str
    pid: int
    descriptors: int
    own: int
    threads: int
    memory: int
    timers: int | None

    def line(self) -> str:
        """For the table."""
        timers = "-" if self.timers is None else str(self.timers)
        return (
            f"{self.at:7.0f} {self.phase:9} {self.process:8} {self.pid:8} {self.descriptors:6} "
            f"{self.own:4} {self.threads:8} {self.memory / (1 << 20):9.2f} {timers:>7}"
        )


HEADING = (
    f"{'seconds':>7} {'phase':9} {'process':8} {'pid':>8} {'fds':>6} "
    f"{'own':>4} {'threads':>8} {'MiB':>9} {'timers':>7}"
)


def look(at: float, phase: str, process: str, pid: int, timers: int | None) -> Sample | None:
    """A process as it is now; None if it has gone."""
    folder = _PROC / str(pid)
    try:
        targets = [_target(entry) for entry in (folder / "fd").iterdir()]
        threads = len(list((folder / "task").iterdir()))
        memory = int((folder / "statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return None
    own = sum(not target.startswith("socket:") for target in targets)
    return Sample(at, phase, process, pid, len(targets), own, threads, memory, timers)


@dataclass(frozen=True)
class Verdict:
    """What one figure of one process came to."""

    process: str
    figure: str
    early: float
    late: float
    slope: float
    good: bool

    def line(self) -> str:
        word = "PASS" if self.good else "FAIL"
        return (
            f"{word} {self.process:20} {self.figure:12} early {self.early:10.2f} "
            f"late {self.late:10.2f}  slope {self.slope:+9.3f} an hour"
        )


def judge(name: str, samples: Sequence[Sample], churning: bool) -> list[Verdict]:
    """The figures of one process, from samples of one phase in order.

    @param churning: its clients come and go meanwhile, so that what they take goes up and down.
    """
    loose = 3.0 if churning else 0.0
    verdicts = [
        _verdict(name, "descriptors", samples, lambda s: s.descriptors, loose),
        _verdict(name, "own fds", samples, lambda s: s.own, 0.0),
        _verdict(name, "threads", samples, lambda s: s.threads, 0.0),
        _verdict(name, "memory MiB", samples, lambda s: s.memory / (1 << 20), 0.0, MEMORY_GROWTH),
    ]
    asked = [sample for sample in samples if sample.timers is not None]
    if asked:
        verdicts.append(_verdict(name, "timers", asked, lambda s: s.timers or 0, loose))
    return verdicts


def _verdict(
    name: str,
    figure: str,
    samples: Sequence[Sample],
    value: Callable[[Sample], float],
    allowed: float,
    share: float = 0.0,
) -> Verdict:
    """Whether the last third of C{samples} is, in the middle, not higher than the first.

    In the middle, for what a reload has open while it lasts is no leak, however many are seen.
    """
    third = max(1, len(samples) // 3)
    early = median(map(value, samples[:third]))
    late = median(map(value, samples[-third:]))
    good = late <= early + max(allowed, share * early, 1e-9)
    return Verdict(name, figure, early, late, slope(samples, value) * 3600, good)


def slope(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """By how much C{value} rises in a second: the straight line nearest to the samples."""
    count = len(samples)
    middle = sum(sample.at for sample in samples) / count
    spread = sum((sample.at - middle) ** 2 for sample in samples)
    if not spread:
        return 0.0
    return sum((sample.at - middle) * value(sample) for sample in samples) / spread


def _target(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except OSError:
        return ""
