"""Turns samples into medians, ratios, a text table and JSON."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.runner import Cores, Failure, Plan, Sample
from benchmarks.servers import ROOT

GENERATOR_BOUND = 0.95  # share of its core beyond which the generator is what limits packets/s

DISTURBED = 0.1  # share of a core used by others beyond which the report says so


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Summarise at least one value."""
        found = list(values)
        return cls(median(found), min(found), max(found))

    def text(self, digits: int) -> str:
        """C{"12.3 (11.9-14.0)"}."""
        span = f"({self.least:.{digits}f}-{self.greatest:.{digits}f})"
        return f"{self.median:.{digits}f} {span}"


@dataclass(frozen=True)
class Summary:
    """All rounds of one server in one cell; C{ratios} by base, both taken in the same round."""

    cell: str
    server: str
    rounds: int
    cpu_us: Spread
    packets_per_second: Spread
    p50_us: Spread
    p99_us: Spread
    p999_us: Spread
    server_busy: Spread
    generator_busy: Spread
    others_busy: Spread
    ratios: dict[str, Spread]


def summarise(samples: Sequence[Sample], bases: Sequence[str]) -> list[Summary]:
    """One L{Summary} a cell and server, in the order in which they were measured."""
    by_place: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        by_place.setdefault((sample.cell, sample.server), []).append(sample)
    cpu = {(s.cell, s.server, s.round): s.cpu_us for s in samples}
    summaries = []
    for (cell, server), found in by_place.items():
        ratios = {}
        for base in bases:
            pairs = [(s.cpu_us, cpu.get((cell, base, s.round))) for s in found]
            in_rounds = [own / other for own, other in pairs if other]
            if in_rounds:
                ratios[base] = Spread.of(in_rounds)
        summaries.append(
            Summary(
                cell=cell,
                server=server,
                rounds=len(found),
                cpu_us=Spread.of(s.cpu_us for s in found),
                packets_per_second=Spread.of(s.packets_per_second for s in found),
                p50_us=Spread.of(s.p50_us for s in found),
                p99_us=Spread.of(s.p99_us for s in found),
                p999_us=Spread.of(s.p999_us for s in found),
                server_busy=Spread.of(s.server_busy for s in found),
                generator_busy=Spread.of(s.generator_busy for s in found),
                others_busy=Spread.of(s.others_busy for s in found),
                ratios=ratios,
            )
        )
    return summaries


def conditions(plan: Plan, cores: Cores, generator: str) -> dict[str, Any]:
    """Where, when and with what was measured."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "machine": f"{os.cpu_count()} x {_cpu_model()}, {platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("twisted", "uvloop", "ccserver")},
        "commit": _commit(),
        "cores": str(cores),
        "generator": generator,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "warmup": plan.warmup,
        "body": plan.body,
        "servers": {server.name: server.note for server in plan.servers},
    }


def text(
    facts: dict[str, Any],
    summaries: Sequence[Summary],
    failures: Sequence[Failure],
    bases: Sequence[str],
) -> str:
    """The whole report for a terminal."""
    packages = ", ".join(f"{name} {found}" for name, found in facts["packages"].items())
    lines = [
        f"{facts['date']}, {facts['machine']}, load average {facts['load_average']}",
        f"Python {facts['python']}, {packages}, commit {facts['commit']}",
        f"{facts['cores']}; generator in {facts['generator']}",
        f"{facts['rounds']} interleaved rounds of {facts['seconds']:g} s; median (least-greatest)",
        f"bodies of {facts['body']} bytes",
        *(f"  {name}: {note}" for name, note in facts["servers"].items()),
    ]
    if facts["generator"] != "c":
        lines.append("The Python generator is slower than the servers: a smoke test, no result.")
    for cell in dict.fromkeys(summary.cell for summary in summaries):
        rows = [summary for summary in summaries if summary.cell == cell]
        connections, _, depth = cell.partition("x")
        lines += ["", f"{connections} connections, {depth} in flight on each"]
        lines += _table(rows, [base for base in bases if any(base in row.ratios for row in rows)])
    if any(row.generator_busy.median > GENERATOR_BOUND for row in summaries):
        lines += ["", "* the generator's core was full: packets/s and latency are its, not theirs"]
    lines += [
        "",
        "busy, load, others: share of a core used by the server, the generator, the rest",
    ]
    if any(row.others_busy.median > DISTURBED for row in summaries):
        lines.append(
            "The machine was not ours alone: packets/s and latencies are worse than on a "
            "quiet one; CPU time a packet suffers much less."
        )
    lines += [f"FAILED {failure.cell} {failure.server}: {failure.message}" for failure in failures]
    return "\n".join(lines)


def as_json(
    facts: dict[str, Any],
    samples: Sequence[Sample],
    summaries: Sequence[Summary],
    failures: Sequence[Failure],
) -> dict[str, Any]:
    """Everything that was measured, sample by sample, and what the table shows."""
    return {
        "conditions": facts,
        "summaries": [asdict(summary) for summary in summaries],
        "failures": [asdict(failure) for failure in failures],
        "samples": [asdict(sample) for sample in samples],
    }


def _table(rows: Sequence[Summary], bases: Sequence[str]) -> list[str]:
    columns: list[tuple[str, Callable[[Summary], str]]] = [
        ("server", lambda row: row.server),
        ("CPU us/packet", lambda row: row.cpu_us.text(2)),
    ]
    for base in bases:
        columns.append((f"/ {base}", partial(_ratio, base)))
    columns += [
        ("packets/s", _packets_per_second),
        ("p50 us", lambda row: f"{row.p50_us.median:.0f}"),
        ("p99 us", lambda row: f"{row.p99_us.median:.0f}"),
        ("p99.9 us", lambda row: f"{row.p999_us.median:.0f}"),
        ("busy", lambda row: f"{row.server_busy.median:.0%}"),
        ("load", lambda row: f"{row.generator_busy.median:.0%}"),
        ("others", lambda row: f"{row.others_busy.median:.0%}"),
    ]
    cells = [[title for title, _ in columns]]
    cells += [[render(row) for _, render in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return [
        "  ".join(
            value.ljust(width) if i == 0 else value.rjust(width)
            for i, (value, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def _ratio(base: str, row: Summary) -> str:
    return row.ratios[base].text(2) if base in row.ratios else "-"


def _packets_per_second(row: Summary) -> str:
    mark = "*" if row.generator_busy.median > GENERATOR_BOUND else ""
    return f"{row.packets_per_second.median:,.0f}{mark}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
