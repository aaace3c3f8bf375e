"""The command C{python -m benchmarks.instructions}: a server's instructions for each packet.

Each server runs under valgrind's callgrind, which counts between the generator's two marks only,
in the leaves of its process tree: the workers, or the only process. The kernel's instructions are
not in it. The counts hardly depend on what else the machine does.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.command_line import add_servers, at_least_one, begin, body, present
from benchmarks.generator import Cell, GeneratorError, Load, generate, generator_command
from benchmarks.processes import ProcessesChangedError, leaves
from benchmarks.report import Spread
from benchmarks.runner import Cores, choose_cores
from benchmarks.servers import HOST, RunningServer, Server, ServerError
from benchmarks.table import aligned

BASE = "uvloop"
CONTROL_DEADLINE = 60.0
START_DEADLINE = 180.0  # a start under valgrind takes ten times as long, ccserver's 11 s
TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)


class CallgrindError(Exception):
    """valgrind does not do what it is asked."""


def under_callgrind(server: Server) -> Server:
    """The same server, counted from when it is asked for on, its workers too."""

    def command(port: int, folder: Path) -> list[str]:
        return [
            "valgrind", "--tool=callgrind", "--trace-children=yes", "--instr-atstart=no",
            "--vgdb=yes", f"--callgrind-out-file={folder}/callgrind.%p",
            *server.command(port, folder),
        ]  # fmt: skip

    return replace(server, command=command)


class Counter:
    """Instructions of a running server's workers between two moments."""

    def __init__(self, running: RunningServer) -> None:
        self._running = running
        self.count = 0

    def start(self) -> None:
        """Count from now on."""
        self._processes = leaves(self._running.processes())
        for pid in self._processes:
            self._control(pid, "--instr=on")

    def stop(self) -> None:
        """Have each process write what it counted, and add it up."""
        for pid in self._processes:
            self._control(pid, "--instr=off")
            self._control(pid, "--dump=counted")
        if leaves(self._running.processes()) != self._processes:
            raise ProcessesChangedError("the server's processes changed while it was measured")
        self.count = sum(self._totals())

    def _totals(self) -> Iterator[int]:
        for pid in self._processes:
            for file in self._running.folder.glob(f"callgrind.{pid}.*"):
                yield from map(int, TOTALS.findall(file.read_text()))

    def _control(self, pid: int, option: str) -> None:
        done = subprocess.run(
            ["callgrind_control", option, str(pid)],
            capture_output=True,
            text=True,
            check=False,
            timeout=CONTROL_DEADLINE,
        )
        if done.returncode or "Error" in done.stdout + done.stderr:
            raise CallgrindError(f"callgrind_control {option}: {done.stdout}{done.stderr}".strip())


def count(server: Server, load: Load, cores: Cores, command: list[str]) -> float:
    """Instructions a packet.

    @raise CallgrindError: valgrind fails.
    @raise ServerError: the server does not start under it.
    @raise GeneratorError: a reply was not the one due.
    @raise ProcessesChangedError: a worker ended meanwhile.
    """
    load = replace(load, code=server.code, ordered=server.ordered)
    running = RunningServer(under_callgrind(server), cores.server, start_deadline=START_DEADLINE)
    with running:
        counter = Counter(running)
        generate(command, load, HOST, running.port, cores.generator, counter.start, counter.stop)
    return counter.count / load.packets


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    add_servers(made, "--servers", ["ccserver", BASE])
    made.add_argument("--cell", type=Cell.parse, default=Cell(64, 1), help="(%(default)s)")
    made.add_argument("--body", type=body, default=32, help="bytes (%(default)s)")
    made.add_argument("--packets", type=at_least_one, default=4000, help="(%(default)s)")
    made.add_argument("--rounds", type=at_least_one, default=3, help="(%(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    return made.parse_args()


def table(counts: dict[str, list[float]]) -> str:
    """A line for each server, with its ratio to the base where that was counted as often."""
    rows = [["server", "instructions a packet", f"/ {BASE}"]]
    for name, found in counts.items():
        ratio = "-"
        if len(counts.get(BASE, ())) == len(found):
            pairs = zip(found, counts[BASE], strict=True)
            ratio = Spread.of(own / base for own, base in pairs).text(3)
        rows.append([name, Spread.of(found).text(0), ratio])
    return aligned(rows)


def main() -> int:
    """Count, print; status 1 where it was not possible."""
    arguments = parse_arguments()
    for program in ("valgrind", "callgrind_control"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed: instructions are counted by valgrind")
    begin()
    cores, command, status = choose_cores(), generator_command(), 0
    load = Load(arguments.cell, body=arguments.body, packets=arguments.packets, warmup=1.0)
    servers = present(arguments.servers)
    counts: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for server in list(servers):
            try:
                found = count(server, load, cores, command)
            except (
                CallgrindError, GeneratorError, OSError, ProcessesChangedError, ServerError,
                subprocess.SubprocessError,
            ) as error:  # fmt: skip
                print(f"{server.name} FAILED: {error}", file=sys.stderr)
                servers.remove(server)
                status = 1
            else:
                counts.setdefault(server.name, []).append(found)
                print(f"  {server.name:16} {found:,.0f}", file=sys.stderr, flush=True)
    print(
        f"{arguments.cell}, bodies of {arguments.body:,} bytes, {arguments.packets} packets a round"
    )
    print(table(counts))
    if arguments.json:
        found_all = {"cell": str(arguments.cell), "body": arguments.body,
                     "packets": arguments.packets, "instructions": counts}  # fmt: skip
        arguments.json.write_text(json.dumps(found_all, indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
