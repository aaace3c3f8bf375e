"""Slices: how long a lane may have the reactor in one go, and who waits for the next one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

SLICE = 0.005
"""Seconds after which a lane makes room for all others, and goes on behind them."""

STRIDE = 8
"""Packets that a lane handles between two looks at the clock; the first begins the slice."""


class Unfinished(Protocol):
    """Who has had its slice, and has more to do."""

    def next_slice(self) -> None:
        """Go on."""


class Slices:
    """Gives who waits a slice each, one in a turn of the reactor: between two, all else is served.

    Who has just begun, or begins anew, is in no queue: it has a slice at once.

    @ivar seconds: how long a slice is; 0: as long as it likes.
    """

    __slots__ = ("_due", "_reactor", "_waiting", "seconds")

    def __init__(self, reactor: Any, seconds: float) -> None:
        self.seconds = seconds
        self._reactor = reactor
        self._waiting: OrderedDict[Unfinished, None] = OrderedDict()
        self._due = False  # the next turn gives one

    @property
    def wanted(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def wait(self, waiting: Unfinished) -> None:
        """Call C{waiting.next_slice} when its turn comes, once."""
        self._waiting[waiting] = None
        self._call()

    def leave(self, waiting: Any) -> bool:
        """Do not call it; whether it has waited."""
        return self._waiting.pop(waiting, waiting) is None

    def _call(self) -> None:
        if self._waiting and not self._due:
            self._due = True
            self._reactor.callLater(0, self._give)

    def _give(self) -> None:
        self._due = False
        if self._waiting:
            waiting, _ = self._waiting.popitem(last=False)
            self._call()
            waiting.next_slice()
