"""The command C{python -m benchmarks}."""

import argparse
import json
import signal
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.generator import Cell, generator_command, python_generator
from benchmarks.runner import (
    Failure,
    Plan,
    Sample,
    allow_many_files,
    choose_cores,
    measure,
    progress,
)
from benchmarks.servers import SERVERS


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    names = [server.name for server in SERVERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="counted window of a sample")
    parser.add_argument("--warmup", type=float, default=0.3, help="seconds before it")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"servers to measure: {', '.join(names)}")  # fmt: skip
    parser.add_argument("--cells", type=parse_cells, default="1x1,64x1,1000x1,64x64",
                        help="connections x packets in flight on each (%(default)s)")  # fmt: skip
    parser.add_argument("--body", type=int, default=32, help="bytes (%(default)s)")
    parser.add_argument("--base", nargs="+", choices=names, default=["uvloop", "twisted"],
                        metavar="NAME", help="what the ratios are to (%(default)s)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--python-generator", action="store_true", help="for smoke tests")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or not 0 < arguments.seconds <= 600 or not 4 <= arguments.body <= 28992:
        parser.error("out of bounds: rounds from 1, seconds to 600, body from 4 to 28992")
    return arguments


def parse_cells(text: str) -> list[Cell]:
    """C{"64x1,64x64"}."""
    return [Cell.parse(part) for part in text.split(",")]


def main() -> int:
    """Measure, print the report; status 1 where a server could not be measured."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with us
    allow_many_files()
    chosen = [server for server in SERVERS if server.name in arguments.only]
    for server in chosen:
        if not server.available:
            print(f"{server.name} left out: {server.module} is not installed", file=sys.stderr)
    plan = Plan(
        servers=[server for server in chosen if server.available],
        cells=arguments.cells,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        warmup=arguments.warmup,
        body=arguments.body,
        command=python_generator() if arguments.python_generator else generator_command(),
    )
    cores = choose_cores()
    facts = report.conditions(plan, cores, "c" if len(plan.command) == 1 else "python")
    samples: list[Sample] = []
    failures: list[Failure] = []
    for outcome in measure(plan, cores):
        progress(outcome)
        if isinstance(outcome, Sample):
            samples.append(outcome)
        else:
            failures.append(outcome)
    summaries = report.summarise(samples, arguments.base)
    print(report.text(facts, summaries, failures, arguments.base))
    if arguments.json:
        everything = report.as_json(facts, samples, summaries, failures)
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
