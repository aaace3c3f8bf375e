"""The pace at which a worker accepts connections: those beyond it wait in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ccserver.core.rates import Rate, TokenBucket
from ccserver.net.port import DirectPort

STEP = 0.05
"""Seconds that accepting pauses at least: so it goes on with several at once."""


class Pace:
    """How many connections all ports of a worker may accept now."""

    def __init__(self, clock: IReactorTime, rate: Rate) -> None:
        self._clock = clock
        self._tokens = TokenBucket(rate, clock.seconds())
        self._waiting: list[PacedPort] = []
        self._call: IDelayedCall | None = None

    def allowance(self) -> int:
        """How many."""
        return max(0, self._tokens.available(self._clock.seconds()))

    def accepted(self) -> None:
        """One was."""
        self._tokens.take(1)

    def pause(self, port: PacedPort) -> None:
        """Let C{port} accept nothing until there may be more."""
        port.stopReading()
        self._waiting.append(port)
        if self._call is None:
            wait = max(STEP, self._tokens.wait(self._clock.seconds()))
            self._call = self._clock.callLater(wait, self._go_on)

    def _go_on(self) -> None:
        self._call = None
        ports, self._waiting = self._waiting, []
        for port in ports:
            if port.connected:
                port.startReading()


class PacedPort(DirectPort):
    """A L{DirectPort} that accepts no quicker than its L{Pace}.

    @ivar pace: None: as quickly as it can.
    """

    pace: Pace | None
    numberAccepts: int
    connected: bool
    startReading: Callable[[], None]
    stopReading: Callable[[], None]

    def __init__(self, *arguments: Any, pace: Pace, **options: Any) -> None:
        DirectPort.__init__(self, *arguments, **options)
        self.pace = pace

    def doRead(self) -> None:
        if self.pace is not None:
            allowance = self.pace.allowance()
            if not allowance:
                self.pace.pause(self)
                return
            self.numberAccepts = min(self.numberAccepts, allowance)
        DirectPort.doRead(self)

    def _buildAddr(self, address: Any) -> Any:
        # called once for each connection that is accepted, also for one that is refused
        if self.pace is not None:
            self.pace.accepted()
        return DirectPort._buildAddr(self, address)
