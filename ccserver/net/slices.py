"""Slices: how long a lane may have the reactor in one go, and who waits for the next one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

SLICE = 0.005
"""Seconds after which a lane makes room for all others, and goes on behind them."""

STRIDE = 8
"""Packets that a lane handles between two looks at the clock, at most. The first look, which begins
the slice, is behind the first packet, the others when twice as many are handled, and so on: few
packets cost few looks, and where each takes long they are few, too."""


class Unfinished(Protocol):
    """Who has had its slice, and has more to do."""

    def next_slice(self) -> None:
        """Go on."""


Queue = OrderedDict[Unfinished, None]


class Slices:
    """Gives who waits a slice each, one in a turn of the reactor: between two, all else is served.

    Who has just begun, or begins anew, is in no queue: it has a slice at once. Those whose clients
    have gone have every second slice, all together, where others wait, too.

    @ivar seconds: how long a slice is; 0: as long as it likes.
    """

    __slots__ = ("_due", "_first", "_gone", "_living", "_reactor", "_second", "seconds")

    def __init__(self, reactor: Any, seconds: float) -> None:
        self.seconds = seconds
        self._reactor = reactor
        self._due = False  # the next turn gives one
        self._living: Queue = OrderedDict()
        self._gone: Queue = OrderedDict()
        self._first, self._second = self._living, self._gone  # who has the next one, if he waits

    @property
    def wanted(self) -> bool:
        """Whether anybody waits."""
        return bool(self._living or self._gone)

    def wait(self, waiting: Unfinished, gone: bool = False) -> None:
        """Call C{waiting.next_slice} when its turn comes, once.

        @param gone: its client has.
        """
        queue = self._gone if gone else self._living
        queue[waiting] = None
        self._call()

    def leave(self, waiting: Any) -> bool:
        """Do not call it; whether it has waited."""
        return any(queue.pop(waiting, waiting) is None for queue in (self._living, self._gone))

    def _call(self) -> None:
        if self.wanted and not self._due:
            self._due = True
            self._reactor.callLater(0, self._give)

    def _give(self) -> None:
        self._due = False
        if self.wanted:
            waiting, _ = (self._first or self._second).popitem(last=False)
            self._first, self._second = self._second, self._first
            self._call()
            waiting.next_slice()
