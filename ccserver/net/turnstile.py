"""The turnstile: where connections whose packets come too quickly wait for their time."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ccserver.core.deadlines import Deadlines

STEP = 0.1
"""Seconds between two looks at whose time has come, where there is anybody."""


class Waiting(Protocol):
    """Who waits."""

    def go_on(self) -> None:
        """Its time has come."""


class Turnstile:
    """Wakes who waits, all with one timer, which runs only while somebody waits."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: Deadlines[Waiting] = Deadlines(clock.seconds(), STEP)
        self._call: IDelayedCall | None = None

    def wait(self, waiting: Waiting, seconds: float) -> None:
        """Call C{waiting.go_on} in C{seconds}, up to two L{STEP}s later, once."""
        self._waiting.set(waiting, self._clock.seconds() + seconds)
        if self._call is None:
            self._call = self._clock.callLater(STEP, self._wake)

    def remove(self, waiting: Waiting) -> None:
        """It waits no more."""
        self._waiting.remove(waiting)
        if not self._waiting and self._call is not None:
            self._call.cancel()
            self._call = None

    def _wake(self) -> None:
        self._call = None
        for waiting in self._waiting.due(self._clock.seconds()):
            try:
                waiting.go_on()
            except Exception:  # one must not keep the others waiting
                self.log.failure("cannot go on with {waiting}", waiting=waiting)
        if self._waiting and self._call is None:
            self._call = self._clock.callLater(STEP, self._wake)
