"""The command C{python -m benchmarks.beside}: how late replies are beside programs that compute.

ccserver with two workers, once with each policy of C{WorkerScheduling}, is asked at given rates
while other programs of the usual priority compute. Nothing is pinned: all of them share the cores.
A latency counts from the moment a packet was due. The generator polls, so it computes as well.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from benchmarks.command_line import (
    Outcomes,
    at_least_one,
    begin,
    body,
    needed_generator,
    parser,
)
from benchmarks.conditions import conditions
from benchmarks.generator import Cell, Load
from benchmarks.report import Summary, median_of, share_of, spread_of, summarise
from benchmarks.runner import Attempts, Cores, Plan, Sample, measure_running
from benchmarks.servers import CONFIGURATION, SERVERS, RunningServer, Server

POLICIES = ("normal", "batch", "auto")
CORES = Cores(None, None)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    made = parser("benchmarks.beside", __doc__)
    made.set_defaults(seconds=1.0, warmup=2.5)  # a worker that is busy takes note within two
    made.add_argument("--connections", type=at_least_one, default=64, help="(%(default)s)")
    made.add_argument("--body", type=body, default=32, help="bytes (%(default)s)")
    made.add_argument("--rates", type=rates, default="5000,40000,60000,90000",
                      help="packets a second (%(default)s)")  # fmt: skip
    made.add_argument("--programs", type=at_least_one, default=1,
                      help="that compute (%(default)s)")  # fmt: skip
    return made.parse_args()


def rates(text: str) -> list[float]:
    """C{"5000,40000"}."""
    return [at_least_one(part) for part in text.split(",")]


@contextmanager
def computing(count: int) -> Iterator[None]:
    """So many programs that compute."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(command: list[str], programs: int, number: int, server: Server, load: Load) -> Sample:
    """Start the server, measure it beside so many programs, end it."""
    with RunningServer(server, None, workers=2) as running, computing(programs):
        sample = measure_running(command, CORES, number, running, load)
    return replace(sample, cell=f"{load.rate:,.0f} a second")


def main() -> int:
    """Measure, print; status 1 where it was not possible."""
    arguments = parse_arguments()
    begin()
    (ccserver,) = (server for server in SERVERS if server.name == "ccserver")
    plan = Plan(
        servers=[
            replace(
                ccserver,
                name=policy,
                note=f"{ccserver.note}; WorkerScheduling = {policy}",
                configuration=CONFIGURATION.replace(
                    "[Proc]\n", f"[Proc]\nRebalanceInterval = 0\nWorkerScheduling = {policy}\n"
                ),
            )
            for policy in POLICIES
        ],
        cells=[Cell(arguments.connections, 1)],
        bodies=[arguments.body],
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        warmup=arguments.warmup,
        command=needed_generator(),
    )
    facts = conditions(plan, CORES, "benchmarks.beside")
    outcomes = Outcomes()
    (closed,) = plan.loads
    loads = {replace(closed, rate=rate): Attempts() for rate in arguments.rates}
    for number in range(1, plan.rounds + 1):
        for load, attempts in loads.items():
            for server in plan.servers:
                once = partial(measure, plan.command, arguments.programs, number, server, load)
                outcomes.collect(attempts.sample(server, load, once))
    summaries = summarise(outcomes.samples, [], ())
    columns = [
        spread_of("p50 us", "p50_us", 0),
        spread_of("p99 us", "p99_us", 0),
        spread_of("CPU us/packet", "cpu_us", 2),
        share_of("busy", "server_busy"),
        median_of("late us", "late_p99_us"),
    ]
    heading = partial(_heading, arguments.connections, arguments.programs)
    status = outcomes.show(facts, summaries, columns, heading, arguments.json)
    print("late: p99 of how long after its time the generator itself sent a packet")
    return status


def _heading(connections: int, programs: int, row: Summary) -> str:
    """Above the table."""
    return (
        f"{row.cell} on {connections} connections, bodies of {row.body:,} bytes, beside "
        f"{programs} programs that compute"
    )


if __name__ == "__main__":
    sys.exit(main())
