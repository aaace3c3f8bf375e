"""The watch over workers: who has given no sign of life for too long."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)

LONGEST_INTERVAL = 1.0
"""Seconds between two beats, and two checks, of a watch with a long timeout."""

BEATS = 4
"""Beats within a timeout: one that comes late, or is lost in the crowd, is no death."""


class Watch(Generic[W]):
    """Who beats, and since when somebody has not.

    Silence is the time in which a beat could have been heard. Time in which nobody checked,
    because we were stopped or blocked ourselves, is nobody's silence: what stopped us may have
    stopped him. Nor is it silence when somebody sets the clock.

    @ivar timeout: seconds of silence, above which somebody is overdue; 0: never.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._heard: dict[W, float] = {}
        self._missed = 0.0  # seconds, of all so far, in which nobody checked
        self._checked: float | None = None

    @property
    def interval(self) -> float:
        """Seconds between two beats, and between two checks."""
        if not self.timeout:
            return LONGEST_INTERVAL
        return min(LONGEST_INTERVAL, self.timeout / BEATS)

    def add(self, worker: W, now: float) -> None:
        """Watch over C{worker}, who is alive."""
        if self._checked is None:
            self._checked = now
        self._heard[worker] = now - self._missed

    def beat(self, worker: W, then: float) -> None:
        """C{worker} was alive C{then}; nothing if nobody watches over him.

        To be called when that is new, so it was since the last check, and of the time since then
        an interval counts at most, as for the check to come.
        """
        if worker in self._heard:
            last = then if self._checked is None else self._checked
            self.add(worker, min(max(then, last), last + self.interval))

    def remove(self, worker: W) -> None:
        """Do not watch over C{worker} any more."""
        self._heard.pop(worker, None)

    def overdue(self, now: float) -> list[tuple[W, float]]:
        """Who has been silent too long, each with the seconds; to be called every C{interval}."""
        if self._checked is not None:
            passed = now - self._checked
            if not 0.0 <= passed <= 2 * self.interval:
                self._missed += passed - self.interval
        self._checked = now
        if not self.timeout:
            return []
        heard = now - self._missed
        return [
            (worker, heard - then)
            for worker, then in self._heard.items()
            if heard - then > self.timeout
        ]
