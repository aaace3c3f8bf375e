"""Jobs: what the pool's threads do."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from operator import length_hint
from threading import Thread
from time import perf_counter
from typing import TYPE_CHECKING

from ccserver.app import Handler
from ccserver.core.framing import HEADER_LENGTH, header
from ccserver.errors import ProtocolError
from ccserver.net.reply import OUTPUT_MARK, reply_body

if TYPE_CHECKING:
    from ccserver.net.lane import Lane
    from ccserver.net.pool import Pool

FLUSH_AFTER = 0.001
"""Seconds after which a job hands on the replies it has instead of joining more to them."""

SLICE = 0.02
"""Seconds after which a job makes room for those of other lanes, and goes on behind them."""

STACK_DEPTH = 50
"""Frames, the innermost ones, of a stack that is logged."""

Call = tuple[Handler, int, bytes]
"""A packet that goes to the pool: its handler, code and body."""

Calls = list[list[Call]]
"""The calls of a job, as the one item of a list: who pops it does them, the thread or the lane."""

Job = tuple["Lane", Calls] | Callable[[], None] | None
"""What the pool's threads take: calls of a lane, a function, or None to end."""


class PoolThread(Thread):
    """One thread of the pool.

    @ivar lane: whose job it is doing; None between jobs.
    @ivar since: the time that its handler was called, or the one before has returned.
    """

    def __init__(self, pool: Pool, name: str) -> None:
        # a handler that never returns must not keep the process from ending
        Thread.__init__(self, name=name, daemon=True)
        self.lane: Lane | None = None
        self.since = 0.0
        self._pool = pool
        self._calls: list[Call] = []
        self._rest: Iterator[Call] = iter(())
        self._out: list[bytes] = []
        self._count = 0

    def run(self) -> None:
        take = self._pool.take
        while (job := take()) is not None:
            if isinstance(job, tuple):
                self._do(*job)
            else:
                job()
        self._pool.call(self._pool.ended, self)

    @property
    def handler(self) -> Handler | None:
        """Whose turn it is in the job; may be asked from any thread."""
        calls, rest = self._calls, self._rest
        place = len(calls) - length_hint(rest) - 1  # kept by the iterator: it costs no store
        return calls[place][0] if 0 <= place < len(calls) else None

    def stack(self) -> list[str]:
        """The lines of what it is doing, the innermost call last; may be asked from any thread."""
        frame = sys._current_frames().get(self.ident or 0)
        if frame is None:
            return []
        frames = traceback.format_list(traceback.extract_stack(frame)[-STACK_DEPTH:])
        return "".join(frames).splitlines()

    def answered(self) -> list[bytes]:
        """The replies that the job has and has not handed on; may be asked from any thread."""
        return self._out[: 2 * self._count]  # whole ones: it may be adding one just now

    def flush(self) -> None:
        """Hand on the replies that the job has so far."""
        if self._out and self.lane is not None:
            self._pool.call(self.lane.replied, b"".join(self._out), self._count)
            self._out.clear()
            self._count = 0

    def _do(self, lane: Lane, job: Calls) -> None:
        try:
            calls = job.pop()
        except IndexError:
            return  # the lane has taken it back
        rest = self._rest = iter(calls)
        self._calls = calls
        self.since = began = flushed = perf_counter()
        self.lane = lane  # behind its time: who looks at the lane first, sees no older one
        session = lane.session
        push = self._out.append
        refused: list[tuple[ProtocolError, int]] = []
        size = errors = 0
        for handler, code, body in rest:
            if lane.halted and code >= 0:
                if lane.closed:
                    continue
                rest = iter([(handler, code, body), *rest])
                break
            decode = handler.decode
            try:
                reply = handler.function(session, body if decode is None else decode(body))
                if reply is not None:
                    if reply.__class__ is not bytes:
                        reply = reply_body(reply)
                    push(header(code, reply))
                    push(reply)
                    self._count += 1
                    size += HEADER_LENGTH + len(reply)
            except ProtocolError as error:
                refused.append((error, code))
            except BaseException:
                errors += 1
                lane.failed(handler)
            if size > OUTPUT_MARK:
                break
            self.since = now = perf_counter()
            if now - flushed > FLUSH_AFTER:
                if now - began > SLICE:
                    break
                self.flush()
                flushed = now
        data = b"".join(self._out)
        count, self._count = self._count, 0
        self._out.clear()
        self.lane = None
        self._calls = []
        self._pool.call(lane.finished, data, count, refused, errors, list(rest))
