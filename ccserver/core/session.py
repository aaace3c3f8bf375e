"""Session: one connection as its handlers see it, and what is known of it."""

from __future__ import annotations

from collections.abc import Awaitable, Hashable
from enum import StrEnum
from typing import Any, Protocol

from ccserver.core import plain
from ccserver.core.addresses import Origin
from ccserver.core.carried import Carried
from ccserver.core.copying import another
from ccserver.core.framing import FrameDecoder, Packet, Refusal, encode
from ccserver.core.limits import PING, SMALL_READ, FloodCount, RateAction, SessionLimits
from ccserver.core.outbox import Overflow
from ccserver.core.rates import Rate, TokenBucket
from ccserver.errors import SessionClosed
from ccserver.message import Message

STATE_LIMIT = 1 << 20
"""Bytes of the application's values that travel: a million bytes of small values cost 0.1 s, in
which nothing else is done."""


SEND_PATIENCE = 30.0
"""Seconds that a thread waits for room to send, where it does not say: less than SendTimeout and
HandlerTimeout, so that it hears of it before its connection is closed."""


class CloseReason(StrEnum):
    """Why a connection ended: the same word in log, metric and hook."""

    CLIENT_CLOSED = "client_closed"
    CLIENT_RESET = "client_reset"
    TRUNCATED = "truncated"
    BAD_LENGTH = "bad_length"
    BAD_CRC = "bad_crc"
    FLOOD = "flood"
    RATE = "rate"
    IDLE = "idle"
    FIRST_PACKET_TIMEOUT = "first_packet_timeout"
    PACKET_TIMEOUT = "packet_timeout"
    LOGIN_TIMEOUT = "login_timeout"
    CONNECTION_LIMIT = "connection_limit"
    OVERLOAD = "overload"
    ADDRESS_LIMIT = "address_limit"
    ADDRESS_RATE = "address_rate"
    DENIED = "denied"
    TLS = "tls"
    PROXY = "proxy"
    HANDLER = "handler"
    KICKED = "kicked"
    SEND_QUEUE_FULL = "send_queue_full"
    SEND_TIMEOUT = "send_timeout"
    DRAIN = "drain"
    HANDOVER = "handover"
    SHUTDOWN = "shutdown"


class Outlet(Protocol):
    """What a session sends and closes through; both from any thread."""

    def send(self, frame: bytes, overflow: Overflow, key: Hashable) -> None:
        """Send the packet C{frame} behind all that was sent before; nothing once closed."""

    def send_blocking(self, frame: bytes, timeout: float) -> None:
        """Send the packet C{frame} when there is room, in a thread, which waits for it.

        @raise SessionClosed: the connection has ended before.
        @raise SendTimeout: there was none for C{timeout} seconds.
        """

    def close(self) -> None:
        """Send what was sent so far, then close; what waits to be handled is dropped."""

    def room(self) -> Awaitable[None] | None:
        """None if there is room for a packet; else what to wait for before one asks again.

        In the reactor's thread alone.

        @raise SessionClosed: there will be none any more, as what is waited for may raise, too.
        """


class Session:
    """One connection.

    Handlers get it as their first argument. L{send}, L{send_blocking} and L{close} may be called
    from any thread; everything else belongs to the reactor's thread, or to the handler that runs.

    @ivar id: 64 bits, never used again by any worker of this server.
    @ivar peer: the client's address, C{host:port}.
    @ivar server: the address the client connected to, C{host:port}.
    @ivar state: the application's own values for this connection, by name.
    @ivar known: the application says so where it knows who the client is, as behind a login: there
        may be narrower limits before. False at first; goes along to another process.
    @ivar close_reason: why it ended or is about to; None while it is open.
    @ivar packets_out: packets sent.
    @ivar bytes_out: bytes sent.
    @ivar started: the time it began, in seconds of the worker's monotonic clock.
    @ivar heard: the time of the last sign of life, by the same clock; kept where a heartbeat
        is asked for.
    @ivar begun: the time at which the incomplete packet began, None where there is none or
        nobody looks; for the network side.
    @ivar excess: packets that are more than the rate lets through; empty if it let through more
        than it should have; None if all is right. For the network side.
    @ivar origin: what it has in common with the other connections of its client's address; for
        the network side.
    @ivar decoder: its bytes go in here, its packets come out.
    """

    __slots__ = (
        "_conclusion",
        "_empty_reads",
        "_flood",
        "_id",
        "_known",
        "_limits",
        "_outlet",
        "_peer",
        "_rate",
        "_server",
        "_state",
        "begun",
        "bytes_out",
        "close_reason",
        "decoder",
        "excess",
        "heard",
        "origin",
        "packets_out",
        "started",
    )

    def __init__(self, id: int, peer: str, server: str, limits: SessionLimits, now: float) -> None:
        self._id = id
        self._peer = peer
        self._server = server
        self.close_reason: CloseReason | None = None
        self.packets_out = self.bytes_out = 0
        self.started = self.heard = now
        self._known = False
        self.decoder = FrameDecoder(limits.packet_length(False), limits.close_on_bad_checksum)
        self._limits = limits
        self._flood = FloodCount(limits.flood) if limits.flood is not None else None
        self._rate = TokenBucket(limits.rate, now) if limits.rate is not None else None
        self._empty_reads: TokenBucket | None = None
        self.begun: float | None = None
        self.excess: list[Packet] | None = None
        self._conclusion: CloseReason | None = None  # the close reason, behind the excess
        self.origin: Origin | None = None
        self._state: dict[str, Any] | None = None
        self._outlet: Outlet | None = None

    def another(self, id: int, peer: str, now: float) -> Session:
        """A session that begins at C{now}, after the pattern of this one, which has no packets."""
        if another is None:
            return Session(id, peer, self._server, self._limits, now)
        session: Session = another(self)
        session._id, session._peer = id, peer
        session.started = session.heard = now
        session.decoder = another(self.decoder)
        if self._flood is not None and self._limits.flood is not None:
            session._flood = FloodCount(self._limits.flood)
        if self._rate is not None and self._limits.rate is not None:
            session._rate = TokenBucket(self._limits.rate, now)
        return session

    @classmethod
    def adopt(cls, carried: Carried, limits: SessionLimits, now: float) -> Session:
        """The session of a connection that comes from another process.

        What that had of an incomplete packet may be more than C{limits} allow, so
        L{take_refused} is to be called, behind the packets that it has carried.

        @raise ValueError: C{carried} contradicts itself.
        """
        session = cls(carried.id, carried.peer, carried.server, limits, carried.started)
        session.known = carried.known
        session.decoder.restore(carried.incomplete, carried.bytes_in, carried.packets_in)
        session.packets_out, session.bytes_out = carried.packets_out, carried.bytes_out
        session.heard = now if carried.heard is None else carried.heard
        if session._flood is not None and carried.flood is not None:
            session._flood.restore(carried.flood)
        if session._rate is not None and carried.rate is not None:
            session._rate.restore(carried.rate)
        session.begun = carried.begun
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
            rate=self._rate.save() if self._rate is not None else None,
            begun=self.begun,
            known=self._known,
            bytes_in=self.bytes_in,
            packets_in=self.packets_in,
            bytes_out=self.bytes_out,
            packets_out=self.packets_out,
            incomplete=self.decoder.incomplete,
            pending=pending,
            state=state,
        )

    @property
    def id(self) -> int:
        return self._id

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def server(self) -> str:
        return self._server

    @property
    def state(self) -> dict[str, Any]:
        if self._state is None:
            self._state = {}
        return self._state

    @property
    def known(self) -> bool:
        return self._known

    @known.setter
    def known(self, known: bool) -> None:
        self._known = known = bool(known)
        self.decoder.limit(self._limits.packet_length(known))

    @property
    def ending(self) -> bool:
        """Whether it has ended, or will when the packets in C{excess} are through."""
        return self.close_reason is not None or self._conclusion is not None

    @property
    def packets_in(self) -> int:
        """Complete packets received, refused ones too."""
        return self.decoder.packets

    @property
    def bytes_in(self) -> int:
        """Bytes received."""
        return self.decoder.bytes

    def send(
        self,
        code: int,
        body: bytes | Message = b"",
        overflow: Overflow | str = Overflow.CLOSE,
        key: Hashable = None,
    ) -> None:
        """Send a packet of its own accord; from any thread. Nothing happens once it is closed.

        @param overflow: what is to happen where the client is behind and too much waits for it:
            C{close} the connection, C{drop_new}, this packet, or C{drop_old}, as many as needed
            of those that wait and may be dropped; C{latest} is as C{drop_old}, and what waits
            under the same C{key} is replaced, where it stands.
        @raise PacketTooLong: header and body exceed 65535 bytes.
        @raise ValueError: a field of the message cannot hold its value, no such code or policy.
        @raise TypeError: C{key} is not hashable.
        """
        frame = _frame(code, body)
        policy = overflow if overflow.__class__ is Overflow else Overflow(overflow)
        if key is not None:
            hash(key)  # what is wrong with it is wrong also where nothing waits
        outlet = self._outlet  # another thread may let go of it meanwhile
        if outlet is not None:
            outlet.send(frame, policy, key)

    async def send_async(self, code: int, body: bytes | Message = b"") -> None:
        """Send a packet when there is room for it; in the reactor's thread.

        A client that is behind is waited for, so none is closed for what it is sent so.

        @raise SessionClosed: the connection has ended before.
        @raise PacketTooLong: header and body exceed 65535 bytes.
        @raise ValueError: a field of the message cannot hold its value, or no such code.
        """
        frame = _frame(code, body)
        while (outlet := self._outlet) is not None:
            room = outlet.room()
            if room is None:
                outlet.send(frame, Overflow.CLOSE, None)
                return
            await room
        raise SessionClosed("the connection has ended")

    def send_blocking(
        self, code: int, body: bytes | Message = b"", timeout: float = SEND_PATIENCE
    ) -> None:
        """Send a packet when there is room for it; in a thread, which waits for that.

        A client that is behind is waited for, so none is closed for what it is sent so.

        @param timeout: seconds that it waits at most.
        @raise SessionClosed: the connection has ended before.
        @raise SendTimeout: there was no room in time; the packet is not sent.
        @raise PacketTooLong: header and body exceed 65535 bytes.
        @raise ValueError: a field of the message cannot hold its value, or no such code.
        @raise RuntimeError: this is the reactor's thread, which must not wait.
        """
        frame = _frame(code, body)
        outlet = self._outlet
        if outlet is None:
            raise SessionClosed("the connection has ended")
        outlet.send_blocking(frame, timeout)

    def close(self) -> None:
        """Close when all that was sent is on its way; from any thread.

        Packets that wait for their handler are dropped, and no more are read. The reply of a
        handler that is running is still sent.
        """
        outlet = self._outlet
        if outlet is not None:
            outlet.close()

    def attach(self, outlet: Outlet | None) -> None:
        """From now on send and close through C{outlet}, or not at all; for the network side."""
        self._outlet = outlet

    def admit(self, packets: list[Packet], now: float) -> list[Packet]:
        """Those of C{packets}, as the decoder gave them at C{now}, that the limits let through.

        Where the limits are exceeded, C{close_reason} is set, or the others are in C{excess}. To
        be called once for each feed of the decoder, before L{take_refused}, if there are limits.
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
        if self._rate is not None or (self.origin is not None and self.origin.packets is not None):
            return self._pace(packets, len(refused), now)
        return packets

    def release(self, now: float) -> list[Packet]:
        """The first of the packets in C{excess}, as many as the rate lets through at C{now}.

        If there is an end behind them, the last one sets C{close_reason}.
        """
        packets = self._pace(self.take_excess(), 0, now)
        if self.excess is None and self._conclusion is not None:
            self.stop(self._conclusion)
        return packets

    def let_through(self) -> list[Packet]:
        """All packets in C{excess}, beyond the rate: they count against later ones."""
        packets = self.take_excess()
        for bucket in self._buckets():
            bucket.take(len(packets))
        return packets

    def take_excess(self) -> list[Packet]:
        """All packets in C{excess}, which is None then."""
        excess, self.excess = self.excess, None
        return excess or []

    def wait(self, now: float) -> float:
        """Seconds from C{now} until the rate lets the next packet through, about."""
        wait = self._rate.wait(now) if self._rate is not None else 0.0
        origin = self.origin
        if origin is not None and origin.packets is not None:
            # they share the tokens, so each need not ask for every one
            wait = max(wait, origin.packets.wait_among(origin.waiting, now))
        return wait

    def came_little(self, size: int, now: float) -> None:
        """A read of C{size} bytes has completed no packet; too often, C{close_reason} is set."""
        most = self._limits.empty_reads
        if not most or size >= SMALL_READ:
            return
        if self._empty_reads is None:
            self._empty_reads = TokenBucket(Rate(most, most), now)
        if self._empty_reads.available(now) < 1:
            self.stop(CloseReason.FLOOD)
        self._empty_reads.take(1)

    def take_refused(self) -> list[Refusal]:
        """What the decoder refused since the last call; a fatal one is the end, see L{ending}."""
        refused = list(self.decoder.refused)
        self.decoder.refused = ()
        if refused and refused[-1].fatal is not None:
            self._conclude(CloseReason(refused[-1].fatal.reason))
        return refused

    def end_of_stream(self) -> None:
        """The client sends no more: says in C{close_reason} whether inside a packet.

        Where packets wait for the rate it does so behind them, see L{release}.
        """
        truncated = self.decoder.end()
        reason = CloseReason.TRUNCATED if truncated else CloseReason.CLIENT_CLOSED
        if self.excess:
            self._conclude(reason)
        else:
            self.stop(reason)

    def stop(self, reason: CloseReason) -> None:
        """Decode no more, whatever still comes; the first reason counts."""
        self.decoder.stop()
        self.excess = None
        if self.close_reason is None:
            self.close_reason = self._conclusion or reason

    def _conclude(self, reason: CloseReason) -> None:
        """Nothing comes any more: stop, behind the packets that wait for the rate."""
        if not self.excess:
            self.stop(reason)
        elif self._conclusion is None:
            self.decoder.stop()
            self._conclusion = reason

    def _buckets(self) -> list[TokenBucket]:
        """The tokens that a packet takes."""
        rate = self._rate
        shared = self.origin.packets if self.origin is not None else None
        if rate is None or shared is None:
            only = rate or shared
            return [only] if only is not None else []
        return [rate, shared]

    def _pace(self, packets: list[Packet], refused: int, now: float) -> list[Packet]:
        """Those of C{packets} that the rate lets through; C{refused} others came with them."""
        buckets = self._buckets()
        simple = not refused and self.excess is None and len(buckets) == 1
        if simple and buckets[0].spend(len(packets), now):  # as most are, so in one go
            return packets
        tokens = min([bucket.available(now) for bucket in buckets]) - refused
        count = 0 if self.excess else max(0, min(len(packets), tokens))
        for bucket in buckets:
            bucket.take(count + refused)
        if count == len(packets) and tokens >= count:
            return packets
        if self._limits.rate_action is RateAction.KICK:
            self.stop(CloseReason.RATE)
        else:
            self.excess = (self.excess or []) + packets[count:]
        return packets[:count]


def _frame(code: int, body: bytes | Message) -> bytes:
    return encode(code, body.encode() if isinstance(body, Message) else bytes(memoryview(body)))
