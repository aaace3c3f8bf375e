"""The lane at rest: brought to a stop, taken away to another process, or gone on with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ccserver.core.framing import Packet
from ccserver.core.outbox import Overflow
from ccserver.core.session import CloseReason, Session
from ccserver.net.jobs import Claim
from ccserver.net.peer import Peer
from ccserver.net.waiting import Waiting

if TYPE_CHECKING:
    from ccserver.net.dispatch import Dispatch

NO_JOB: Claim = []


class Hold:
    """A lane that is brought, or kept, to rest."""

    __slots__ = ("at_rest", "done", "hooks")

    def __init__(self, done: Callable[[bool], None], hooks: list[Packet]) -> None:
        self.done = done
        self.hooks = hooks
        self.at_rest = False


class KeptBack:
    """The outlet of a session that is on its way: keeps what it sends, should it come back.

    May be called from any thread.
    """

    def __init__(self, limit: int) -> None:
        """@param limit: bytes that are kept at most; 0: any."""
        self.sent: list[tuple[bytes, Overflow, Hashable]] = []
        self.closed = self.full = False
        self._limit = limit
        self._size = 0

    def send(self, frame: bytes, overflow: Overflow, key: Hashable) -> None:
        self._size += len(frame)
        if not self._limit or self._size <= self._limit:
            self.sent.append((frame, overflow, key))
        elif overflow is Overflow.CLOSE:
            self.full = True

    def send_blocking(self, frame: bytes, timeout: float) -> None:
        """There is room, see L{room}."""
        self.send(frame, Overflow.CLOSE, None)

    def room(self) -> None:
        """There is always some, for it is not for long."""

    def close(self) -> None:
        self.closed = True


class Resting(Waiting):
    """What a lane does to come to rest, and from there.

    @ivar halted: packets that wait are not handled for now, or never if the lane is closed; hooks
        are. May be asked from any thread.
    """

    __slots__ = ("_busy", "_hold", "_job", "_kept", "halted")

    def __init__(self, session: Session, peer: Peer, dispatch: Dispatch) -> None:
        Waiting.__init__(self, session, peer, dispatch)
        self._busy = False  # a job is on its way, a handler waits, all wait for a slice, or rest
        self._job = NO_JOB  # the one that was handed to the pool last
        self._hold: Hold | None = None
        self._kept: KeptBack | None = None
        self.halted = False

    @property
    def held(self) -> bool:
        """Whether it is brought, or kept, to rest."""
        return self._hold is not None

    def hold(self, done: Callable[[bool], None], hooks: Iterable[Packet] = ()) -> None:
        """Come to rest: what is being handled is brought to its end, what waits goes on waiting.

        Hooks that wait are still called: those of a new connection, then C{hooks}. Reading is
        paused until L{unhold}.

        @param done: called with True when the lane is at rest, which it stays until L{unhold} or
            L{depart}; called with False when the connection begins to end, before or after that:
            then there is no hold any more.
        """
        self._hold = Hold(done, list(hooks))
        self.halted = True
        self._pause()
        self._call_back()
        if self._job:
            taken_back: list[Packet] | None = None
            with suppress(IndexError):  # a thread has begun it meanwhile
                taken_back = self._job.pop()
            if taken_back is not None:
                self.finished(b"", 0, [], 0, taken_back)
        self._need_no_slice()
        self._advance()

    def unhold(self) -> None:
        """Go on as before L{hold}; C{done} is not called any more."""
        if self._hold is not None:
            self._end_hold()
            self._advance()

    def depart(self) -> list[Packet]:
        """The connection leaves the process: give up the packets that wait, and do no more.

        To be called at rest. What the session sends from now on is kept back, and what waits for
        the client stays here, see L{contents}.
        """
        waiting, self._pending, self._hold = self._pending, None, None
        self._kept = KeptBack(self._dispatch.send_limits.hard)
        self.session.attach(self._kept)
        return list(waiting or ())

    def contents(self) -> list[bytes]:
        """What waits for the client, before the transport, in who departs with it."""
        self._dispatch.behind.discard(self)
        return [] if self._outbox is None else self._outbox.contents()

    def come_back(self, waiting: list[Packet]) -> None:
        """The connection stays after all: go on as before L{depart}."""
        kept, self._kept = self._kept, None
        self.session.attach(self)
        self._unhalt()
        self._busy = False
        if self._outbox is not None:
            self._dispatch.behind.add(self)
        if not self.closed:
            self.put_back(waiting)
        for sent in kept.sent if kept is not None else ():
            self.send(*sent)
        if kept is not None and not self._silent:
            if kept.full:
                self._peer.cut(CloseReason.SEND_QUEUE_FULL, "too much was sent on its way")
            elif kept.closed:
                self.close()
        self._advance()

    def _need_no_slice(self) -> None:
        """Wait for none, if that is what it does: little is left to do, if anything."""
        if self._busy and self._dispatch.slices.leave(self):
            self._busy = False

    def _end_hold(self) -> None:
        if self._hold is not None and self._hold.at_rest:
            self._busy = False
        self._hold = None
        self._unhalt()

    def _unhalt(self) -> None:
        self.halted = False
        if self.closed:  # asked behind that, for a thread may close it now
            self.halted = True

    def _come_to_rest(self, hold: Hold) -> None:
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

    def _call_back(self) -> None:
        if self._running and self._pending is None:
            self._pending = deque()  # so take() does not return it at once

    def close(self) -> None:
        """Send what was sent so far, then close; what waits to be handled is dropped."""
        raise NotImplementedError

    def finished(self, data: bytes, count: int, refused: Any, errors: int, rest: Any) -> None:
        """The pool has done the lane's job."""
        raise NotImplementedError

    def _run(self, packets: list[Packet]) -> None:
        """Handle C{packets}, until one has to wait."""
        raise NotImplementedError
