"""The command C{python -m benchmarks.slow_handlers}: handlers that hold a thread of the pool.

First handlers that sleep 1 ms, for 64 clients that ask and wait: how many a second, against what
the threads can do at most. Then a quick handler, asked at a fixed rate, alone and beside one that
sleeps 50 ms and gets 1 in 100 packets: how long the quick one's clients wait.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

from benchmarks.command_line import at_least_one, begin, needed_generator, parser
from benchmarks.generator import Cell, GeneratorError, Load, generate
from benchmarks.report import Spread
from benchmarks.runner import Cores, choose_cores
from benchmarks.servers import HOST, ROOT, RunningServer, Server, ServerError, ccserver_command
from benchmarks.slow_app import LONG, LONG_SLEEP, QUICK, SHORT, SHORT_SLEEP, SLEPT, TIMES
from benchmarks.slow_clients import SlowClients, packet
from benchmarks.table import aligned

CELL = Cell(64, 1)
BARE_SECONDS = 1.0

_CONFIGURATION = """\
[Net]
Listen = {{host}}:{{port}}
OnFewDescriptors = warn

[Proc]
WorkerProcesses = {{workers}}
ProcMsgRecvWorkThreadCount = {threads}

[App]
App = benchmarks.slow_app:app
AppPath = {{root}}
"""


@dataclass(frozen=True)
class Plan:
    """What is measured; rates in packets a second, C{share} of all packets are slow."""

    rounds: int
    seconds: float
    warmup: float
    threads: int
    rate: float
    share: float
    command: list[str]

    @property
    def slow_rate(self) -> float:
        """How many slow ones make up their share."""
        return self.rate * self.share / (1 - self.share)


@dataclass(frozen=True)
class Sleeping:
    """Handlers that sleep 1 ms: how many a second, and what limits that.

    @ivar slept: seconds that such a sleep took in the handlers, while they were measured.
    @ivar bare: sleeps a second of as many threads of a process that does nothing else.
    """

    round: int
    per_second: float
    slept: float
    bare: float


@dataclass(frozen=True)
class Waiting:
    """A quick handler's clients, alone or beside slow ones; microseconds and seconds.

    @ivar late_p99_us: how long after their time the generator itself sent packets.
    """

    round: int
    beside: bool
    p50_us: float
    p99_us: float
    p999_us: float
    late_p99_us: float
    slow_packets: int
    slow_waited: float


def server(threads: int) -> Server:
    """ccserver with so many threads."""
    configuration = _CONFIGURATION.format(threads=threads)
    return Server("ccserver", "def handlers", ccserver_command, configuration=configuration)


def sleep_in_bare_threads(threads: int) -> float:
    """How many sleeps a second so many threads do that do nothing else."""
    counts: list[int] = []
    end = time.perf_counter() + BARE_SECONDS

    def sleep() -> None:
        count = 0
        while time.perf_counter() < end:
            time.sleep(SHORT_SLEEP)
            count += 1
        counts.append(count)

    running = [threading.Thread(target=sleep) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / BARE_SECONDS


def measure_sleeping(plan: Plan, cores: Cores, number: int) -> Sleeping:
    """One round of handlers that sleep 1 ms."""
    command = [sys.executable, "-m", "benchmarks.slow_handlers", "--bare", str(plan.threads)]
    pin = None if cores.server is None else partial(os.sched_setaffinity, 0, {cores.server})
    bare = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, preexec_fn=pin)
    slept: list[float] = []
    load = Load(CELL, code=SHORT, seconds=plan.seconds, warmup=plan.warmup)
    with RunningServer(server(plan.threads), cores.server) as running:
        ask = partial(_ask_how_long, running.port, slept)
        result = generate(plan.command, load, HOST, running.port, cores.generator, ask, ask)
    return Sleeping(number, result.packets_per_second, slept[1], float(bare.stdout))


def _ask_how_long(port: int, slept: list[float]) -> None:
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(packet(SLEPT, b""))
        reply = connection.recv(8 + TIMES.size, socket.MSG_WAITALL)
    slept.append(TIMES.unpack(reply[8:])[1])


def measure_waiting(plan: Plan, cores: Cores, number: int, beside: bool) -> Waiting:
    """One round of a quick handler."""
    load = Load(CELL, code=QUICK, seconds=plan.seconds, warmup=plan.warmup, rate=plan.rate)
    waited: list[float] = []
    with RunningServer(server(plan.threads), cores.server) as running:
        run = partial(generate, plan.command, load, HOST, running.port, cores.generator)
        if not beside:
            result = run(_nothing, _nothing)
        else:
            with SlowClients(running.port, LONG, plan.slow_rate, seed=number) as slow:
                result = run(slow.waited.clear, lambda: waited.extend(slow.waited))
    return Waiting(
        number,
        beside,
        result.p50_us,
        result.p99_us,
        result.p999_us,
        result.late_p99_us,
        len(waited),
        statistics.median(waited) if waited else 0.0,
    )


def _nothing() -> None:
    pass


def text_of_sleeping(plan: Plan, samples: Sequence[Sleeping]) -> str:
    """The first table."""
    nominal = plan.threads / SHORT_SLEEP
    figures: list[tuple[str, list[float], int]] = [
        ("handled a second", [s.per_second for s in samples], 0),
        (f"share of {plan.threads} threads / 1 ms", [s.per_second / nominal for s in samples], 3),
        ("what the sleep takes in the handlers, ms", [s.slept * 1e3 for s in samples], 3),
        (f"share of {plan.threads} threads / that",
         [s.per_second * s.slept / plan.threads for s in samples], 3),
        ("sleeps a second of bare threads", [s.bare for s in samples], 0),
        ("share of that", [s.per_second / s.bare for s in samples], 3),
    ]  # fmt: skip
    rows = [[name, Spread.of(values).text(digits)] for name, values, digits in figures]
    title = f"sleeps of 1 ms, {plan.threads} threads, {CELL.connections} clients"
    return aligned([[title, ""], *rows])


def text_of_waiting(plan: Plan, samples: Sequence[Waiting]) -> str:
    """The second table."""
    alone = [sample for sample in samples if not sample.beside]
    beside = [sample for sample in samples if sample.beside]
    figures = ("p50_us", "p99_us", "p999_us")
    rows = [["quick handler", "p50 us", "p99 us", "p99.9 us"]]
    for name, found in (("alone", alone), ("beside slow ones", beside)):
        spreads = [Spread.of(getattr(one, figure) for one in found) for figure in figures]
        rows.append([name, *(spread.text(0) for spread in spreads)])
    pairs = list(zip(beside, alone, strict=True))
    spreads = [
        Spread.of(getattr(one, figure) / getattr(other, figure) for one, other in pairs)
        for figure in figures
    ]
    rows.append(["beside / alone", *(spread.text(2) for spread in spreads)])
    slow = sum(sample.slow_packets for sample in beside)
    quick = plan.rate * plan.seconds * len(beside)
    busy = plan.slow_rate * LONG_SLEEP
    waited = Spread.of(sample.slow_waited * 1e3 for sample in beside)
    connections = f"{CELL.connections} connections"
    share, rate = slow / (slow + quick), f"{plan.slow_rate:.1f}"
    lines = [
        f"{plan.rate:g} quick packets a second on {connections}, evenly spread; beside them",
        f"{rate} that take 50 ms, on other connections, at random times: {share:.2%} of all,",
        f"which hold {busy:.1f} of {plan.threads} threads on average",
        aligned(rows),
        f"the slow ones' replies came after {waited.text(1)} ms; p99 of how late the generator",
        f"itself sent a packet: {Spread.of(sample.late_p99_us for sample in samples).text(0)} us",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure in interleaved rounds and print."""
    made = parser("benchmarks.slow_handlers", __doc__)
    made.add_argument("--threads", type=at_least_one, default=8, help="of the pool (%(default)s)")
    made.add_argument("--rate", type=float, default=4000,
                        help="quick packets a second (%(default)s)")  # fmt: skip
    made.add_argument("--share", type=float, default=0.01, help="of slow packets (%(default)s)")
    made.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.bare:
        print(sleep_in_bare_threads(arguments.bare))
        return 0
    if not (0 < arguments.share < 1 and 1 <= arguments.rate <= 1e6):
        made.error("out of bounds: share between 0 and 1, rate from 1 to 1000000")
    begin()
    command = needed_generator()
    plan = Plan(
        arguments.rounds,
        arguments.seconds,
        arguments.warmup,
        arguments.threads,
        arguments.rate,
        arguments.share,
        command,
    )
    cores = choose_cores()
    sleeping: list[Sleeping] = []
    waiting: list[Waiting] = []
    try:
        for number in range(1, plan.rounds + 1):
            sleeping.append(measure_sleeping(plan, cores, number))
            for beside in (False, True) if number % 2 else (True, False):
                waiting.append(measure_waiting(plan, cores, number, beside))
    except (GeneratorError, ServerError) as error:
        sys.exit(f"{error}")
    print(f"{plan.rounds} interleaved rounds of {plan.seconds:g} s; median (least-greatest)")
    print(f"{cores}\n")
    print(text_of_sleeping(plan, sleeping), text_of_waiting(plan, waiting), sep="\n\n")
    if arguments.json:
        samples = {
            "plan": asdict(plan),
            "sleeping": [asdict(sample) for sample in sleeping],
            "waiting": [asdict(sample) for sample in waiting],
        }
        arguments.json.write_text(json.dumps(samples, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
