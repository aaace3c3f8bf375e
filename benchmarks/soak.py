"""C{python -m benchmarks.soak}: a server under everything at once for long, watched for leaks.

It is warmed up, then works for half of the time without being touched, so that its workers can be
judged; then it is reloaded and its workers are killed again and again, which the master has to
bear; then it has a moment of calm. Traffic goes on all the time, and each reply is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import leaves
from benchmarks.runner import allow_many_files
from benchmarks.servers import HOST, ROOT, RunningServer, Server, twistd
from benchmarks.soak_clients import Clients
from benchmarks.soak_samples import HEADING, Sample, Verdict, judge, look

_CONFIGURATION = """\
[Net]
Listen = {host}:{port}
worker_connections = 2000

[Proc]
WorkerProcesses = 2
ProcMsgRecvWorkThreadCount = 4

[App]
App = benchmarks.soak_app:app
AppPath = {root}
"""

PHASES = (("warm-up", 0.1), ("steady", 0.5), ("disturbed", 0.3), ("calm", 0.1))
"""The phases, and their shares of the time."""

INTERVAL = 3.0
"""Seconds between two looks."""

RELOAD_EVERY = 10.0
KILL_EVERY = 35.0
WORKERS = 2
SLOWER = 2.0
"""How many times slower than early the 99th percentile may be late."""


def _command(port: int, folder: Path) -> list[str]:
    configuration = folder / "ccserver.conf"
    configuration.write_text(_CONFIGURATION.format(host=HOST, port=port, root=ROOT))
    return [*twistd(), "ccserver", "--config", str(configuration)]


@dataclass
class Disturbances:
    """When the next ones are due, and how many there were."""

    reload_at: float
    kill_at: float
    reloads: int = 0
    kills: int = 0


class Soak:
    """One run."""

    def __init__(self, running: RunningServer, seconds: float, seed: int) -> None:
        self.samples: list[Sample] = []
        self.clients = Clients(running.port, seed)
        self._running = running
        self._seconds = seconds
        self._began = time.monotonic()
        self._disturbances: Disturbances | None = None

    async def run(self) -> None:
        self._began = time.monotonic()
        self.clients.start()
        print(HEADING)
        end = 0.0
        for phase, share in PHASES:
            end += share * self._seconds
            while self._at() < end:
                await self._look(phase)
                if phase == "disturbed":
                    self._disturb()
                await asyncio.sleep(INTERVAL)
        await self.clients.stop()

    def report(self) -> bool:
        """Print what it came to; whether all is well."""
        verdicts = self._verdicts()
        counts, disturbances = self.clients.counts, self._disturbances
        print()
        for verdict in verdicts:
            print(verdict.line())
        early, late = self._percentiles()
        fast = late <= max(SLOWER * early, 0.02)
        print(
            f"{'PASS' if fast else 'FAIL'} 99th percentile of a reply, in the steady phase: "
            f"early {early * 1000:.1f} ms, late {late * 1000:.1f} ms"
        )
        alive = leaves(self._running.processes())
        whole = len(alive) == WORKERS
        print(f"{'PASS' if whole else 'FAIL'} workers at the end: {len(alive)}")
        good = not counts["faults"] and counts["replies"] > 0
        if disturbances is not None:
            counts.update(reloads=disturbances.reloads, kills=disturbances.kills)
        print(f"{'PASS' if good else 'FAIL'} traffic: {dict(sorted(counts.items()))}")
        for fault in self.clients.faults:
            print(f"     {fault}")
        return good and fast and whole and all(verdict.good for verdict in verdicts)

    def _at(self) -> float:
        return time.monotonic() - self._began

    async def _look(self, phase: str) -> None:
        """Take a sample of each process."""
        processes = self._running.processes()
        master = self._running.leader
        workers = leaves(processes) - {master}
        timers = await self.clients.figures(workers)
        at = self._at()
        for pid in [master, *sorted(workers)]:
            process = "master" if pid == master else "worker"
            sample = look(at, phase, process, pid, timers.get(pid))
            if sample is not None:
                self.samples.append(sample)
                print(sample.line(), flush=True)

    def _disturb(self) -> None:
        now = self._at()
        if self._disturbances is None:
            self._disturbances = Disturbances(now + 1.0, now + KILL_EVERY / 2)
        due = self._disturbances
        if now >= due.kill_at:
            workers = leaves(self._running.processes()) - {self._running.leader}
            if workers:
                self.clients.killed()
                os.kill(min(workers), signal.SIGKILL)
                due.kills += 1
            due.kill_at = now + KILL_EVERY
        elif now >= due.reload_at:
            os.kill(self._running.leader, signal.SIGHUP)
            due.reloads += 1
            due.reload_at = now + RELOAD_EVERY

    def _verdicts(self) -> list[Verdict]:
        """Workers by what they were while nobody touched them; the master by its whole life."""
        verdicts = []
        steady = [sample for sample in self.samples if sample.phase == "steady"]
        for pid in sorted({sample.pid for sample in steady if sample.process == "worker"}):
            own = [sample for sample in steady if sample.pid == pid]
            verdicts += judge(f"worker {pid}", own, churning=True)
        master = [sample for sample in self.samples if sample.process == "master"]
        for name, phases in (
            ("master, steady", ("steady",)),
            ("master, disturbed", ("disturbed",)),
        ):
            verdicts += judge(name, [s for s in master if s.phase in phases], churning=False)
        before = [sample for sample in master if sample.phase == "steady"][-1]
        behind = master[-1]
        for figure in ("descriptors", "own", "threads"):
            early, late = getattr(before, figure), getattr(behind, figure)
            verdicts.append(Verdict("master, in the end", figure, early, late, 0.0, late <= early))
        return verdicts

    def _percentiles(self) -> tuple[float, float]:
        """The 99th percentiles of the first and the last third of the steady phase."""
        times = [sample.at for sample in self.samples if sample.phase == "steady"]
        first, last = self._began + times[0], self._began + times[-1]
        seconds = [s for at, s in self.clients.latencies if first <= at <= last]
        third = max(1, len(seconds) // 3)
        early, late = (sorted(part)[len(part) * 99 // 100] for part in
                       (seconds[:third], seconds[-third:]))  # fmt: skip
        return early, late


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not 1 <= options.minutes <= 24 * 60:
        parser.error("from 1 minute to a day")
    allow_many_files()
    server = Server("ccserver", "under everything", _command)
    with RunningServer(server, None) as running:
        soak = Soak(running, options.minutes * 60, options.seed)
        asyncio.run(soak.run())
        good = soak.report()
    print("PASS" if good else "FAIL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
