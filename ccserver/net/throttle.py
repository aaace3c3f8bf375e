"""The throttle: how much the threads may have on its way to the reactor."""

from __future__ import annotations

from threading import Condition

MARK = 1 << 20
"""Bytes that may be on their way in a worker before who sends more has to wait."""

CALL = 230
"""Bytes that a packet needs on its way besides its own."""

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
        """Wait until not too much is on its way, and add a packet of C{size} bytes; in a thread."""
        with self._less:
            if self._size > MARK:
                self._less.wait(PATIENCE)
            self._size += size + CALL

    def leave(self, size: int) -> None:
        """One of C{size} bytes has been taken; in the reactor."""
        with self._less:
            before, self._size = self._size, self._size - size - CALL
            if self._size <= MARK < before:
                self._less.notify_all()
