"""The load generator in Python: load.c's closed loop, checks and JSON, for where no compiler is.

It costs more than the servers do: its figures are good for smoke tests, not for comparisons.
"""

import argparse
import json
import select
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

HEADER = struct.Struct(">HHI")
STAMP = struct.Struct("<II")
READ_SIZE = 1 << 20
STALL_CHECK = 0.1


class DeviationError(Exception):
    """The server did not do what an echo server does."""


@dataclass(frozen=True)
class Load:
    """What to send: the command line."""

    host: str
    port: int
    connections: int
    depth: int
    body: int
    code: int
    seconds: float
    packets: int
    warmup: float
    stall: float
    unordered: bool
    marks: bool


class Connection:
    """One connection: makes its packets and checks what comes back."""

    def __init__(self, number: int, load: Load, suffix: bytes) -> None:
        self.number = number
        self.expected = 0
        self.active_at = 0.0
        self.in_flight: dict[int, tuple[bytes, float]] = {}
        self.unsent = b""
        self._next = list(range(load.depth))
        self._load = load
        self._suffix = suffix
        self._partial = b""
        self.socket = socket.create_connection((load.host, load.port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def free_slots(self) -> list[int]:
        """All slots, in the order of their sequence numbers; nothing may be in flight."""
        depth = self._load.depth
        return [(self.expected + i) % depth for i in range(depth)]

    def send(self, slots: Iterable[int], now: float) -> None:
        """Send the next packet of each slot."""
        if not self.in_flight:
            self.active_at = now
        packets = []
        for slot in slots:
            packet = self._packet(self._next[slot])
            self.in_flight[self._next[slot]] = packet, now
            packets.append(packet)
        self.unsent += b"".join(packets)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass

    def receive(self, now: float) -> list[tuple[int, float]]:
        """Slot and latency of each reply that is complete."""
        try:
            data = self.socket.recv(READ_SIZE)
        except BlockingIOError:
            return []
        if not data:
            raise DeviationError(
                f"{self}: closed by the server, {len(self.in_flight)} replies outstanding"
            )
        data = self._partial + data
        size = HEADER.size + self._load.body
        answered, offset = [], 0
        while len(data) - offset >= HEADER.size:
            self._check_header(data, offset)
            if len(data) - offset < size:
                break
            seq = self._check_reply(data[offset : offset + size])
            slot = seq % self._load.depth
            answered.append((slot, now - self.in_flight.pop(seq)[1]))
            self._next[slot] += self._load.depth
            self.expected += 1
            offset += size
        self._partial = data[offset:]
        if answered:
            self.active_at = now
        return answered

    def expect_end(self) -> None:
        """A reply too many may come late: after a half close nothing but the end may follow."""
        self.socket.settimeout(1)
        try:
            late = self.socket.recv(READ_SIZE)
        except OSError:
            late = b""
        if self._partial or late:
            raise DeviationError(f"{self}: bytes after the last reply (duplicated?)")

    def __str__(self) -> str:
        return f"connection {self.number}"

    def _packet(self, seq: int) -> bytes:
        body = (STAMP.pack(seq, self.number) + self._suffix)[: self._load.body]
        return HEADER.pack(HEADER.size + len(body), self._load.code, zlib.crc32(body)) + body

    def _check_header(self, data: bytes, offset: int) -> None:
        length, code, _ = HEADER.unpack_from(data, offset)
        size, where = HEADER.size + self._load.body, f"{self}, packet {self.expected}"
        if length != size:
            raise DeviationError(f"{where}: reply of length {length} instead of {size}")
        if code != self._load.code:
            raise DeviationError(f"{where}: reply has code {code} instead of {self._load.code}")

    def _check_reply(self, reply: bytes) -> int:
        if not self.in_flight:
            raise DeviationError(f"{self}: a reply when none was due (duplicated?)")
        body, seq = reply[HEADER.size :], self.expected
        if self._load.unordered:
            seq = int.from_bytes(body[:4], "little")
        where = f"{self}, packet {seq}"
        if not body.startswith(STAMP.pack(seq, self.number)[: len(body)]):
            raise DeviationError(
                f"{where}: the reply carries another packet's stamp"
                " (swapped, lost, duplicated or altered)"
            )
        if seq not in self.in_flight:
            raise DeviationError(
                f"{self}: a reply to packet {seq}, which is not in flight (duplicated?)"
            )
        sent = self.in_flight[seq][0]
        if body != sent[HEADER.size :]:
            raise DeviationError(f"{where}: the reply's body differs")
        if reply != sent:
            raise DeviationError(f"{where}: reply has checksum {reply[4:8].hex()}")
        return seq


class Generator:
    """Keeps C{depth} packets in flight on each connection."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._epoll = select.epoll()
        suffix = bytes((i * 167 + 13) & 255 for i in range(STAMP.size, load.body))
        self._connections: dict[int, Connection] = {}
        for number in range(load.connections):
            connection = Connection(number, load, suffix)
            self._connections[connection.socket.fileno()] = connection
            self._epoll.register(connection.socket, select.EPOLLIN)

    def run(self, seconds: float, packets: int) -> list[float]:
        """Send for so long, or so many, and return the latencies when all replies are in."""
        self._budget = packets or sys.maxsize
        checked_at = time.monotonic()
        self._deadline = float("inf") if packets else checked_at + seconds
        latencies: list[float] = []
        waiting = set()
        for fd, connection in self._connections.items():
            self._submit(connection, connection.free_slots())
            if connection.in_flight:
                waiting.add(fd)
        while waiting:
            for fd, event in self._epoll.poll(STALL_CHECK):
                connection = self._connections[fd]
                if event & select.EPOLLOUT:
                    connection.flush()
                if event & ~select.EPOLLOUT:
                    answered = connection.receive(time.monotonic())
                    latencies += [latency for _, latency in answered]
                    self._submit(connection, [slot for slot, _ in answered])
                    if not connection.in_flight:
                        waiting.discard(fd)
                wanted = select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0)
                self._epoll.modify(fd, wanted)
            now = time.monotonic()
            if now - checked_at > STALL_CHECK:
                self._check_stall(now)
                checked_at = now
        return latencies

    def expect_end(self) -> None:
        """Half close all connections; none may have more to say."""
        for connection in self._connections.values():
            connection.socket.shutdown(socket.SHUT_WR)
        for connection in self._connections.values():
            connection.expect_end()

    def _submit(self, connection: Connection, slots: list[int]) -> None:
        now = time.monotonic()
        slots = slots[: self._budget]
        if slots and now < self._deadline:
            self._budget -= len(slots)
            connection.send(slots, now)

    def _check_stall(self, now: float) -> None:
        for connection in self._connections.values():
            silence = now - connection.active_at
            if connection.in_flight and silence > self._load.stall:
                raise DeviationError(
                    f"{connection}: no reply for {silence:.1f} s, {len(connection.in_flight)} "
                    f"outstanding (lost?), next expected is packet {connection.expected}"
                )


def percentile_us(latencies: list[float], part: float) -> float:
    """The latency that C{part} of the sorted latencies do not exceed, in microseconds."""
    return round(latencies[min(int(part * len(latencies)), len(latencies) - 1)] * 1e6, 2)


def parse_arguments() -> Load:
    """The command line: load.c's, without C{--rate} and C{--churn}."""
    parser = argparse.ArgumentParser(prog="load")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--body", type=int, default=32)
    parser.add_argument("--code", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--packets", type=int, default=0)
    parser.add_argument("--warmup", type=float, default=0.3)
    parser.add_argument("--stall", type=float, default=5)
    parser.add_argument("--unordered", action="store_true")
    parser.add_argument("--marks", action="store_true")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    load = Load(**vars(parser.parse_args()))
    if load.unordered and load.body < 4:
        parser.error("--unordered needs the sequence number in the body: 4 bytes at least")
    if load.connections < 1 or load.depth < 1 or not 0 <= load.body <= 65527:
        parser.error("out of bounds")
    return load


def mark(load: Load, word: str) -> None:
    """Tell the runner, and wait until it has read its clocks."""
    if load.marks:
        print(word, flush=True)
        sys.stdin.readline()


def main() -> None:
    """Run one load and print its JSON; exit with status 1 at any deviation."""
    load = parse_arguments()
    duration = 300 if load.packets else load.seconds
    signal.alarm(int(load.warmup + load.stall + duration) + 60)  # the last bound on time
    try:
        generator = Generator(load)
        if load.warmup:
            generator.run(load.warmup, 0)
        mark(load, "start")
        began, cpu = time.monotonic(), time.process_time()
        latencies = generator.run(load.seconds, load.packets)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        mark(load, "end")
        generator.expect_end()
    except (DeviationError, OSError) as error:
        sys.exit(f"load: {error}")
    latencies.sort()
    result = {
        "generator": "python",
        "connections": load.connections,
        "depth": load.depth,
        "body": load.body,
        "packets": len(latencies),
        "seconds": seconds,
        "packets_per_second": len(latencies) / seconds,
        "p50_us": percentile_us(latencies, 0.5),
        "p99_us": percentile_us(latencies, 0.99),
        "p999_us": percentile_us(latencies, 0.999),
        "max_us": percentile_us(latencies, 1.0),
        "late_p99_us": 0.0,
        "cpu_seconds": cpu,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
