"""What the commands that measure in rounds have in common."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.generator import Cell, GeneratorError, compiled_generator
from benchmarks.report import Summary
from benchmarks.runner import Failure, Sample, allow_many_files, progress
from benchmarks.servers import SERVERS, Server

NAMES = [server.name for server in SERVERS]
LONGEST_BODY = 28992  # with a header: what the servers accept in one packet


def parser(module: str, about: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """One with the options that all have."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    made.add_argument("--rounds", type=at_least_one, default=rounds, help="(%(default)s)")
    made.add_argument("--seconds", type=_seconds, default=2.0,
                      help="counted window of a sample (%(default)s)")  # fmt: skip
    made.add_argument("--warmup", type=float, default=0.3, help="seconds before it (%(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    return made


def add_servers(made: argparse.ArgumentParser, option: str, default: Sequence[str]) -> None:
    """The option that says which servers are measured."""
    made.add_argument(option, dest="servers", nargs="+", choices=NAMES, default=default,
                      metavar="NAME", help=f"servers to measure, of {', '.join(NAMES)}; "
                      f"default {' '.join(default)}")  # fmt: skip


def cells(text: str) -> list[Cell]:
    """C{"64x1,64x64"}."""
    return [Cell.parse(part) for part in text.split(",")]


def bodies(text: str) -> list[int]:
    """C{"32,1024"}."""
    return [body(part) for part in text.split(",")]


def body(text: str) -> int:
    """The length of a body that all servers take and whose packets can be told apart."""
    length = int(text)
    if not 4 <= length <= LONGEST_BODY:
        raise argparse.ArgumentTypeError(f"{length} is not from 4 to {LONGEST_BODY}")
    return length


def at_least_one(text: str) -> int:
    """A number of rounds, packets or connections."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def begin() -> None:
    """Be ready for many connections, and for an end that takes the servers along."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    allow_many_files()


def present(names: Sequence[str]) -> list[Server]:
    """Those that can run here; the others are told of on stderr."""
    chosen = [server for server in SERVERS if server.name in names]
    for server in chosen:
        if server.missing:
            print(f"{server.name} left out: {server.missing}", file=sys.stderr)
    return [server for server in chosen if server.available]


def needed_generator() -> list[str]:
    """The compiled generator, or the end of the program: load.py has only the closed loop."""
    try:
        return compiled_generator()
    except GeneratorError as error:
        sys.exit(f"this needs load.c: {error}")


@dataclass
class Outcomes:
    """What came of all attempts."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def collect(self, outcomes: Iterable[Sample | Failure]) -> None:
        """Take them as they come, and show on stderr how it goes."""
        for outcome in outcomes:
            progress(outcome)
            if isinstance(outcome, Sample):
                self.samples.append(outcome)
            else:
                self.failures.append(outcome)

    def show(
        self,
        facts: dict[str, Any],
        summaries: Sequence[Summary],
        columns: Sequence[report.Column],
        heading: Callable[[Summary], str],
        file: Path | None,
    ) -> int:
        """Print the report, write the JSON; the command's exit status."""
        print(report.text(facts, summaries, self.failures, columns, heading))
        if file:
            everything = report.as_json(facts, self.samples, summaries, self.failures)
            file.write_text(json.dumps(everything, indent=1) + "\n")
        return 1 if self.failures else 0


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= 600:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and to 600")
    return number
