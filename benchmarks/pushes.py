"""What a push costs: one packet of the server's own accord to each of many connections."""

import argparse
import json
import os
import socket
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.command_line import at_least_one, begin
from benchmarks.idle_clients import Clients
from benchmarks.processes import cpu_seconds
from benchmarks.push_app import NEWS, TELL
from benchmarks.runner import choose_cores
from benchmarks.servers import CONFIGURATION, HOST, SERVERS, RunningServer

BODY = bytes(32)
ROUND = 20
"""Pushes to each connection between two looks at the clock."""


def packet(code: int) -> bytes:
    """C{BODY} under C{code}."""
    return struct.pack(">HHI", 8 + len(BODY), code, zlib.crc32(BODY)) + BODY


def main() -> int:
    """Measure, print the figures."""
    arguments = _arguments()
    begin()
    configuration = CONFIGURATION.replace("benchmarks.echo:app", "benchmarks.push_app:app")
    server = replace(next(s for s in SERVERS if s.name == "ccserver"), configuration=configuration)
    cores = choose_cores()
    if cores.generator is not None:
        os.sched_setaffinity(0, {cores.generator})
    samples = []
    with RunningServer(server, cores.server) as running:
        clients = Clients(running.port)
        clients.connect_and_wait(arguments.connections)
        with socket.create_connection((HOST, running.port)) as teller:
            for _ in range(arguments.rounds):
                samples.append(_measure(running, clients, teller))
        clients.close()
    figures = {"connections": arguments.connections, "body": len(BODY), "cpu_us": samples}
    span = f"({min(samples):.2f}-{max(samples):.2f})"
    print(f"{arguments.connections} connections, {len(BODY)} bytes, {len(samples)} rounds")
    print(f"CPU us a push: {median(samples):.2f} {span}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _measure(running: RunningServer, clients: Clients, teller: socket.socket) -> float:
    """CPU microseconds of the server for each push that a client has got."""
    processes = running.processes()
    before = cpu_seconds(processes)
    for _ in range(ROUND):
        teller.sendall(packet(TELL))
        assert len(teller.recv(len(packet(TELL)), socket.MSG_WAITALL)) == len(packet(TELL))
        clients.take(packet(NEWS))
    return (cpu_seconds(processes) - before) / (ROUND * len(clients.sockets)) * 1e6


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pushes", description=__doc__)
    parser.add_argument("--connections", type=at_least_one, default=1000, help="(%(default)s)")
    parser.add_argument("--rounds", type=at_least_one, default=9, help="(%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
