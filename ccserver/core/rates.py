"""Rates: token buckets, which let so much through in a second and a burst at once."""

from __future__ import annotations

from dataclasses import dataclass

COARSEST = 0.2
"""Seconds whose worth a bucket always holds: who waits for tokens comes back at a coarse moment,
and must not lose those that came in between."""


ROUNDING = 1e-6
"""What a token may lack, for sums of fractions are not exact."""

DEBT = 5.0
"""Seconds whose worth is owed at most of what several share."""


@dataclass(frozen=True)
class Rate:
    """How much is let through.

    @ivar per_second: tokens that come in a second, above 0.
    @ivar burst: tokens that a bucket holds, where those of L{COARSEST} are not more.
    """

    per_second: float
    burst: float

    @property
    def capacity(self) -> float:
        """Tokens that a bucket holds."""
        return float(max(1.0, self.burst, self.per_second * COARSEST))


class TokenBucket:
    """Tokens of one rate, full at first. All of it is O(1), whatever the counts."""

    __slots__ = ("_capacity", "_rate", "_time", "_tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = self._capacity = rate.capacity
        self._time = now

    def available(self, now: float) -> int:
        """How many whole tokens there are at C{now}; below 0 it owes some."""
        rate = self._rate
        if now > self._time:
            more = self._tokens + (now - self._time) * rate.per_second
            self._tokens = min(self._capacity, more)
            self._time = now
        return int((self._tokens + ROUNDING) // 1)

    def spend(self, count: int, now: float) -> bool:
        """Take C{count} tokens if there are so many at C{now}; whether there are."""
        tokens = self._tokens
        if now > self._time:
            rate = self._rate
            tokens += (now - self._time) * rate.per_second
            if tokens > self._capacity:
                tokens = self._capacity
            self._time = now
        enough = tokens + ROUNDING >= count
        self._tokens = tokens - count if enough else tokens
        return enough

    def take(self, count: int) -> None:
        """Take C{count} tokens, also those that are not there; negative: give them back."""
        self._tokens -= count

    def wait(self, now: float) -> float:
        """Seconds from C{now} until there is a whole token."""
        if self.available(now) >= 1:
            return 0.0
        return (1 - self._tokens) / self._rate.per_second

    def is_full(self, now: float) -> bool:
        """Whether a new one would not differ."""
        self.available(now)
        return self._tokens >= self._capacity

    def save(self) -> tuple[float, float]:
        """What L{restore} goes on with."""
        return self._tokens, self._time

    def restore(self, saved: tuple[float, float]) -> None:
        """Go on where another bucket, of whatever rate, was."""
        tokens, self._time = saved
        self._tokens = min(tokens, self._capacity)


class SharedBucket(TokenBucket):
    """Tokens that several share: what one of them owes does not lock the others out for long."""

    __slots__ = ()

    def take(self, count: int) -> None:
        self._tokens = max(self._tokens - count, -DEBT * self._rate.per_second)

    def wait_among(self, waiting: int, now: float) -> float:
        """Seconds from C{now} until one of C{waiting} need ask again; 0: there are tokens.

        Each asks as often as its share is. What is owed is waited for once, and not by each.
        """
        wait = self.wait(now)
        owed = max(0.0, -self._tokens / self._rate.per_second)
        return owed + (wait - owed) * max(1, waiting)
