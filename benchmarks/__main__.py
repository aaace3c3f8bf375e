"""The command C{python -m benchmarks}: CPU time a packet of each server in each cell."""

import argparse
import sys
from pathlib import Path

from benchmarks import plot
from benchmarks.command_line import NAMES, Outcomes, add_servers, begin, bodies, cells, present
from benchmarks.command_line import parser as common_parser
from benchmarks.conditions import conditions
from benchmarks.generator import generator_command, python_generator
from benchmarks.report import (
    generator_was_full,
    median_of,
    of_cell,
    packets_per_second,
    ratio_of,
    share_of,
    spread_of,
    summarise,
)
from benchmarks.runner import Plan, choose_cores, measure


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = common_parser("benchmarks", __doc__)
    add_servers(parser, "--only", NAMES)
    parser.add_argument("--cells", type=cells, default="1x1,64x1,1000x1,64x64",
                        help="connections x packets in flight on each (%(default)s)")  # fmt: skip
    parser.add_argument("--bodies", type=bodies, default="32",
                        help="bytes; each cell is measured with each (%(default)s)")  # fmt: skip
    parser.add_argument("--base", nargs="+", choices=NAMES, default=["uvloop", "twisted"],
                        metavar="NAME", help="what the ratios are to (%(default)s)")  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE",
                        help="draw the CPU times there, .svg or .png (matplotlib)")  # fmt: skip
    parser.add_argument("--python-generator", action="store_true", help="for smoke tests")
    return parser.parse_args()


def main() -> int:
    """Measure, print the report; status 1 where a server could not be measured."""
    arguments = parse_arguments()
    if arguments.plot:
        plot.check(arguments.plot)
    begin()
    plan = Plan(
        servers=present(arguments.servers),
        cells=arguments.cells,
        bodies=arguments.bodies,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        warmup=arguments.warmup,
        command=python_generator() if arguments.python_generator else generator_command(),
    )
    cores = choose_cores()
    facts = conditions(plan, cores, "benchmarks")
    outcomes = Outcomes()
    outcomes.collect(measure(plan, cores))
    summaries = summarise(outcomes.samples, arguments.base)
    columns = [
        spread_of("CPU us/packet", "cpu_us", 2),
        *(ratio_of(f"/ {base}", "cpu_us", base) for base in arguments.base),
        packets_per_second("packets/s"),
        median_of("p50 us", "p50_us"),
        median_of("p99 us", "p99_us"),
        median_of("p99.9 us", "p999_us"),
        share_of("busy", "server_busy"),
        share_of("load", "generator_busy"),
        share_of("others", "others_busy"),
    ]
    status = outcomes.show(facts, summaries, columns, of_cell, arguments.json)
    if generator_was_full(summaries):
        print("* the generator's core was full: packets/s and latency are its, not theirs")
    if arguments.plot:
        plot.draw(summaries, arguments.plot)
    return status


if __name__ == "__main__":
    sys.exit(main())
