"""The applications that the functional tests serve, all on one L{App}, and one that does not start.

C{def} handlers run in the pool, C{async def} ones on the reactor.
"""

from __future__ import annotations

import os
import threading
import time

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from ccserver import App, Message, Session, Worker, field
from tests.functional import stamps
from tests.functional.codes import (
    AWAIT,
    BLOCK,
    BULK,
    CHATTER,
    CHATTER_IN_THREAD,
    CLOSE,
    COMPUTE,
    COUNT,
    ECHOES,
    LATER,
    NAP,
    PID,
    PING,
    POINT,
    PUSH,
    RAISE_REACTOR,
    RAISE_THREAD,
    REACTOR,
    SILENT,
    SLEEP,
    TALLY,
    TALLY_IN_THREAD,
    THREAD,
    TOO_LONG,
    WHO,
    WRONG_TYPE,
)

__all__ = ["ECHOES"]

PUSHES = 100

echo = App()
refuses_to_start = App()


class Point(Message):
    x: int = field.i32()
    y: int = field.i32()
    name: str = field.chars(8)


@echo.message(PING)
async def ping(session: Session, request: None) -> bytes:
    return b""


@echo.message(REACTOR)
async def echo_on_reactor(session: Session, request: bytes) -> bytes:
    return request


@echo.message(THREAD)
def echo_in_thread(session: Session, request: bytes) -> bytes:
    return request


@echo.message(AWAIT)
async def echo_after_a_turn(session: Session, request: bytes) -> bytes:
    await _later(0)
    return request


@echo.message(PID)
async def process_id(session: Session, request: bytes) -> bytes:
    return b"%d" % os.getpid()


@echo.message(WHO)
async def who(session: Session, request: bytes) -> bytes:
    return session.peer.encode()


@echo.message(SLEEP)
def sleep(session: Session, request: bytes) -> bytes:
    """Block a thread for so many milliseconds."""
    time.sleep(int(request) / 1000)
    return request


@echo.message(LATER)
async def answer_later(session: Session, request: bytes) -> bytes:
    """Wait for so many milliseconds, without blocking anything."""
    await _later(int(request) / 1000)
    return request


@echo.message(BLOCK)
async def block_reactor(session: Session, request: bytes) -> bytes:
    """What no handler may do."""
    time.sleep(int(request) / 1000)
    return request


@echo.message(COMPUTE)
async def compute(session: Session, request: bytes) -> bytes:
    """Use so many milliseconds of CPU on the reactor."""
    end = time.thread_time() + int(request) / 1000
    while time.thread_time() < end:
        pass
    return request


@echo.message(RAISE_REACTOR)
async def raise_on_reactor(session: Session, request: bytes) -> bytes:
    raise ValueError("no such song")


@echo.message(RAISE_THREAD)
def raise_in_thread(session: Session, request: bytes) -> bytes:
    raise ValueError("no such song")


@echo.message(TOO_LONG)
async def return_too_much(session: Session, request: bytes) -> bytes:
    return bytes(70000)


@echo.message(WRONG_TYPE)
def return_text(session: Session, request: bytes) -> str:
    return "text"


@echo.message(PUSH)
async def push_from_a_thread(session: Session, request: bytes) -> None:
    def push() -> None:
        for number in range(PUSHES):
            session.send(PUSH, b"%d" % number)

    threading.Thread(target=push, daemon=True).start()


@echo.message(SILENT)
def answer_nothing(session: Session, request: bytes) -> None:
    pass


@echo.message(CLOSE)
async def close(session: Session, request: bytes) -> bytes:
    session.close()
    return request


@echo.message(COUNT)
async def count(session: Session, request: bytes) -> bytes:
    """How many such requests there have been in this process."""
    echo.state["count"] = echo.state.get("count", 0) + 1
    return b"%d" % echo.state["count"]


@echo.message(POINT)
def mirror(session: Session, request: Point) -> Point:
    return Point(x=request.y, y=request.x, name=request.name)


@echo.message(NAP)
def nap(session: Session, request: bytes) -> bytes:
    """Block a thread for as long as the L{stamps.NAP} behind the stamp says."""
    (milliseconds,) = stamps.NAP.unpack_from(request, stamps.LENGTH)
    time.sleep(milliseconds / 1000)
    return request


@echo.message(TALLY)
async def tally(session: Session, request: bytes) -> bytes:
    return _tallied(session, request)


@echo.message(TALLY_IN_THREAD)
def tally_in_thread(session: Session, request: bytes) -> bytes:
    return _tallied(session, request)


def _tallied(session: Session, request: bytes) -> bytes:
    session.state["tally"] = session.state.get("tally", 0) + 1
    return request + stamps.COUNT.pack(session.state["tally"])


@echo.message(BULK)
async def bulk(session: Session, request: bytes) -> bytes:
    """Send many packets at once, however slowly they are read."""
    for body in stamps.series(request):
        session.send(BULK, body)
    return request


@echo.message(CHATTER)
async def chatter(session: Session, request: bytes) -> bytes:
    for body in stamps.series(request):
        session.send(CHATTER, body)
        await _later(0)
    return request


@echo.message(CHATTER_IN_THREAD)
def chatter_in_thread(session: Session, request: bytes) -> bytes:
    for body in stamps.series(request):
        session.send(CHATTER_IN_THREAD, body)
    return request


@refuses_to_start.on_worker_start
def refuse(worker: Worker) -> None:
    raise RuntimeError("the licence has expired")


def _later(seconds: float) -> Deferred[None]:
    from twisted.internet import reactor

    return deferLater(reactor, seconds, lambda: None)
