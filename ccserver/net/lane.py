"""The lane: the packets of one connection, handled and answered one after the other."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextvars import Context, copy_context
from functools import partial
from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from ccserver.app import Handler
from ccserver.core.copying import another
from ccserver.core.framing import Packet
from ccserver.core.session import CloseReason, Session
from ccserver.errors import ProtocolError, UnknownCode
from ccserver.native import native
from ccserver.net.begun import Begun, answer
from ccserver.net.peer import NOBODY, Peer
from ccserver.net.resting import Resting
from ccserver.net.sending import NOTHING
from ccserver.net.waiting import size_of

if TYPE_CHECKING:
    from ccserver.net.dispatch import Dispatch

__all__ = ["BATCH", "DONE", "NOTHING", "Lane", "Runner"]

BATCH = 64
"""How many waiting packets a lane takes up in one go."""

Runner = Generator[Any, Any, None]
"""Is sent a lane, packets, and the call of the first if it has begun; or None, to go on. Yields
L{DONE}, or what a handler waits for."""

DONE = object()

Task = tuple["Lane", Iterable[Packet], Begun | BaseException | None]
"""What a runner is sent: whose packets, which, and the call of the first if it has begun, or what
that has raised."""

submit: Callable[[Any, list[Packet]], bool] | None = native.submit if native else None
"""Does what L{Lane.submit} does, if all packets go to the pool and nothing else is to be done."""


class Lane(Resting):
    """The order of one connection: what follows a packet that is still handled waits here.

    As the transport's producer it stops where the client does not read its replies; as the
    session's outlet it keeps what handlers send in order with the replies. All but L{send},
    L{send_blocking}, L{call}, L{close} and L{failed} is called in the reactor's thread.
    """

    __slots__ = ("_awaited", "_ending")

    def __init__(self, session: Session, peer: Peer, dispatch: Dispatch) -> None:
        Resting.__init__(self, session, peer, dispatch)
        self._ending = False  # the peer is told when nothing is left to do
        self._awaited: Deferred[Any] | None = None  # what a handler waits for
        session.attach(self)

    def another(self, session: Session, peer: Peer) -> Lane:
        """A lane of the same dispatch, after the pattern of this one, which has no packets."""
        if another is None:
            return Lane(session, peer, self._dispatch)
        lane: Lane = another(self)
        lane.session, lane._peer = session, peer
        session.attach(lane)
        return lane

    def failed(self, handler: Handler) -> None:
        """Log the exception that C{handler} raised, if it is not one of many; from any thread."""
        more = self._dispatch.lines.admit(handler.name, perf_counter())
        if more is None:
            return
        self._dispatch.log.failure(
            "{title} raised{more}",
            Failure(),
            LogLevel.error,
            title=handler.title,
            more=more,
            session=self.session,
        )

    @property
    def running(self) -> bool:
        """Whether handlers are running in the reactor's thread, at this moment."""
        return self._running

    @property
    def ending(self) -> bool:
        """Whether it was asked to finish or to close."""
        return self._ending or self.closed

    @property
    def idle(self) -> bool:
        """Whether nothing is being handled and nothing waits."""
        return not self._busy and self._pending is None

    @property
    def at_leisure(self) -> bool:
        """Whether what comes now is handled at once: its client reads, and no rate delays it."""
        behind = self._outbox is not None or self._running or self.halted or self._ending
        return self.idle and not behind and self.session.excess is None

    @property
    def owes(self) -> bool:
        """Whether packets, and not hooks alone, are in a thread or wait for their handlers.

        What follows a handler in its read, which waits for something, cannot be seen; nothing
        does where the handler has been given up.
        """
        in_thread = self._busy and self._awaited is None and self._answered is None
        return in_thread or any(code >= 0 for code, _ in self._pending or ())

    def start(self) -> None:
        """Call the hooks of a new connection."""
        if self._dispatch.made:
            out = self.take([(code, b"") for code in self._dispatch.made])
            self._peer.transport.writeSequence(out)

    def adopt(self, waiting: list[Packet], unsent: list[bytes]) -> None:
        """Call the hooks of a connection from another process, and handle what waited there.

        @param unsent: what is to be sent before all else.
        """
        if unsent:
            self._outbox = self._dispatch.fall_behind(self)
            for chunk in unsent:
                self._outbox.reply(chunk)
            self._drain()
        packets = [(code, b"") for code in self._dispatch.adopt] + waiting
        if packets:
            self._emit(self.take(packets))
        self._past = self.session.decoder.bytes - size_of(self._pending or ())
        self._pause_if_full()

    def take(self, packets: list[Packet]) -> list[bytes]:
        """Handle C{packets} behind all that were taken before.

        @return: what is to be sent, at once; the caller's from now on.
        """
        if self._busy or self._outbox or self._running:
            self._put(packets)
            if not (self._busy or self._blocked or self._running):
                self._advance()  # its replies wait behind what waits already
            self._pause_if_full()
            return NOTHING
        if packets[0][0] in self._dispatch.threaded and not self.halted:
            if submit is None or not submit(self, packets):
                self.submit(packets)
                if self._pending is not None:
                    self._pause_if_full()
            return NOTHING
        # as in _step, here for the sake of speed: most packets go no further
        dispatch = self._dispatch
        out: list[bytes] = []
        self.out = out
        self._running = True
        if answer is None:
            return self._let_run(out, (self, packets, None))
        rest = iter(packets)
        try:
            seconds = dispatch.slices.seconds
            end = answer(self, self.session, dispatch.handlers, rest, out, None, 0.0, seconds)
        except BaseException:
            self.returned()
            raise
        if end.__class__ is not int:
            return self.go_on(out, rest, *end)
        self.returned()
        return self.answered(out)

    def go_on(
        self,
        out: list[bytes],
        rest: Iterator[Packet],
        _: int,
        packet: Packet | None,
        coroutine: Coroutine[Any, Any, Any] | None,
        value: Any,
    ) -> list[bytes]:
        """Go on where the compiled part has stopped: see C{answer} there.

        @return: as L{take}.
        """
        begun = None
        packets: Iterable[Packet] = rest
        if packet is not None:
            packets = chain((packet,), rest)
            begun = value if coroutine is None else Begun(coroutine, value)
        elif self.flush():
            self.put_back(rest)
        return self._let_run(out, (self, packets, begun))

    def _let_run(self, out: list[bytes], task: Task) -> list[bytes]:
        """Let a runner handle packets; C{out} is where the replies go."""
        dispatch = self._dispatch
        runner = dispatch.take_runner()
        try:
            awaited = runner.send(task)
        finally:
            self._running = False
            self.out = NOTHING  # an idle connection does not hold its last reply
        if awaited is DONE:
            dispatch.give_back(runner)
            if self._pending is None and not self._ending:
                return out
            return self.answered(out)
        if out:
            self._emit(out)
        self._wait(runner, awaited, copy_context())
        self._advance()
        self._pause_if_full()
        return NOTHING

    def answered(self, out: list[bytes]) -> list[bytes]:
        """The handlers of all that was taken have returned, C{out} is what they reply.

        @return: as L{take}.
        """
        if self._pending is None and not self._ending:
            return out
        if out:
            self._emit(out)
        self._advance()
        self._pause_if_full()
        return NOTHING

    def finish(self) -> None:
        """Tell the peer when all that was taken has been handled."""
        self._ending = True
        if self.closed:
            self._need_no_slice()
        hold = self._hold
        if hold is not None:
            self._end_hold()
            hold.done(False)
        elif self._pending is None and not (self._busy or self._running):
            self._done()  # as _advance, here for the sake of speed
            return
        self._advance()
        if not self.idle:
            self._peer.lane_ending()

    def leave(self) -> bool:
        """Finish, and let go as well: the connection is gone as soon as this has returned.

        @return: False, and nothing was done: there is something left to do.
        """
        if (
            self._busy
            or self._pending is not None
            or self._running
            or self._outbox is not None
            or self._waiters is not None
            or self._hold is not None
            or self._dispatch.lost
        ):
            return False
        self._ending = self._silent = True
        self._blocked = False
        self._peer = NOBODY
        self.session.attach(None)
        return True

    def lost(self, reason: CloseReason) -> None:
        """The connection is gone: what waits is still handled, then the hooks are called."""
        if not self._silent:
            self.silence()
        if self._busy and self._dispatch.slices.leave(self):
            self._dispatch.slices.wait(self, gone=True)
        if self._dispatch.lost:
            self._put([(code, reason) for code in self._dispatch.lost])  # type: ignore[misc]
        self.finish()

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
        self._done()

    def expire(self) -> None:
        """The handler that waits for something takes too long: it waits no more.

        If it then waits for something else, it is given up, as in L{give_up}.
        """
        awaited = self._awaited
        if awaited is not None:
            awaited.cancel()
        if self._awaited is not None:
            self.give_up(b"", 0)

    @property
    def awaiting(self) -> bool:
        """Whether a handler waits for something."""
        return self._awaited is not None

    def drop(self) -> None:
        """The connection is cut: nothing that waits is handled or sent any more."""
        self.closed = self.halted = True
        self._drop_waiting()
        self.silence()

    def release(self) -> None:
        """Nothing is left to do, and the connection is gone: let go of it."""
        if not self._silent:
            self.silence()
        self._peer = NOBODY
        self.session.attach(None)

    def close(self) -> None:
        pool = self._dispatch.pool
        if pool.in_reactor():
            self._close()
        else:
            # at once: the packets of this job that follow are dropped too
            self.closed = self.halted = True
            pool.call(self._close)

    def refuse(self, error: ProtocolError, code: int) -> None:
        """A packet is not accepted."""
        self._peer.refuse(error, code)

    def refuse_unknown(self, code: int) -> None:
        """A packet has a code without a handler."""
        self._peer.refuse(UnknownCode(f"no handler for code {code}"), code)

    def submit(self, packets: list[Packet]) -> None:
        """Hand those of C{packets} to the pool that go there before the first that does not."""
        threaded = self._dispatch.threaded
        for place, (code, _) in enumerate(packets):
            if code not in threaded:
                self.put_back(packets[place:])
                packets = packets[:place]
                break
        self._busy = True
        self._job = [packets]
        pool = self._dispatch.pool
        pool.submit(self, self._job)
        if pool.unfinished > pool.limit:
            self._pause()  # until it is done

    def _advance(self) -> None:
        """Take up what waits, as far as it goes."""
        if self._running:
            return  # the one who runs the handlers goes on
        if not self._pending:
            self._pending = None
        if self._hold is not None:
            self._come_to_rest(self._hold)
            if self._hold is not None:
                return
        seconds, began = self._dispatch.slices.seconds, 0.0
        while self._pending is not None and not self._busy and not self._blocked:
            if seconds:
                now = perf_counter()
                began = began or now
                if now - began > seconds:
                    self.postpone(())
                    break
            self._run(self._pop(BATCH))
        if self._ending:
            if self.idle:
                self._done()
        elif self._paused and self._half_empty:
            if self._busy and self._dispatch.pool.crowded:
                return
            self._paused = False
            self._peer.resume_reading()

    def _run(self, packets: list[Packet]) -> None:
        """Handle C{packets}, until one has to wait."""
        runner = self._dispatch.take_runner()
        self._step(runner, partial(runner.send, (self, packets, None)))

    def _step(self, runner: Runner, step: Callable[[], Any]) -> None:
        """Let C{runner} take a C{step}, until it is done or has to wait."""
        out: list[bytes] = []
        self.out = out
        self._running = True
        try:
            awaited = step()
        except BaseException:
            # a fault of ours: nobody would go on with what waits
            self._peer.cut(CloseReason.HANDLER, "a handler could not be called")
            raise
        finally:
            self.returned()
        if out:
            self._emit(out)
        if awaited is DONE:
            self._dispatch.give_back(runner)
        else:
            self._wait(runner, awaited, copy_context())

    def postpone(self, packets: Iterable[Packet]) -> None:
        """Let C{packets} wait before all others that wait, and those for the next slice."""
        self.put_back(packets)
        if self._pending is not None:
            self._busy = True
            self._dispatch.slices.wait(self, gone=self._silent)

    def next_slice(self) -> None:
        """It has the reactor again."""
        self._busy = False
        self._advance()

    def returned(self) -> None:
        """No handler is running below us any more."""
        self._running = False
        self.out = NOTHING

    def _wait(self, runner: Runner, awaited: Any, context: Context) -> None:
        """Go on with C{runner} when C{awaited} has its result, which it takes from there."""
        self._busy = True
        if not isinstance(awaited, Deferred):
            kind = type(awaited).__name__
            awaited = fail(TypeError(f"a handler can await Deferreds, not {kind}"))
        self._awaited = awaited
        if self._ending:
            self._peer.lane_ending()
        awaited.addBoth(self._resume, runner, context)

    def _resume(self, result: object, runner: Runner, context: Context) -> None:
        self._busy = False
        self._awaited = None
        if isinstance(result, Failure):
            step = partial(result.throwExceptionIntoGenerator, runner)
        else:
            step = partial(runner.send, None)
        context.run(self._step, runner, step)
        self._advance()
        self._pause_if_full()  # what it had in hand may have come back

    def _close(self) -> None:
        if not self._ending:
            self.session.stop(CloseReason.HANDLER)
        self.closed = self.halted = True
        self._drop_waiting()
        self._dismiss_waiters()
        self.finish()

    def _done(self) -> None:
        """Nothing is left to do."""
        self._let_go()
        self._peer.lane_done()

    def done(self, data: bytes, count: int) -> None:
        """The pool has done the lane's job: C{count} replies, and nothing went wrong."""
        if self._answered is not None or self._outbox is not None or self._silent:
            self.finished(data, count, [], 0, [])
            return
        # as in finished(), here for the sake of speed
        dispatch = self._dispatch
        dispatch.pool.unfinished -= 1
        session = self.session
        session.packets_out += count
        session.bytes_out += len(data)
        self._busy = False
        if data:
            self._peer.transport.write(data)
        if self._pending is not None or self._hold is not None or self._ending or self._paused:
            self._advance()

    def finished(
        self,
        data: bytes,
        count: int,
        refused: list[tuple[ProtocolError, int]],
        errors: int,
        left: list[Packet],
    ) -> None:
        """The pool has done the lane's job, or what one go of it may do, and has C{left} some."""
        if self._answered is None:
            self._dispatch.pool.unfinished -= 1
        else:
            self._dispatch.pool.returned(self)
        self.replied(data, count)
        for error, code in refused:
            self._peer.refuse(error, code)
        self._dispatch.counts.handler_errors += errors
        if self.closed:
            left = [packet for packet in left if packet[0] < 0]
        if left:
            self.put_back(left)
        self._busy = False
        self._advance()
        self._pause_if_full()
