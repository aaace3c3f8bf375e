"""The factory: what makes the protocols of a listening address."""

from __future__ import annotations

import socket

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from ccserver.core.carried import Carried
from ccserver.core.limits import SessionLimits
from ccserver.core.session import CloseReason, Session
from ccserver.net.closing import CloseTimeouts
from ccserver.net.connections import Connections
from ccserver.net.dispatch import Dispatch
from ccserver.net.intake import address_text
from ccserver.net.protocol import PacketProtocol
from ccserver.net.transport import DirectServer
from ccserver.net.turnstile import Turnstile


class PacketFactory(Factory):
    """Makes the protocols of one listening address."""

    noisy = False
    log = Logger()

    def __init__(
        self,
        server: str,
        limits: SessionLimits,
        connections: Connections,
        dispatch: Dispatch,
        clock: IReactorTime,
        log_ends: bool = False,
        timeouts: CloseTimeouts | None = None,
    ) -> None:
        """
        @param server: the listening address, C{host:port}.
        @param log_ends: write a line for each connection that ends.
        @param timeouts: how long the end of a connection may take.
        """
        self.server = server
        self.limits = limits
        self.pattern = Session(0, "-", server, limits, 0.0)
        self.timed = limits.timed
        self.connections = connections
        self.dispatch = dispatch
        self.clock = clock
        self.turnstile = Turnstile(clock)
        self.log_ends = log_ends
        self.timeouts = timeouts or CloseTimeouts()

    def adopt(self, sock: socket.socket, carried: Carried, unsent: list[bytes]) -> None:
        """Go on with a connection that comes from another process.

        It need not have been accepted at the address of this factory; C{worker_connections}
        does not keep it out.

        @param sock: connected; it belongs to the factory when this has returned.
        @param unsent: bytes that are to be sent before all others.
        @raise ValueError: the connection cannot be gone on with.
        @raise OSError: the reactor cannot take the socket.
        """
        if carried.id in self.connections:
            raise ValueError(f"there is a connection {carried.id} already")
        sock.setblocking(False)
        protocol = PacketProtocol(self, carried.peer)
        transport = DirectServer(sock, protocol, ("-", 0), None, 0, self.clock)
        try:
            protocol.adopt(transport, carried, unsent)
        except ValueError:
            transport.stopReading()
            raise

    def buildProtocol(  # type: ignore[override]
        self, addr: IAddress | None
    ) -> PacketProtocol | None:
        """A protocol, or None, which closes the connection, where there are too many."""
        connections = self.connections
        connections.counts.accepted += 1
        peer = address_text(addr)
        if not connections.full:
            host = getattr(addr, "host", None)
            reason = None if host is None else connections.refusal(host)
            if reason is None:
                return PacketProtocol(self, peer)
            self._refuse(reason, peer)
            return None
        connections.counts.closed[CloseReason.CONNECTION_LIMIT] += 1
        more = connections.admit_line(CloseReason.CONNECTION_LIMIT)
        if more is not None:
            self.log.warn(
                "connection_limit: {connections} connections, {peer} refused{more}",
                connections=len(connections),
                peer=peer,
                more=more,
            )
        return None

    def _refuse(self, reason: CloseReason, peer: str) -> None:
        """Count and log that a client's address may not connect."""
        connections = self.connections
        connections.counts.closed[reason] += 1
        more = connections.admit_line(reason)
        if more is not None:
            self.log.warn("{reason}: {peer} refused{more}", reason=reason, peer=peer, more=more)
