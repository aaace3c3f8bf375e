"""Two workers in one process, whose reactors are driven by hand, and connections between them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from unittest import TestCase

from ccserver.app import App
from ccserver.core.counts import Counts
from ccserver.core.framing import FrameDecoder, Packet, encode
from ccserver.core.limits import SessionLimits
from ccserver.core.outbox import SendLimits
from ccserver.net.connections import Connections
from ccserver.net.dispatch import LANE_BYTES, Dispatch
from ccserver.net.factory import PacketFactory
from ccserver.net.giver import Giver, Report
from ccserver.net.pool import Pool
from ccserver.net.protocol import PacketProtocol
from ccserver.net.reactor import DirectReactor
from ccserver.net.slices import Slices
from ccserver.net.taker import Taker
from ccserver.net.transport import DirectServer
from tests.support import PATIENCE

SERVER = "10.0.0.1:5678"
TIMEOUT = 10.0
"""Seconds, of the tests' clock, that a connection may take to come to rest."""


class Machine:
    """Where the workers of a test run: their clock, and all that is to be closed behind it."""

    def __init__(self, test: TestCase) -> None:
        self.test = test
        self.now = 1000.0
        self.workers: list[MovingWorker] = []
        self.reactor_class: Any = DirectReactor
        test.addCleanup(self.stop)

    def worker(self, app: App, limits: SessionLimits | None = None, **more: Any) -> MovingWorker:
        worker = MovingWorker(self, app, limits or SessionLimits(), len(self.workers), **more)
        self.workers.append(worker)
        return worker

    def channel(self) -> tuple[socket.socket, socket.socket]:
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
            self.test.addCleanup(end.close)
        return ends

    def turn(self, times: int = 1) -> None:
        """Turns of all reactors."""
        for _ in range(times):
            for worker in self.workers:
                worker.turn()

    def until(self, condition: Callable[[], Any]) -> None:
        """Turns of all reactors, until C{condition} holds; threads may have a part in it."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {PATIENCE} s")
            self.turn()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.turn(2)

    def give(
        self, source: MovingWorker, target: MovingWorker, connections: Iterable[Any] | None = None
    ) -> list[Report]:
        """Begin to move all connections, or C{connections}; the list gets the report."""
        ours, theirs = self.channel()
        reports: list[Report] = []
        target.take(theirs)
        source.giver = Giver(source.reactor, ours, TIMEOUT)
        source.giver.give(source.connections if connections is None else connections).addCallback(
            reports.append
        )
        return reports

    def move(
        self, source: MovingWorker, target: MovingWorker, connections: Iterable[Any] | None = None
    ) -> Report:
        """Move all connections, or C{connections}, and wait for the report."""
        reports = self.give(source, target, connections)
        self.until(lambda: reports)
        return reports[0]

    def stop(self) -> None:
        """End all workers; for a test that has many machines."""
        while self.workers:
            self.workers.pop().stop()


class MovingWorker:
    """A worker whose reactor takes a turn when it is told to.

    @ivar adopted: how many connections each channel brought, one entry for each that has ended.
    """

    def __init__(
        self,
        machine: Machine,
        app: App,
        limits: SessionLimits,
        number: int,
        *,
        threads: int = 0,
        lane_packets: int = 64,
        lane_bytes: int = LANE_BYTES,
        slice_seconds: float = 0.0,
        connections: int = 20000,
        log_ends: bool = False,
        send_limits: SendLimits | None = None,
    ) -> None:
        self.machine = machine
        self.reactor: Any = machine.reactor_class()
        self.reactor.seconds = lambda: machine.now
        self.counts = Counts()
        self.connections: Any = Connections(
            connections,
            number,
            self.counts,
            self.reactor.seconds,
            limits.heartbeat,
            first_packet_timeout=limits.first_packet_timeout,
            packet_timeout=limits.packet_timeout,
            login_timeout=limits.login_timeout,
        )
        self.pool = Pool(self.reactor, threads)
        self.pool.start(threads > 0)
        slices = Slices(self.reactor, slice_seconds)
        self.dispatch = Dispatch(
            app, self.pool, lane_packets, self.counts, send_limits, lane_bytes, slices
        )
        self.factory = PacketFactory(
            SERVER, limits, self.connections, self.dispatch, self.reactor, log_ends
        )
        self.giver: Any = None
        self.adopted: list[int] = []

    def connect(self, buffer: int | None = None) -> MovingClient:
        """A connection that this worker has accepted.

        @param buffer: bytes that the kernel holds of what is sent to the client, about.
        """
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        if buffer is not None:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        protocol = PacketProtocol(self.factory, "192.0.2.1:5000")
        transport: Any = DirectServer(theirs, protocol, ("192.0.2.1", 5000), None, 0, self.reactor)
        protocol.makeConnection(transport)
        return MovingClient(self.machine, ours, protocol)

    def take(self, channel: socket.socket) -> Taker:
        taker = Taker(self.reactor, channel, self.factory.adopt)
        taker.take().addCallback(self.adopted.append)
        return taker

    @property
    def only(self) -> Any:
        """The one connection that there is."""
        (connection,) = self.connections
        return connection

    def turn(self) -> None:
        self.reactor.runUntilCurrent()
        self.reactor.doIteration(0)
        self.flush()

    def flush(self) -> None:
        """What the reactor does before it sleeps."""
        for name in ("_replying", "_unflushed"):
            gathered = getattr(self.reactor, name, [])
            flushables = gathered.copy()
            gathered.clear()
            for flushable in flushables:
                flushable.flush()

    def stop(self) -> None:
        for connection in self.connections:
            connection.abort()
        self.pool.stop()
        for reader in self.reactor._internalReaders:
            reader.connectionLost(None)
        self.reactor._poller.close()


class MovingClient:
    """The client of a connection that moves, and does not know of it.

    @ivar ended: how its connection has ended: with the end of the stream or an error; None.
    """

    def __init__(self, machine: Machine, sock: socket.socket, protocol: PacketProtocol) -> None:
        self.machine = machine
        self.sock = sock
        self.sock.setblocking(False)
        self.protocol = protocol
        self.got = bytearray()
        self.ended: OSError | str | None = None
        self._decoder = FrameDecoder(0xFFFF)
        machine.test.addCleanup(sock.close)

    def send(self, *packets: Packet) -> None:
        self.send_bytes(b"".join(encode(code, body) for code, body in packets))

    def send_bytes(self, data: bytes) -> None:
        assert self.sock.send(data) == len(data), "the test sends more than the kernel takes"

    def read(self, limit: int = 1 << 30) -> bytes:
        """What has come, at most about C{limit} bytes."""
        data = bytearray()
        while self.ended is None and len(data) < limit:
            try:
                piece = self.sock.recv(min(65536, limit - len(data)))
            except BlockingIOError:
                break
            except OSError as error:
                self.ended = error
                break
            if not piece:
                self.ended = "end"
            data += piece
        self.got += data
        return bytes(data)

    def read_to(self, size: int) -> None:
        """Read until C{size} bytes have come in all."""
        self.machine.until(lambda: (self.read(), len(self.got) >= size)[1])

    def read_to_end(self) -> None:
        """Read until the end of the stream, which must not be a reset."""
        self.machine.until(lambda: (self.read(), self.ended)[1])
        self.machine.test.assertEqual(self.ended, "end")

    def packets(self) -> list[Packet]:
        """The packets that have come since the last call."""
        return self._decoder.feed(self.read())

    def bodies(self) -> list[bytes]:
        return [body for _, body in self.packets()]

    def expect(self, *bodies: bytes) -> None:
        """Wait for as many packets, which must be these."""
        got: list[bytes] = []

        def enough() -> bool:
            got.extend(self.bodies())
            return len(got) >= len(bodies)

        self.machine.until(enough)
        self.machine.test.assertEqual(got, list(bodies))


def in_thread(function: Callable[..., Any], *arguments: Any) -> None:
    """Call C{function} in a thread of its own, to its end."""
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
