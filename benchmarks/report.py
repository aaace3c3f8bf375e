"""Turns samples into medians, ratios, a text table and JSON."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.runner import Failure, Sample
from benchmarks.table import aligned

GENERATOR_BOUND = 0.95  # share of its core beyond which the generator is what limits packets/s

DISTURBED = 0.1  # share of a core used by others beyond which the report says so

NOTHING = "-"


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
        span = f"({self.least:,.{digits}f}-{self.greatest:,.{digits}f})"
        return f"{self.median:,.{digits}f} {span}"


@dataclass(frozen=True)
class Summary:
    """All rounds of one server in one cell with one body.

    @ivar ratios: by figure and base: this server's to the base's in the same round.
    """

    cell: str
    body: int
    server: str
    rounds: int
    cpu_us: Spread
    packets_per_second: Spread
    p50_us: Spread
    p99_us: Spread
    p999_us: Spread
    max_us: Spread
    late_p99_us: Spread
    server_busy: Spread
    generator_busy: Spread
    others_busy: Spread
    ratios: dict[str, dict[str, Spread]]


def summarise(
    samples: Sequence[Sample], bases: Sequence[str], compared: Sequence[str] = ("cpu_us",)
) -> list[Summary]:
    """One L{Summary} a cell, body and server, in the order in which they were measured.

    @param compared: the figures of which ratios are taken.
    """
    by_place: dict[tuple[str, int, str], list[Sample]] = {}
    for sample in samples:
        by_place.setdefault((sample.cell, sample.body, sample.server), []).append(sample)
    summaries = []
    for (cell, body, server), found in by_place.items():
        ratios: dict[str, dict[str, Spread]] = {figure: {} for figure in compared}
        for base in bases:
            rivals = {s.round: s for s in by_place.get((cell, body, base), [])}
            pairs = [(s, rivals[s.round]) for s in found if s.round in rivals]
            for figure in compared if pairs else ():
                ratios[figure][base] = Spread.of(
                    getattr(own, figure) / getattr(other, figure) for own, other in pairs
                )
        summaries.append(
            Summary(
                cell=cell,
                body=body,
                server=server,
                rounds=len(found),
                cpu_us=Spread.of(s.cpu_us for s in found),
                packets_per_second=Spread.of(s.packets_per_second for s in found),
                p50_us=Spread.of(s.p50_us for s in found),
                p99_us=Spread.of(s.p99_us for s in found),
                p999_us=Spread.of(s.p999_us for s in found),
                max_us=Spread.of(s.max_us for s in found),
                late_p99_us=Spread.of(s.late_p99_us for s in found),
                server_busy=Spread.of(s.server_busy for s in found),
                generator_busy=Spread.of(s.generator_busy for s in found),
                others_busy=Spread.of(s.others_busy for s in found),
                ratios=ratios,
            )
        )
    return summaries


Column = tuple[str, Callable[[Summary], str]]


def median_of(title: str, figure: str, digits: int = 0) -> Column:
    """The median alone."""
    return title, lambda row: f"{_spread(row, figure).median:,.{digits}f}"


def spread_of(title: str, figure: str, digits: int) -> Column:
    """Median, least and greatest."""
    return title, lambda row: _spread(row, figure).text(digits)


def share_of(title: str, figure: str) -> Column:
    """The median in per cent."""
    return title, lambda row: f"{_spread(row, figure).median:.0%}"


def ratio_of(title: str, figure: str, base: str) -> Column:
    """The ratio of a figure to the base's in the same round."""

    def render(row: Summary) -> str:
        found = row.ratios[figure].get(base)
        return found.text(2) if found else NOTHING

    return title, render


def text(
    facts: dict[str, Any],
    summaries: Sequence[Summary],
    failures: Sequence[Failure],
    columns: Sequence[Column],
    heading: Callable[[Summary], str],
) -> str:
    """The whole report for a terminal: a table under each C{heading}."""
    packages = ", ".join(f"{name} {found}" for name, found in facts["packages"].items())
    lines = [
        f"{facts['date']}, {facts['machine']}, load average {facts['load_average']}",
        f"Python {facts['python']}, {packages}, commit {facts['commit']}",
        f"{facts['cores']}; generator in {facts['generator']}",
        f"{facts['rounds']} interleaved rounds of {facts['seconds']:g} s; median (least-greatest)",
        *(f"  {name}: {note}" for name, note in facts["servers"].items()),
    ]
    if facts["generator"] != "c":
        lines.append("The Python generator is slower than the servers: a smoke test, no result.")
    for title in dict.fromkeys(map(heading, summaries)):
        rows = [summary for summary in summaries if heading(summary) == title]
        lines += ["", title, _table(rows, columns)]
    lines += [
        "",
        "busy, load, others: share of a core used by the server, the generator, the rest",
    ]
    if any(row.others_busy.median > DISTURBED for row in summaries):
        lines.append(
            "The machine was not ours alone: packets/s and latencies are worse than on a "
            "quiet one; CPU time a packet suffers much less."
        )
    lines += [
        f"FAILED {failure.cell}, {failure.body} bytes, {failure.server}: {failure.message}"
        for failure in failures
    ]
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


def of_cell(row: Summary) -> str:
    """The heading of a closed loop's table."""
    connections, _, depth = row.cell.partition("x")
    return f"{connections} connections, {depth} in flight on each, bodies of {row.body:,} bytes"


def packets_per_second(title: str) -> Column:
    """The median, marked where it is rather the generator's."""

    def render(row: Summary) -> str:
        mark = "*" if row.generator_busy.median > GENERATOR_BOUND else ""
        return f"{row.packets_per_second.median:,.0f}{mark}"

    return title, render


def generator_was_full(summaries: Sequence[Summary]) -> bool:
    """Whether a figure is marked."""
    return any(row.generator_busy.median > GENERATOR_BOUND for row in summaries)


def _table(rows: Sequence[Summary], columns: Sequence[Column]) -> str:
    filled = [[title, *map(render, rows)] for title, render in columns]
    filled = [column for column in filled if set(column[1:]) != {NOTHING}]
    filled.insert(0, ["server", *(row.server for row in rows)])
    return aligned(list(zip(*filled, strict=True)))


def _spread(row: Summary, figure: str) -> Spread:
    found: Spread = getattr(row, figure)
    return found
