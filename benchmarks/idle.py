"""The command C{python -m benchmarks.idle}: many connections that send a packet now and then.

Prints what one costs the worker in memory, and how late its reactor is meanwhile.
"""

import argparse
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import sysconfig
import time
import zlib
from itertools import cycle
from pathlib import Path

from benchmarks.processes import cpu_seconds, leaves
from benchmarks.servers import HOST, ROOT, RunningServer, Server

BODY = b"still there"
PACKET = struct.pack(">HHI", 8 + len(BODY), 1, zlib.crc32(BODY)) + BODY
SPARE = 500
"""Descriptors that client and worker need besides the connections."""

SOURCES = [f"127.0.0.{n}" for n in range(2, 12)]
PROBE_PAUSE = 0.01
PAGE = os.sysconf("SC_PAGESIZE")

_CONFIGURATION = """\
[Net]
Listen = {host}:{port}
worker_connections = {limit}
Sock_WaitTimeEnable = 1
Sock_MaxWaitTime = 20
PacketTimeout = 30
FirstPacketTimeout = 60

[Proc]
WorkerProcesses = 1
ProcMsgRecvWorkThreadCount = 4

[App]
App = benchmarks.echo:app
AppPath = {root}
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

    def command(port: int, folder: Path) -> list[str]:
        configuration = folder / "ccserver.conf"
        text = _CONFIGURATION.format(host=HOST, port=port, limit=limit, root=ROOT)
        configuration.write_text(text)
        twistd = Path(sysconfig.get_path("scripts")) / "twistd"
        start = [str(twistd), "-n", "--pidfile=", "ccserver"]
        return [sys.executable, *start, "--config", str(configuration)]

    return Server("ccserver", "heartbeats on", command)


def resident(pid: int) -> int:
    """The bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


class Clients:
    """Connections that each send a packet once a period, and read the reply."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.replies = 0
        self.lost = 0

    def connect(self, count: int) -> None:
        """Make C{count} more, each of which sends a packet at once."""
        sources = cycle(SOURCES)
        for _ in range(count):
            made = socket.socket()
            made.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            made.bind((next(sources), 0))
            made.connect((HOST, self._port))
            made.setblocking(False)
            made.send(PACKET)
            self.sockets[made.fileno()] = made
            self._poll.register(made.fileno(), select.EPOLLIN)
            self.read(0)

    def read(self, timeout: float) -> None:
        """Take what has come."""
        for fd, _ in self._poll.poll(timeout, 1024):
            data = self.sockets[fd].recv(65536)
            if data:
                self.replies += len(data) // len(PACKET)
            else:
                self.lost += 1
                self._poll.unregister(fd)

    def run(self, seconds: float, period: float) -> None:
        """Let each send a packet once a period."""
        everybody = cycle(list(self.sockets.values()))
        start = time.monotonic()
        sent = 0
        while (now := time.monotonic() - start) < seconds:
            while sent < now / period * len(self.sockets):
                next(everybody).send(PACKET)
                sent += 1
            self.read(0.005)


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
        clients.connect(200)  # what is allocated once is there
        empty = resident(worker)
        clients.connect(connections - 200)
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
    each = (full - empty) / (connections - 200)
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
    parser.add_argument("--connections", type=int, default=20000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--period", type=float, default=20.0, help="seconds between two packets")
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps(probe(arguments.probe, arguments.seconds)))
        return 0
    return measure(arguments.connections, arguments.seconds, arguments.period)


if __name__ == "__main__":
    sys.exit(main())
