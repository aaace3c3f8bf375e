"""What the tests of the bundled application share: settings, sessions, opened accounts."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import TestCase

from ccserver.accounts import app, handlers, outage
from ccserver.app import Worker
from ccserver.config import Config, DatabaseSettings
from ccserver.core.limits import SessionLimits
from ccserver.core.session import Session
from tests import postgresql

CHEAP = DatabaseSettings(hash_time_cost=1, hash_memory=8 << 10, hash_threads=2)
"""Password hashes of 50 microseconds."""

UNLIMITED = "WrongLogins = 0\nAddressWrongLogins = 0\nNameWrongLogins = 0\n"
"""Lines of a configuration: as many wrong logins as one likes."""

PATIENCE = 60.0
"""Seconds that a test waits before it fails."""


def session(peer: str = "127.0.0.1:5000") -> Session:
    """A connection that nobody is logged in on."""
    return Session(id=1, peer=peer, server="127.0.0.1:5678", limits=SessionLimits(), now=0.0)


def worker(folder: str, info: str = "", cost: str = "HashTimeCost = 1") -> Worker:
    """A worker whose log stands in C{folder}; of equal keys, those of C{cost} count."""
    text = f"DBInfo = {info}\n{cost}\nHashMemory = 8KiB\n{UNLIMITED}"
    return Worker(slot=0, config=Config.parse(text, base=folder))


def folder(test: TestCase) -> str:
    """A folder that is gone after the test."""
    made = os.path.realpath(tempfile.mkdtemp(prefix="ccserver-test-"))
    test.addCleanup(shutil.rmtree, made, True)
    return made


def database(test: TestCase) -> str:
    """The URL of a PostgreSQL database that is gone after the test."""
    server = postgresql.server()
    url = server.database()

    def drop() -> None:
        postgresql.server().drop(url)

    test.addCleanup(drop)
    return url


def open_accounts(test: TestCase, folder: str, info: str = "", cost: str = "") -> None:
    """Start the application as a worker does, until the end of the test."""
    started = worker(folder, info, *([cost] if cost else []))
    handlers.open_accounts(started)

    def close() -> None:
        handlers.close_accounts(started)
        app.state.clear()

    test.addCleanup(close)


def quick_retry(test: Any) -> None:
    """Let a database that is away be tried again after 50 ms, instead of a second."""
    test.patch(outage, "RETRY_INTERVAL", 0.05)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for C{condition}."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE} s: {condition}")
        time.sleep(0.01)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What C{work} returns, or raises, in C{count} threads at once."""
    results: list[Any] = [None] * count
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        gate.wait()
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
