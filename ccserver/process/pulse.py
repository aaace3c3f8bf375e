"""A pulse: what a process does again and again, in the background of what it serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from ccserver.process.logs import ProcessLogger

LATE = 0.125
"""The part of an interval from which on turns are so long that it does not count how many."""


class Pulse:
    """Calls functions, one in a turn of the reactor, once in each interval.

    What is ready between two of them is served: each finds the caches cold, and together they
    would hold everything else up for as long. Where turns are long all are called in one. One that
    raises is logged, and called again. An interval that was missed is not made up for.
    """

    log = ProcessLogger()

    def __init__(self, clock: Any, what: str, *steps: Callable[[], object]) -> None:
        """@param what: they do, for the log."""
        self.interval = 0.0
        self._clock = clock
        self._what = what
        self._steps = steps
        self._due = 0.0
        self._call: IDelayedCall | None = None

    @property
    def running(self) -> bool:
        """Whether it has been started, and not stopped since."""
        return self._call is not None

    def start(self, interval: float, now: bool = False) -> None:
        """Call them every C{interval} seconds.

        @param now: for the first time in the next turn; else after an interval.
        """
        self.stop()
        self.interval = interval
        wait = 0.0 if now else interval
        self._due = self._clock.seconds() + wait
        self._call = self._clock.callLater(wait, self._step, 0)

    def stop(self) -> None:
        """Call them no more."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _step(self, number: int) -> None:
        begun = self._call
        for step in self._steps[number:]:
            try:
                step()
            except Exception:  # one fault ends nothing
                self.log.failure(self._what)
            if self._call is not begun:
                return  # stopped, or started anew
            number += 1
            now = self._clock.seconds()
            if number < len(self._steps) and now - self._due < LATE * self.interval:
                self._call = self._clock.callLater(0, self._step, number)
                return
        missed = int(max(0.0, now - self._due) / self.interval)
        self._due = min(self._due + (1 + missed) * self.interval, now + self.interval)
        # sums of fractions are not exact
        self._call = self._clock.callLater(max(0.0, self._due - now), self._step, 0)
