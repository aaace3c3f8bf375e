"""Supervision: the worker slots of a master as state machines."""

from __future__ import annotations

from enum import Enum

FIRST_DELAY = 0.1
LONGEST_DELAY = 30.0
"""Seconds between a quick death and the next start: the second one waits this long, each one
after it twice as long, up to the longest."""

SETTLED_AFTER = 2.0
"""Seconds that a worker must have served for its death not to count as a quick one."""


class SlotState(Enum):
    """What there is in a slot."""

    EMPTY = "empty"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class Slot:
    """A place for one worker: who dies is replaced, at once, and slower the oftener.

    @ivar number: from 0.
    @ivar was_ready: a worker of this slot has been ready once.
    @ivar restarts: workers that died, or stopped by themselves.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = SlotState.EMPTY
        self.was_ready = False
        self.restarts = 0
        self._ready_since: float | None = None
        self._quick_deaths = 0

    def started(self) -> None:
        """A worker has been spawned."""
        self.state = SlotState.STARTING
        self._ready_since = None

    def replaced(self) -> None:
        """Another worker, which can serve, has the slot: how others fared before is past."""
        self.started()
        self._quick_deaths = 0

    def ready(self, now: float) -> None:
        """The worker serves."""
        if self.state is SlotState.STARTING:
            self.state = SlotState.READY
            self._ready_since = now
            self.was_ready = True

    def stopping(self) -> None:
        """The worker has been asked to stop, or none is to be started any more."""
        self.state = SlotState.STOPPING

    def exited(self, now: float) -> float | None:
        """The worker is gone.

        @return: seconds until the next one is to be started; None: not at all.
        """
        if self.state is SlotState.STOPPING:
            return None
        self.state = SlotState.EMPTY
        self.restarts += 1
        since = self._ready_since
        if since is not None and now - since >= SETTLED_AFTER:
            self._quick_deaths = 0
            return 0.0
        self._quick_deaths += 1
        if self._quick_deaths == 1:
            return 0.0
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self._quick_deaths - 2, 16))
