"""The throttle: how much the threads may have on its way to the reactor."""

from __future__ import annotations

from threading import Condition

MARK = 1 << 20
"""Bytes that may be on their way in a worker before who sends more has to wait."""

PATIENCE = 1.0
"""Seconds that it waits at most, for the reactor may wait for what it holds."""


class Throttle:
    """What threads push and the reactor has not taken yet.

    A thread makes packets faster than the reactor, which shares the interpreter with it, takes
    them: what nobody has taken is bounded by nothing else.
    """

    def __init__(self) -> None:
        self._size = 0
        self._less = Condition()

    def enter(self, size: int) -> None:
        """Wait until not too much is on its way, and add C{size} bytes; in a thread."""
        with self._less:
            if self._size > MARK:
                self._less.wait(PATIENCE)
            self._size += size

    def leave(self, size: int) -> None:
        """C{size} bytes have been taken; in the reactor."""
        with self._less:
            before, self._size = self._size, self._size - size
            if self._size <= MARK < before:
                self._less.notify_all()
