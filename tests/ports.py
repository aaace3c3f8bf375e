"""Ports for servers of the tests."""

from __future__ import annotations

import os
import random
import socket

GIVEN: set[int] = set()


def free_port() -> int:
    """A port that nobody has, from outside the range that clients are given theirs from.

    Test processes that run side by side look in ranges of their own, and none is given twice.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    while True:
        port = random.SystemRandom().randrange(16000 + 4000 * number, 20000 + 4000 * number)
        if port in GIVEN:
            continue
        try:
            bind(port).close()
        except OSError:
            continue
        GIVEN.add(port)
        return port


def bind(port: int, share: bool = False) -> socket.socket:
    """A socket bound to C{port}: it must be free, unless all who have it C{share} it."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind(("127.0.0.1", port))
    except OSError:
        bound.close()
        raise
    return bound
