"""The command C{python -m benchmarks.syscalls}: a server's system calls for each packet.

The counts matter; the times under strace are strace's.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.generator import Cell, GeneratorError, Load, generate, generator_command
from benchmarks.processes import leaves, threads, traced
from benchmarks.runner import Cores, allow_many_files, choose_cores
from benchmarks.servers import HOST, SERVERS, RunningServer, Server, ServerError

ATTACH_DEADLINE = 10.0
FEWEST_SHOWN = 0.0005  # calls a packet


class StraceError(Exception):
    """strace is not there, or may not attach."""


@dataclass(frozen=True)
class CallCount:
    """How often one system call was made, and how often it failed."""

    name: str
    calls: int
    errors: int


class Tracer:
    """One strace on the leaves of a server's process tree: the workers, or the only process."""

    def __init__(self, running: RunningServer, folder: Path) -> None:
        self._running = running
        self._output = folder / "strace"
        self._errors = folder / "errors"
        self._process: subprocess.Popen[bytes] | None = None

    def attach(self) -> None:
        """Return when every thread is traced."""
        strace = shutil.which("strace")
        if strace is None:
            raise StraceError("strace is not installed")
        pids = sorted(leaves(self._running.processes()))
        targets = [f"--attach={pid}" for pid in pids]
        with self._errors.open("wb") as errors:
            process = self._process = subprocess.Popen(
                [strace, "-c", "-f", "-o", str(self._output), *targets],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        deadline = time.monotonic() + ATTACH_DEADLINE
        while not all(traced(thread) for pid in pids for thread in threads(pid)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StraceError(self._errors.read_text().strip() or "strace did not attach")
            time.sleep(0.01)

    def detach(self) -> None:
        """Let go of the server."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(ATTACH_DEADLINE)

    def counts(self) -> list[CallCount]:
        """What was called between the two, the most frequent call first."""
        return parse_table(self._output.read_text())

    def end(self) -> None:
        """Whatever happened: no strace stays behind."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def count_calls(server: Server, load: Load, command: list[str], cores: Cores) -> list[CallCount]:
    """Start the server, trace it while it answers the load, end both."""
    with TemporaryDirectory() as folder, RunningServer(server, cores.server) as running:
        tracer = Tracer(running, Path(folder))
        try:
            generate(
                command, load, HOST, running.port, cores.generator, tracer.attach, tracer.detach
            )
        finally:
            tracer.end()
        return tracer.counts()


def parse_table(table: str) -> list[CallCount]:
    """Read what C{strace -c} writes."""
    counts = []
    for line in table.splitlines():
        fields = line.split()
        if len(fields) in (5, 6) and fields[3].isdigit() and fields[-1] != "total":
            errors = int(fields[4]) if len(fields) == 6 else 0
            counts.append(CallCount(fields[-1], int(fields[3]), errors))
    return sorted(counts, key=lambda count: -count.calls)


def text(server: str, cell: Cell, packets: int, counts: list[CallCount]) -> str:
    """The table for a terminal."""
    total = sum(count.calls for count in counts)
    lines = [
        f"{server}, {cell}, {packets} packets: {total / packets:.2f} system calls a packet",
        f"  {'call':18}{'calls':>9}{'errors':>9}{'a packet':>10}",
    ]
    shown = [count for count in counts if count.calls / packets >= FEWEST_SHOWN]
    for count in shown:
        each = f"{count.calls / packets:.3f}"
        lines.append(f"  {count.name:18}{count.calls:>9}{count.errors:>9}{each:>10}")
    rest = sum(count.calls for count in counts if count not in shown)
    if rest:
        lines.append(f"  {'others':18}{rest:>9}")
    return "\n".join(lines)


def main() -> int:
    """Count, print; status 1 where it was not possible."""
    names = [server.name for server in SERVERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.syscalls", description=__doc__)
    parser.add_argument("servers", nargs="*", default=["ccserver"], metavar="NAME",
                        help=f"servers: {', '.join(names)}; default ccserver")  # fmt: skip
    parser.add_argument("--cell", type=Cell.parse, default=Cell(64, 1), help="(%(default)s)")
    parser.add_argument("--packets", type=int, default=20000, help="(%(default)s)")
    parser.add_argument("--body", type=int, default=32, help="bytes (%(default)s)")
    arguments = parser.parse_args()
    unknown = set(arguments.servers) - set(names)
    if unknown or arguments.packets < 1 or not 4 <= arguments.body <= 28992:
        parser.error(f"unknown server {', '.join(unknown)}" if unknown else "out of bounds")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    allow_many_files()
    cores, command, status = choose_cores(), generator_command(), 0
    for server in (server for server in SERVERS if server.name in arguments.servers):
        load = Load(
            arguments.cell,
            body=arguments.body,
            code=server.code,
            packets=arguments.packets,
            ordered=server.ordered,
        )
        try:
            counts = count_calls(server, load, command, cores)
        except (ServerError, GeneratorError, StraceError, OSError, subprocess.SubprocessError) as e:
            print(f"{server.name} FAILED: {e}", file=sys.stderr)
            status = 1
        else:
            print(text(server.name, arguments.cell, arguments.packets, counts))
    return status


if __name__ == "__main__":
    sys.exit(main())
