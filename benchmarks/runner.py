"""Measures each server in each cell, in interleaved rounds, so that the machine's mood hits all."""

import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.generator import Cell, GeneratorError, Load, generate
from benchmarks.processes import ProcessesChangedError, busy_seconds, cpu_seconds, runs_only_on
from benchmarks.servers import HOST, RunningServer, Server, ServerError, StartError


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and how."""

    servers: Sequence[Server]
    cells: Sequence[Cell]
    rounds: int
    seconds: float
    warmup: float
    body: int
    command: list[str]


@dataclass(frozen=True)
class Cores:
    """Where server and generator run; C{None} is anywhere."""

    server: int | None
    generator: int | None

    @property
    def used(self) -> set[int]:
        """The cores whose time the measured processes share with nobody, if all is well."""
        if self.server is None or self.generator is None:
            return os.sched_getaffinity(0)
        return {self.server, self.generator}

    def __str__(self) -> str:
        if self.server is None:
            return "unpinned (fewer than two cores): server and generator share a core"
        return f"server on core {self.server}, generator on core {self.generator}"


@dataclass(frozen=True)
class Sample:
    """One server in one cell in one round."""

    round: int
    cell: str
    server: str
    cpu_us: float
    packets: int
    packets_per_second: float
    p50_us: float
    p99_us: float
    p999_us: float
    server_busy: float
    generator_busy: float
    others_busy: float


@dataclass(frozen=True)
class Failure:
    """Why a server could not be measured in a cell, or in all; it is not tried there again."""

    cell: str
    server: str
    message: str


def choose_cores() -> Cores:
    """One core for each side, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return Cores(cores[0], cores[1]) if len(cores) > 1 else Cores(None, None)


def allow_many_files() -> None:
    """Raise the limit of open files, which the servers inherit, to what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def measure(plan: Plan, cores: Cores) -> Iterator[Sample | Failure]:
    """All samples of all rounds, as they come."""
    failed: set[tuple[Cell, Server]] = set()
    unstartable: set[Server] = set()
    for number in range(1, plan.rounds + 1):
        for cell in plan.cells:
            for server in plan.servers:
                if server in unstartable or (cell, server) in failed:
                    continue
                try:
                    yield _measure_once(plan, cores, number, cell, server)
                except StartError as error:
                    unstartable.add(server)
                    yield Failure("all", server.name, str(error))
                except (ServerError, GeneratorError, ProcessesChangedError) as error:
                    failed.add((cell, server))
                    yield Failure(str(cell), server.name, str(error))


def progress(outcome: Sample | Failure) -> None:
    """One line on stderr, which the report on stdout does not need."""
    if isinstance(outcome, Failure):
        line = f"FAILED: {outcome.message}"
    else:
        line = f"round {outcome.round}: {outcome.cpu_us:7.2f} us CPU a packet"
    print(f"  {outcome.cell:>8} {outcome.server:16} {line}", file=sys.stderr, flush=True)


def _measure_once(plan: Plan, cores: Cores, number: int, cell: Cell, server: Server) -> Sample:
    load = Load(
        cell,
        body=plan.body,
        code=server.code,
        seconds=plan.seconds,
        warmup=plan.warmup,
        ordered=server.ordered,
    )
    with RunningServer(server, cores.server) as running:
        meter = _Meter(running, cores)
        result = generate(
            plan.command, load, HOST, running.port, cores.generator, meter.start, meter.stop
        )
    return Sample(
        round=number,
        cell=str(cell),
        server=server.name,
        cpu_us=meter.server / result.packets * 1e6,
        packets=result.packets,
        packets_per_second=result.packets_per_second,
        p50_us=result.p50_us,
        p99_us=result.p99_us,
        p999_us=result.p999_us,
        server_busy=meter.server / result.seconds,
        generator_busy=result.cpu_seconds / result.seconds,
        others_busy=max(0.0, (meter.all - meter.server - result.cpu_seconds) / result.seconds),
    )


class _Meter:
    """CPU seconds between two moments: of a server's processes, and of all who ran on the cores."""

    def __init__(self, running: RunningServer, cores: Cores) -> None:
        self._running = running
        self._cores = cores
        self.server = self.all = 0.0

    def start(self) -> None:
        """Also make sure that the server is where it was pinned, with all its threads."""
        self._processes = self._running.processes()
        core = self._cores.server
        if core is not None and not runs_only_on(self._processes, core):
            raise ServerError(f"has threads that left core {core}")
        self.all = -busy_seconds(self._cores.used)
        self.server = -cpu_seconds(self._processes)

    def stop(self) -> None:
        self.server += cpu_seconds(self._processes)
        self.all += busy_seconds(self._cores.used)
        if self._running.processes() != self._processes:
            raise ProcessesChangedError("the server's processes changed while it was measured")
