"""Renewal: certificates stay as their files are, without a reload and without a connection cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ccserver.certificates import Certificates
from ccserver.errors import StartError
from ccserver.process.logs import ProcessLogger

LOOK_INTERVAL = 5.0
"""Seconds between two looks at the files."""

NOTICE_INTERVAL = 86400.0
"""Seconds between two warnings of a certificate that ends."""


class Renewal:
    """Looks after the certificates of a worker."""

    log = ProcessLogger()

    def __init__(
        self, certificates: Certificates, clock: Callable[[], float], talkative: bool
    ) -> None:
        """
        @param certificates: loaded.
        @param clock: monotonic seconds.
        @param talkative: log more than errors; one worker of many is enough.
        """
        self._certificates = certificates
        self._clock = clock
        self._talkative = talkative
        self._next_look = clock() + LOOK_INTERVAL
        self._next_notice = clock()
        self._failed = self._told = False
        self._warn(certificates.warnings)

    def look(self) -> None:
        """To be called about once a second; reads the files, if one of them has changed."""
        now = self._clock()
        if now >= self._next_notice:
            self._next_notice = now + NOTICE_INTERVAL
            self._warn(self._certificates.expiring())
        if now >= self._next_look:
            self._next_look = now + LOOK_INTERVAL
            self._renew()

    def renew(self) -> str:
        """Read the files now, changed or not; what is in them.

        @raise StartError: they are wrong: what was there before stays.
        """
        self._certificates.load(valid=True)
        self._failed = False
        self._warn(self._certificates.warnings)
        return str(self._certificates)

    def _renew(self) -> None:
        changed = self._certificates.changed
        if not changed and not self._failed:
            return
        self._told = self._told and not changed
        try:
            self._certificates.load(valid=True)
        except StartError as error:
            # files that are replaced one after the other may not fit just now: told next time
            if self._failed and not changed and not self._told:
                self._told = True
                self.log.error("certificates stay as they were: {error}", error=str(error))
            self._failed = True
        else:
            self._failed = False
            if self._talkative:
                self.log.notice("new certificates: {what}", what=str(self._certificates))
            self._warn(self._certificates.warnings)

    def _warn(self, lines: Iterable[str]) -> None:
        if self._talkative:
            for line in lines:
                self.log.warn("{line}", line=line)
