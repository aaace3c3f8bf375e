"""Recycling: when a worker has served long enough to be replaced by a fresh one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

LEAST_AGE = 10.0
"""Seconds that a worker lives, whatever its memory: a limit below what a fresh one needs must not
have workers replaced all the time."""


class RecycleReason(StrEnum):
    """Why a worker is recycled."""

    MAX_REQUESTS = "max_requests"
    MAX_AGE = "max_age"
    MAX_MEMORY = "max_memory"


@dataclass(frozen=True)
class RecycleRule:
    """How long workers serve; 0 is for ever.

    @ivar max_requests: packets.
    @ivar jitter: up to so many packets more, at random, so that workers do not go together.
    @ivar max_age: seconds.
    @ivar max_memory: bytes.
    """

    max_requests: int = 0
    jitter: int = 0
    max_age: float = 0.0
    max_memory: int = 0

    def drawn(self, random: float) -> RecycleRule:
        """The rule of one worker: without jitter, C{random} (0 to 1) of it added.

        To be drawn once in a worker's life.
        """
        if not self.max_requests:
            return replace(self, jitter=0)
        more = min(int(random * (self.jitter + 1)), self.jitter)
        return replace(self, max_requests=self.max_requests + more, jitter=0)

    def due(self, requests: int, age: float, memory: int) -> RecycleReason | None:
        """Why a worker that has served so much is to be recycled; None: it is not."""
        if self.max_requests and requests >= self.max_requests:
            return RecycleReason.MAX_REQUESTS
        if self.max_age and age >= self.max_age:
            return RecycleReason.MAX_AGE
        if self.max_memory and memory > self.max_memory and age >= LEAST_AGE:
            return RecycleReason.MAX_MEMORY
        return None
