"""What a packet costs, in counts that do not depend on the machine's mood.

C{python -m tests.costs WHAT}, in a process of its own, prints a JSON object: what a packet costs,
by case. WHAT is one of

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
from typing import Any

from twisted.internet.address import IPv4Address

from benchmarks.echo import app
from benchmarks.peers.asyncio_protocol import Echo
from ccserver.config import Config
from ccserver.core.counts import Counts
from ccserver.core.framing import encode
from ccserver.net import jobs
from ccserver.net import reactor as reactor_module
from ccserver.net.connections import Connections
from ccserver.net.dispatch import Dispatch
from ccserver.net.jobqueue import NOBODY
from ccserver.net.jobs import PoolThread
from ccserver.net.pool import Pool
from ccserver.net.protocol import PacketFactory
from ccserver.net.reactor import DirectReactor
from ccserver.net.transport import DirectServer
from ccserver.process.serving import send_limits, session_limits
from tests.counting import Bytecodes, Calls, Figures, Instructions

CODES = {"async": 1, "def": 2}
"""The message codes of the application's two kinds of handlers."""

CELLS = ((1, 1), (64, 1), (64, 64))
"""Connections, and packets in flight on each."""

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

METERS = {"bytecodes": Bytecodes, "calls": Calls, "instructions": Instructions}


class PairServer(DirectServer):
    """A transport on a socket pair, where all that is sent has arrived."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There is nothing to set."""


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


class NothingToDo(Exception):
    """The pool has no job for its thread."""


class Stage:
    """The net side of a worker, on a reactor whose poller this is."""

    def __init__(self, meter: Any, kind: str, connections: int, depth: int) -> None:
        self._meter = meter
        self._case = f"{kind} {connections}x{depth}"
        turns = math.ceil(PACKETS / (connections * depth))
        self._packets = turns * connections * depth
        self._turn, self._first = 0, math.ceil(WARM_UP / depth)
        self._last = self._first + turns
        self._figures: Figures = {}
        self._error: BaseException | None = None
        self._over = self._jobs_wait = False
        reactor = self._reactor = DirectReactor()
        self._poller, reactor._poller = reactor._poller, self
        reactor_module.poll = reactor_module.poll_in_python
        self.register = self._poller.register
        self.modify = self._poller.modify
        self.unregister = self._poller.unregister
        reactor.callLater(1e6, int)  # in a worker there is always something due some time
        pool = self._pool = Pool(reactor, 0)
        pool.start(threads=False)
        self._thread = PoolThread(pool, "pool-0")
        self._take, pool.take = pool.take, self._next_job
        self._clients = Clients(self._connect(connections), CODES[kind], depth)

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
        self._meter.apart(self._play)
        if self._jobs_wait:
            self._meter.part = "thread"
            with suppress(NothingToDo):
                self._thread.work()
            self._meter.part = "reactor"
        events: list[tuple[int, int]] = self._poller.poll(0 if self._over else STALLED, most)
        if not events and not self._over:
            self._meter.apart(self._stall)
        return events

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
            self._meter.begin()
        if self._turn == self._last:
            self._figures = self._meter.end(self._case, self._packets)
            self._stop(None)
        else:
            self._turn += 1
            self._clients.ask()

    def _stall(self) -> None:
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

    def _connect(self, connections: int) -> list[socket.socket]:
        """The clients' ends of so many connections."""
        config, counts, reactor = Config.parse(""), Counts(), self._reactor
        limits, net = session_limits(config), config.net
        table = Connections(connections + 1, 0, counts, reactor.seconds, limits.heartbeat)
        dispatch = Dispatch(app, self._pool, net.lane_packets, counts, send_limits(config))
        factory = PacketFactory("127.0.0.1:5678", limits, table, dispatch, reactor)
        ends = []
        for number in range(connections):
            client, server = socket.socketpair()
            client.setblocking(False)
            server.setblocking(False)
            address = IPv4Address("TCP", "127.0.0.1", 20000 + number)
            protocol = factory.buildProtocol(address)
            transport = PairServer(
                server, protocol, (address.host, address.port), None, number, reactor
            )
            protocol.makeConnection(transport)
            ends.append(client)
        return ends


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
    for kind in CODES:
        for connections, depth in CELLS[1:] if what == "instructions" else CELLS:
            figures |= Stage(meter, kind, connections, depth).run()
            gc.freeze()  # it is garbage, which is not to be collected while others are counted
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1])
