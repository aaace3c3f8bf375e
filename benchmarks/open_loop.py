"""The command C{python -m benchmarks.open_loop}: latencies under a rate that is given.

In each round the base server's greatest rate in a closed loop is found first; then each server
gets the same share of it. A latency counts from the moment a packet was due.

What p99 tells depends on how often the kernel takes the server's core away meanwhile, which is not
the same for two servers. With C{--hold} this happens to each of them just as often.
"""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

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
from benchmarks.generator import Cell, GeneratorError
from benchmarks.holding import HoldingError, holding
from benchmarks.processes import ProcessesChangedError
from benchmarks.report import Summary, median_of, ratio_of, share_of, spread_of, summarise
from benchmarks.runner import Attempts, Plan, choose_cores, measure_once
from benchmarks.servers import SERVERS, ServerError

BASE = "uvloop"
LATENCIES = {"p50": "p50_us", "p99": "p99_us", "p99.9": "p999_us"}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    made = parser("benchmarks.open_loop", __doc__)
    add_servers(made, "--servers", ["ccserver", "uvloop"])
    made.add_argument("--connections", type=at_least_one, default=64, help="(%(default)s)")
    made.add_argument("--body", type=body, default=32, help="bytes (%(default)s)")
    made.add_argument("--share", type=float, default=0.5, help="of that rate (%(default)s)")
    made.add_argument("--hold", type=float, metavar="MS",
                      help="take the server's core away for so long, again and again")  # fmt: skip
    made.add_argument("--every", type=float, default=30.0, metavar="MS", help="(%(default)s)")
    arguments = made.parse_args()
    if arguments.hold is not None and not 0 < arguments.hold < arguments.every:
        made.error("--hold is above 0 and below --every")
    if not 0 < arguments.share <= 1:
        made.error("--share is above 0 and to 1")
    return arguments


def held_up(arguments: argparse.Namespace, core: int | None) -> AbstractContextManager[Any]:
    """What holds the server's core, if that is wanted."""
    if arguments.hold is None:
        return nullcontext()
    if core is None:
        sys.exit("--hold needs two cores")
    return holding(core, arguments.hold / 1e3, arguments.every / 1e3)


def heading(share: float, row: Summary) -> str:
    """Above the table."""
    connections, _, _ = row.cell.partition("x")
    return (
        f"{connections} connections, bodies of {row.body:,} bytes, packets due at {share:.0%} "
        f"of what {BASE} carries in a closed loop"
    )


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
    facts = conditions(plan, cores, "benchmarks.open_loop")
    (base,) = (server for server in SERVERS if server.name == BASE)
    if base.missing:
        sys.exit(f"the rate is {BASE}'s: {base.missing}")
    attempts, outcomes = Attempts(), Outcomes()
    (closed,) = plan.loads
    for number in range(1, plan.rounds + 1):
        try:
            greatest = measure_once(plan.command, cores, number, base, closed).packets_per_second
        except (ServerError, GeneratorError, ProcessesChangedError) as error:
            sys.exit(f"{BASE} in a closed loop: {error}")
        load = replace(closed, rate=greatest * arguments.share)
        print(f"round {number}: {load.rate:,.0f} packets/s", file=sys.stderr)
        for server in plan.servers:
            once = partial(measure_once, plan.command, cores, number, server, load)
            try:
                with held_up(arguments, cores.server):
                    outcomes.collect(attempts.sample(server, load, once))
            except HoldingError as error:
                sys.exit(f"--hold: {error}")
    summaries = summarise(outcomes.samples, [BASE], ("cpu_us", *LATENCIES.values()))
    columns = [median_of("packets/s", "packets_per_second")]
    for name, figure in LATENCIES.items():
        columns += [spread_of(f"{name} us", figure, 0), ratio_of(f"/ {BASE}", figure, BASE)]
    columns += [
        spread_of("CPU us/packet", "cpu_us", 2),
        share_of("busy", "server_busy"),
        share_of("others", "others_busy"),
        median_of("late us", "late_p99_us"),
    ]
    status = outcomes.show(
        facts, summaries, columns, partial(heading, arguments.share), arguments.json
    )
    print("late: p99 of how long after its time the generator itself sent a packet")
    return status


if __name__ == "__main__":
    sys.exit(main())
