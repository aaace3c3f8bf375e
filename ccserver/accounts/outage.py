"""Outage: whether the database is away, who may try it again, and what the log says of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from twisted.logger import Logger

RETRY_INTERVAL = 1.0
"""Seconds between two tries while the database is away; all else is refused at once."""

LINE_INTERVAL = 10.0
"""Seconds between two error lines."""


class Outage:
    """The state of one database as this process last saw it; from any thread.

    @ivar where: the database, as log lines call it.
    """

    log = Logger()

    def __init__(self, where: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.where = where
        self._clock = clock
        self._lock = Lock()
        self._away_since: float | None = None
        self._next_try = 0.0
        self._next_line: float | None = None
        self._untold = 0
        self._was_told = False

    def admits(self) -> bool:
        """Whether to ask the database: always, but while it is away only once an interval.

        So a database that does not even refuse keeps few threads waiting, however many there are.
        """
        if self._away_since is None:
            return True
        with self._lock:
            now = self._clock()
            if self._away_since is None:
                return True
            if now < self._next_try:
                self._untold += 1
                return False
            self._next_try = now + RETRY_INTERVAL
            return True

    def failed(self, error: str, is_away: bool) -> None:
        """A request failed; C{is_away}: so would all others, because nothing can be reached."""
        with self._lock:
            now = self._clock()
            if is_away:
                self._next_try = now + RETRY_INTERVAL
                if self._away_since is None:
                    self._away_since = now
                    self._was_told = False
            if self._next_line is not None and now < self._next_line:
                self._untold += 1
                return
            untold, self._untold = self._untold, 0
            self._next_line = now + LINE_INTERVAL
            self._was_told |= is_away
        self.log.error(
            "database {where} fails: {error}{more}",
            where=self.where,
            error=error,
            more=f" ({untold} more since the last such line)" if untold else "",
        )

    def worked(self) -> None:
        """The database answered."""
        if self._away_since is None:
            return
        with self._lock:
            since, self._away_since = self._away_since, None
            if since is None or not self._was_told:
                return
            untold, self._untold = self._untold, 0
            seconds = self._clock() - since
        self.log.info(
            "database {where} is back after {seconds:.1f} s"
            " ({untold} more requests were not served meanwhile)",
            where=self.where,
            seconds=seconds,
            untold=untold,
        )
