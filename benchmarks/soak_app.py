"""The application of the soak: echoes, and what only the worker knows of itself."""

from __future__ import annotations

import os
import threading
from typing import Any

from ccserver import App, Session

ECHO, ECHO_IN_THREAD, MUCH, FIGURES = range(1, 5)

app = App()


@app.message(ECHO)
async def echo(session: Session, request: bytes) -> bytes:
    """Echo on the reactor; counts in what moves with the connection."""
    session.state["echoes"] = session.state.get("echoes", 0) + 1
    return request


@app.message(ECHO_IN_THREAD)
def echo_in_thread(session: Session, request: bytes) -> bytes:
    """Echo in the thread pool."""
    return request


@app.message(MUCH)
async def much(session: Session, request: bytes) -> bytes:
    """A reply that is a thousand times the request."""
    return request * 1000


@app.message(FIGURES)
async def figures(session: Session, request: bytes) -> bytes:
    """The worker's process id, and how many timers it has set and threads it knows of."""
    from twisted.internet import reactor

    running: Any = reactor
    return b"%d %d %d" % (os.getpid(), len(running.getDelayedCalls()), threading.active_count())
