"""Moments: what happens once, and whom that is told."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class Moment(Generic[T]):
    """Something that happens once, or fails once; any number may wait for it, before or after."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[T]] | None = []
        self._outcome: T | Failure

    @property
    def over(self) -> bool:
        """Whether it has happened or failed."""
        return self._waiting is None

    def wait(self) -> Deferred[T]:
        """Fires with what it brings, now if it is over; may be cancelled."""
        waiter: Deferred[T] = Deferred(self._forget)
        if self._waiting is None:
            waiter.callback(self._outcome)
        else:
            self._waiting.append(waiter)
        return waiter

    def happen(self, outcome: T | Failure) -> None:
        """It happens, or fails; only the first call counts."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        self._outcome = outcome
        for waiter in waiting:
            if not waiter.called:  # cancelled by what another has done
                waiter.callback(outcome)

    def _forget(self, waiter: Deferred[T]) -> None:
        if self._waiting is not None and waiter in self._waiting:
            self._waiting.remove(waiter)
