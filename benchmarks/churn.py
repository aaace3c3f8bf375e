"""The command C{python -m benchmarks.churn}: what a connection costs that lives for one packet."""

import argparse
import sys
from dataclasses import replace

from benchmarks.command_line import (
    Outcomes,
    add_servers,
    at_least_one,
    begin,
    body,
    needed_generator,
    parser,
    present,
)
from benchmarks.conditions import conditions
from benchmarks.generator import Cell
from benchmarks.report import (
    Summary,
    median_of,
    packets_per_second,
    ratio_of,
    share_of,
    spread_of,
    summarise,
)
from benchmarks.runner import Plan, choose_cores, measure

BASE = "uvloop"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    made = parser("benchmarks.churn", __doc__)
    add_servers(made, "--servers", ["ccserver", "uvloop", "asyncio", "twisted"])
    made.add_argument(
        "--connections", type=at_least_one, default=64, help="at a time (%(default)s)"
    )
    made.add_argument("--body", type=body, default=32, help="bytes (%(default)s)")
    return made.parse_args()


def heading(row: Summary) -> str:
    """Above the table."""
    connections, _, _ = row.cell.partition("x")
    return f"{connections} connections at a time, one packet of {row.body:,} bytes on each"


def main() -> int:
    """Measure, print; status 1 where a server could not be measured."""
    arguments = parse_arguments()
    begin()
    plan = Plan(
        servers=present(arguments.servers),
        cells=[Cell(arguments.connections, 1)],
        bodies=[arguments.body],
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        warmup=arguments.warmup,
        command=needed_generator(),
    )
    cores = choose_cores()
    facts = conditions(plan, cores, "benchmarks.churn")
    outcomes = Outcomes()
    outcomes.collect(measure(plan, cores, lambda load: replace(load, churn=True)))
    summaries = summarise(outcomes.samples, [BASE], ("cpu_us", "packets_per_second"))
    columns = [
        spread_of("CPU us/connection", "cpu_us", 1),
        ratio_of(f"/ {BASE}", "cpu_us", BASE),
        packets_per_second("connections/s"),
        ratio_of(f"/ {BASE}", "packets_per_second", BASE),
        median_of("p50 us", "p50_us"),
        median_of("p99 us", "p99_us"),
        share_of("busy", "server_busy"),
        share_of("load", "generator_busy"),
        share_of("others", "others_busy"),
    ]
    return outcomes.show(facts, summaries, columns, heading, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
