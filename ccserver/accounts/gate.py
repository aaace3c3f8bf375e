"""Gate: stops logins that follow too many wrong ones, and tells of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from twisted.logger import Logger

from ccserver import Session
from ccserver.accounts.penalties import Penalties, network
from ccserver.config import AccountsSettings

LINE_INTERVAL = 10.0
"""Seconds between two lines of logins that were refused."""

DUE = "wrong_logins_due"
"""Where the connection's own due stands in C{session.state}: it moves along with it."""


class Gate:
    """The L{Penalties} of a worker, by its clock; from any thread.

    That clock is the same in all processes of a machine, so that a due may travel.
    """

    log = Logger()

    def __init__(
        self, settings: AccountsSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._penalties = Penalties(settings)
        limits = settings.wrong_logins, settings.address_wrong_logins, settings.name_wrong_logins
        self._is_open = not any(limits)
        self._clock = clock
        self._lock = Lock()
        self._refused = 0
        self._next_line = 0.0

    def admits(self, session: Session, name: str) -> bool:
        """Whether to look at the password of a login."""
        if self._is_open:
            return True
        now = self._clock()
        address = network(session.peer)
        with self._lock:
            due = session.state.get(DUE, now)
            if not (
                self._penalties.connection.is_spent(due, now)
                or self._penalties.refuses(name, address, now)
            ):
                return True
            self._refused += 1
            if now < self._next_line:
                return False
            count, self._refused = self._refused, 0
            self._next_line = now + LINE_INTERVAL
        # without the name: some type their password there
        self.log.warn(
            "{count} logins refused after too many wrong ones, the last from {address}",
            count=count,
            address=address or session.peer,
        )
        return False

    def failed(self, session: Session, name: str) -> None:
        """A login that was admitted was wrong."""
        if self._is_open:
            return
        now = self._clock()
        with self._lock:
            self._penalties.failed(name, network(session.peer), now)
        connection = self._penalties.connection
        session.state[DUE] = connection.put_off(session.state.get(DUE, now), now)

    def succeeded(self, session: Session, name: str) -> None:
        """A login that was admitted was right."""
        if not self._is_open:
            with self._lock:
                self._penalties.succeeded(name, network(session.peer))
