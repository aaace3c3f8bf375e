"""Slices: how long a lane may have the reactor in one go, and who waits for the next one."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

SLICE = 0.005
"""Seconds after which a lane makes room for all others, and goes on behind them."""

STRIDE = 8
"""Packets that a lane handles between two looks at the clock; the first begins the slice."""


class Waiting(Protocol):
    """Who has had its slice, and has more to do."""

    def next_slice(self) -> None:
        """Go on."""


class Slices:
    """Gives who waits a slice each, one in a turn of the reactor: between two, all else is served.

    Clients that send as much as they can, to handlers that take their time, so hold up the others
    by about one slice, however many they are.

    @ivar seconds: how long a slice is; 0: as long as it likes.
    """

    __slots__ = ("_reactor", "_waiting", "seconds")

    def __init__(self, reactor: Any, seconds: float) -> None:
        self.seconds = seconds
        self._reactor = reactor
        self._waiting: deque[Waiting] = deque()

    def wait(self, waiting: Waiting) -> None:
        """Call C{waiting.next_slice} when its turn comes, once."""
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            self._reactor.callLater(0, self._give)

    def _give(self) -> None:
        waiting = self._waiting.popleft()
        if self._waiting:
            self._reactor.callLater(0, self._give)
        waiting.next_slice()
