"""Dispatch: packets to handlers, on the reactor or in the pool. All that knows threads.

A connection has one L{Lane}. It handles the connection's packets one after the other: C{async
def} on the reactor, C{def} in the worker's L{Pool}, consecutive ones as one job. The reactor's
part is done by a I{runner}, a generator that serves all lanes in turn. A handler that has to
wait keeps the runner it is in, and the next lane gets another.
"""

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import Context, copy_context
from functools import partial
from threading import Thread, current_thread, get_ident
from time import perf_counter
from types import coroutine
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IPushProducer, IReadDescriptor
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.app import App, Handler, is_coroutine_function
from ccserver.core.counts import Counts
from ccserver.core.framing import HEADER_LENGTH, Packet, header
from ccserver.core.session import CloseReason, Session
from ccserver.errors import ProtocolError, UnknownCode
from ccserver.message import Message

T = TypeVar("T")

OUTPUT_MARK = 65536
"""Bytes of replies that a lane joins before it hands them on and looks whether to go on."""

FLUSH_AFTER = 0.001
"""Seconds after which a job hands on the replies it has instead of joining more to them."""

BATCH = 64
"""How many waiting packets a lane takes up in one go."""

Call = tuple[Handler, int, bytes]
"""A packet that goes to the pool: its handler, code and body."""

Job = tuple["Lane", list[Call]] | Callable[[], None] | None
"""What the pool's threads take: calls of a lane, a function, or None to end."""

Runner = Generator[Any, Any, None]
"""Is sent a lane and packets, or None to go on; yields L{DONE}, or what a handler waits for."""

DONE = object()
NOTHING: list[bytes] = []


class Peer(Protocol):
    """What a lane needs of its connection; called in the reactor's thread alone."""

    transport: Any

    def pause_reading(self) -> None:
        """Read no more until L{resume_reading}."""

    def resume_reading(self) -> None:
        """Read again."""

    def refuse(self, error: ProtocolError, code: int) -> None:
        """Count and log a packet that was not accepted."""

    def lane_done(self) -> None:
        """The lane was asked to finish, or to close, and has nothing left to do."""

    def lane_stuck(self, stuck: bool) -> None:
        """It was asked to, and waits for the client to read its replies, or does no more."""


class Dispatch:
    """What the lanes of a worker share: the handlers, the pool and the bounds."""

    log = Logger()

    def __init__(self, app: App, pool: Pool, lane_packets: int, counts: Counts) -> None:
        """@param lane_packets: how many packets wait in a lane before its reading is paused."""
        self.handlers = dict(app.handlers)
        self.pool = pool
        self.lane_packets = lane_packets
        self.counts = counts
        self.idle_runners: list[Runner] = []
        # hooks are handlers under codes that no packet can have: they need no way of their own
        self.made = [self._hook(made, False) for made in app.connection_made]
        self.lost = [self._hook(lost, True) for lost in app.connection_lost]

    @property
    def needs_threads(self) -> bool:
        return any(handler.in_thread for handler in self.handlers.values())

    def new_runner(self) -> Runner:
        """A runner with nothing to do."""
        runner: Runner = self._handle()
        runner.send(None)
        return runner

    @coroutine
    def _handle(self) -> Runner:
        """Handle the packets of one lane after the other."""
        handlers = self.handlers
        lane: Lane
        packets: list[Packet]
        lane, packets = yield DONE
        while True:
            session = lane.session
            count = total = flushed = 0
            rest = iter(packets)
            for code, body in rest:
                if lane.closed and code >= 0:
                    continue
                handler = handlers.get(code)
                if handler is None:
                    lane.refuse_unknown(code)
                    continue
                if handler.in_thread:
                    lane.submit((handler, code, body), rest)
                    break
                decode = handler.decode
                try:
                    reply = yield from handler.function(
                        session, body if decode is None else decode(body)
                    )
                    if reply is not None:
                        if reply.__class__ is not bytes:
                            reply = _body(reply)
                        head = header(code, reply)
                        out = lane.out  # another one, if the handler has waited
                        out.append(head)
                        out.append(reply)
                        count += 1
                        total += HEADER_LENGTH + len(reply)
                except ProtocolError as error:
                    lane.refuse(error, code)
                except GeneratorExit:
                    raise
                except BaseException:
                    self.counts.handler_errors += 1
                    lane.failed(handler)
                if total - flushed > OUTPUT_MARK:
                    flushed = total
                    if lane.flush():
                        lane.put_back(rest)
            session.packets_out += count
            session.bytes_out += total
            lane, packets = yield DONE

    def _hook(self, hook: Callable[..., Any], with_reason: bool) -> int:
        code = -1 - len(self.handlers)
        in_thread = not is_coroutine_function(hook)
        name = getattr(hook, "__name__", str(hook))

        def call(session: Session, reason: Any) -> None:
            hook(session, reason) if with_reason else hook(session)

        async def call_async(session: Session, reason: Any) -> None:
            await (hook(session, reason) if with_reason else hook(session))

        function = call if in_thread else call_async
        self.handlers[code] = Handler(code, name, function, in_thread, None, bytes, None)
        return code


class _Nobody:
    """The peer of a lane whose connection is gone."""

    def __init__(self) -> None:
        self.transport = self

    def write(self, data: bytes) -> None:
        pass

    def writeSequence(self, chunks: list[bytes]) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def refuse(self, error: ProtocolError, code: int) -> None:
        pass

    def lane_done(self) -> None:
        pass

    def lane_stuck(self, stuck: bool) -> None:
        pass


_NOBODY = _Nobody()


@implementer(IPushProducer)
class Lane:
    """The order of one connection: what follows a packet that is still handled waits here.

    As the transport's producer it stops where the client does not read its replies; as the
    session's outlet it keeps what handlers send in order with the replies. All but L{send},
    L{close} and L{failed} is called in the reactor's thread.

    @ivar out: what is to be sent when the handlers that are running have returned.
    @ivar closed: packets that wait are dropped; may be asked from any thread.
    """

    __slots__ = (
        "_blocked",
        "_busy",
        "_dispatch",
        "_ending",
        "_paused",
        "_peer",
        "_pending",
        "_running",
        "closed",
        "out",
        "session",
    )

    def __init__(self, session: Session, peer: Peer, dispatch: Dispatch) -> None:
        self.session = session
        self._peer = peer
        self._dispatch = dispatch
        self._pending: deque[Packet] | None = None
        self._running = False  # handlers are running in the reactor's thread, below us
        self._busy = False  # a job is on its way, or a handler waits for something
        self._blocked = False  # the client does not read its replies
        self._paused = False  # reading is paused
        self._ending = False  # the peer is told when nothing is left to do
        self.closed = False
        self.out: list[bytes] = NOTHING
        session.attach(self)

    def failed(self, handler: Handler) -> None:
        """Log the exception that C{handler} raised; from any thread."""
        self._dispatch.log.failure(
            "handler {handler} of code {code} raised",
            Failure(),
            LogLevel.error,
            handler=handler.name,
            code=handler.code,
            session=self.session,
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is being handled and nothing waits."""
        return not self._busy and self._pending is None

    def start(self) -> None:
        """Call the hooks of a new connection."""
        if self._dispatch.made:
            out = self.take([(code, b"") for code in self._dispatch.made])
            self._peer.transport.writeSequence(out)

    def take(self, packets: list[Packet]) -> list[bytes]:
        """Handle C{packets} behind all that were taken before.

        @return: what is to be sent, at once; the caller's from now on.
        """
        if self._busy or self._blocked or self._running:
            self._put(packets)
            if not self._paused and len(self._pending or ()) >= self._dispatch.lane_packets:
                self._paused = True
                self._peer.pause_reading()
            return NOTHING
        # as in _step, here for the sake of speed: most packets go no further
        runners = self._dispatch.idle_runners
        runner = runners.pop() if runners else self._dispatch.new_runner()
        out: list[bytes] = []
        self.out = out
        self._running = True
        try:
            awaited = runner.send((self, packets))
        finally:
            self._running = False
        if awaited is DONE:
            runners.append(runner)
            if self._pending is None and not self._ending:
                return out
        if out:
            self._peer.transport.writeSequence(out)
        if awaited is not DONE:
            self._wait(runner, awaited, copy_context())
        self._advance()
        return NOTHING

    def finish(self) -> None:
        """Tell the peer when all that was taken has been handled."""
        self._ending = True
        if self._blocked:
            self._peer.lane_stuck(True)
        self._advance()

    def lost(self, reason: CloseReason) -> None:
        """The connection is gone: what waits is still handled, then the hooks are called."""
        self._blocked = False
        self._put([(code, reason) for code in self._dispatch.lost])  # type: ignore[misc]
        self.finish()

    def release(self) -> None:
        """Nothing is left to do, and the connection is gone: let go of it."""
        self._peer = _NOBODY
        self.session.attach(None)

    def send(self, frame: bytes) -> None:
        pool = self._dispatch.pool
        if pool.in_reactor():
            self._sent(frame)
            return
        thread = current_thread()
        if isinstance(thread, PoolThread) and thread.lane is self:
            thread.flush()  # the replies of this job that were given before
        pool.call(self._sent, frame)

    def close(self) -> None:
        pool = self._dispatch.pool
        if pool.in_reactor():
            self._close()
        else:
            self.closed = True  # at once: the packets of this job that follow are dropped too
            pool.call(self._close)

    def pauseProducing(self) -> None:
        self._blocked = True
        if self._ending:
            self._peer.lane_stuck(True)

    def resumeProducing(self) -> None:
        self._blocked = False
        if self._ending:
            self._peer.lane_stuck(False)
        self._advance()

    def stopProducing(self) -> None:
        """Nothing: the protocol learns of the end by itself."""

    def refuse(self, error: ProtocolError, code: int) -> None:
        """A packet is not accepted."""
        self._peer.refuse(error, code)

    def refuse_unknown(self, code: int) -> None:
        """A packet has a code without a handler."""
        self._peer.refuse(UnknownCode(f"no handler for code {code}"), code)

    def flush(self) -> bool:
        """Send what is in C{out}; whether the client has enough to read for now."""
        data = b"".join(self.out)
        self.out.clear()
        self._peer.transport.write(data)
        return self._blocked

    def put_back(self, packets: Iterable[Packet]) -> None:
        """Let C{packets} wait before all others that wait."""
        if self._pending is None:
            self._put(packets)
        else:
            self._pending.extendleft(reversed(list(packets)))

    def submit(self, first: Call, rest: Iterator[Packet]) -> None:
        """Hand C{first}, and all that follow it and go to the pool as well, to the pool."""
        handlers = self._dispatch.handlers
        calls = [first]
        for code, body in rest:
            handler = handlers.get(code)
            if handler is None:
                self.refuse_unknown(code)
            elif handler.in_thread:
                calls.append((handler, code, body))
            else:
                self.put_back([(code, body), *rest])
                break
        self._busy = True
        self._dispatch.pool.submit(self, calls)

    def _put(self, packets: Iterable[Packet]) -> None:
        if self._pending is None:
            self._pending = deque(packets) or None
        else:
            self._pending.extend(packets)

    def _advance(self) -> None:
        """Take up what waits, as far as it goes."""
        if self._running:
            return  # the one who runs the handlers goes on
        while self._pending is not None and not self._busy and not self._blocked:
            waiting = self._pending
            batch = [waiting.popleft() for _ in range(min(len(waiting), BATCH))]
            if not waiting:
                self._pending = None
            runners = self._dispatch.idle_runners
            runner = runners.pop() if runners else self._dispatch.new_runner()
            self._step(runner, partial(runner.send, (self, batch)))
        if self._ending:
            if self.idle:
                self._peer.lane_done()
        elif self._paused and len(self._pending or ()) <= self._dispatch.lane_packets // 2:
            self._paused = False
            self._peer.resume_reading()

    def _step(self, runner: Runner, step: Callable[[], Any]) -> None:
        """Let C{runner} take a C{step}, until it is done or has to wait."""
        out: list[bytes] = []
        self.out = out
        self._running = True
        try:
            awaited = step()
        finally:
            self._running = False
        if out:
            self._peer.transport.writeSequence(out)
        if awaited is DONE:
            self._dispatch.idle_runners.append(runner)
        else:
            self._wait(runner, awaited, copy_context())

    def _wait(self, runner: Runner, awaited: Any, context: Context) -> None:
        """Go on with C{runner} when C{awaited} has its result, which it takes from there."""
        self._busy = True
        if not isinstance(awaited, Deferred):
            kind = type(awaited).__name__
            awaited = fail(TypeError(f"a handler can await Deferreds, not {kind}"))
        awaited.addBoth(self._resume, runner, context)

    def _resume(self, result: object, runner: Runner, context: Context) -> None:
        self._busy = False
        if isinstance(result, Failure):
            step = partial(result.throwExceptionIntoGenerator, runner)
        else:
            step = partial(runner.send, None)
        context.run(self._step, runner, step)
        self._advance()

    def _sent(self, frame: bytes) -> None:
        self.session.packets_out += 1
        self.session.bytes_out += len(frame)
        if self._running:
            self.out.append(frame)
        else:
            self._peer.transport.write(frame)

    def _close(self) -> None:
        if not self._ending:
            self.session.stop(CloseReason.HANDLER)
        self.closed = True
        hooks = [packet for packet in self._pending or () if packet[0] < 0]
        self._pending = deque(hooks) or None
        self.finish()

    def finished(
        self,
        data: bytes,
        count: int,
        refused: list[tuple[ProtocolError, int]],
        errors: int,
        rest: list[Call],
    ) -> None:
        """The pool has done the lane's job, or what one go of it may do, and leaves C{rest}."""
        self._dispatch.pool.unfinished -= 1
        self.replied(data, count)
        for error, code in refused:
            self._peer.refuse(error, code)
        self._dispatch.counts.handler_errors += errors
        left = [(code, body) for _, code, body in rest if code < 0 or not self.closed]
        if left:
            self.put_back(left)
        self._busy = False
        self._advance()

    def replied(self, data: bytes, count: int) -> None:
        """The pool has C{count} replies, and goes on."""
        self.session.packets_out += count
        self.session.bytes_out += len(data)
        if data:
            self._peer.transport.write(data)


class PoolThread(Thread):
    """One thread of the pool.

    @ivar lane: whose job it is doing; None between jobs.
    """

    def __init__(self, pool: Pool, name: str) -> None:
        # a handler that never returns must not keep the process from ending
        Thread.__init__(self, name=name, daemon=True)
        self.lane: Lane | None = None
        self._pool = pool
        self._out: list[bytes] = []
        self._count = 0

    def run(self) -> None:
        take = self._pool.take
        while (job := take()) is not None:
            if isinstance(job, tuple):
                self._do(*job)
            else:
                job()

    def flush(self) -> None:
        """Hand on the replies that the job has so far."""
        if self._out and self.lane is not None:
            self._pool.call(self.lane.replied, b"".join(self._out), self._count)
            self._out.clear()
            self._count = 0

    def _do(self, lane: Lane, calls: list[Call]) -> None:
        self.lane = lane
        session = lane.session
        push = self._out.append
        refused: list[tuple[ProtocolError, int]] = []
        size = errors = 0
        flushed = perf_counter()
        rest = iter(calls)
        for handler, code, body in rest:
            if lane.closed and code >= 0:
                continue
            decode = handler.decode
            try:
                reply = handler.function(session, body if decode is None else decode(body))
                if reply is not None:
                    if reply.__class__ is not bytes:
                        reply = _body(reply)
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
            if perf_counter() - flushed > FLUSH_AFTER:
                self.flush()
                flushed = perf_counter()
        data = b"".join(self._out)
        count, self._count = self._count, 0
        self._out.clear()
        self.lane = None
        self._pool.call(lane.finished, data, count, refused, errors, list(rest))


@implementer(IReadDescriptor)
class Pool:
    """The worker's threads, and the one way back from them to the reactor.

    @ivar unfinished: jobs submitted whose lanes have not heard of their end.
    """

    log = Logger()

    def __init__(self, reactor: Any, size: int) -> None:
        """@param size: how many threads."""
        self._reactor = reactor
        self._size = size
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._threads: list[PoolThread] = []
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._woken = False
        self._eventfd = -1
        self._home = 0
        self.take = self._jobs.get
        self.unfinished = 0
        self._gathered: list[Job] = []
        self._flush_later = getattr(reactor, "flush_later", None)

    def start(self, threads: bool = True) -> None:
        """Begin, in the reactor's thread; C{threads} is false where only calls come back."""
        self._home = get_ident()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._reactor.addReader(self)
        if threads:
            self._threads = [PoolThread(self, f"pool-{n}") for n in range(self._size)]
            for thread in self._threads:
                thread.start()

    def stop(self) -> None:
        """End the threads behind the jobs they have; those that still run one are left."""
        for _ in self._threads:
            self._jobs.put(None)
        self._reactor.removeReader(self)
        eventfd, self._eventfd = self._eventfd, -1
        os.close(eventfd)

    def in_reactor(self) -> bool:
        """Whether the caller is the reactor's thread."""
        return get_ident() == self._home

    def submit(self, lane: Lane, calls: list[Call]) -> None:
        """Let a thread do C{calls}, in order, and tell C{lane}."""
        self.unfinished += 1
        if self._flush_later is None:
            self._jobs.put((lane, calls))
            return
        if not self._gathered:
            self._flush_later(self)
        self._gathered.append((lane, calls))

    def flush(self) -> None:
        """Wake the threads for the jobs of this turn: now that the reactor has nothing to do."""
        for job in self._gathered:
            self._jobs.put(job)
        self._gathered.clear()

    def run(self, function: Callable[..., T], *args: Any) -> Deferred[T]:
        """Call C{function} in a thread; fires with what it returns or raises."""
        done: Deferred[T] = Deferred()

        def job() -> None:
            try:
                result = function(*args)
            except BaseException:
                self.call(done.errback, Failure())
            else:
                self.call(done.callback, result)

        self._jobs.put(job)
        return done

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Call C{function} in the reactor's thread, behind all such calls made before.

        Many calls share one wake-up: only the first after the reactor has begun to work them
        off writes to the eventfd.
        """
        self._calls.append((function, args))
        if not self._woken:
            self._woken = True
            if self._eventfd >= 0:
                os.eventfd_write(self._eventfd, 1)

    def fileno(self) -> int:
        return self._eventfd

    def logPrefix(self) -> str:
        return "pool"

    def connectionLost(self, reason: Failure) -> None:
        """Nothing: L{stop} closes."""

    def doRead(self) -> None:
        os.eventfd_read(self._eventfd)
        self._woken = False  # before the work: a call that comes now wakes us again
        calls = self._calls
        for _ in range(len(calls)):
            function, args = calls.popleft()
            try:
                function(*args)
            except BaseException:
                self.log.failure("call from a thread")


def _body(reply: Any) -> bytes | None:
    """What a handler returned, as bytes.

    @raise TypeError: it is neither bytes nor a L{Message} nor None.
    """
    if reply is None or isinstance(reply, bytes):
        return reply
    if isinstance(reply, Message):
        return reply.encode()
    if isinstance(reply, bytearray | memoryview):
        return bytes(reply)
    raise TypeError(f"a reply is bytes, a Message or None, not {type(reply).__name__}")
