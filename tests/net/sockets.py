"""A kernel in memory: sockets, and the poller of an epoll reactor, without time and network."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Any

from twisted.internet import tcp
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Protocol

from ccserver.net import reactor as turns
from ccserver.net import transport as direct
from ccserver.net.reactor import DirectReactor
from ccserver.net.transport import DirectServer

AGAIN = BlockingIOError(errno.EAGAIN, "try again")
PIPE = BrokenPipeError(errno.EPIPE, "broken pipe")
RESET = ConnectionResetError(errno.ECONNRESET, "reset")

PLENTY = 1 << 40


class FakeSocket:
    """A connected socket; the test is the kernel and the client at its other end.

    @ivar incoming: what comes: bytes as the segments they are read in, or an error.
    @ivar sent: what the client has got, one entry for each send.
    @ivar room: how many more bytes the kernel takes.
    @ivar faults: what the next sends do instead: take at most so many bytes, or raise.
    @ivar calls: the system calls that were made, by name.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.incoming: list[bytes | OSError] = []
        self.sent: list[bytes] = []
        self.room = PLENTY
        self.faults: list[int | OSError] = []
        self.calls: list[str] = []
        self.broken: OSError | None = None
        self.shut: list[int] = []
        self.options: dict[tuple[int, int], Any] = {}
        self.closed = False

    @property
    def received(self) -> bytes:
        """All that the client has got."""
        return b"".join(self.sent)

    @property
    def events(self) -> int:
        """What a poll would say of it."""
        if self.broken is not None:
            return EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP
        return (EPOLLIN if self.incoming else 0) | (EPOLLOUT if self.room > 0 else 0)

    def fileno(self) -> int:
        return -1 if self.closed else self.fd

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def recv(self, size: int) -> bytes:
        self.calls.append("recv")
        if self.broken is not None:
            raise self.broken
        if not self.incoming:
            raise AGAIN
        data = self.incoming[0]
        if isinstance(data, OSError):
            raise data
        if len(data) > size:
            self.incoming[0] = data[size:]
        elif data:
            del self.incoming[0]  # an end of stream is there for ever
        return data[:size]

    def send(self, data: bytes) -> int:
        self.calls.append("send")
        if self.broken is not None:
            raise self.broken
        if 1 in self.shut or 2 in self.shut:
            raise PIPE
        takes = self.room
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, OSError):
                raise fault
            takes = min(takes, fault)
        if data and not takes:
            raise AGAIN
        taken = bytes(data[:takes])
        self.room -= len(taken)
        if taken:
            self.sent.append(taken)
        return len(taken)

    def shutdown(self, how: int) -> None:
        self.calls.append("shutdown")
        self.shut.append(how)

    def close(self) -> None:
        self.calls.append("close")
        self.closed = True

    def setsockopt(self, level: int, name: int, value: Any) -> None:
        self.options[level, name] = value

    def getsockopt(self, level: int, name: int, size: int = 0) -> Any:
        return self.options.get((level, name), 0)

    @property
    def was_reset(self) -> bool:
        """Whether it was closed so that the client sees a reset."""
        return self.closed and (socket.SOL_SOCKET, socket.SO_LINGER) in self.options


class FakePoller:
    """The epoll object of a reactor, over L{FakeSocket}s; sleeping passes its time at once.

    @ivar controls: how often epoll_ctl would have been called.
    @ivar sleeps: the timeouts of the polls that found nothing.
    @ivar found: how many events there were.
    @ivar idle: called when the reactor would sleep for ever.
    """

    def __init__(self) -> None:
        self.sockets: dict[int, FakeSocket] = {}
        self.watched: dict[int, int] = {}
        self.controls = 0
        self.sleeps: list[float] = []
        self.now = 1000.0
        self.idle: Callable[[], object] = lambda: None
        self.errors: list[OSError] = []
        self.found = 0

    def register(self, fd: int, events: int) -> None:
        assert fd not in self.watched
        self.modify(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self.controls += 1
        self.watched[fd] = events

    def unregister(self, fd: int) -> None:
        self.controls += 1
        del self.watched[fd]

    def poll(self, timeout: float = -1, maxevents: int = -1) -> list[tuple[int, int]]:
        if self.errors:
            raise self.errors.pop(0)
        ready = []
        for fd, wanted in self.watched.items():
            if fd in self.sockets:
                events = self.sockets[fd].events & (wanted | EPOLLERR | EPOLLHUP)
                if events:
                    ready.append((fd, events))
        self.found += len(ready)
        if not ready:
            self.sleeps.append(timeout)
            if timeout < 0:
                self.idle()
            else:
                self.now += timeout
        return ready[:maxevents] if maxevents > 0 else ready


def fake_kernel(reactor: EPollReactor) -> FakePoller:
    """Put C{reactor} on a L{FakePoller}, whose time it has too."""
    reactor._poller.close()
    poller = FakePoller()
    reactor._poller = poller
    reactor.seconds = lambda: poller.now
    return poller


class Recorder(Protocol):
    """Remembers what happens to it; does in its turn what the test says."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.lost: list[Any] = []
        self.on_data: Callable[[bytes], object] = lambda data: None

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)
        self.on_data(data)

    def connectionLost(self, reason: Any) -> None:
        self.lost.append(reason)


class Wire:
    """A reactor, and a connection on it, whose client is the test."""

    reactor_class: type[EPollReactor] = DirectReactor
    transport_class: type[tcp.Server] = DirectServer

    def __init__(self, test: Any, reactor: type[EPollReactor], transport: type[tcp.Server]) -> None:
        # the compiled ones would do their system calls themselves
        test.patch(direct, "feed_from", direct.feed_from_in_python)
        test.patch(direct, "transmit", direct.transmit_in_python)
        test.patch(turns, "turn", None)
        test.patch(turns, "flush", None)
        self.reactor = reactor()
        self.poller = fake_kernel(self.reactor)
        self._transport = transport
        self._next_fd = 1_000_000
        test.addCleanup(self._close)

    def connect(self, protocol: Any) -> tuple[Any, FakeSocket]:
        """A connection that was accepted for C{protocol}, and its socket."""
        self._next_fd += 1
        fake = FakeSocket(self._next_fd)
        self.poller.sockets[fake.fd] = fake
        transport = self._transport(fake, protocol, ("10.0.0.9", 5000), None, 0, self.reactor)
        transport.repstr = "connection"
        protocol.makeConnection(transport)
        return transport, fake

    def turn(self, times: int = 1) -> None:
        """Turns of the reactor, the sends that they end with included."""
        for _ in range(times):
            self.reactor.runUntilCurrent()
            self.reactor.doIteration(0)
        self.flush()

    def flush(self) -> None:
        """What the reactor does before it sleeps, and no more."""
        sockets, self.poller.sockets = self.poller.sockets, {}
        self.reactor.doIteration(0)
        self.poller.sockets = sockets

    def settle(self) -> None:
        """Turns until nothing more happens."""
        quiet = 0
        for _ in range(200):
            before = self.poller.found
            self.turn()
            quiet = quiet + 1 if self.poller.found == before else 0
            if quiet == 3:
                break

    def _close(self) -> None:
        for reader in self.reactor._internalReaders:
            reader.connectionLost(None)
