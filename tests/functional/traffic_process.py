"""The process of the traffic: many connections on one epoll.

C{python -m tests.functional.traffic_process PORT CONNECTIONS ...} says when all connections have
been answered, and then answers the lines C{counts}, C{mark} and C{stop} on its standard input. All
its answers are lines of JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import resource
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from tests.functional.conversations import (
    CLOSED,
    OUTSTANDING,
    REFUSED,
    RESET,
    Conversation,
    kind_of,
)

RATE = 4000.0
"""Packets per second, over all connections: a fifth of a core for the client, measured."""

PACKETS = 5.0
"""Of a burst, about."""

READ = 1 << 18
SLOW_READ = 1 << 15
SLOW_PAUSE = 0.01
"""A slow reader takes so many bytes and waits so many seconds: 4 MB in more than a second."""

LONGEST_PAUSE = 0.25
"""Seconds that a connection may wait for what it is owed, whatever the server does meanwhile."""

LONG = 0.1
"""Seconds above which the place of a pause in time is told."""

SLOW_BUFFER = 1 << 16
BUSY_PAUSE = 0.01
RECONNECT = 0.1
DETAILS = 20
LONGEST = 5


@dataclass
class Counts:
    """What the traffic has seen.

    @ivar open: connections there are.
    @ivar connected: how often one was made.
    @ivar replies: packets that came.
    @ivar errors: how many of each kind.
    @ivar details: the first of each kind in words.
    @ivar pause: the longest time in seconds, before it was stopped, that a connection waited for
        the next byte of what it was owed, while no request that sleeps was under way.
    @ivar pauses: the longest ones: seconds, kind of conversation, what it was waiting for.
    @ivar long: those above L{LONG}: from when to when, monotonic; of those that began and
        ended at about the same time, the longest.
    @ivar late: the longest time in seconds by which this process itself came late to do what it
        had planned: so much of a pause is its own.
    @ivar owed: packets that have not come yet.
    """

    open: int = 0
    connected: int = 0
    replies: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    pause: float = 0.0
    pauses: list[list[Any]] = field(default_factory=list)
    long: list[tuple[float, float]] = field(default_factory=list)
    late: float = 0.0
    owed: int = 0


class Connection:
    """A conversation on a socket.

    @ivar ending: it sends no more and expects the end of the stream.
    """

    def __init__(self, loop: Loop, conversation: Conversation, sock: socket.socket) -> None:
        self.conversation = conversation
        self.ending = False
        self.socket = sock
        self.slow = conversation.kind == "bulk"
        self._loop = loop
        self._unsent = b""
        self._rest = b""  # of a packet that was sent in part
        self._reads = True
        loop.poll.register(sock, select.EPOLLIN)
        if self.slow:
            loop.later(SLOW_PAUSE, self.read_on)

    def send_burst(self) -> None:
        """Ask for something, now or later, and plan the next time."""
        loop, conversation = self._loop, self.conversation
        if self.ending or self.socket.fileno() < 0:
            return
        if not self._rest and len(conversation.owed) < OUTSTANDING:
            data, self._rest = conversation.burst()
            self._send(data)
            if self._rest:
                loop.later(loop.random.uniform(0.01, loop.interval / 2), self.send_rest)
        pause = BUSY_PAUSE if conversation.kind == "busy" else loop.interval
        loop.later(loop.random.uniform(0.5, 1.5) * pause, self.send_burst)

    def send_rest(self) -> None:
        """Send the second part of what was split."""
        if self._rest and self.socket.fileno() >= 0:
            rest, self._rest = self._rest, b""
            self.conversation.complete()
            self._send(rest)

    def end(self) -> None:
        """Send no more; what is owed still has to come, and then the end."""
        self.send_rest()
        self.slow = False
        self.ending = True
        self._interest()
        if not self._unsent:
            self._shut()

    def read_on(self) -> None:
        """A slow reader takes the next bite."""
        if self.slow and self.socket.fileno() >= 0:
            self._reads = True
            self.conversation.sent(time.monotonic())
            self._interest()
            self._loop.later(SLOW_PAUSE, self.read_on)

    def ready(self, events: int) -> None:
        """The socket can be read or written."""
        try:
            if events & select.EPOLLOUT:
                self._send(b"")
            if events & ~select.EPOLLOUT:
                self._receive()
        except OSError as error:
            self._loop.lost(self, RESET, str(error))

    def _receive(self) -> None:
        data = self.socket.recv(SLOW_READ if self.slow else READ)
        if not data:
            self._loop.lost(self, None if self.ending else CLOSED, "end of the stream")
            return
        now = time.monotonic()
        conversation = self.conversation
        first = conversation.owed[0] if conversation.owed else None
        pause = conversation.receive(data, now)
        if pause > self._loop.threshold:
            self._loop.paused(pause, conversation, first, now)
        if self.slow:
            self._reads = False
            conversation.waiting = None
            self._interest()

    def _send(self, data: bytes) -> None:
        data = self._unsent + data
        try:
            sent = self.socket.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._loop.lost(self, RESET, str(error))
            return
        had, self._unsent = bool(self._unsent), data[sent:]
        if bool(self._unsent) != had:
            self._interest()
        if self.ending and not self._unsent:
            self._shut()
        self.conversation.sent(time.monotonic())

    def _shut(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._loop.lost(self, RESET, str(error))

    def _interest(self) -> None:
        reads = select.EPOLLIN if self._reads or not self.slow else 0
        writes = select.EPOLLOUT if self._unsent else 0
        self._loop.poll.modify(self.socket, reads | writes)


class Loop:
    """All connections, on one epoll.

    @ivar interval: seconds between two bursts of a connection, on average.
    @ivar threshold: pauses that are not longer need not be told.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.poll = select.epoll()
        self.random = random.Random(options.seed)
        self.interval = options.connections * PACKETS / options.rate
        self.threshold = 0.0
        self._options = options
        self._counts = Counts()
        self._errors: Counter[str] = Counter()
        self._long: dict[tuple[float, float], tuple[float, float]] = {}
        self._connections: dict[int, Connection] = {}
        self._timers: list[tuple[float, int, Any]] = []
        self._planned = self._replies = 0
        self._commands = b""
        self._stop_at: float | None = None
        self._told = False

    def run(self) -> None:
        """Until C{stop} has been asked for and answered."""
        for number in range(self._options.connections):
            self._connect(number)
        self.poll.register(0, select.EPOLLIN)
        while self._stop_at is None or (self._connections and time.monotonic() < self._stop_at):
            timeout = self._timers[0][0] - time.monotonic() if self._timers else 1.0
            for number, events in self.poll.poll(max(timeout, 0.0)):
                if number:
                    connection = self._connections.get(number)
                    if connection is not None:
                        connection.ready(events)
                else:
                    self._read_command()
            self._do_planned()
            if not self._told and self._is_complete():
                self._told = True
                self._answer()
        for connection in list(self._connections.values()):
            self.lost(connection, None, "no end of the stream")
        self._answer()

    def later(self, seconds: float, action: Any) -> None:
        """Do C{action} in so many seconds."""
        self._planned += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._planned, action))

    def lost(self, connection: Connection, error: str | None, reason: str) -> None:
        """A connection is at its end; C{error}: of what kind, if it should not be."""
        sock = connection.socket
        if sock.fileno() < 0:
            return
        del self._connections[sock.fileno()]
        self.poll.unregister(sock)
        sock.close()
        conversation = connection.conversation
        if error is not None:
            self._fault(conversation, error, reason)
        conversation.ended(cut=error is not None)
        self._replies += conversation.replies
        if self._options.reconnect and self._stop_at is None:
            self._come_back(conversation.number)

    def paused(self, seconds: float, conversation: Conversation, first: Any, now: float) -> None:
        """A connection had to wait."""
        what = None if first is None else first.code
        pauses = self._counts.pauses
        when = round(now - self._began, 3)
        pauses.append([round(seconds, 4), conversation.kind, what, when])
        pauses.sort(key=lambda pause: -float(pause[0]))
        del pauses[LONGEST:]
        self._counts.pause = max(self._counts.pause, seconds)
        if seconds > LONG:
            about = (round(now - seconds, 2), round(now, 2))
            began, ended = self._long.get(about, (now, now))
            if seconds > ended - began:
                self._long[about] = (now - seconds, now)
        if len(pauses) == LONGEST:
            self.threshold = min(float(pauses[-1][0]), LONG)

    _began = time.monotonic()

    def _come_back(self, number: int) -> None:
        # another number, for nothing that was meant for the first one is to come; the same kind
        number += self._options.connections
        self.later(RECONNECT, partial(self._connect, number))

    def _connect(self, number: int) -> None:
        if self._stop_at is not None:
            return
        sock = socket.socket()
        kind = kind_of(number % self._options.connections)
        conversation = Conversation(
            number, kind, self._options.seed, lambda *error: self._fault(conversation, *error)
        )
        try:
            if kind == "bulk":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(10)
            sock.connect(("127.0.0.1", self._options.port))
        except OSError as error:
            sock.close()
            self._fault(conversation, REFUSED, str(error))
            if self._options.reconnect:
                self._come_back(number)
            return
        sock.setblocking(False)
        self._counts.connected += 1
        connection = Connection(self, conversation, sock)
        self._connections[sock.fileno()] = connection
        self.later(self.random.random() * min(self.interval, 1.0), connection.send_burst)

    def _do_planned(self) -> None:
        now = time.monotonic()
        timers = self._timers
        if timers and timers[0][0] < now:
            self._counts.late = max(self._counts.late, now - timers[0][0])
        while timers and timers[0][0] <= now:
            heapq.heappop(timers)[2]()

    def _is_complete(self) -> bool:
        return len(self._connections) == self._options.connections and all(
            connection.conversation.replies for connection in self._connections.values()
        )

    def _fault(self, conversation: Conversation, kind: str, text: str) -> None:
        self._errors[kind] += 1
        if self._errors[kind] <= DETAILS:
            when = time.monotonic() - self._began
            who = f"{conversation.kind} {conversation.number}"
            self._counts.details.append(f"{when:.3f} {kind}: {who}: {text}")

    def _read_command(self) -> None:
        data = os.read(0, 4096)
        if not data:
            os._exit(1)  # the test is gone
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            if line == b"stop":
                self._stop_at = time.monotonic() + self._options.patience
                self.threshold = math.inf  # all end at once: they wait for each other
                for connection in list(self._connections.values()):
                    connection.end()
            else:
                self._answer()
                if line == b"mark":
                    self._counts.pause = self._counts.late = self.threshold = 0.0
                    self._counts.pauses.clear()
                    self._long.clear()

    def _answer(self) -> None:
        counts = self._counts
        counts.open = len(self._connections)
        counts.errors = dict(self._errors)
        counts.replies, counts.owed = self._replies, 0
        now = time.monotonic()
        for connection in self._connections.values():
            conversation = connection.conversation
            counts.replies += conversation.replies
            counts.owed += len(conversation.owed)
            if (pause := conversation.pause(now)) > max(self.threshold, 0.05):
                first = conversation.owed[0] if conversation.owed else None
                self.paused(pause, conversation, first, now)
        counts.long = list(self._long.values())
        sys.stdout.write(json.dumps(asdict(counts)) + "\n")
        sys.stdout.flush()


def main() -> None:
    """The process of the traffic."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("connections", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--patience", type=float, default=15.0)
    parser.add_argument("--reconnect", action="store_true")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Loop(parser.parse_args()).run()


if __name__ == "__main__":
    main()
