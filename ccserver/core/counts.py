"""What a worker counts, each refusal and each end of a connection under its reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ccserver.core.outbox import Waiting

SHORTEST = 0.5
"""Seconds of packets that a rate is made of at least."""


@dataclass(slots=True)
class Counts:
    """Totals since the worker's start.

    @ivar accepted: connections accepted, those refused at once included.
    @ivar adopted: connections that came from another process.
    @ivar handed_over: connections that went to another process.
    @ivar closed: connections that ended, by close reason.
    @ivar refused: packets refused, by reason.
    @ivar handler_errors: handlers that raised.
    @ivar late_replies: replies of handlers that had been given up.
    @ivar waiting: what waits to be sent to clients that are behind, and was dropped instead.
    """

    accepted: int = 0
    adopted: int = 0
    handed_over: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    handler_errors: int = 0
    late_replies: int = 0
    waiting: Waiting = field(default_factory=Waiting)


class Throughput:
    """Packets a second, over half a second at least."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._packets = 0
        self._rate = 0.0

    def look(self, now: float, packets: int) -> float:
        """What it is at C{now}, with so many C{packets} until then."""
        elapsed = now - self._since
        if elapsed >= SHORTEST:
            self._rate = round((packets - self._packets) / elapsed, 1)
            self._since, self._packets = now, packets
        return self._rate


class LineLimit:
    """At most so many lines of a kind in a second, so that a flood is not a flood of lines."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._lines: dict[str, tuple[int, int, int]] = {}

    def admit(self, kind: str, now: float) -> str | None:
        """Whether a line of C{kind} may be written at C{now}.

        @return: None if not; else what it is to say of those suppressed since the last.
        """
        second = int(now)
        then, written, suppressed = self._lines.get(kind, (second, 0, 0))
        if then != second:
            written = 0
        if written >= self._per_second:
            self._lines[kind] = (second, written, suppressed + 1)
            return None
        self._lines[kind] = (second, written + 1, 0)
        return f" ({suppressed} more such lines suppressed)" if suppressed else ""

    def suppress(self, kind: str, lines: int) -> None:
        """So many C{lines} of C{kind} are not written either, behind one that was not admitted."""
        second, written, suppressed = self._lines[kind]
        self._lines[kind] = (second, written, suppressed + lines)
