"""The connection table: who is connected, how many may be, and when they are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from twisted.logger import Logger

from ccserver.core.addresses import Origin, Origins, host_of
from ccserver.core.counts import Counts, LineLimit
from ccserver.core.deadlines import Deadlines
from ccserver.core.drain import Spread
from ccserver.core.limits import Heartbeat, HeartbeatWheel
from ccserver.core.session import CloseReason, Session

SEQUENCE_BITS = 40
"""Connection ids of one worker process: its number above, a sequence of 40 bits below."""

LINES_PER_SECOND = 10
"""Log lines of one kind of refusal in a second; what more there is, is only counted."""


class Connection(Protocol):
    """What the table needs of a connection."""

    session: Session

    @property
    def idle(self) -> bool:
        """Whether nothing is being handled and nothing waits."""

    @property
    def deaf(self) -> bool:
        """Whether nothing is read because we are behind, not because the client is."""

    @property
    def paused(self) -> bool:
        """Whether nothing is read."""

    def finish(self) -> None:
        """Answer what has been received, then close."""

    def close(self, reason: CloseReason) -> None:
        """Send what was sent so far, then close."""

    def abort(self) -> None:
        """Close at once."""


class Opening(Protocol):
    """What the table needs of a connection that is no session yet."""

    transport: Any
    origin: Origin | None

    @property
    def admitted(self) -> bool:
        """Whether its client is known, and may connect."""

    def finish(self) -> None:
        """Close: there is nothing to answer."""

    def abort(self) -> None:
        """Close at once."""


class Connections:
    """The connections of a worker by id, and what is common to them.

    @ivar counts: what the worker counts.
    @ivar lines: how many log lines refusals may cost.
    @ivar openings: those that are no sessions yet; they take up room as well.
    @ivar remnants: those that have ended, and of which packets are still to be handled; so do they.
    @ivar shedding: the worker is overloaded, and is to refuse new connections.
    @ivar on_freed: is called when one has gone, and its place with it.
    @ivar draining: the worker is stopping: a connection made now is finished at once.
    """

    log = Logger()

    def __init__(
        self,
        limit: int,
        process_number: int,
        counts: Counts,
        clock: Callable[[], float],
        heartbeat: Heartbeat | None = None,
        *,
        first_packet_timeout: float = 0.0,
        packet_timeout: float = 0.0,
        login_timeout: float = 0.0,
        origins: Origins | None = None,
    ) -> None:
        """
        @param limit: how many there may be.
        @param process_number: which of all the worker processes of this server it is, from 0;
            it keeps ids apart.
        @param clock: monotonic seconds.
        @param first_packet_timeout: seconds that a connection's first packet may take, 0: any time.
        @param packet_timeout: seconds that a packet may take from its first byte, 0: any time.
        @param login_timeout: seconds until the application has to know a client, 0: any time.
        @param origins: the addresses of the clients, where something is asked of them.
        """
        self.counts = counts
        self.lines = LineLimit(LINES_PER_SECOND)
        self.clock = clock
        self.openings: set[Opening] = set()
        self.remnants: set[Connection] = set()
        self.shedding = False
        self.on_freed: Callable[[], None] = lambda: None
        self.draining = False
        self._limit = limit
        self._last_id = process_number << SEQUENCE_BITS
        self._by_id: dict[int, Connection] = {}
        self._packets = 0  # those of connections that are gone, less those others have received
        self._spread: Spread[int] = Spread((), 0.0, 0.0)
        self._heartbeat = heartbeat
        self._wheel: HeartbeatWheel[Connection] | None = None
        if heartbeat is not None:
            self._wheel = HeartbeatWheel(heartbeat, clock())
        self._first_packet_timeout = first_packet_timeout
        self._packet_timeout = packet_timeout
        self._unheard: Deadlines[Connection] = Deadlines(clock())  # no packet was complete yet
        self._incomplete: Deadlines[Connection] = Deadlines(clock())  # one has begun
        self._login_timeout = login_timeout
        self._strangers: Deadlines[Connection] = Deadlines(clock())  # or known since
        self._origins = origins

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, session_id: int) -> bool:
        return session_id in self._by_id

    def __iter__(self) -> Iterator[Connection]:
        """The connections there are now; they may go while one iterates."""
        return iter(list(self._by_id.values()))

    def get(self, session_id: int) -> Connection | None:
        """The connection with that id, if there is one."""
        return self._by_id.get(session_id)

    def admit_line(self, kind: str) -> str | None:
        """None where lines of C{kind} are too many; else what one says of those before it."""
        return self.lines.admit(kind, self.clock())

    @property
    def full(self) -> bool:
        """Whether one more would be too many."""
        return len(self._by_id) + len(self.openings) + len(self.remnants) >= self._limit

    def next_id(self) -> int:
        """A connection id: 64 bits, never used again."""
        self._last_id += 1
        return self._last_id

    def refusal(self, host: str) -> CloseReason | None:
        """Why C{host} may not connect; None: it may, once."""
        if self.shedding:
            return CloseReason.OVERLOAD
        if self._origins is None:
            return None
        reason = self._origins.refusal(host, self.clock())
        return None if reason is None else CloseReason(reason)

    def enter(self, opening: Opening, host: str | None) -> None:
        """Count what is no session yet.

        @param host: the client's, as far as is known.
        """
        self.openings.add(opening)
        if self._origins is not None and host is not None:
            opening.origin = self._origins.enter(host, self.clock())

    def leave(self, opening: Opening) -> None:
        """Count C{opening} no more: it is gone, or L{add}ed as what it has become."""
        self.openings.discard(opening)
        if self._origins is not None and opening.origin is not None:
            self._origins.leave(opening.origin)
            opening.origin = None
        self.on_freed()

    def crowds(self, connection: Connection) -> bool:
        """Whether C{connection}, which is new, is one too many of its address.

        It was not when it was accepted: a handshake has come before it, and others meanwhile.
        """
        origin = connection.session.origin
        return self._origins is not None and origin is not None and self._origins.is_crowded(origin)

    def add(self, connection: Connection) -> None:
        session = connection.session
        self._by_id[session.id] = connection
        self._packets -= session.decoder.packets
        if self._wheel is not None:
            self._wheel.add(connection, session.started)
        if self._first_packet_timeout and not session.packets_in:
            self._unheard.set(connection, session.started + self._first_packet_timeout)
        if self._login_timeout and not session.known:
            self._strangers.set(connection, session.started + self._login_timeout)
        if self._packet_timeout and session.decoder.buffered:
            self.packet_begun(connection, session.begun)
        if self._origins is not None:
            session.origin = self._origins.enter(host_of(session.peer), self.clock())

    def remove(self, connection: Connection) -> None:
        """Forget a connection that ended, and count it under its close reason."""
        self.take_out(connection)
        self.counts.closed[connection.session.close_reason or CloseReason.CLIENT_RESET] += 1

    def leave_behind(self, connection: Connection) -> None:
        """Packets of C{connection}, which has ended, are still to be handled, until L{settle}."""
        self.remnants.add(connection)

    def settle(self, connection: Connection) -> None:
        """Nothing is left to do of a connection that has ended."""
        if connection in self.remnants:
            self.remnants.discard(connection)
            self.on_freed()

    def take_out(self, connection: Connection) -> None:
        """Forget a connection that is leaving the process; L{add} has it back."""
        session = connection.session
        del self._by_id[session.id]
        self._packets += session.decoder.packets
        if self._wheel is not None:
            self._wheel.remove(connection, session.started)
        if self._first_packet_timeout:
            self._unheard.remove(connection)
        if self._packet_timeout:
            self._incomplete.remove(connection)
        if self._login_timeout:
            self._strangers.remove(connection)
        if self._origins is not None and session.origin is not None:
            self._origins.leave(session.origin)
            session.origin = None
        self.on_freed()

    def packet_begun(self, connection: Connection, at: float | None = None) -> None:
        """What was received last of C{connection} is the beginning of a packet.

        @param at: when that was, if not now.
        """
        if self._packet_timeout:
            session = connection.session
            session.begun = self.clock() if at is None else at
            self._incomplete.set(connection, session.begun + self._packet_timeout)

    def check_deadlines(self) -> None:
        """Close the connections whose packet, or login, takes too long; called about once a second.

        Looks only at those whose time is up, and not at those that have no incomplete packet. What
        ends in order has its deadlines there.
        """
        now = self.clock()
        for connection in self._unheard.due(now):
            if not (connection.session.packets_in or connection.session.ending):
                connection.close(CloseReason.FIRST_PACKET_TIMEOUT)
        for connection in self._strangers.due(now):
            if not (connection.session.known or connection.session.ending):
                connection.close(CloseReason.LOGIN_TIMEOUT)
        for connection in self._incomplete.due(now):
            if not connection.session.decoder.buffered:
                continue  # it was complete in time
            if connection.paused:  # the rest may have come
                self.packet_begun(connection, now)  # also where it moves to
            else:
                connection.close(CloseReason.PACKET_TIMEOUT)
        if self._origins is not None:
            self._origins.forget(now)

    def check_heartbeats(self) -> None:
        """Close the connections whose check has come and which were silent too long.

        Called about once a second. Who ends in order, and perhaps cannot say anything any more, is
        not silent: that has deadlines of its own.
        """
        if self._wheel is None or self._heartbeat is None:
            return
        now = self.clock()
        for connection in self._wheel.due(now):
            if connection.session.ending:
                continue
            if connection.deaf:
                connection.session.heard = now  # he may have said something that we did not read
            if self._heartbeat.expired(connection.session.heard, now):
                connection.close(CloseReason.IDLE)

    def received(self) -> int:
        """How many packets the worker has received.

        Asked for once a second, it takes 0.6 ms of that with 20,000 connections; counting in the
        way of the packets would cost each read.
        """
        return self._packets + sum([c.session.decoder.packets for c in self._by_id.values()])

    def finish(self, spread: float = 0.0) -> None:
        """Let every connection answer what it has received, then close.

        @param spread: seconds over which the ends of those that have nothing to answer are
            spread, see L{finish_due}; until its turn has come, such a one is served.
        """
        self.draining = True
        for opening in list(self.openings):
            opening.finish()
        idle = []
        for connection in self:
            if spread and connection.idle:
                idle.append(connection.session.id)
            else:
                self._finish(connection)
        self._spread = Spread(idle, spread, self.clock())
        self.finish_due()

    def finish_due(self) -> None:
        """Finish those whose turn has come; to be called often while there is a drain."""
        for session_id in self._spread.due(self.clock()):
            connection = self._by_id.get(session_id)
            if connection is not None:
                self._finish(connection)

    def hasten_openings(self) -> int:
        """Let what has come already make sessions, which can be handed over.

        @return: how many are left that may become such soon.
        """
        for opening in list(self.openings):
            opening.transport.doRead()
        return sum(not opening.admitted for opening in self.openings)

    def abort(self) -> None:
        """Close all at once."""
        for opening in list(self.openings):
            opening.abort()
        for connection in self:
            try:
                connection.abort()
            except Exception:
                self.log.failure("cannot cut a connection", session=connection.session)

    def _finish(self, connection: Connection) -> None:
        try:
            connection.finish()
        except Exception:  # one must not keep the others from their end
            self.log.failure("cannot finish a connection", session=connection.session)
            connection.abort()
