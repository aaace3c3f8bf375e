"""The command C{python -m benchmarks.slow_senders}: good clients beside many bad ones.

500 clients send a byte a second, 200 ask for replies of 16 KiB and never read one, and 50 good
ones ask and wait. Prints how long the good ones wait, alone and so; the memory of the worker, and
its bound; and when the bad ones are gone, and under which reasons.
"""

import argparse
import json
import re
import select
import socket
import struct
import subprocess
import sys
import sysconfig
import time
import zlib
from collections import Counter
from pathlib import Path
from statistics import median

from benchmarks.idle import allow, resident
from benchmarks.processes import leaves
from benchmarks.servers import HOST, ROOT, RunningServer, Server

SLOW, DEAF, GOOD = 500, 200, 50
PACKET_TIMEOUT = 8
SEND_TIMEOUT = 8
PAUSE = 0.05
"""Seconds that a good client waits between a reply and its next request."""

MEASURED = 5.0
REQUESTS = 60
ASKING = 2.0
"""Seconds over which those that read nothing ask, so often, for 16 KiB."""

GRACE = 8.0
"""Seconds that those whose time is up may take to be gone: a tick, the flush and the linger."""

CONNECTION_COST = 2300
PACKET_COST = 29000 + 3200
DEAF_COST = 2 * 65536 + 2 * 16392 + PACKET_COST
"""Bytes that a client that reads nothing costs: its replies up to their mark and one beyond, a
read of requests, and an incomplete one."""

_CONFIGURATION = f"""\
[Net]
Listen = {{host}}:{{port}}
worker_connections = 2000
PacketTimeout = {PACKET_TIMEOUT}
SendTimeout = {SEND_TIMEOUT}
FlushTimeout = 2
LingerTimeout = 1
SendBuffer = 64KiB

[Proc]
WorkerProcesses = 1
ProcMsgRecvWorkThreadCount = 4

[Log]
LogLevel = 7

[App]
App = benchmarks.echo:app
AppPath = {{root}}
"""


def packet(body: bytes, code: int = 1) -> bytes:
    """A request of the echo protocol, and its reply."""
    return struct.pack(">HHI", 8 + len(body), code, zlib.crc32(body)) + body


def server() -> Server:
    """ccserver with short time limits."""

    def command(port: int, folder: Path) -> list[str]:
        configuration = folder / "ccserver.conf"
        configuration.write_text(_CONFIGURATION.format(host=HOST, port=port, root=ROOT))
        twistd = Path(sysconfig.get_path("scripts")) / "twistd"
        start = [str(twistd), "-n", "--pidfile=", "ccserver"]
        return [sys.executable, *start, "--config", str(configuration)]

    return Server("ccserver", "short time limits", command)


def wait_as_good_ones(port: int, seconds: float) -> dict[str, float]:
    """How long good clients wait for their replies, in milliseconds.

    Each second by itself, of which the middle one counts: what else the machine does is in some.
    """
    request = packet(b"a good client's request")
    poll = select.epoll()
    clients = {}
    for _ in range(GOOD):
        made = socket.create_connection((HOST, port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(made.fileno(), select.EPOLLIN)
        clients[made.fileno()] = made
    start = time.monotonic()
    due = {fd: start + n * PAUSE / GOOD for n, fd in enumerate(clients)}
    asked: dict[int, float] = {}
    times: dict[int, list[float]] = {}
    while (now := time.monotonic()) < start + seconds:
        for fd in [fd for fd, at in due.items() if at <= now]:
            del due[fd]
            asked[fd] = time.perf_counter()
            clients[fd].send(request)
        for fd, _ in poll.poll(max(0.0, min(due.values(), default=now + 1) - now)):
            if clients[fd].recv(65536) != request:
                raise SystemExit("a good client got a wrong reply, or none")
            second = int(min(now - start, seconds - 1))
            times.setdefault(second, []).append((time.perf_counter() - asked.pop(fd)) * 1000)
            due[fd] = time.monotonic() + PAUSE
    windows = [sorted(window) for window in times.values()]
    return {
        "p50": median(window[len(window) // 2] for window in windows),
        "p99": median(window[int(len(window) * 0.99)] for window in windows),
        "max": max(window[-1] for window in windows),
        "count": sum(map(len, windows)),
    }


class BadClients:
    """Those that send a byte a second, and those that read nothing."""

    def __init__(self, port: int) -> None:
        self._began = time.monotonic()
        self._poll = select.epoll()
        self._there: dict[int, socket.socket] = {}
        self._slow: list[int] = []
        self._deaf: list[int] = []
        for n in range(SLOW + DEAF):
            made = socket.socket()
            if n >= SLOW:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.connect((HOST, port))
            made.setblocking(False)
            if n < SLOW:
                made.send(packet(bytes(1000))[:8])
            self._there[made.fileno()] = made
            (self._slow if n < SLOW else self._deaf).append(made.fileno())
        for fd in self._slow:
            self._poll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        for fd in self._deaf:
            self._poll.register(fd, select.EPOLLERR)  # replies do not wake us
        self._to_send = packet(b"", 3)
        self._sent = self._asked = 0
        self.gone_at: list[float] = []

    def __len__(self) -> int:
        return len(self._there)

    def step(self) -> None:
        """Send what is due, and see who is gone; for at most a hundredth of a second."""
        age = time.monotonic() - self._began
        while self._sent < age * SLOW:  # each in its own moment of the second
            self._try(self._slow[self._sent % SLOW], b"\0")
            self._sent += 1
        while self._asked < min(age / ASKING, 1.0) * DEAF * REQUESTS:
            self._try(self._deaf[self._asked % DEAF], self._to_send)
            self._asked += 1
        for fd, _ in self._poll.poll(0.01):
            self._gone(fd)

    def _try(self, fd: int, data: bytes) -> None:
        if fd not in self._there:
            return
        try:
            self._there[fd].send(data)
        except BlockingIOError:
            pass
        except OSError:
            self._gone(fd)

    def _gone(self, fd: int) -> None:
        if fd in self._there:
            self.gone_at.append(time.monotonic() - self._began)
            self._poll.unregister(fd)
            self._there.pop(fd).close()


def measure() -> int:
    """Measure and print; the exit status."""
    allow(2000)
    with RunningServer(server(), None) as running:
        (worker,) = leaves(running.processes())
        alone = good_ones(running.port).communicate()[0]
        before = resident(worker)
        bad = BadClients(running.port)
        settled = time.monotonic() + ASKING
        while time.monotonic() < settled:
            bad.step()
        process = good_ones(running.port)
        most = before
        while process.poll() is None:
            bad.step()
            most = max(most, resident(worker))
        beside, _ = process.communicate()
        there = len(bad)
        deadline = time.monotonic() + PACKET_TIMEOUT + GRACE
        while bad and time.monotonic() < deadline:
            bad.step()
            most = max(most, resident(worker))
        end = time.monotonic() + 5
        while time.monotonic() < end:
            log = (running.folder / "error.log").read_text()
            reasons = Counter(re.findall(r"closed: (\w+)", log))
            if sum(reasons.values()) >= SLOW + DEAF + 2 * GOOD:
                break
            time.sleep(0.1)
    bound = (SLOW + DEAF) * CONNECTION_COST + SLOW * PACKET_COST + DEAF * DEAF_COST
    good, also = json.loads(alone), json.loads(beside)
    line = "p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {max:.2f} ms ({count:.0f} replies)"
    print(f"{GOOD} good clients alone: " + line.format(**good))
    print(f"beside {SLOW} slow senders and {DEAF} that read nothing: " + line.format(**also))
    print(f"p99 {also['p99'] / good['p99']:.2f} times as long")
    print(f"memory: {(most - before) >> 10} KiB more, bound {bound >> 10} KiB")
    print(f"{there} bad ones were there to the end of that; left at last: {len(bad)}, ", end="")
    print(f"gone {min(bad.gone_at):.1f} to {max(bad.gone_at):.1f} s after they came")
    print("reasons: " + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()))
    failed = bool(bad) or also["p99"] > max(2 * good["p99"], 5.0) or most - before > bound
    return int(failed)


def good_ones(port: int) -> subprocess.Popen[str]:
    """The good clients, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.slow_senders", "--good", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_senders", description=__doc__)
    parser.add_argument("--good", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.good:
        print(json.dumps(wait_as_good_ones(arguments.good, MEASURED)))
        return 0
    return measure()


if __name__ == "__main__":
    sys.exit(main())
