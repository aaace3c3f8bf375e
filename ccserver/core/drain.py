"""Drain: ends that are spread evenly over a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Spread(Generic[T]):
    """Whose turn comes when: the first at once, the others evenly over some seconds."""

    def __init__(self, items: Iterable[T], seconds: float, now: float) -> None:
        """@param seconds: 0: all at once."""
        self._items = list(items)
        self._next = 0
        self._began = now
        self._seconds = seconds

    def __len__(self) -> int:
        """How many wait for their turn."""
        return len(self._items) - self._next

    def due(self, now: float) -> list[T]:
        """Whose turn has come since the last call; O(1) for each."""
        count = len(self._items)
        elapsed = now - self._began
        if elapsed < self._seconds:
            count = min(count, int(count * max(elapsed, 0.0) / self._seconds) + 1)
        due = self._items[self._next : count]
        self._next = max(self._next, count)
        return due
