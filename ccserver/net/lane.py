"""The lane: the packets of one connection, handled and answered one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IPushProducer
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.app import Handler
from ccserver.core.framing import Packet
from ccserver.core.session import CloseReason, Session
from ccserver.errors import ProtocolError, UnknownCode
from ccserver.net.peer import NOBODY, Peer

if TYPE_CHECKING:
    from ccserver.net.dispatch import Dispatch
    from ccserver.net.jobs import Call, Calls

BATCH = 64
"""How many waiting packets a lane takes up in one go."""

Runner = Generator[Any, Any, None]
"""Is sent a lane and packets, or None to go on; yields L{DONE}, or what a handler waits for."""

DONE = object()
NOTHING: list[bytes] = []


class _Hold:
    """A lane that is brought, or kept, to rest."""

    __slots__ = ("at_rest", "done", "hooks")

    def __init__(self, done: Callable[[bool], None], hooks: list[Packet]) -> None:
        self.done = done
        self.hooks = hooks
        self.at_rest = False


@implementer(IPushProducer)
class Lane:
    """The order of one connection: what follows a packet that is still handled waits here.

    As the transport's producer it stops where the client does not read its replies; as the
    session's outlet it keeps what handlers send in order with the replies. All but L{send},
    L{close} and L{failed} is called in the reactor's thread.

    @ivar out: what is to be sent when the handlers that are running have returned.
    @ivar closed: packets that wait are dropped; may be asked from any thread.
    @ivar halted: packets that wait are not handled for now, or never if the lane is closed; hooks
        are. May be asked from any thread.
    """

    __slots__ = (
        "_answered",
        "_blocked",
        "_busy",
        "_dispatch",
        "_ending",
        "_hold",
        "_job",
        "_paused",
        "_peer",
        "_pending",
        "_running",
        "closed",
        "halted",
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
        self._answered: int | None = None  # replies of the job that was given up, None: none was
        self._hold: _Hold | None = None  # it is brought, or kept, to a stop
        self._job: Calls = []  # the job that was handed to the pool last
        self.closed = self.halted = False
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
    def running(self) -> bool:
        """Whether handlers are running in the reactor's thread, at this moment."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many packets wait for their handler."""
        return len(self._pending) if self._pending is not None else 0

    @property
    def blocked(self) -> bool:
        """Whether the client does not read its replies."""
        return self._blocked

    @property
    def paused(self) -> bool:
        """Whether reading is paused because too many packets wait."""
        return self._paused

    @property
    def ending(self) -> bool:
        """Whether it was asked to finish or to close."""
        return self._ending or self.closed

    @property
    def held(self) -> bool:
        """Whether it is brought, or kept, to rest."""
        return self._hold is not None

    @property
    def idle(self) -> bool:
        """Whether nothing is being handled and nothing waits."""
        return not self._busy and self._pending is None

    def start(self) -> None:
        """Call the hooks of a new connection."""
        if self._dispatch.made:
            out = self.take([(code, b"") for code in self._dispatch.made])
            self._peer.transport.writeSequence(out)

    def adopt(self, waiting: list[Packet]) -> None:
        """Call the hooks of a connection from another process, and handle what waited there."""
        packets = [(code, b"") for code in self._dispatch.adopt] + waiting
        if packets:
            self._peer.transport.writeSequence(self.take(packets))

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
        hold = self._hold
        if hold is not None:
            self._end_hold()
            hold.done(False)
        if self._blocked:
            self._peer.lane_stuck(True)
        self._advance()

    def lost(self, reason: CloseReason) -> None:
        """The connection is gone: what waits is still handled, then the hooks are called."""
        self._blocked = False
        self._put([(code, reason) for code in self._dispatch.lost])  # type: ignore[misc]
        self.finish()

    def hold(self, done: Callable[[bool], None], hooks: Iterable[Packet] = ()) -> None:
        """Come to rest: what is being handled is brought to its end, what waits goes on waiting.

        Hooks that wait are still called: those of a new connection, then C{hooks}. Reading is
        paused until L{unhold}.

        @param done: called with True when the lane is at rest, which it stays until L{unhold} or
            L{depart}; called with False when the connection begins to end, before or after that:
            then there is no hold any more.
        """
        self._hold = _Hold(done, list(hooks))
        self.halted = True
        if not self._paused:
            self._paused = True
            self._peer.pause_reading()
        if self._running and self._pending is None:
            self._pending = deque()  # so that take() comes back to us
        if self._job:
            with suppress(IndexError):  # a thread has begun it meanwhile
                self.finished(b"", 0, [], 0, self._job.pop())
        self._advance()

    def unhold(self) -> None:
        """Go on as before L{hold}; C{done} is not called any more."""
        if self._hold is not None:
            self._end_hold()
            self._advance()

    def depart(self) -> list[Packet]:
        """The connection leaves the process: give up the packets that wait, and do no more.

        To be called at rest. What is sent from now on is kept back by the transport.
        """
        waiting, self._pending, self._hold = self._pending, None, None
        self.session.attach(None)
        return list(waiting or ())

    def come_back(self, waiting: list[Packet]) -> None:
        """The connection stays after all: go on as before L{depart}."""
        self.session.attach(self)
        self._unhalt()
        self._busy = False
        if not self.closed:
            self.put_back(waiting)
        self._advance()

    def _end_hold(self) -> None:
        if self._hold is not None and self._hold.at_rest:
            self._busy = False
        self._hold = None
        self._unhalt()

    def _unhalt(self) -> None:
        self.halted = False
        if self.closed:  # asked behind that, for a thread may close it now
            self.halted = True

    def _come_to_rest(self, hold: _Hold) -> None:
        """Do what is to be done still, before the lane is at rest."""
        while not self._busy and self._hold is hold:
            hooks = []
            while self._pending and self._pending[0][0] < 0:
                hooks.append(self._pending.popleft())
            if not self._pending:
                self._pending = None
            if not hooks:
                hooks, hold.hooks = hold.hooks, []
            if hooks:
                self._run(hooks)
            else:
                self._busy = hold.at_rest = True  # so that nothing begins
                hold.done(True)

    def give_up(self, data: bytes, count: int) -> None:
        """The handler that holds a thread takes too long: close, behind the replies before it.

        What it still says is dropped. The hooks of the end wait until it has returned: they run
        beside no other handler of the connection.

        @param data: the C{count} replies of its job that have not been handed on.
        """
        if self._answered is None:
            self.replied(data, count)
            self._answered = count
        self._close()
        self._peer.lane_done()

    def release(self) -> None:
        """Nothing is left to do, and the connection is gone: let go of it."""
        self._peer = NOBODY
        self.session.attach(None)

    def send(self, frame: bytes) -> None:
        pool = self._dispatch.pool
        if pool.in_reactor():
            self._sent(frame)
            return
        pool.flush_job(self)  # the replies of this job that were given before
        pool.call(self._sent, frame)

    def close(self) -> None:
        pool = self._dispatch.pool
        if pool.in_reactor():
            self._close()
        else:
            # at once: the packets of this job that follow are dropped too
            self.closed = self.halted = True
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
        self._job = [calls]
        self._dispatch.pool.submit(self, self._job)

    def _put(self, packets: Iterable[Packet]) -> None:
        if self._pending is None:
            self._pending = deque(packets) or None
        else:
            self._pending.extend(packets)

    def _advance(self) -> None:
        """Take up what waits, as far as it goes."""
        if self._running:
            return  # the one who runs the handlers goes on
        if self._hold is not None:
            self._come_to_rest(self._hold)
            if self._hold is not None:
                return
        while self._pending is not None and not self._busy and not self._blocked:
            waiting = self._pending
            batch = [waiting.popleft() for _ in range(min(len(waiting), BATCH))]
            if not waiting:
                self._pending = None
            self._run(batch)
        if self._ending:
            if self.idle:
                self._peer.lane_done()
        elif self._paused and len(self._pending or ()) <= self._dispatch.lane_packets // 2:
            self._paused = False
            self._peer.resume_reading()

    def _run(self, packets: list[Packet]) -> None:
        """Handle C{packets}, until one has to wait."""
        runners = self._dispatch.idle_runners
        runner = runners.pop() if runners else self._dispatch.new_runner()
        self._step(runner, partial(runner.send, (self, packets)))

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
        if self._answered is not None:
            return
        self.session.packets_out += 1
        self.session.bytes_out += len(frame)
        if self._running:
            self.out.append(frame)
        else:
            self._peer.transport.write(frame)

    def _close(self) -> None:
        if not self._ending:
            self.session.stop(CloseReason.HANDLER)
        self.closed = self.halted = True
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
        if self._answered is None:
            self._dispatch.pool.unfinished -= 1
        else:
            self._dispatch.pool.returned(self)
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
        if self._answered is not None:
            self._dispatch.counts.late_replies += max(0, count - self._answered)
            self._answered = 0
            return
        self.session.packets_out += count
        self.session.bytes_out += len(data)
        if data:
            self._peer.transport.write(data)


def waiting_packets(lanes: Iterable[Lane]) -> int:
    """How many packets wait for their handler in C{lanes}."""
    return sum([len(lane._pending) for lane in lanes if lane._pending is not None])
