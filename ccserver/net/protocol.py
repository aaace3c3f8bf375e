"""The protocol: a thin shell that ties transport, session and lane of a connection together."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.core.carried import Carried
from ccserver.core.framing import Packet
from ccserver.core.limits import SessionLimits
from ccserver.core.session import CloseReason, Session
from ccserver.errors import ProtocolError
from ccserver.net.connections import Connections
from ccserver.net.dispatch import Dispatch
from ccserver.net.lane import NOTHING, Lane
from ccserver.net.transport import DirectServer

FLUSH_TIMEOUT = 10.0
"""Seconds that a closing connection has to take what was sent to it, before it is cut."""

LINGER_TIMEOUT = 1.0
"""Seconds that a client has, behind our end of stream, to read and to close its side.

Closing with input unread would be a reset that destroys replies on their way (FAULTS, finding
4). In this time what comes is read and thrown away.
"""

FINAL_READS = 4
"""Reads, of 64 KiB each, of what has come to a connection that is to finish."""


@implementer(IHalfCloseableProtocol)
class PacketProtocol(Protocol):
    """One connection of the worker."""

    factory: PacketFactory
    transport: Any
    session: Session
    lane: Lane

    log = Logger()

    _deadline: IDelayedCall | None = None  # there is one once we are closing
    _stuck: IDelayedCall | None = None
    _eof = False
    _lost = False

    def __init__(self, factory: PacketFactory, peer: str) -> None:
        self.factory = factory
        self._peer = peer

    def connectionMade(self) -> None:
        factory = self.factory
        self.transport.setTcpNoDelay(True)
        session_id, now = factory.connections.next_id(), factory.clock.seconds()
        self.session = Session(session_id, self._peer, factory.server, factory.limits, now)
        self._decoder = self.session.decoder
        self.lane = Lane(self.session, self, factory.dispatch)
        self.transport.registerProducer(self.lane, True)
        factory.connections.add(self)
        self.lane.start()
        if factory.connections.draining:
            self.finish()

    def dataReceived(self, data: bytes) -> None:
        out = self.receive(data)
        if out:
            self.transport.writeSequence(out)

    def receive(self, data: bytes) -> list[bytes]:
        """Take C{data} from the client; what is returned is to be sent to it, at once."""
        packets = self._decoder.feed(data)
        if self.factory.timed:
            packets = self.session.admit(packets, self.factory.clock.seconds())
        out = self.lane.take(packets) if packets else NOTHING
        if self._decoder.refused or self.session.close_reason is not None:
            self.transport.writeSequence(out)
            self._settle()
            return NOTHING
        return out

    def readConnectionLost(self) -> None:
        """The client sends no more; it may still wait for replies."""
        self._eof = True
        if self._deadline is not None:
            self.transport.loseConnection()
        else:
            self.session.end_of_stream()
            self.lane.finish()

    def writeConnectionLost(self) -> None:
        """All that was sent is on its way, and our end of stream behind it."""
        if self._eof:
            self.transport.loseConnection()
        else:
            self._set_deadline(LINGER_TIMEOUT)
            self.transport.resumeProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self.lane_stuck(False)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        session = self.session
        session.stop(CloseReason.CLIENT_RESET)
        self.factory.connections.remove(self)
        if self.factory.log_ends:
            self._log_end()
        self.lane.lost(session.close_reason or CloseReason.CLIENT_RESET)

    def adopt(self, transport: DirectServer, carried: Carried, unsent: list[bytes]) -> None:
        """Go on with a connection that comes from another process.

        @raise ValueError: it cannot be; nothing was done.
        """
        factory = self.factory
        self.session = Session.adopt(carried, factory.limits, factory.clock.seconds())
        self._decoder = self.session.decoder
        self.transport = transport
        self.connected = 1
        self.lane = Lane(self.session, self, factory.dispatch)
        self.transport.registerProducer(self.lane, True)
        factory.connections.add(self)
        factory.connections.counts.adopted += 1
        transport.preload(unsent)
        self.lane.adopt(carried.pending)
        if self._decoder.refused:
            self._settle()
        if factory.connections.draining:
            self.finish()

    @property
    def reason_to_stay(self) -> str | None:
        """Why the connection cannot move to another process, if it cannot."""
        if not isinstance(self.transport, DirectServer) or self.transport.TLS:
            return "tls"
        if self.session.id not in self.factory.connections:
            return "closing"  # it has ended, or is on its way by another channel
        if self.session.close_reason is not None or self.lane.ending:
            return "closing"
        return "handler" if self.lane.held else None

    def detach(self) -> tuple[list[Packet], list[bytes]]:
        """Do no more, with the socket open; the lane is at rest.

        @return: the packets that were not handled, the bytes that were not sent.
        """
        self.factory.connections.take_out(self)
        waiting = self.lane.depart()
        # what threads have sent before is still to go; from now on they send nothing
        self.factory.dispatch.pool.work_off()
        return waiting, self.transport.detach()

    def reattach(self, waiting: list[Packet]) -> None:
        """It stays after all: go on as before L{detach}."""
        connections = self.factory.connections
        connections.add(self)
        self.transport.reattach()
        self.lane.come_back(waiting)
        if connections.draining:
            self.finish()

    def gone(self) -> None:
        """It is in another process now."""
        self._lost = True
        self.factory.connections.counts.handed_over += 1
        self.transport.release()
        self.lane.release()

    def gone_astray(self) -> None:
        """It went, and nobody has said that it arrived: it must not be served here any more."""
        self._lost = True
        self.session.stop(CloseReason.HANDOVER)
        self.factory.connections.counts.closed[CloseReason.HANDOVER] += 1
        self.transport.release()
        if self.factory.log_ends:
            self._log_end()
        self.lane.come_back([])
        self.lane.lost(CloseReason.HANDOVER)

    @property
    def idle(self) -> bool:
        """Whether nothing is being handled and nothing waits."""
        return self.lane.idle

    @property
    def deaf(self) -> bool:
        """Whether nothing is read because we are behind, not because the client is."""
        return self.lane.paused and not self.lane.blocked

    def finish(self) -> None:
        """Answer what has been received, what waits in the kernel too, then close."""
        if self._lost or self._deadline is not None:
            return
        for _ in range(FINAL_READS):
            before = self.session.bytes_in
            self.transport.doRead()
            if self.session.bytes_in == before or self.session.close_reason is not None:
                break
        self.session.stop(CloseReason.DRAIN)
        self.pause_reading()
        self.lane.finish()

    def close(self, reason: CloseReason) -> None:
        """Send what was sent so far, then close; what waits to be handled is dropped."""
        self.session.stop(reason)
        self.lane.close()

    def abort(self) -> None:
        """Close at once."""
        self.session.stop(CloseReason.SHUTDOWN)
        if self.session.close_reason is CloseReason.DRAIN:
            self.session.close_reason = CloseReason.SHUTDOWN  # it took too long
        self.transport.abortConnection()

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_reading(self) -> None:
        self.transport.pauseProducing()

    def resume_reading(self) -> None:
        self.transport.resumeProducing()

    def refuse(self, error: ProtocolError, code: int) -> None:
        """Count and log a packet that was not accepted (PROTOCOL.md 2)."""
        connections = self.factory.connections
        connections.counts.refused[error.reason] += 1
        suppressed = connections.lines.admit(error.reason, self.factory.clock.seconds())
        if suppressed is not None:
            self.log.warn(
                "refused {reason}, code {code}: {error}{more}",
                reason=error.reason,
                code=code,
                error=str(error),
                more=f" ({suppressed} more such lines suppressed)" if suppressed else "",
                session=self.session,
            )

    def _settle(self) -> None:
        """Act on what the session has found wrong with the bytes."""
        for refusal in self.session.take_refused():
            self.refuse(refusal.error, refusal.code)
        if self.session.close_reason is not None:
            self.lane.finish()

    def lane_done(self) -> None:
        """Nothing is left to answer: flush, end our side, and give the client time to read."""
        if self._lost:
            self.lane.release()
            return
        if self._deadline is not None:
            return
        self.lane_stuck(False)
        self._set_deadline(FLUSH_TIMEOUT)
        self.transport.unregisterProducer()
        if self._eof:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def lane_stuck(self, stuck: bool) -> None:
        """We want to close; a client that does not read must not keep us from it."""
        if stuck and self._stuck is not None and self._stuck.active():
            return  # told again with each write: the first counts
        if self._stuck is not None and self._stuck.active():
            self._stuck.cancel()
        self._stuck = None
        if stuck and not self._lost and self._deadline is None:
            self._stuck = self.factory.clock.callLater(
                FLUSH_TIMEOUT, self.transport.abortConnection
            )

    def _set_deadline(self, seconds: float) -> None:
        """Cut the connection after C{seconds}, unless it has ended before."""
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()  # resetting to an earlier time is slow (FACTS 40)
        self._deadline = self.factory.clock.callLater(seconds, self.transport.abortConnection)

    def _log_end(self) -> None:
        session = self.session
        self.log.info(
            "closed: {reason}, {seconds:.3f} s, in {bytes_in} bytes {packets_in} packets, "
            "out {bytes_out} bytes {packets_out} packets",
            reason=session.close_reason,
            seconds=self.factory.clock.seconds() - session.started,
            bytes_in=session.bytes_in,
            packets_in=session.packets_in,
            bytes_out=session.bytes_out,
            packets_out=session.packets_out,
            session=session,
        )


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
    ) -> None:
        """
        @param server: the listening address, C{host:port}.
        @param log_ends: write a line for each connection that ends.
        """
        self.server = server
        self.limits = limits
        self.timed = limits.timed
        self.connections = connections
        self.dispatch = dispatch
        self.clock = clock
        self.log_ends = log_ends

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
        client: tuple[Any, ...] = ("-", 0)  # as long as there is none, as reading will tell
        with suppress(OSError):
            client = sock.getpeername() or client
        protocol = PacketProtocol(self, carried.peer)
        transport = DirectServer(sock, protocol, client, None, 0, self.clock)
        transport.repstr = f"<connection {carried.id}, adopted>"
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
            return PacketProtocol(self, peer)
        connections.counts.closed[CloseReason.CONNECTION_LIMIT] += 1
        suppressed = connections.lines.admit(CloseReason.CONNECTION_LIMIT, self.clock.seconds())
        if suppressed is not None:
            self.log.warn(
                "connection_limit: {connections} connections, {peer} refused{more}",
                connections=len(connections),
                peer=peer,
                more=f" ({suppressed} more such lines suppressed)" if suppressed else "",
            )
        return None


def address_text(address: Any) -> str:
    """C{host:port} of an L{IPv4Address} or L{IPv6Address}; C{-} of anything else."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None:
        return "-"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
