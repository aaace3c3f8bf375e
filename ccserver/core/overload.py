"""Overload: when a worker has so much to do that it should not accept more connections."""

from __future__ import annotations

from math import inf

PATIENCE = 3.0
"""Seconds that a worker must be behind without a break to be overloaded."""

CALM = 2.0
"""Seconds that it must not be behind to be overloaded no more."""


class Load:
    """How far a worker is behind, looked at once in an interval.

    @ivar lag: seconds by which the last look came late, which everything else did as well.
    @ivar overloaded: it has been behind for too long.
    """

    def __init__(self, due: float, lag_limit: float, interval: float = 1.0) -> None:
        """
        @param due: the time of the first look.
        @param lag_limit: more seconds are too late; 0: none are.
        @param interval: seconds between two looks.
        """
        self.lag = 0.0
        self.overloaded = False
        self._limit = lag_limit or inf
        self._interval = interval
        self._due = due
        self._behind_since: float | None = None
        self._calm_since: float | None = None

    def look(self, now: float, crowded: bool) -> bool:
        """Whether it is overloaded; C{crowded}: too many jobs wait for a thread."""
        self.lag = max(0.0, now - self._due)
        # a look that is later than an interval takes the place of those that were due meanwhile
        self._due += self._interval * (1 + int(self.lag / self._interval))
        if crowded or self.lag > self._limit:
            self._calm_since = None
            if self._behind_since is None:
                self._behind_since = now
            if now - self._behind_since >= PATIENCE:
                self.overloaded = True
        else:
            self._behind_since = None
            if self._calm_since is None:
                self._calm_since = now
            if now - self._calm_since >= CALM:
                self.overloaded = False
        return self.overloaded
