"""The intake: whether a worker accepts connections now; those that wait are kept by the kernel."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from ccserver.native import native

if TYPE_CHECKING:
    from ccserver.net.port import DirectPort

SPARE = 8
"""Descriptors that connections leave to all else: a log that is opened anew, a database."""

PAUSE = 0.1
"""Seconds between two looks at whether there are descriptors again."""

LINE_INTERVAL = 10.0
"""Seconds between two lines that say that there are none."""

MOST_ACCEPTS = 64
"""Connections that a port accepts in one turn, however many wait: for so long, 5 ms with the making
of as many, those who are connected wait."""

DESCRIPTORS = "descriptors"
"""Why the intake is closed: there are no descriptors left."""

_OF_THE_CONNECTION = frozenset(
    {
        *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT),
        *(errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
        *(errno.ETIMEDOUT, errno.EINTR),
    }
)
"""Errors of accept(2) that mean that a connection was gone before it was accepted."""


@implementer(IAddress)
class Endpoint(NamedTuple):
    """Where a client is: an address that costs less than Twisted's own."""

    host: str
    port: int


def address_text(address: Any) -> str:
    """C{host:port} of an address that has both; C{-} of anything else."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None:
        return "-"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def accept(listening: Any) -> tuple[Any, tuple[str, int]]:
    """Accept a connection: its socket, which does not block, and its client's host and port.

    @raise OSError: there is none (C{BlockingIOError}), or it cannot be accepted.
    """
    if native is not None and listening.__class__ is socket.socket:
        accepted: tuple[Any, tuple[str, int]] = native.accept(listening)
        return accepted
    sock, address = listening.accept()
    sock.setblocking(False)
    host, port = address[:2]
    if len(address) == 4:  # an IPv6 address, which may have a scope
        flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        host, _ = socket.getnameinfo(address, flags)
    return sock, (host, port)


class Intake:
    """Whether the ports of a worker accept: while anything is in the way, none does.

    No descriptors left is in the way by itself: accepting pauses, and is tried again every
    L{PAUSE} seconds, for the kernel would report the port as ready again and again.

    @ivar look: is called before and behind each accept, to close it or not.
    """

    log = Logger()

    look: Callable[[], None]

    def __init__(self, clock: IReactorTime) -> None:
        self.look = lambda: None
        self._clock = clock
        self._reasons: set[str] = set()
        self._ports: set[DirectPort] = set()
        self._told = -LINE_INTERVAL
        self._ceiling = ceiling()

    @property
    def reasons(self) -> frozenset[str]:
        """What is in the way."""
        return frozenset(self._reasons)

    def add(self, port: DirectPort) -> None:
        """Decide for C{port} too from now on."""
        self._ports.add(port)
        port.intake = self

    def remove(self, port: DirectPort) -> None:
        """Decide for C{port} no more."""
        self._ports.discard(port)
        port.intake = None

    def admits(self, port: DirectPort) -> bool:
        """Whether C{port} may accept; if not, it is read again when it may."""
        self.look()
        if self._reasons:
            port.stopReading()
        return not self._reasons

    def close(self, reason: str) -> None:
        """Accept nothing while there is C{reason} not to."""
        self._reasons.add(reason)

    def open(self, reason: str) -> None:
        """There is C{reason} not to accept no more."""
        if reason in self._reasons:
            self._reasons.discard(reason)
            if not self._reasons:
                for port in self._ports:
                    if port.connected and not port.disconnecting:
                        port.startReading()

    def accepted(self, sock: socket.socket) -> bool:
        """Whether another connection may be accepted behind this one.

        The kernel gives the lowest number that is free, so a high one says that few are left.
        """
        if sock.fileno() >= self._ceiling:
            self.starve(f"only {SPARE} descriptors are left")
        self.look()
        return not self._reasons

    def starve(self, why: str) -> None:
        """No connection can be accepted, for want of descriptors or memory: pause for a while."""
        if DESCRIPTORS in self._reasons:
            return
        self.close(DESCRIPTORS)
        self._clock.callLater(PAUSE, self._look)
        now = self._clock.seconds()
        if now - self._told >= LINE_INTERVAL:
            self._told = now
            self.log.warn(
                "cannot accept connections: {why}, of {limit}; they wait until that has changed",
                why=why,
                limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            )

    def _look(self) -> None:
        self._ceiling = ceiling()  # it can be changed from outside
        try:
            number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.close(number)
        except OSError:
            number = self._ceiling
        if number >= self._ceiling:
            self._clock.callLater(PAUSE, self._look)
        else:
            self.open(DESCRIPTORS)


def accept_waiting(port: DirectPort) -> None:
    """Accept what waits at C{port}: as many as came at once the last time, and a few more.

    A port that has an intake, which one that is to close has not, has at most L{MOST_ACCEPTS}.
    A fault with one connection closes that one, and leaves the others alone.
    """
    intake = port.intake
    if intake is not None and not intake.admits(port):
        return
    accepted, most = 0, port.numberAccepts
    if intake is not None:
        most = min(most, MOST_ACCEPTS)
    while accepted < most:
        try:
            sock, address = accept(port.socket)
        except BlockingIOError:
            port.no_delay = True  # those that came before it had it are gone
            break
        except OSError as error:
            if error.errno in _OF_THE_CONNECTION:
                accepted += 1
                continue
            if intake is not None:
                intake.starve(os.strerror(error.errno or 0))
            break
        except MemoryError:
            if intake is not None:
                intake.starve(os.strerror(errno.ENOMEM))
            break
        accepted += 1
        try:
            _begin(port, sock, address)
        except Exception:
            Intake.log.failure("a connection that was accepted cannot begin")
            sock.close()
        if intake is not None and not intake.accepted(sock):
            break
    # many that came at once are often followed by more
    if accepted == most:
        port.numberAccepts = min(accepted + 20, MOST_ACCEPTS)
    else:
        port.numberAccepts = max(1, accepted)


def _begin(port: DirectPort, sock: Any, address: tuple[str, int]) -> None:
    factory: Any = port.factory
    protocol = factory.buildProtocol(port._buildAddr(address))
    if protocol is None:
        sock.close()
        return
    transport = port.open(sock, protocol, address)
    if not port.no_delay:
        transport.setTcpNoDelay(True)
    try:
        protocol.makeConnection(transport)
    except Exception:
        Intake.log.failure("a connection that was accepted cannot begin")
        transport.abortConnection()


def ceiling() -> int:
    """The lowest number of a descriptor that is to be left to others than connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (1 << 62) if soft == resource.RLIM_INFINITY else soft - SPARE
