"""Room: what becomes of new connections where a worker has as many as it may."""

from __future__ import annotations

from collections.abc import Callable

from ccserver.net.connections import Connections
from ccserver.net.intake import Intake

FULL = "full"
"""Why the intake is closed: there are C{worker_connections}, and somebody else has room."""


class Room:
    """Whether a worker is full, and whether new connections then wait or are closed at once.

    @ivar full: it has as many connections as it may.
    @ivar on_change: is called when it has become full, or is so no more.
    """

    def __init__(self, connections: Connections, intake: Intake) -> None:
        self.full = False
        self.on_change: Callable[[], None] = lambda: None
        self._waits = False
        self._connections = connections
        self._intake = intake
        connections.on_freed = intake.look = self.look

    def wait(self, wait: bool) -> None:
        """Let new connections wait while it is full, for somebody else accepts them, or not."""
        self._waits = wait
        self.look()

    def look(self) -> None:
        """Connections have come or gone."""
        full = self._connections.full
        if full and self._waits:
            self._intake.close(FULL)
        else:
            self._intake.open(FULL)
        if full != self.full:
            self.full = full
            self.on_change()
