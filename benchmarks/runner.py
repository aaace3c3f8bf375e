"""Measures each server in each cell, in interleaved rounds, so that the machine's mood hits all."""

import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.generator import Cell, GeneratorError, Load, generate
from benchmarks.processes import ProcessesChangedError, busy_seconds, cpu_seconds, runs_only_on
from benchmarks.servers import HOST, RunningServer, Server, ServerError, StartError


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and how; C{command} is the generator's."""

    servers: Sequence[Server]
    cells: Sequence[Cell]
    bodies: Sequence[int]
    rounds: int
    seconds: float
    warmup: float
    command: list[str]

    @property
    def loads(self) -> list[Load]:
        """One for each cell and body; which server they are for is not yet said."""
        return [
            Load(cell, body=body, seconds=self.seconds, warmup=self.warmup)
            for cell in self.cells
            for body in self.bodies
        ]


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
            return "unpinned: server and generator share what cores there are"
        return f"server on core {self.server}, generator on core {self.generator}"


@dataclass(frozen=True)
class Sample:
    """One server in one cell with one body in one round.

    @ivar late_p99_us: how late the generator itself was under an open load.
    """

    round: int
    cell: str
    body: int
    server: str
    cpu_us: float
    packets: int
    packets_per_second: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    late_p99_us: float
    server_busy: float
    generator_busy: float
    others_busy: float


@dataclass(frozen=True)
class Failure:
    """Why a server could not be measured in a cell, or in all; it is not tried there again."""

    cell: str
    body: int
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


class Attempts:
    """Measures what can be measured: what has failed is not tried again."""

    def __init__(self) -> None:
        self._failed: set[tuple[Cell, int, str]] = set()
        self._unstartable: set[str] = set()

    def sample(
        self, server: Server, load: Load, once: Callable[[], Sample]
    ) -> Iterator[Sample | Failure]:
        """What C{once} measures, or why it did not; nothing where it has failed before."""
        place = load.cell, load.body, server.name
        if server.name in self._unstartable or place in self._failed:
            return
        try:
            yield once()
        except StartError as error:
            self._unstartable.add(server.name)
            yield Failure("all", load.body, server.name, str(error))
        except (ServerError, GeneratorError, ProcessesChangedError) as error:
            self._failed.add(place)
            yield Failure(str(load.cell), load.body, server.name, str(error))


def measure(
    plan: Plan, cores: Cores, changed: Callable[[Load], Load] = lambda load: load
) -> Iterator[Sample | Failure]:
    """All samples of all rounds, as they come; C{changed} makes another load of the plan's."""
    attempts = Attempts()
    for number in range(1, plan.rounds + 1):
        for load in map(changed, plan.loads):
            for server in plan.servers:
                once = partial(measure_once, plan.command, cores, number, server, load)
                yield from attempts.sample(server, load, once)


def progress(outcome: Sample | Failure) -> None:
    """One line on stderr, which the report on stdout does not need."""
    if isinstance(outcome, Failure):
        line = f"FAILED: {outcome.message}"
    else:
        line = f"round {outcome.round}: {outcome.cpu_us:7.2f} us CPU"
    place = f"{outcome.cell:>8} {outcome.body:>5} B {outcome.server:16}"
    print(f"  {place} {line}", file=sys.stderr, flush=True)


def measure_once(
    command: list[str], cores: Cores, number: int, server: Server, load: Load
) -> Sample:
    """Start the server, measure it under the load, end it.

    @raise ServerError: it does not start, or has left its core.
    @raise GeneratorError: a reply was not the one due.
    @raise ProcessesChangedError: it was not the same processes all the time.
    """
    with RunningServer(server, cores.server) as running:
        return measure_running(command, cores, number, running, load)


def measure_running(
    command: list[str], cores: Cores, number: int, running: RunningServer, load: Load
) -> Sample:
    """Measure a server under the load.

    @raise ServerError: it has left its core.
    @raise GeneratorError: a reply was not the one due.
    @raise ProcessesChangedError: it was not the same processes all the time.
    """
    server = running.server
    load = replace(load, code=server.code, ordered=server.ordered)
    meter = _Meter(running, cores)
    result = generate(command, load, HOST, running.port, cores.generator, meter.start, meter.stop)
    return Sample(
        round=number,
        cell=str(load.cell),
        body=load.body,
        server=server.name,
        cpu_us=meter.server / result.packets * 1e6,
        packets=result.packets,
        packets_per_second=result.packets_per_second,
        p50_us=result.p50_us,
        p99_us=result.p99_us,
        p999_us=result.p999_us,
        max_us=result.max_us,
        late_p99_us=result.late_p99_us,
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
