"""Jobs: what the pool's threads do."""

from __future__ import annotations

import os
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from operator import length_hint
from pathlib import Path
from threading import Thread, get_native_id
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ccserver.app import Handler
from ccserver.core.framing import FULL, HEADER_LENGTH, LENGTH_LIMIT, Packet, cut, header
from ccserver.errors import ProtocolError, SessionClosed
from ccserver.native import native
from ccserver.net.reply import LONG_MARK, OUTPUT_MARK, reply_body

if TYPE_CHECKING:
    from ccserver.net.lane import Lane
    from ccserver.net.pool import Pool

FLUSH_AFTER = 0.001
"""Seconds after which a job hands on the replies it has instead of joining more to them."""

SLICE = 0.02
"""Seconds after which a job makes room for those of other lanes, and goes on behind them."""

LONG = 0.001
"""Seconds: a handler that holds its thread for longer is expected to do so again."""

SUSPICION = 10
"""Calls of a handler that are expected to take long, after one that did."""

SLACK = 1000
"""Nanoseconds that a handler's C{sleep}, or wait with a timeout, may end late to join others. The
kernel's own 50,000 make 1.06 ms of a sleep of 1 ms."""

STACK_DEPTH = 50
"""Frames, the innermost ones, of a stack that is logged."""

Claim = list[list[Packet]]
"""The packets of a job, as the one item of a list: who pops it does them, thread or lane."""

Job = tuple["Lane", Claim] | Callable[[], None] | None
"""What the pool's threads take: packets of a lane, a function, or None to end."""

Call = tuple[Callable[..., None], tuple[Any, ...]]
"""A function that the reactor is to call, and with what."""

do_jobs: Callable[..., Any] | None = native.do_jobs if native else None
"""Does what L{PoolThread} does for a job and many behind it, as far as nothing unusual comes up."""

NOTHING: list[Any] = []


def set_slack() -> None:
    """Let the calling thread have its timers in time."""
    with suppress(OSError):  # there may be no /proc where we are
        Path(f"/proc/{get_native_id()}/timerslack_ns").write_text(f"{SLACK}")


def policy() -> int | None:
    """How the calling thread is scheduled (sched(7)); None where that cannot be asked."""
    try:
        return os.sched_getscheduler(0)
    except OSError:  # ENOSYS of musl, EPERM of seccomp(2)
        return None


def set_policy(policy: int | None) -> None:
    """Have the calling thread scheduled with C{policy}, where that is the usual one.

    It has the policy of who started it, the reactor's thread, whose own may be another one while
    it is busy. One that takes a privilege is left as it is.
    """
    if policy == os.SCHED_OTHER:
        with suppress(OSError):
            os.sched_setscheduler(0, policy, os.sched_param(0))


class PoolThread(Thread):
    """One thread of the pool.

    @ivar lane: whose job it is doing; None between jobs.
    @ivar since: the time that its handler was called, or the one before has returned.
    @ivar began: the time that its job began; 0 between jobs.
    """

    # what every job looks at; a Thread has so much else that its dictionary is slow
    __slots__ = (
        "_expects_to_wait",
        "_flushed",
        "_out",
        "_packets",
        "_pool",
        "_rest",
        "_untold",
        "began",
        "lane",
        "since",
    )

    def __init__(self, pool: Pool, name: str) -> None:
        """@raise OSError: there is no descriptor for it."""
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._eventfd).atexit = False
        # a handler that never returns must not keep the process from ending
        Thread.__init__(self, name=name, daemon=True)
        self.lane: Lane | None = None
        self.since = self.began = 0.0
        self._expects_to_wait = False
        self._untold = 0.0  # since when the reactor has not been told of what is done; 0: it has
        self._pool = pool
        self._packets: list[Packet] = []
        self._rest: Iterator[Packet] = iter(())
        self._out: list[bytes] = []
        self._flushed = 0  # replies of the job that were handed on

    def run(self) -> None:
        set_slack()
        set_policy(self._pool.policy)
        self.work()

    def work(self) -> None:
        """Do one job after the other, until told to end."""
        take, eventfd = self._pool.take, self._eventfd
        while (job := take(eventfd)) is not None:
            if isinstance(job, tuple):
                try:
                    self._do(job)
                except BaseException:  # no memory; the lane must not wait for ever
                    lane, self.lane = self.lane or job[0], None
                    self._packets = self._out = NOTHING
                    self.began = 0.0
                    self._expects_to_wait = False
                    self._pool.log.failure("a job of the pool has failed")
                    self._pool.call(lane.finished, b"", 0, [], 1, [])
            else:
                self._expects_to_wait = True
                self._pool.prepare_to_wait()
                job()
                self._expects_to_wait = False
            job = None  # it is not to be kept while we sleep
        self._pool.call(self._pool.ended, self)

    @property
    def handler(self) -> Handler | None:
        """Whose turn it is in the job; may be asked from any thread."""
        lane, packets, rest = self.lane, self._packets, self._rest
        place = len(packets) - length_hint(rest) - 1  # kept by the iterator: it costs no store
        if lane is None or not 0 <= place < len(packets):
            return None
        return self._pool.handlers.get(packets[place][0])

    def is_held(self, now: float) -> bool:
        """Whether its job takes long, or is expected to; may be asked from any thread."""
        return self._expects_to_wait or 0.0 < self.began < now - LONG

    def stack(self) -> list[str]:
        """The lines of what it is doing, the innermost call last; may be asked from any thread."""
        frame = sys._current_frames().get(self.ident or 0)
        if frame is None:
            return []
        frames = traceback.format_list(traceback.extract_stack(frame)[-STACK_DEPTH:])
        return "".join(frames).splitlines()

    def answered(self) -> tuple[bytes, int]:
        """The replies that the job has and has not handed on; may be asked from any thread."""
        return _whole(self._out)  # it may be adding one just now

    def flush(self) -> None:
        """Hand on the replies that the job has so far."""
        if self._out and self.lane is not None:
            out: list[bytes] = []
            # nothing has garbage collected until it is empty: a finalizer may send, and flush too
            out += self._out
            self._out.clear()  # the compiled part goes on appending to it
            data, count = _whole(out)
            self._flushed += count
            self._pool.call(self.lane.replied, data, count)

    def _do(self, job: tuple[Lane, Claim]) -> None:
        """Do C{job}; the compiled part does many that come behind it, too."""
        end: Any = (0, None, None, None)
        if do_jobs is not None:
            end = do_jobs(self, job, FLUSH_AFTER, LONG)
            if end is None:
                return
        else:
            self._begin(*job)
        lane = self.lane
        if lane is None:
            return  # it has taken the job back
        call: Callable[..., None] = lane.done
        results = self._go_on(lane, self._rest, *end)
        if any(results[2:]):
            call = lane.finished
        else:
            results = results[:2]
        self.lane = None
        self._packets = self._out = NOTHING
        self.began = 0.0
        self._expects_to_wait = False
        now = self.since
        if self._pool.done((call, results), 0.0 < self._untold < now - FLUSH_AFTER):
            self._untold = 0.0
        elif not self._untold:
            self._untold = now

    def _begin(self, lane: Lane, claim: Claim) -> None:
        """Begin a job, if its lane has not taken it back."""
        now = perf_counter()
        try:
            packets = claim.pop()
        except IndexError:
            return
        self.since = self.began = now
        self.lane = lane  # behind its time: who looks at the lane first, sees no older one
        self._rest = iter(packets)
        self._packets = packets
        self._out = []
        self._flushed = 0

    def _go_on(
        self,
        lane: Lane,
        rest: Iterator[Packet],
        count: int,
        packet: Packet | None,
        _: None,
        error: BaseException | None,
    ) -> tuple[Any, ...]:
        """Handle what the compiled part has left: see C{answer} there.

        @return: what L{Lane.finished} takes.
        """
        session, handlers, slow = lane.session, self._pool.handlers, self._pool.slow
        began = flushed = self.began
        refused: list[tuple[ProtocolError, int]] = []
        errors, size = 0, sum(map(len, self._out))
        mark = LONG_MARK if session.decoder.fed > FULL else OUTPUT_MARK
        done = len(self._packets) - length_hint(rest)
        code = self._packets[done - 1][0] if done else 0
        handled = done > 0 and packet is None
        if packet is not None:
            rest = chain((packet,), rest)
        while size <= mark:
            if handled:
                now = perf_counter()
                if now - self.since > LONG:
                    slow[code] = SUSPICION
                self.since = now
                if now - flushed > FLUSH_AFTER:
                    if now - began > SLICE:
                        break
                    self.flush()
                    flushed = now
            handled = True
            packet = next(rest, None)
            if packet is None:
                break
            code, body = packet
            if lane.halted and code >= 0 and error is None:
                if lane.closed:
                    continue
                rest = chain((packet,), rest)
                break
            if slow and code in slow:
                self._prepare_to_wait(code)
            handler = handlers[code]
            decode = handler.decode
            try:
                if error is not None:
                    raise error
                reply = handler.function(session, body if decode is None else decode(body))
                if reply is not None:
                    if reply.__class__ is not bytes:
                        reply = reply_body(reply)
                    head = header(code, reply)
                    self._out += (head, reply)
                    count += 1
                    size += HEADER_LENGTH + len(reply)
            except ProtocolError as refusal:
                refused.append((refusal, code))
            except SessionClosed:
                pass  # as in the reactor: who was to be sent something has left
            except BaseException:
                errors += 1
                lane.failed(handler)
            error = None
        left = list(rest)
        out, self._out = self._out, NOTHING  # a finalizer that sends would have it flushed, too
        return b"".join(out), count - self._flushed, refused, errors, left

    def _prepare_to_wait(self, code: int) -> None:
        """The handler of C{code} has taken long: nobody is to wait for it who need not."""
        slow = self._pool.slow
        left = slow.get(code, 0) - 1
        if left > 0:
            slow[code] = left
        else:
            slow.pop(code, None)
        self._expects_to_wait = True
        self.flush()
        self._pool.prepare_to_wait()


def _whole(out: list[bytes]) -> tuple[bytes, int]:
    """The packets of C{out}, but for one that is not there in whole, and how many they are."""
    data = b"".join(out)
    packets: list[Packet] = []
    stop = cut(data, 0, LENGTH_LIMIT, packets, None)
    return data[:stop], len(packets)
