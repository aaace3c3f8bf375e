"""Builds and drives the load generator: a process that says when its counted window runs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.building import BuildError, build

_FOLDER = Path(__file__).resolve().parent
_FALLBACK = _FOLDER / "load.py"

_STALL = 5.0
_SLOWEST = 50e6  # bytes a second: what a server must echo of all that is in flight at once


class GeneratorError(Exception):
    """The generator saw a reply that was not the one due, or could not run."""


@dataclass(frozen=True)
class Cell:
    """How many connections, with how many packets in flight on each."""

    connections: int
    depth: int

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """Read C{"64x1"}; raise C{ValueError} where that is not what it says."""
        connections, _, depth = text.partition("x")
        cell = cls(int(connections), int(depth))
        if cell.connections < 1 or cell.depth < 1:
            raise ValueError(text)
        return cell

    def __str__(self) -> str:
        return f"{self.connections}x{self.depth}"


@dataclass(frozen=True)
class Load:
    """One run of the generator; C{packets} counts instead of C{seconds} where it is not 0.

    @ivar rate: packets a second, sent when due; 0 is a closed loop. The cell's depth is not used.
    @ivar churn: each connection lives for one packet.
    """

    cell: Cell
    body: int = 32
    code: int = 1
    seconds: float = 2.0
    packets: int = 0
    warmup: float = 0.3
    ordered: bool = True
    rate: float = 0.0
    churn: bool = False

    def arguments(self) -> list[str]:
        """The command line of load.c, and of load.py where neither rate nor churn is wanted."""
        arguments = [f"--connections={self.cell.connections}", f"--stall={self._stall:.1f}"]
        arguments += [f"--body={self.body}", f"--code={self.code}", f"--warmup={self.warmup}"]
        arguments.append(
            f"--packets={self.packets}" if self.packets else f"--seconds={self.seconds}"
        )
        if self.churn:
            arguments.append("--churn")
        elif self.rate:
            arguments.append(f"--rate={self.rate:.1f}")
        else:
            arguments.append(f"--depth={self.cell.depth}")
        return arguments if self.ordered else [*arguments, "--unordered"]

    @property
    def _stall(self) -> float:
        """How long a connection may be without a reply: longer behind a gigabyte of others."""
        return _STALL + self.cell.connections * self.cell.depth * self.body / _SLOWEST


@dataclass(frozen=True)
class LoadResult:
    """What the generator reports of its counted window."""

    generator: str
    connections: int
    depth: int
    body: int
    packets: int
    seconds: float
    packets_per_second: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    late_p99_us: float
    cpu_seconds: float

    @classmethod
    def parse(cls, text: str) -> "LoadResult":
        """Read the generator's JSON."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def compiler() -> str | None:
    """The C compiler that is there: $CC or cc."""
    return shutil.which(os.environ.get("CC", "cc"))


def compiled_generator() -> list[str]:
    """The command of load.c, built first where it has to be.

    @raise GeneratorError: there is no compiler, or it refuses.
    """
    cc = compiler()
    if cc is None:
        raise GeneratorError("no C compiler")
    sources = sorted(_FOLDER.glob("load*.c"))
    newest = max([*sources, _FOLDER / "load.h"], key=lambda path: path.stat().st_mtime)
    way = [cc, "-O2", "-Wall", "-o", "OUT", *map(str, sources)]
    try:
        return [str(build(newest, "load", way))]
    except BuildError as error:
        raise GeneratorError(str(error)) from error


def python_generator() -> list[str]:
    """The command of load.py."""
    return [sys.executable, str(_FALLBACK)]


def generator_command() -> list[str]:
    """The compiled generator where a compiler is, otherwise the one in Python."""
    return compiled_generator() if compiler() else python_generator()


def generate(
    command: list[str],
    load: Load,
    host: str,
    port: int,
    core: int | None,
    at_start: Callable[[], None],
    at_end: Callable[[], None],
) -> LoadResult:
    """Run one load; call back where the counted window starts and ends, with nothing in flight.

    @raise GeneratorError: with the generator's own message.
    """
    with subprocess.Popen(
        [*command, *load.arguments(), "--marks", host, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=None if core is None else partial(os.sched_setaffinity, 0, {core}),
    ) as process:
        try:
            _at_mark(process, "start", at_start)
            _at_mark(process, "end", at_end)
            output, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise GeneratorError(errors.strip())
    return LoadResult.parse(output)


def _at_mark(process: subprocess.Popen[str], word: str, action: Callable[[], None]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline().strip() != word:
        _, errors = process.communicate()
        raise GeneratorError(errors.strip() or f"ended with status {process.returncode}")
    action()
    process.stdin.write("\n")
    process.stdin.flush()
