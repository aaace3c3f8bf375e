"""What a packet costs, in counts that do not depend on the machine's mood.

C{python -m tests.costs WHAT}, in a process of its own, prints a JSON object: what a packet costs,
by case. WHAT is one of

  - C{bytes}: what Python has allocated for an idle connection and not freed.
  - C{bytecodes}: instructions of the interpreter; those of the reactor and of a pool's thread.
  - C{calls}: allocations and system calls; C{counting.c} is to be preloaded.
  - C{instructions}: callgrind writes a file for each case; C{counting.c} is to be preloaded. What
    is printed is how many packets each file is for.

A real reactor serves real sockets. Their clients play where it would go to sleep, and so does the
pool's one thread: each turn finds the same events. Nothing of the tests is counted.
"""

from __future__ import annotations

import gc
import json
import math
import os
import socket
import sys
from contextlib import suppress
from time import perf_counter
from typing import Any

from twisted.internet.address import IPv4Address

from benchmarks.echo import app
from benchmarks.peers.asyncio_protocol import Echo
from ccserver.config import Config
from ccserver.core.counts import Counts
from ccserver.core.framing import encode
from ccserver.native import native
from ccserver.net import jobs
from ccserver.net import reactor as reactor_module
from ccserver.net.connections import Connections
from ccserver.net.dispatch import Dispatch
from ccserver.net.factory import PacketFactory
from ccserver.net.intake import Intake
from ccserver.net.jobqueue import NOBODY
from ccserver.net.jobs import PoolThread
from ccserver.net.pool import Pool
from ccserver.net.port import DirectPort
from ccserver.net.reactor import DirectReactor
from ccserver.net.transport import DirectServer
from ccserver.process.serving import send_limits, session_limits
from tests.counting import Bytecodes, Bytes, Calls, Figures, Instructions

CODES = {"async": 1, "def": 2}
"""The message codes of the application's two kinds of handlers."""

CELLS = ((1, 1), (64, 1), (64, 64))
"""Connections, and packets in flight on each."""

LIFE, REST = "life", "rest"
"""The cases in which a connection lives for one packet, and in which it is idle behind that: they
are for a connection, not for a packet."""

VISITORS = 50
"""Connections that come at a time; one more than a port accepts in a turn would be too many."""

FIRST_VISITORS = 3
"""How many times so many come before those that are counted."""

REFERENCE = "asyncio"
"""The benchmarks' protocol for asyncio: it gets 64 packets a read, from no socket."""

PACKETS = 256
"""How many are counted at least."""

WARM_UP = 300
"""How many each connection has before: its counts are no small numbers, which Python has made
already, and the interpreter knows the types of all."""

STALLED = 10.0
"""Seconds without an event: something is lost."""

BODY = b"32 bytes of what a client sends."

METERS = {"bytecodes": Bytecodes, "bytes": Bytes, "calls": Calls, "instructions": Instructions}


class Clients:
    """They ask, and ask again when all have been answered."""

    def __init__(self, ends: list[socket.socket], code: int, depth: int) -> None:
        self._packets = encode(code, BODY) * depth
        self._due = dict.fromkeys(ends, b"")

    def ask(self) -> None:
        for end in self._due:
            end.send(self._packets)
            self._due[end] = self._packets

    def all_answered(self) -> bool:
        """Whether nothing is due any more."""
        for end, due in self._due.items():
            if due:
                data = end.recv(len(due))
                assert due.startswith(data), data
                self._due[end] = due[len(data) :]
        return not any(self._due.values())


class Visitors:
    """They connect, ask once, and leave when they have been answered; then others do.

    @ivar stay: they do not leave.
    """

    def __init__(self, address: tuple[str, int], code: int, stay: bool) -> None:
        self._address = address
        self._packet = encode(code, BODY)
        self._stay = stay
        self._due: dict[Any, bytes] = {}
        self._staying: list[Any] = []

    def ask(self) -> None:
        for _ in range(VISITORS):
            end = socket.SocketType()  # without Python below it, which would be counted
            end.connect(self._address)
            end.setblocking(False)
            end.send(self._packet)
            self._due[end] = self._packet

    def all_answered(self) -> bool:
        """Whether all are gone, the server's end of each too, or have come to stay."""
        for end, due in list(self._due.items()):
            with suppress(BlockingIOError):
                data = end.recv(len(self._packet))
                assert data == due, data
                self._due[end] = b""
                if self._stay:
                    self._staying.append(end)
                    del self._due[end]
                elif data:
                    end.shutdown(socket.SHUT_WR)
                else:
                    end.close()
                    del self._due[end]
        return not self._due


class NothingToDo(Exception):
    """The pool has no job for its thread."""


class Stage:
    """The net side of a worker, on a reactor that has this for its poller, and for its turn."""

    def __init__(
        self, meter: Any, kind: str, connections: int, depth: int, case: str | None = None
    ) -> None:
        self._meter = meter
        self._case = case or f"{kind} {connections}x{depth}"
        turns = math.ceil(PACKETS / (connections * depth))
        self._packets = turns * connections * depth
        self._turn, self._first = 0, math.ceil(WARM_UP / depth)
        self._last = self._first + turns
        self._figures: Figures = {}
        self._error: BaseException | None = None
        self._over = self._jobs_wait = False
        reactor = self._reactor = DirectReactor()
        self._poller = reactor._poller
        if native is None:
            reactor._poller = self
        else:
            reactor_module.turn = self.turn
        self.register = self._poller.register
        self.modify = self._poller.modify
        self.unregister = self._poller.unregister
        reactor.callLater(1e6, int)  # in a worker there is always something due some time
        pool = self._pool = Pool(reactor, 0)
        pool.start(threads=False)
        self._thread = PoolThread(pool, "pool-0")
        self._take, pool.take = pool.take, self._next_job
        self._clients = self._make_clients(connections, CODES[kind], depth)

    def run(self) -> Figures:
        """What was counted.

        @raise AssertionError: a reply was wrong, or did not come.
        """
        self._reactor.run(installSignalHandlers=False)
        if self._error is not None:
            raise self._error
        return self._figures

    def poll(self, timeout: float, most: int = -1) -> list[tuple[int, int]]:
        """The reactor has nothing to do: the others play."""
        self._before_sleep()
        events: list[tuple[int, int]] = self._poller.poll(0 if self._over else STALLED, most)
        if not events:
            self._meter.apart(self._stall)
        return events

    def turn(
        self, reactor: DirectReactor, kind: type, timeout: float | None, waking: int, more: bool
    ) -> list[tuple[int, int]]:
        """The same, and the compiled part does one turn."""
        self._before_sleep()
        limit = 0 if self._over else STALLED
        before = perf_counter()
        events: list[tuple[int, int]] = native.turn(reactor, kind, limit, waking, False)
        if perf_counter() - before > STALLED:
            self._meter.apart(self._stall)
        return events

    def _before_sleep(self) -> None:
        self._meter.apart(self._play)
        if self._jobs_wait:
            self._meter.part = "thread"
            with suppress(NothingToDo):
                self._thread.work()
            self._meter.part = "reactor"

    def _play(self) -> None:
        self._jobs_wait = self._pool.queued > 0
        if self._jobs_wait or self._over:
            return
        try:
            if self._clients.all_answered():
                self._next_turn()
        except (AssertionError, OSError) as error:
            self._stop(error)

    def _next_turn(self) -> None:
        if self._turn == self._first:
            gc.disable()  # a worker has frozen its objects; here they would all be looked at
            self._meter.begin()
        if self._turn == self._last:
            self._figures = self._meter.end(self._case, self._packets)
            gc.enable()
            self._stop(None)
        else:
            self._turn += 1
            self._clients.ask()

    def _stall(self) -> None:
        if not self._over:
            self._stop(AssertionError(f"nothing has happened for {STALLED} s"))

    def _stop(self, error: BaseException | None) -> None:
        self._error = error
        self._over = True
        self._reactor.stop()

    def _next_job(self, eventfd: int) -> Any:
        if not self._pool.queued:
            telling = self._pool._untold()  # as it does before it sleeps
            if telling != NOBODY:
                os.eventfd_write(telling, 1)
            raise NothingToDo
        return self._take(eventfd)

    def _factory(self, connections: int) -> PacketFactory:
        """What makes the server's end of a connection."""
        config, counts, reactor = Config.parse(""), Counts(), self._reactor
        limits, net = session_limits(config), config.net
        table = Connections(connections + 1, 0, counts, reactor.seconds, limits.heartbeat)
        dispatch = Dispatch(app, self._pool, net.lane_packets, counts, send_limits(config))
        return PacketFactory("127.0.0.1:5678", limits, table, dispatch, reactor)

    def _make_clients(self, connections: int, code: int, depth: int) -> Clients | Visitors:
        factory, reactor = self._factory(connections), self._reactor
        ends = []
        for number in range(connections):
            client, server = socket.socketpair()
            client.setblocking(False)
            server.setblocking(False)
            address = IPv4Address("TCP", "127.0.0.1", 20000 + number)
            protocol = factory.buildProtocol(address)
            transport = DirectServer(server, protocol, ("-", 0), None, 0, reactor)
            protocol.makeConnection(transport)
            ends.append(client)
        return Clients(ends, code, depth)


class Life(Stage):
    """The same with a port, at which clients come and go, or stay."""

    def __init__(self, meter: Any, case: str = LIFE) -> None:
        self._stay = case == REST
        Stage.__init__(self, meter, "async", VISITORS, 1, case)
        self._last -= self._first - FIRST_VISITORS
        self._first = FIRST_VISITORS

    def _make_clients(self, connections: int, code: int, depth: int) -> Visitors:
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        address = listening.getsockname()
        port = DirectPort(listening, self._factory(100 * connections), self._reactor)
        port.startListening()
        Intake(self._reactor).add(port)
        return Visitors(address, code, self._stay)


class Sink:
    """The transport, and the socket, of the asyncio protocol."""

    def get_extra_info(self, name: str) -> Sink:
        return self

    def setsockopt(self, *arguments: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass


def reference(meter: Any) -> Figures:
    """What a packet costs the asyncio protocol."""
    echo: Any = Echo()
    echo.connection_made(Sink())
    packets = encode(CODES["async"], BODY) * 64
    for _ in range(WARM_UP):
        echo.data_received(packets)
    meter.begin()
    for _ in range(PACKETS // 64):
        echo.data_received(packets)
    return meter.end(REFERENCE, PACKETS)  # type: ignore[no-any-return]


def main(what: str) -> None:
    """Count C{what}, print the figures."""
    # a thread has its replies taken every millisecond, and time is not the same everywhere
    jobs.FLUSH_AFTER = jobs.SLICE = jobs.LONG = math.inf
    meter: Any = METERS[what]()
    figures = reference(meter) if what == "instructions" else {}
    if what == "bytes":
        figures = Life(meter, REST).run()
        print(json.dumps(figures))
        return
    for kind in CODES:
        for connections, depth in CELLS[1:] if what == "instructions" else CELLS:
            figures |= Stage(meter, kind, connections, depth).run()
    figures |= Life(meter).run()
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1])
