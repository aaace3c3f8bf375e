"""Session: one connection as its handlers see it, and what is known of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol

from ccserver.core import plain
from ccserver.core.carried import Carried
from ccserver.core.framing import FrameDecoder, Packet, Refusal, encode
from ccserver.core.limits import PING, FloodCount, SessionLimits
from ccserver.message import Message

STATE_LIMIT = 1 << 20
"""Bytes of the application's values that travel: a million bytes of small values cost 0.1 s, in
which nothing else is done."""


class CloseReason(StrEnum):
    """Why a connection ended: the same word in log, metric and hook (DESIGN 6)."""

    CLIENT_CLOSED = "client_closed"
    CLIENT_RESET = "client_reset"
    TRUNCATED = "truncated"
    BAD_LENGTH = "bad_length"
    BAD_CRC = "bad_crc"
    FLOOD = "flood"
    IDLE = "idle"
    CONNECTION_LIMIT = "connection_limit"
    HANDLER = "handler"
    KICKED = "kicked"
    DRAIN = "drain"
    HANDOVER = "handover"
    SHUTDOWN = "shutdown"


class Outlet(Protocol):
    """What a session sends and closes through; both may be called from any thread."""

    def send(self, frame: bytes) -> None:
        """Send the packet C{frame} behind all that was sent before; nothing once closed."""

    def close(self) -> None:
        """Send what was sent so far, then close; what waits to be handled is dropped."""


class Session:
    """One connection.

    Handlers get it as their first argument. L{send} and L{close} may be called from any
    thread; everything else belongs to the reactor's thread, or to the handler that runs.

    @ivar id: 64 bits, never used again by any worker of this server.
    @ivar peer: the client's address, C{host:port}.
    @ivar server: the address the client connected to, C{host:port}.
    @ivar state: the application's own values for this connection, by name.
    @ivar close_reason: why it ended or is about to; None while it is open.
    @ivar packets_out: packets sent.
    @ivar bytes_out: bytes sent.
    @ivar started: the time it began, in seconds of the worker's monotonic clock.
    @ivar heard: the time of the last sign of life, by the same clock; kept where a heartbeat
        is asked for.
    @ivar decoder: its bytes go in here, its packets come out.
    """

    __slots__ = (
        "_flood",
        "_limits",
        "_outlet",
        "_state",
        "bytes_out",
        "close_reason",
        "decoder",
        "heard",
        "id",
        "packets_out",
        "peer",
        "server",
        "started",
    )

    def __init__(self, id: int, peer: str, server: str, limits: SessionLimits, now: float) -> None:
        self.id = id
        self.peer = peer
        self.server = server
        self.close_reason: CloseReason | None = None
        self.packets_out = self.bytes_out = 0
        self.started = self.heard = now
        self.decoder = FrameDecoder(limits.max_packet_length, limits.close_on_bad_checksum)
        self._limits = limits
        self._flood = FloodCount(limits.flood) if limits.flood is not None else None
        self._state: dict[str, Any] | None = None
        self._outlet: Outlet | None = None

    @classmethod
    def adopt(cls, carried: Carried, limits: SessionLimits, now: float) -> Session:
        """The session of a connection that comes from another process.

        What that had of an incomplete packet may be more than C{limits} allow, so
        L{take_refused} is to be called, behind the packets that it has carried.

        @raise ValueError: C{carried} contradicts itself.
        """
        session = cls(carried.id, carried.peer, carried.server, limits, carried.started)
        session.decoder.restore(carried.incomplete, carried.bytes_in, carried.packets_in)
        session.packets_out, session.bytes_out = carried.packets_out, carried.bytes_out
        session.heard = now if carried.heard is None else carried.heard
        if session._flood is not None and carried.flood is not None:
            session._flood.restore(carried.flood)
        state = plain.load(carried.state)
        if not isinstance(state, dict):
            raise ValueError("the application's values have no names")
        session._state = state or None
        return session

    def dump_state(self) -> bytes:
        """The application's values, as bytes.

        @raise NotCarried: they are not plain, or more than L{STATE_LIMIT}.
        """
        return plain.dump(self._state or {}, "session.state", STATE_LIMIT)

    def carry(self, pending: list[Packet], state: bytes) -> Carried:
        """What another process needs to go on with it.

        @param pending: the packets that the decoder gave and that were not handled.
        @param state: what L{dump_state} has returned.
        """
        return Carried(
            id=self.id,
            peer=self.peer,
            server=self.server,
            started=self.started,
            heard=self.heard if self._limits.timed else None,
            flood=self._flood.save() if self._flood is not None else None,
            bytes_in=self.bytes_in,
            packets_in=self.packets_in,
            bytes_out=self.bytes_out,
            packets_out=self.packets_out,
            incomplete=self.decoder.incomplete,
            pending=pending,
            state=state,
        )

    @property
    def state(self) -> dict[str, Any]:
        if self._state is None:
            self._state = {}
        return self._state

    @property
    def packets_in(self) -> int:
        """Complete packets received, refused ones too."""
        return self.decoder.packets

    @property
    def bytes_in(self) -> int:
        """Bytes received."""
        return self.decoder.bytes

    def send(self, code: int, body: bytes | Message = b"") -> None:
        """Send a packet of its own accord; from any thread. Nothing happens once it is closed.

        @raise PacketTooLong: header and body exceed 65535 bytes.
        @raise ValueError: a field of the message cannot hold its value, or no such code.
        """
        frame = encode(
            code, body.encode() if isinstance(body, Message) else bytes(memoryview(body))
        )
        if self._outlet is not None:
            self._outlet.send(frame)

    def close(self) -> None:
        """Close when all that was sent is on its way; from any thread.

        Packets that wait for their handler are dropped, and no more are read. The reply of a
        handler that is running is still sent.
        """
        if self._outlet is not None:
            self._outlet.close()

    def attach(self, outlet: Outlet | None) -> None:
        """From now on send and close through C{outlet}, or not at all; for the network side."""
        self._outlet = outlet

    def admit(self, packets: list[Packet], now: float) -> list[Packet]:
        """Those of C{packets}, as the decoder gave them at C{now}, that the limits let through.

        Where the limits are exceeded, C{close_reason} is set. To be called once for each feed
        of the decoder, before L{take_refused}, if there are limits.
        """
        refused = self.decoder.refused
        complete = len(packets) + len(refused)
        if not complete:
            return packets
        if not self._limits.ping_only or any(code == PING for code, _ in packets):
            self.heard = now
        if self._flood is not None:
            admitted = self._flood.admit(complete, now)
            if admitted < complete:
                self.stop(CloseReason.FLOOD)
                return packets[: admitted - sum(r.position < admitted for r in refused)]
        return packets

    def take_refused(self) -> list[Refusal]:
        """What the decoder refused since the last call; a fatal one sets C{close_reason}."""
        refused, self.decoder.refused = self.decoder.refused, []
        for refusal in refused:
            if refusal.fatal:
                self.stop(CloseReason(refusal.error.reason))
        return refused

    def end_of_stream(self) -> None:
        """The client sends no more: says in C{close_reason} whether inside a packet."""
        truncated = self.decoder.end()
        self.stop(CloseReason.TRUNCATED if truncated else CloseReason.CLIENT_CLOSED)

    def stop(self, reason: CloseReason) -> None:
        """Decode no more, whatever still comes; the first reason counts."""
        self.decoder.stop()
        if self.close_reason is None:
            self.close_reason = reason
