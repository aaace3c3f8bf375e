"""Passwords: argon2id hashes, a bounded number of them at once."""

from __future__ import annotations

import os
from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from twisted.logger import Logger

from ccserver.config import DatabaseSettings


class Passwords:
    """Hashes passwords and verifies them, in the calling thread.

    At most C{hash_threads} at once, because each takes C{hash_memory} bytes and a core; further
    callers wait.
    """

    log = Logger()

    def __init__(self, settings: DatabaseSettings) -> None:
        self._hasher = PasswordHasher(
            time_cost=settings.hash_time_cost,
            memory_cost=settings.hash_memory // 1024,
            parallelism=settings.hash_parallelism,
        )
        self._turn = BoundedSemaphore(settings.hash_threads or _cpu_count())
        self._nobodys = self._hasher.hash(os.urandom(32))

    def hash(self, password: str) -> str:
        """A new hash, with its salt and parameters."""
        with self._turn:
            return self._hasher.hash(_bytes(password))

    def verify(self, stored: str | None, password: str) -> bool:
        """Whether C{stored} was made of C{password}; None never was, but takes as long."""
        with self._turn:
            try:
                return self._matches(stored or self._nobodys, password)
            except InvalidHashError:
                self.log.error("an account's password_hash is not argon2's: nobody can log in")
                return self._matches(self._nobodys, password)

    def is_outdated(self, stored: str) -> bool:
        """Whether C{stored} was made with other parameters than those in force."""
        return self._hasher.check_needs_rehash(stored)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, _bytes(password))
        except VerifyMismatchError:
            return False


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogateescape")


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
