"""Usage: whether a thread keeps its core so busy that it should be scheduled as such."""

from __future__ import annotations

BUSY = 0.3
"""The share of a core from which on a thread is busy. Chosen: a third is what each of three that
compute on one core has; who uses less and runs at once when it wakes up keeps nobody waiting."""

CALM = 0.15
"""The share below which it is busy no more. Chosen: less than C{BUSY}, for as a batch it takes less
CPU for the same packets."""


class Usage:
    """How much of a core a thread has used between two looks.

    @ivar busy: it has used much, and since then not little.
    """

    def __init__(self, now: float, used: float) -> None:
        """@param used: seconds of CPU until C{now}."""
        self.busy = False
        self._now = now
        self._used = used

    def look(self, now: float, used: float) -> bool:
        """Whether it is busy, by what it has used since the last look."""
        elapsed = now - self._now
        if elapsed > 0:
            share = (used - self._used) / elapsed
            self.busy = share >= (CALM if self.busy else BUSY)
            self._now, self._used = now, used
        return self.busy
