"""Passwords: argon2id hashes, a bounded number of them at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from twisted.logger import Logger

from ccserver.config import DatabaseSettings

T = TypeVar("T")


class Passwords:
    """Hashes passwords and verifies them; the caller waits.

    They are computed in C{hash_threads} threads of their own, which end when nobody uses this any
    more. Each takes C{hash_memory} bytes and a core, and the allocator keeps those bytes for the
    thread that has had them: with the default cost, 400 hashes of 20 callers took 355 MiB in the
    callers' threads, though just two at once, and 52 MiB so.
    """

    log = Logger()

    def __init__(self, settings: DatabaseSettings) -> None:
        self._hasher = PasswordHasher(
            time_cost=settings.hash_time_cost,
            memory_cost=settings.hash_memory // 1024,
            parallelism=settings.hash_parallelism,
        )
        self._threads = ThreadPoolExecutor(settings.hash_threads or _cpu_count(), "hash")
        self._nobodys = self._done(lambda: self._hasher.hash(os.urandom(32)))

    def hash(self, password: str) -> str:
        """A new hash, with its salt and parameters."""
        return self._done(lambda: self._hasher.hash(_bytes(password)))

    def verify(self, stored: str | None, password: str) -> bool:
        """Whether C{stored} was made of C{password}; None never was, but takes as long."""
        try:
            return self._done(lambda: self._matches(stored or self._nobodys, password))
        except InvalidHashError:
            self.log.error("an account's password_hash is not argon2's: nobody can log in")
            return self._done(lambda: self._matches(self._nobodys, password))

    def is_outdated(self, stored: str) -> bool:
        """Whether C{stored} was made with other parameters than those in force."""
        return self._hasher.check_needs_rehash(stored)

    def _done(self, work: Callable[[], T]) -> T:
        return self._threads.submit(work).result()

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, _bytes(password))
        except VerifyMismatchError:
            return False


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogateescape")


def _cpu_count() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1
