"""Deadlines: whose time is up, without a timer for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Moments by whom they are for, in steps: setting and removing one is O(1).

    Asking who is due looks at the steps since one asked before, or, where these are fewer, at those
    that anybody is due in.
    """

    __slots__ = ("_step", "_turn", "_turn_of", "_turns")

    def __init__(self, now: float, step: float = 1.0) -> None:
        """@param step: seconds by which one may be late, besides how late L{due} is called."""
        self._step = step
        self._turn = int(now / step)
        self._turn_of: dict[T, int] = {}
        self._turns: dict[int, dict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._turn_of)

    def __contains__(self, item: T) -> bool:
        return item in self._turn_of

    def set(self, item: T, at: float) -> None:
        """C{item} is due at C{at}, and at no other moment that was set before."""
        self.remove(item)
        turn = max(int(at / self._step) + 1, self._turn)
        self._turn_of[item] = turn
        self._turns.setdefault(turn, {})[item] = None

    def remove(self, item: T) -> None:
        """C{item} is not due any more."""
        turn = self._turn_of.pop(item, None)
        if turn is not None:
            items = self._turns[turn]
            del items[item]
            if not items:
                del self._turns[turn]

    def due(self, now: float) -> list[T]:
        """Who is due at C{now}, in the order of their deadlines; they are removed."""
        first, self._turn = self._turn, int(now / self._step) + 1
        due: list[T] = []
        if self._turn_of:
            passed: Sequence[int] = range(first, self._turn)
            if len(passed) > len(self._turns):
                passed = sorted(turn for turn in self._turns if turn < self._turn)
            for turn in passed:
                due.extend(self._turns.pop(turn, ()))
            for item in due:
                del self._turn_of[item]
        return due
