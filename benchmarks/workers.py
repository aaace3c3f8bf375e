"""The command C{python -m benchmarks.workers}: does a packet cost more with two workers?

Nothing is pinned: master, workers and generator share the cores, as the kernel will have it. The
server in C, as one process and as two, says what that costs whoever it is. All servers are started
once, and the load goes from one to the next: short samples close together meet the same machine.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from benchmarks.command_line import Outcomes, begin, bodies, cells, needed_generator, parser
from benchmarks.conditions import conditions
from benchmarks.generator import Load
from benchmarks.report import (
    median_of,
    of_cell,
    packets_per_second,
    ratio_of,
    share_of,
    spread_of,
    summarise,
)
from benchmarks.runner import Attempts, Cores, Failure, Plan, Sample, measure_running
from benchmarks.servers import (
    CONFIGURATION,
    SERVERS,
    RunningServer,
    Server,
    ServerError,
    StartError,
    c_command,
)

BASE, TWO, NORMAL = "1 worker", "2 workers", "2 workers, normal"
COUNTS = {BASE: 1, TWO: 2, NORMAL: 2}
C_BASE = "c, 1 process"
TRIES = 5
USUAL = CONFIGURATION.replace("[Proc]\n", "[Proc]\nRebalanceInterval = 0\n")
"""Nothing is moved while it is measured."""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    made = parser("benchmarks.workers", __doc__, rounds=21)
    made.set_defaults(seconds=0.3, warmup=2.0)  # a worker that is busy takes note within two
    made.add_argument("--cells", type=cells, default="64x1,64x64",
                      help="connections x packets in flight on each (%(default)s)")  # fmt: skip
    made.add_argument("--bodies", type=bodies, default="32", help="bytes (%(default)s)")
    return made.parse_args()


def measure_settled(
    command: list[str], cores: Cores, number: int, running: RunningServer, load: Load
) -> Sample:
    """Measure, and see to it that workers of the default were scheduled as busy ones are.

    Of 64 connections one of two workers may have 16 by chance, and be none that is busy: so there
    are some tries.

    @raise ServerError: they were not, so it says nothing of the default.
    """
    for _ in range(TRIES):
        sample = measure_running(command, cores, number, running, load)
        if running.server.name not in (BASE, TWO):
            return sample
        policies = [os.sched_getscheduler(pid) for pid in running.processes()]
        busy = policies.count(os.SCHED_BATCH)
        if busy == COUNTS[running.server.name]:
            return sample
        told = f"{sample.cpu_us:.2f} us, of its workers {busy} scheduled as a batch"
        print(f"not counted: {running.server.name}, {told}", file=sys.stderr)
    raise ServerError(f"of its workers {busy} were scheduled as a batch")


def main() -> int:
    """Measure, print; status 1 where it was not possible."""
    arguments = parse_arguments()
    begin()
    (ccserver,) = (server for server in SERVERS if server.name == "ccserver")
    ccserver = replace(ccserver, configuration=USUAL)
    normal = USUAL.replace("[Proc]\n", "[Proc]\nWorkerScheduling = normal\n")
    normal_note = f"{ccserver.note}; WorkerScheduling = normal"
    note = "epoll, a read's replies joined"
    plan = Plan(
        servers=[
            replace(ccserver, name=BASE),
            replace(ccserver, name=TWO),
            replace(ccserver, name=NORMAL, configuration=normal, note=normal_note),
            Server(C_BASE, note, c_command),
            Server("c, 2 processes", note, lambda *where: [*c_command(*where), "2"]),
        ],
        cells=arguments.cells,
        bodies=arguments.bodies,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        warmup=arguments.warmup,
        command=needed_generator(),
    )
    cores = Cores(None, None)
    facts = conditions(plan, cores, "benchmarks.workers")
    attempts, outcomes = Attempts(), Outcomes()
    with ExitStack() as stack:
        running = []
        for server in plan.servers:
            one = RunningServer(server, cores.server, workers=COUNTS.get(server.name, 1))
            try:
                running.append(stack.enter_context(one))
            except StartError as error:
                outcomes.collect([Failure("all", plan.bodies[0], server.name, str(error))])
        for number in range(1, plan.rounds + 1):
            for load in plan.loads:
                for one in running if number % 2 else reversed(running):
                    once = partial(measure_settled, plan.command, cores, number, one, load)
                    outcomes.collect(attempts.sample(one.server, load, once))
    summaries = summarise(outcomes.samples, [BASE, C_BASE], ("cpu_us", "packets_per_second"))
    columns = [
        spread_of("CPU us/packet", "cpu_us", 2),
        ratio_of(f"/ {BASE}", "cpu_us", BASE),
        ratio_of(f"/ {C_BASE}", "cpu_us", C_BASE),
        packets_per_second("packets/s"),
        ratio_of(f"/ {BASE}", "packets_per_second", BASE),
        median_of("p50 us", "p50_us"),
        median_of("p99 us", "p99_us"),
        share_of("busy", "server_busy"),
        share_of("load", "generator_busy"),
        share_of("others", "others_busy"),
    ]
    return outcomes.show(facts, summaries, columns, of_cell, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
