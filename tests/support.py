"""Fakes shared by the tests: a reactor, a worker's connections and clients without a network."""

from __future__ import annotations

import gc
import os
import select
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import TestCase

from twisted.internet.address import IPv4Address
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ProcessDone,
    ProcessExitedAlready,
    ProcessTerminated,
)
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import LogEvent, eventAsText, globalLogPublisher
from twisted.python.failure import Failure

from ccserver.app import App
from ccserver.core.addresses import Origins
from ccserver.core.counts import Counts
from ccserver.core.framing import FrameDecoder, Packet, encode
from ccserver.core.limits import SessionLimits
from ccserver.core.outbox import SendLimits
from ccserver.net import jobs
from ccserver.net.closing import CloseTimeouts
from ccserver.net.connections import Connections
from ccserver.net.dispatch import LANE_BYTES, Dispatch
from ccserver.net.factory import PacketFactory
from ccserver.net.pool import Pool
from ccserver.net.slices import Slices

PATIENCE = 60.0
"""Seconds of real time that a test waits for a thread before it fails."""


class FakeReactor(Clock):
    """A L{Clock} that remembers what a reactor is asked for, and does it when told."""

    def __init__(self) -> None:
        super().__init__()
        self.running = True
        self.stops = 0
        self.readers: list[Any] = []
        self.writers: list[Any] = []
        self.processes: list[FakeProcess] = []
        self.adopted: list[Any] = []
        self.signals: list[Any] = []

    def addReader(self, reader: Any) -> None:
        if reader not in self.readers:
            self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def begin(self, selectable: Any, fd: int) -> None:
        self.addReader(selectable)

    def forget(self, fd: int) -> None:
        for selectable in [s for s in [*self.readers, *self.writers] if s.fileno() == fd]:
            self.removeReader(selectable)
            self.removeWriter(selectable)

    def addWriter(self, writer: Any) -> None:
        if writer not in self.writers:
            self.writers.append(writer)

    def removeWriter(self, writer: Any) -> None:
        if writer in self.writers:
            self.writers.remove(writer)

    def callFromThread(self, function: Callable[..., object], *args: Any) -> None:
        self.callLater(0, function, *args)

    callWhenRunning = callFromThread

    def stop(self) -> None:
        if self.stops:
            raise AssertionError("a reactor that is stopping cannot be stopped again")
        self.stops += 1

    def sigInt(self, number: int, frame: object = None) -> None:
        self.signals.append(number)
        self.stop()

    sigTerm = sigInt

    def adoptStreamConnection(self, fd: int, family: int, factory: Any) -> Any:
        """A copy of C{fd}, as the reactor makes one, with a protocol in front of it."""
        connection = AdoptedConnection(socket.socket(fileno=os.dup(fd)))
        self.adopted.append(connection)
        connection.transport.protocol = protocol = factory.buildProtocol(None)
        protocol.makeConnection(connection.transport)
        return connection.transport

    def spawnProcess(
        self,
        protocol: Any,
        executable: str,
        args: Any = (),
        env: dict[str, str] | None = None,
        path: str | None = None,
        childFDs: dict[int, int] | None = None,
    ) -> FakeProcess:
        process = FakeProcess(protocol, args, env, childFDs or {}, 1000 + len(self.processes))
        self.processes.append(process)
        protocol.makeConnection(process)
        return process


class AdoptedConnection:
    """A connection given to the reactor: what was sent on it, and its own socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.transport = FakeTransport()

    def close(self) -> None:
        self.socket.close()
        self.transport.close_descriptors()


class FakeProcess:
    """What C{spawnProcess} returns; the test decides when and how it ends.

    @ivar given: the child's descriptors, as copies of ours.
    @ivar killed: the signals that were sent to it.
    """

    def __init__(
        self, protocol: Any, args: Any, env: dict[str, str] | None, fds: dict[int, int], pid: int
    ) -> None:
        self.protocol = protocol
        self.args = args
        self.env = env
        self.pid = pid
        self.given = {number: os.dup(fd) for number, fd in fds.items()}
        self.killed: list[int] = []
        self.ended = False

    def signalProcess(self, number: int) -> None:
        if self.ended:
            raise ProcessExitedAlready()
        self.killed.append(number)

    def end(self, status: int | None = 0, signal: int | None = None) -> None:
        """The process is gone."""
        self.ended = True
        self.close()
        clean = status == 0 and signal is None
        reason = ProcessDone(0) if clean else ProcessTerminated(status, signal)
        self.protocol.processEnded(Failure(reason))

    def close(self) -> None:
        """Close the child's copies of its descriptors."""
        while self.given:
            os.close(self.given.popitem()[1])


class FakeTransport(StringTransportWithDisconnection):
    """Twisted's in-memory transport, with half close and reading on demand.

    As on a real one, nothing of an end is told before the next turn.

    @ivar unread: what waits in the kernel, for who calls C{doRead}.
    @ivar ended: our side is to be, or has been, closed for writing.
    @ivar closing: to be closed when all is sent.
    @ivar writes: how often something was written.
    @ivar descriptors: copies of those that were sent, with the bytes.
    @ivar limit: bytes of what was not taken away, above which the producer is paused.
    """

    def __init__(self) -> None:
        super().__init__(lenient=True)
        self.unread: list[bytes] = []
        self.ended = self.end_told = self.closing = self.aborted = False
        self.writes = 0
        self.descriptors: list[int] = []
        self.limit: int | None = None

    def write(self, data: bytes) -> None:
        self.writes += 1
        if self.connected and not self.end_told:
            super().write(data)
        if self.limit is not None and self.producer and len(self.value()) > self.limit:
            self.producer.pauseProducing()

    def writeSequence(self, data: list[bytes]) -> None:
        self.write(b"".join(data))

    def sendFileDescriptor(self, descriptor: int) -> None:
        """As on a UNIX transport, which sends it with the next bytes."""
        self.descriptors.append(os.dup(descriptor))

    def deliver(self, protocol: Any) -> bool:
        """Let C{protocol}, at the other end, have what was sent; whether there was anything."""
        data, descriptors = self.value(), self.descriptors
        self.clear()
        self.descriptors = []
        for descriptor in descriptors:
            protocol.fileDescriptorReceived(descriptor)
        if data:
            protocol.dataReceived(data)
        return bool(data)

    def close_descriptors(self) -> None:
        """Close the copies that nobody has taken."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    def doRead(self) -> None:
        if self.unread:
            self.protocol.dataReceived(self.unread.pop(0))

    def loseWriteConnection(self) -> None:
        self.ended = True

    def loseConnection(self) -> None:
        self.closing = True

    def abortConnection(self) -> None:
        self.aborted = True
        self.lose(ConnectionAborted())

    def lose(self, error: Exception) -> None:
        """The connection is gone."""
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(error))

    def turn(self) -> None:
        """A turn of the reactor, in which all that was written could be sent."""
        if self.closing:
            self.lose(ConnectionDone())
        elif self.ended and not self.end_told and self.connected:
            self.end_told = True
            self.protocol.writeConnectionLost()


class FakeWorker:
    """The net side of a worker: its connection table, dispatch and pool, on a L{FakeReactor}."""

    def __init__(
        self,
        test: TestCase,
        app: App,
        limits: SessionLimits | None = None,
        *,
        threads: int = 0,
        lane_packets: int = 64,
        lane_bytes: int = LANE_BYTES,
        slice_seconds: float = 0.0,
        connections: int = 100,
        process_number: int = 0,
        log_ends: bool = False,
        send_limits: SendLimits | None = None,
        timeouts: CloseTimeouts | None = None,
        origins: Origins | None = None,
    ) -> None:
        """@param threads: how many the pool has; C{def} handlers and hooks need one."""
        limits = limits or SessionLimits()
        self.reactor = FakeReactor()
        self.counts = Counts()
        self.connections = Connections(
            connections,
            process_number,
            self.counts,
            self.reactor.seconds,
            limits.heartbeat,
            first_packet_timeout=limits.first_packet_timeout,
            packet_timeout=limits.packet_timeout,
            login_timeout=limits.login_timeout,
            origins=origins,
        )
        self.pool = Pool(self.reactor, threads)
        self.pool.start(threads > 0)
        test.addCleanup(self.pool.stop)
        slices = Slices(self.reactor, slice_seconds)
        self.dispatch = Dispatch(
            app, self.pool, lane_packets, self.counts, send_limits, lane_bytes, slices
        )
        self.factory = PacketFactory(
            "10.0.0.1:5678",
            limits,
            self.connections,
            self.dispatch,
            self.reactor,
            log_ends,
            timeouts=timeouts,
        )

    def connect(self, port: int = 5000, host: str = "127.0.0.1") -> FakeConnection:
        """A client's connection that the worker has accepted."""
        connection = self.try_connect(port, host)
        assert connection is not None, "it was refused"
        return connection

    def try_connect(self, port: int = 5000, host: str = "127.0.0.1") -> FakeConnection | None:
        """Like L{connect}; None if the worker closes it at once."""
        protocol = self.factory.buildProtocol(IPv4Address("TCP", host, port))
        return None if protocol is None else FakeConnection(self, protocol)

    def wait(self, condition: Callable[[], object]) -> None:
        """Let the threads' calls come in, until C{condition} holds."""
        wait_for_pool(self.pool, condition)

    def idle(self) -> None:
        """Wait until every job that was given to the threads is done."""
        self.wait(lambda: not self.pool.unfinished)


def wait_for_pool(pool: Pool, condition: Callable[[], object]) -> None:
    """Run what the pool's threads call, as a reactor would, until C{condition} holds."""
    poll = select.poll()
    poll.register(pool.fileno(), select.POLLIN)
    deadline = time.monotonic() + PATIENCE
    while not condition():
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise AssertionError(f"not within {PATIENCE} s")
        pool.doRead()


class FakeConnection:
    """One connection of a L{FakeWorker}, from the client's side."""

    def __init__(self, worker: FakeWorker, protocol: Any) -> None:
        self.worker = worker
        self.clock = worker.reactor
        self.protocol = protocol
        self.transport = FakeTransport()
        self.transport.protocol = protocol
        self._decoder = FrameDecoder(0xFFFF)
        protocol.makeConnection(self.transport)

    @property
    def session(self) -> Any:
        return self.protocol.session

    @property
    def connected(self) -> bool:
        return bool(self.transport.connected)

    @property
    def reading(self) -> bool:
        """Whether the server reads on."""
        return bool(self.transport.producerState == "producing")

    def receive(self, *packets: Packet) -> None:
        """The server reads C{packets}, all in one go."""
        self.receive_bytes(b"".join(encode(code, body) for code, body in packets))

    def receive_bytes(self, data: bytes) -> None:
        """The server reads C{data}."""
        self.protocol.dataReceived(data)

    def sent(self) -> list[Packet]:
        """The packets that the server has sent since the last call."""
        data = self.transport.value()
        self.transport.clear()
        return self._decoder.feed(data)

    def bodies(self) -> list[bytes]:
        """The bodies of L{sent}."""
        return [body for _, body in self.sent()]

    def end(self) -> None:
        """The client closes its side for writing."""
        self.protocol.readConnectionLost()

    def reset(self) -> None:
        """The connection breaks."""
        self.transport.lose(ConnectionLost())

    def block(self) -> None:
        """The client reads no replies, and as many wait as the transport takes."""
        self.transport.producer.pauseProducing()

    def unblock(self) -> None:
        """The client has read what there was."""
        self.transport.producer.resumeProducing()

    def turn(self) -> None:
        """A turn of the reactor, in which all that was written could be sent."""
        self.transport.turn()


def connect(test: TestCase, app: App, limits: SessionLimits | None = None, **worker: Any) -> Any:
    """The one connection of a L{FakeWorker}, which is its C{worker}."""
    return FakeWorker(test, app, limits, **worker).connect()


def logged(test: TestCase) -> list[LogEvent]:
    """All that is logged from now on, until the end of the test."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    test.addCleanup(globalLogPublisher.removeObserver, events.append)
    return events


def texts(events: list[LogEvent]) -> list[str]:
    """What the events say."""
    return [
        eventAsText(e, includeTraceback=False, includeTimestamp=False, includeSystem=False)
        for e in events
    ]


def take_no_time(test: TestCase) -> None:
    """Let no job of C{test} be one that takes long, however little time this process gets."""
    for name in ("FLUSH_AFTER", "LONG", "SLICE"):
        test.patch(jobs, name, PATIENCE)


def open_descriptors() -> int:
    """How many descriptors this process has.

    What earlier tests have left, in a cache of hypothesis perhaps, may be closed at any time: those
    that are compared are more or no more, but never as many.
    """
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def folder(test: TestCase) -> str:
    """A folder that is gone after the test."""
    made = os.path.realpath(tempfile.mkdtemp(prefix="ccserver-test-"))
    test.addCleanup(shutil.rmtree, made, True)
    return made
