"""The application of L{benchmarks.slow_handlers}: handlers in the pool, quick and slow ones."""

from __future__ import annotations

import struct
import time

from ccserver import App, Session

QUICK, SHORT, LONG, SLEPT = range(1, 5)
SHORT_SLEEP = 0.001
LONG_SLEEP = 0.05

TIMES = struct.Struct(">Id")
"""The reply to L{SLEPT}: how many sleeps, and the mean of what they took."""

app = App()
slept: list[float] = []


@app.message(QUICK)
def quick(session: Session, request: bytes) -> bytes:
    """Echo."""
    return request


@app.message(SHORT)
def short(session: Session, request: bytes) -> bytes:
    """Echo after 1 ms, or what the system makes of it."""
    began = time.perf_counter()
    time.sleep(SHORT_SLEEP)
    slept.append(time.perf_counter() - began)
    return request


@app.message(LONG)
def long(session: Session, request: bytes) -> bytes:
    """Echo after 50 ms."""
    time.sleep(LONG_SLEEP)
    return request


@app.message(SLEPT)
def times(session: Session, request: bytes) -> bytes:
    """How long the short sleeps since the last such question have taken."""
    reply = TIMES.pack(len(slept), sum(slept) / len(slept) if slept else 0.0)
    slept.clear()
    return reply
