"""The protocol: a thin shell that ties transport, session and lane of a connection together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str
from zope.interface import implementer

from ccserver.core.carried import Carried
from ccserver.core.framing import Packet, Refusal
from ccserver.core.session import CloseReason, Session
from ccserver.errors import BadChecksum, ProtocolError
from ccserver.net.closing import Closing
from ccserver.net.delay import Delay, exceed
from ccserver.net.lane import NOTHING, Lane
from ccserver.net.transport import READ_SIZE, DirectServer

if TYPE_CHECKING:
    from ccserver.net.factory import PacketFactory

FINAL_READS = 4
"""Reads of what has come to a connection that is to finish, or long ones of one turn."""


@implementer(IHalfCloseableProtocol)
class PacketProtocol(Protocol):
    """One connection of the worker."""

    __slots__ = ("transport",)  # for the compiled part

    factory: PacketFactory
    transport: Any
    session: Session
    lane: Lane

    log = Logger()

    first = b""
    """What has come before the connection was a session."""

    lost = False
    """Whether the connection is gone."""

    delay: Delay | None = None
    """Nothing is read until the rate lets packets through."""

    _closing: Closing | None = None
    _eof = False
    _left = False  # the lane has nothing to do any more

    def __init__(self, factory: PacketFactory, peer: str) -> None:
        """@param peer: the client's address, C{host:port}."""
        self.factory = factory
        self.transport = None
        self.peer = peer

    def connectionMade(self) -> None:
        factory = self.factory
        connections = factory.connections
        session = factory.pattern.another(connections.next_id(), self.peer, factory.clock.seconds())
        self.session = session
        self._decoder = session.decoder
        self.lane = factory.dispatch.lane(session, self)
        self._attend()
        connections.add(self)
        self.lane.start()
        if connections.crowds(self):
            self.close(CloseReason.ADDRESS_LIMIT)
        if self.first:
            self.dataReceived(self.first)
            self.first = b""
        if connections.draining:
            self.finish()

    def _attend(self) -> None:
        """Let the transport tell lane and session of what happens."""
        if isinstance(self.transport, DirectServer):
            self.transport.attend(self._decoder, self.lane, self.factory.timed)
        else:
            self.transport.registerProducer(self.lane, True)

    def dataReceived(self, data: bytes) -> None:
        out = self.receive(self._decoder.feed(data))
        if out:
            self.transport.writeSequence(out)

    def receive(self, packets: list[Packet]) -> list[bytes]:
        """Take what the decoder has made of a read; what is returned is to be sent, at once."""
        if not packets and not self._decoder.refused:
            self._take_little(self._decoder.fed)
            return NOTHING
        if self.factory.timed:
            return self.admitted(self.session.admit(packets, self.factory.clock.seconds()))
        out = self.lane.take(packets) if packets else NOTHING
        if self._decoder.noted or self.session.close_reason is not None:
            return self.answered(out)
        return out

    def admitted(self, packets: list[Packet]) -> list[bytes]:
        """Take what the limits let through of a read; what is returned is to be sent, at once."""
        if self.session.excess is not None:
            exceed(self)
        out = self.lane.take(packets) if packets else NOTHING
        if self._decoder.noted or self.session.close_reason is not None:
            return self.answered(out)
        return out

    def answered(self, out: list[bytes]) -> list[bytes]:
        """The packets of a read are answered by C{out}: act on what else was found in it."""
        self.transport.writeSequence(out)
        self._settle()
        return NOTHING

    def _take_little(self, size: int) -> None:
        """A read of C{size} bytes has completed no packet."""
        factory, session = self.factory, self.session
        if session.close_reason is None:
            session.came_little(size, factory.clock.seconds())
        if self._decoder.noted or session.close_reason is not None:
            self._settle()

    def take(self, packets: list[Packet]) -> None:
        """Take what the rate had held back."""
        if packets:
            self.transport.writeSequence(self.lane.take(packets))

    def end_delay(self) -> None:
        """The rate holds back nothing any more."""
        delay, self.delay = self.delay, None
        if delay is not None:
            delay.end()

    def end_in_order(self) -> None:
        """Nothing comes any more: close when all that was taken is answered."""
        if self.delay is not None:
            self.end_delay()
        self.lane.finish()

    def readConnectionLost(self) -> None:
        """The client sends no more; it may still wait for replies."""
        self._eof = True
        closing = self._closing
        if closing is not None and closing.flushing:
            self.transport.loseConnection()
            return
        at_once = closing is None and self.delay is None and self.session.close_reason is None
        if at_once and getattr(self.transport, "ends_at_once", False) and self.lane.leave():
            # as below, here for the sake of speed: most clients leave when all is answered
            self._left = True
            self.session.end_of_stream()
            self.transport.end()
            return
        self.session.end_of_stream()
        if self.session.close_reason is not None:
            self.end_in_order()

    def writeConnectionLost(self) -> None:
        """All that was sent is on its way, and our end of stream behind it."""
        if self._eof:
            self.transport.loseConnection()
        else:
            self._begin_closing().linger()
            self.transport.resumeProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        if self.delay is not None:
            self.end_delay()
        if self._closing is not None:
            self._end_closing()
        session, factory = self.session, self.factory
        if session.close_reason is None:
            session.stop(CloseReason.CLIENT_RESET)
        if not self._left and self.lane.owes:
            factory.connections.leave_behind(self)  # before its place is free
        factory.connections.remove(self)
        if factory.log_ends:
            self._log_end()
        if not self._left:
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
        self._attend()
        factory.connections.add(self)
        factory.connections.counts.adopted += 1
        self.lane.adopt(carried.pending, unsent)
        if self._decoder.refused:
            self._settle()
        self._decoder.noted = False  # the incomplete packet began where it comes from
        if factory.connections.draining:
            self.finish()

    @property
    def reason_to_stay(self) -> str | None:
        """Why the connection cannot move to another process, if it cannot."""
        if not isinstance(self.transport, DirectServer) or self.transport.TLS:
            return "tls"
        if self.session.id not in self.factory.connections:
            return "closing"  # it has ended, or is on its way by another channel
        if self.session.ending or self.lane.ending:
            return "closing"
        return "handler" if self.lane.held else None

    def detach(self) -> tuple[list[Packet], list[bytes]]:
        """Do no more, with the socket open; the lane is at rest.

        @return: the packets that were not handled, the bytes that were not sent.
        """
        excess = self.session.let_through()
        self.end_delay()
        self.factory.connections.take_out(self)
        waiting = self.lane.depart() + excess
        # what threads have sent before is still to go; from now on it is kept back
        self.factory.dispatch.pool.work_off()
        return waiting, [*self.transport.detach(), *self.lane.contents()]

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
        self.lost = True
        self._end_closing()  # a thread may have closed it on its way
        self.factory.connections.counts.handed_over += 1
        self.transport.release()
        self.lane.release()

    def gone_astray(self) -> None:
        """It went, and nobody has said that it arrived: it must not be served here any more."""
        self.lost = True
        self.session.stop(CloseReason.HANDOVER)
        self.factory.connections.counts.closed[CloseReason.HANDOVER] += 1
        self.transport.release()
        if self.factory.log_ends:
            self._log_end()
        self.lane.silence()
        self.lane.come_back([])
        self.lane.lost(CloseReason.HANDOVER)

    @property
    def idle(self) -> bool:
        """Whether nothing is being handled and nothing waits."""
        return self.lane.idle and self.delay is None

    @property
    def paused(self) -> bool:
        """Whether nothing is read."""
        return self.lane.paused or self.delay is not None

    @property
    def deaf(self) -> bool:
        """Whether nothing is read because we are behind, not because the client is."""
        return self.delay is not None or (self.lane.paused and not self.lane.blocked)

    @property
    def flushing(self) -> bool:
        """Whether all is handled, and the connection ends when the client has taken the rest."""
        return self._closing is not None and self._closing.flushing

    def finish(self) -> None:
        """Answer what has been received, what waits in the kernel too, then close."""
        if self.lost or self.flushing:
            return
        end = self.session.bytes_in + FINAL_READS * READ_SIZE
        for _ in range(FINAL_READS):
            before = self.session.bytes_in
            self.transport.doRead()
            read = before < self.session.bytes_in < end
            if not read or self.session.close_reason is not None:
                break
        self.end_delay()
        self.take(self.session.let_through())
        self.session.stop(CloseReason.DRAIN)
        self.pause_reading()
        self.lane.finish()

    def close(self, reason: CloseReason) -> None:
        """Send what was sent so far, then close; what waits to be handled is dropped."""
        self.end_delay()
        self.session.stop(reason)
        self.lane.close()

    def abort(self) -> None:
        """Close at once."""
        self.session.stop(CloseReason.SHUTDOWN)
        if self.session.close_reason is CloseReason.DRAIN:
            self.session.close_reason = CloseReason.SHUTDOWN  # it took too long
        self.lane.drop()
        self.transport.abortConnection()

    def cut(self, reason: CloseReason, why: str) -> None:
        """Close at once: the connection costs more than it is worth."""
        if self.lost:
            self.factory.connections.settle(self)  # what is left of it will not be handled
            return
        self.session.stop(reason)
        more = self.factory.connections.admit_line(reason)
        if more is not None:
            self.log.warn(
                "{reason}: {why}, {peer} cut off{more}",
                reason=reason,
                why=why,
                peer=self.session.peer,
                more=more,
                session=self.session,
            )
        self.lane.drop()
        self.transport.abortConnection()

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_reading(self) -> None:
        self.transport.pauseProducing()

    def resume_reading(self) -> None:
        if self.delay is None:
            self.transport.resumeProducing()

    def refuse(self, error: ProtocolError, code: int) -> None:
        """Count and log a packet that was not accepted (PROTOCOL.md 2)."""
        connections = self.factory.connections
        connections.counts.refused[error.reason] += 1
        more = connections.admit_line(error.reason)
        if more is not None:
            self._log_refusal(error, code, more)

    def _drop(self, refused: list[Refusal]) -> None:
        """Count and log packets with a wrong checksum, of which a read may have thousands."""
        connections, reason = self.factory.connections, BadChecksum.reason
        connections.counts.refused[reason] += len(refused)
        for place, refusal in enumerate(refused, 1):
            more = connections.admit_line(reason)
            if more is None:
                connections.lines.suppress(reason, len(refused) - place)
                break
            self._log_refusal(refusal.error, refusal.code, more)

    def _log_refusal(self, error: ProtocolError, code: int, more: str) -> None:
        self.log.warn(
            "refused {reason}, code {code}: {error}{more}",
            reason=error.reason,
            code=code,
            error=safe_str(error),
            more=more,
            session=self.session,
        )

    def _settle(self) -> None:
        """Act on what the session has found in the bytes."""
        self._decoder.noted = False
        if self._decoder.buffered:
            self.factory.connections.packet_begun(self)
        refused = self.session.take_refused()
        last = refused.pop() if refused and refused[-1].fatal is not None else None
        if refused:
            self._drop(refused)
        if last is not None:
            self.refuse(last.error, last.code)
        if self.session.close_reason is not None:
            self.end_in_order()

    def lane_done(self) -> None:
        """Nothing is left to answer: flush, end our side, and give the client time to read."""
        if self.lost:
            self._end_closing()
            self.lane.release()
            self.factory.connections.settle(self)
            return
        if self.flushing:
            return
        if not getattr(self.transport, "ends_at_once", False):
            self._begin_closing().flush()
        self.transport.unregisterProducer()
        if self._eof:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def lane_ending(self) -> None:
        """Nobody waits for ever, neither for a handler nor for a client that does not read."""
        self._begin_closing()

    def _begin_closing(self) -> Closing:
        if self._closing is None:
            self._closing = Closing(self, self.factory.clock, self.factory.timeouts)
        return self._closing

    def _end_closing(self) -> None:
        if self._closing is not None:
            self._closing.stop()
            self._closing = None

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
