"""The command C{python -m benchmarks.idle}: many connections that send a packet now and then.

Prints what one costs the worker in memory, and how late its reactor is meanwhile. With --servers:
what one costs the processes of each of these servers, in interleaved rounds.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.command_line import NAMES, at_least_one, present
from benchmarks.idle_clients import FIRST, Clients, packet
from benchmarks.idle_memory import MOST, compare
from benchmarks.processes import cpu_seconds, leaves
from benchmarks.servers import (
    HOST,
    ROOT,
    RunningServer,
    Server,
    ServerError,
    ccserver_command,
)

PACKET = packet(code=1)

SPARE = 500
"""Descriptors that client and worker need besides the connections."""

PROBE_PAUSE = 0.01
PAGE = os.sysconf("SC_PAGESIZE")

_CONFIGURATION = """\
[Net]
Listen = {{host}}:{{port}}
worker_connections = {limit}
Sock_WaitTimeEnable = 1
Sock_MaxWaitTime = 20
PacketTimeout = 30
FirstPacketTimeout = 60

[Proc]
WorkerProcesses = {{workers}}
ProcMsgRecvWorkThreadCount = 4

[App]
App = benchmarks.echo:app
AppPath = {{root}}
"""


def allow(count: int) -> int:
    """Raise the limit of descriptors, as far as may be; how many connections that makes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        wanted = max(hard, count + SPARE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return min(count, hard - SPARE)
    return count


def server(limit: int) -> Server:
    """ccserver with heartbeats and time limits."""
    configuration = _CONFIGURATION.format(limit=limit)
    return Server("ccserver", "heartbeats on", ccserver_command, configuration=configuration)


def resident(pid: int) -> int:
    """The bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def probe(port: int, seconds: float) -> dict[str, float]:
    """How long one client waits for its replies, in milliseconds."""
    times = []
    with socket.create_connection((HOST, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.perf_counter()
            connection.sendall(PACKET)
            connection.recv(len(PACKET), socket.MSG_WAITALL)
            times.append((time.perf_counter() - start) * 1000)
            time.sleep(PROBE_PAUSE)
    times.sort()
    return {
        "p50": times[len(times) // 2],
        "p99": times[int(len(times) * 0.99)],
        "max": times[-1],
        "count": len(times),
    }


def measure(count: int, seconds: float, period: float) -> int:
    """Measure and print; the exit status."""
    connections = allow(count)
    if connections < count:
        print(f"only {connections} connections: the limit of descriptors cannot be raised")
    with RunningServer(server(connections + 100), None) as running:
        (worker,) = leaves(running.processes())
        clients = Clients(running.port)
        clients.connect(FIRST)
        empty = resident(worker)
        clients.connect(connections - FIRST)
        while clients.replies < connections:
            clients.read(1.0)
        full = resident(worker)
        before = cpu_seconds([worker])
        command = [sys.executable, "-m", "benchmarks.idle", "--probe", str(running.port)]
        with subprocess.Popen(
            [*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, cwd=ROOT
        ) as process:
            clients.run(seconds + 1.0, period)
            output, _ = process.communicate()
        figures = json.loads(output)
        used = cpu_seconds([worker]) - before
        later = resident(worker)
    each = (full - empty) / (connections - FIRST)
    print(f"{connections} connections in one worker, each a packet in {period:g} s, {seconds:g} s")
    print(f"resident memory a connection: {each:.0f} bytes (whole worker {later >> 20} MiB)")
    print(f"connections lost: {clients.lost}; CPU of the worker: {used / (seconds + 1):.1%}")
    print(
        "a reply beside them: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {max:.2f} ms "
        "({count:.0f} replies)".format(**figures)
    )
    missed = clients.lost or figures["p99"] >= 50 or each > 2300
    return int(missed)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--connections", type=int, help="20000, or 10000 with --servers")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--period", type=float, default=20.0, help="seconds between two packets")
    parser.add_argument("--servers", nargs="+", choices=NAMES, metavar="NAME",
                        help=f"compare the memory of these: {', '.join(NAMES)}")  # fmt: skip
    parser.add_argument(
        "--rounds", type=at_least_one, default=5, help="with --servers (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --servers: every sample")
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps(probe(arguments.probe, arguments.seconds)))
        return 0
    if not arguments.servers:
        return measure(arguments.connections or 20000, arguments.seconds, arguments.period)
    connections = min(allow(arguments.connections or 10000), MOST)
    try:
        samples = compare(present(arguments.servers), connections, arguments.rounds)
    except ServerError as error:
        sys.exit(f"{error}")
    if arguments.json:
        arguments.json.write_text(json.dumps(samples, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
