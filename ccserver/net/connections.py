"""The connection table: who is connected, how many may be, and when they are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from twisted.logger import Logger

from ccserver.core.counts import Counts, LineLimit
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

    def finish(self) -> None:
        """Answer what has been received, then close."""

    def close(self, reason: CloseReason) -> None:
        """Send what was sent so far, then close."""

    def abort(self) -> None:
        """Close at once."""


class Connections:
    """The connections of a worker by id, and what is common to them.

    @ivar counts: what the worker counts.
    @ivar lines: how many log lines refusals may cost.
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
    ) -> None:
        """
        @param limit: how many there may be.
        @param process_number: which of all the worker processes of this server it is, from 0;
            it keeps ids apart.
        @param clock: monotonic seconds.
        """
        self.counts = counts
        self.lines = LineLimit(LINES_PER_SECOND)
        self.clock = clock
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

    @property
    def full(self) -> bool:
        """Whether one more would be too many."""
        return len(self._by_id) >= self._limit

    def next_id(self) -> int:
        """A connection id: 64 bits, never used again."""
        self._last_id += 1
        return self._last_id

    def add(self, connection: Connection) -> None:
        session = connection.session
        self._by_id[session.id] = connection
        self._packets -= session.packets_in
        if self._wheel is not None:
            self._wheel.add(connection, session.started)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that ended, and count it under its close reason."""
        self.take_out(connection)
        self.counts.closed[connection.session.close_reason or CloseReason.CLIENT_RESET] += 1

    def take_out(self, connection: Connection) -> None:
        """Forget a connection that is leaving the process; L{add} has it back."""
        session = connection.session
        del self._by_id[session.id]
        self._packets += session.packets_in
        if self._wheel is not None:
            self._wheel.remove(connection, session.started)

    def check_heartbeats(self) -> None:
        """Close the connections whose check has come and which were silent too long.

        Called about once a second.
        """
        if self._wheel is None or self._heartbeat is None:
            return
        now = self.clock()
        for connection in self._wheel.due(now):
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

    def abort(self) -> None:
        """Close all at once."""
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
