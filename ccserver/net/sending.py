"""The sending half of a lane: replies and pushes in order, and what waits for a slow client."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Hashable
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.core.outbox import Outbox, Overflow
from ccserver.core.session import CloseReason, Session
from ccserver.errors import SessionClosed
from ccserver.net.errand import Errand
from ccserver.net.peer import Peer
from ccserver.net.reply import OUTPUT_MARK

if TYPE_CHECKING:
    from ccserver.net.dispatch import Dispatch

NOTHING: list[bytes] = []


def unacknowledged(transport: Any) -> int:
    """The bytes that the kernel has sent, or is to send, and the client's has not confirmed.

    Our end of stream is one of them. 0 where there is no socket that could be asked.
    """
    sock = getattr(transport, "socket", None)
    if sock is None:
        return 0
    try:
        waiting: int = struct.unpack("i", ioctl(sock.fileno(), TIOCOUTQ, bytes(4)))[0]
    except (OSError, ValueError):  # it is closed
        return 0
    return waiting


@implementer(IPushProducer)
class Sender:
    """Sends replies and what a session pushes, in the order in which they were made.

    As long as the kernel takes what is written, that goes straight to the transport. A client
    that is behind has an L{Outbox}: all that is made for it goes in there, and out again in
    portions as it reads. Too many bytes of replies in it, and nothing more is handled until they
    are gone; too many pushes, and their policies say what goes.

    All but L{send}, L{send_blocking} and L{call} is called in the reactor's thread.

    @ivar out: what is to be sent when the handlers that are running have returned.
    @ivar closed: packets that wait are dropped; may be asked from any thread.
    """

    __slots__ = (
        "_answered",
        "_blocked",
        "_dispatch",
        "_full",
        "_gathered",
        "_outbox",
        "_peer",
        "_running",
        "_silent",
        "_waiters",
        "closed",
        "out",
        "session",
    )

    def __init__(self, session: Session, peer: Peer, dispatch: Dispatch) -> None:
        self.session = session
        self._peer = peer
        self._dispatch = dispatch
        self._running = False  # handlers are running in the reactor's thread, below us
        self._blocked = False  # as many replies wait as may
        self._full = False  # the transport has said that it has enough
        self._silent = False  # nothing is sent any more
        self._answered: int | None = None  # replies of the job that was given up, None: none was
        self._outbox: Outbox | None = None  # there is one while the client is behind
        self._waiters: deque[Deferred[None]] | None = None  # who waits for room
        self.closed = False
        self._gathered = 0  # bytes of pushes since the last look at them, about
        self.out: list[bytes] = NOTHING

    @property
    def blocked(self) -> bool:
        """Whether the client does not read its replies."""
        return self._blocked

    @property
    def unsent(self) -> int:
        """The bytes that wait for the client, before the transport."""
        return 0 if self._outbox is None else self._outbox.bytes

    @property
    def taken(self) -> int:
        """The bytes that the client, or its kernel, has taken so far; about, where there is TLS.

        What our kernel has taken says less: it holds several MiB, and takes more only when a third
        of them is gone.
        """
        transport = self._peer.transport
        left: int = self.unsent + getattr(transport, "unsent", 0) + self.unacknowledged
        return self.session.bytes_out - left

    @property
    def unacknowledged(self) -> int:
        """The bytes that our kernel has and the client's has not yet, our end of stream too."""
        return unacknowledged(self._peer.transport)

    @property
    def outbox(self) -> Outbox | None:
        """What waits for the client; None if it is not behind."""
        return self._outbox

    def send(self, frame: bytes, overflow: Overflow, key: Hashable) -> None:
        dispatch = self._dispatch
        pool = dispatch.pool
        if pool.in_reactor():
            self.push(frame, overflow, key)
            return
        pool.flush_job(self)  # the replies of this job that were given before
        dispatch.throttle.enter(len(frame))
        pool.call(self._push_from_thread, frame, overflow, key)

    def send_blocking(self, frame: bytes, timeout: float) -> None:
        pool = self._dispatch.pool
        if pool.in_reactor():
            raise RuntimeError("the reactor's thread must not wait: send_async does")
        pool.flush_job(self)
        errand = Errand(self, frame)
        pool.call(errand.go)
        pool.prepare_to_wait()
        errand.wait(timeout)

    def call(self, function: Callable[[], None]) -> None:
        """Call C{function} in the reactor's thread; from any thread."""
        self._dispatch.pool.call(function)

    def room(self) -> Deferred[None] | None:
        """None if there is room for a push; else what fires when there is, or it is too late."""
        if not self._dispatch.pool.in_reactor():
            raise RuntimeError("only the reactor's thread can wait for room")
        if self._silent or self.closed:
            raise SessionClosed("the connection has ended")
        if self._has_room():
            return None
        if self._waiters is None:
            self._waiters = deque()
        waiter: Deferred[None] = Deferred(self._wait_no_more)
        self._waiters.append(waiter)
        return waiter

    def flush(self) -> bool:
        """Send what is in C{out}; whether the client has enough to read for now."""
        self._emit(self.out)
        self.out.clear()
        return self._blocked

    def fall_behind(self) -> None:
        """The kernel has not taken all of what was flushed: what follows waits here."""
        if self._outbox is None and not self._silent:
            self._peer.transport.tell_when_sent()
            self._outbox = self._dispatch.fall_behind(self)
            self._call_back()

    def pauseProducing(self) -> None:
        if self._silent:
            return
        self._full = self._blocked = True
        if self._outbox is None:
            self._outbox = self._dispatch.fall_behind(self)
            self._call_back()

    def resumeProducing(self) -> None:
        self._full = False
        self._drain()
        self._admit_waiters()
        self._advance()

    def stopProducing(self) -> None:
        """Nothing: the protocol learns of the end by itself."""

    def replied(self, data: bytes, count: int) -> None:
        """The pool has C{count} replies, and goes on."""
        if self._answered is not None:
            self._dispatch.counts.late_replies += max(0, count - self._answered)
            self._answered = 0
            return
        self.session.packets_out += count
        self.session.bytes_out += len(data)
        if data:
            self._emit([data])

    def silence(self) -> None:
        """Send nothing any more, and drop what waits."""
        self._silent = True
        self._blocked = False
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            self._dispatch.behind.discard(self)
            outbox.clear()
        if self._waiters is not None:
            self._dismiss_waiters()

    def _call_back(self) -> None:
        """See to it that what handlers return now comes to L{_emit}, if some are running."""
        raise NotImplementedError

    def _advance(self) -> None:
        """Take up what waits to be handled."""
        raise NotImplementedError

    def _emit(self, chunks: list[bytes]) -> None:
        """Send C{chunks}, behind all else."""
        if self._outbox is None:
            if not self._silent:
                self._peer.transport.writeSequence(chunks)
            return
        data = b"".join(chunks)
        if data:
            self._outbox.reply(data)
        if self._outbox.replies > OUTPUT_MARK:
            self._blocked = True

    def _push_from_thread(self, frame: bytes, overflow: Overflow, key: Hashable) -> None:
        self._dispatch.throttle.leave(len(frame))
        self.push(frame, overflow, key)

    def push(self, frame: bytes, overflow: Overflow, key: Hashable) -> None:
        """Send C{frame}, or do with it as its policy says; in the reactor's thread."""
        if self._answered is not None or self._silent:
            return
        session = self.session
        if self._outbox is None:
            session.packets_out += 1
            session.bytes_out += len(frame)
            if not self._running:
                self._peer.transport.write(frame)
                return
            self.out.append(frame)
            self._gathered += len(frame)
            if self._gathered > OUTPUT_MARK:
                self._gathered = 0
                self.flush()
            return
        outbox = self._outbox
        if self._running and self.out:
            self.flush()  # what was replied before
        messages, size = outbox.messages, outbox.bytes
        accepted = outbox.push(frame, overflow, key)
        session.packets_out += outbox.messages - messages
        session.bytes_out += outbox.bytes - size
        if not accepted:
            self.overflow()

    def overflow(self) -> None:
        """More waits for the client than may."""
        assert self._outbox is not None
        waiting = f"{self._outbox.bytes} bytes, {self._outbox.messages} packets wait"
        self._peer.cut(CloseReason.SEND_QUEUE_FULL, waiting)

    def stall(self) -> None:
        """The client has taken nothing for too long."""
        self._peer.cut(CloseReason.SEND_TIMEOUT, f"nothing read, {self.unsent} bytes wait")

    def _drain(self) -> None:
        """Let the transport have what waits, as much as it takes."""
        outbox = self._outbox
        if outbox is None:
            return
        transport = self._peer.transport
        flush = getattr(transport, "flush", None)
        while not self._full and not getattr(transport, "behind", False):
            portion = outbox.take(OUTPUT_MARK)
            if not portion:
                self._outbox = None
                self._dispatch.behind.discard(self)
                self._blocked = False
                return
            transport.write(b"".join(portion))
            if flush is not None:
                flush()
        if not self._full:
            transport.tell_when_sent()
        self._blocked = outbox.replies > OUTPUT_MARK

    def _let_go(self) -> None:
        """Let the transport have all that waits, for nothing comes behind it."""
        if self._outbox is not None:
            self._peer.transport.writeSequence(self._outbox.contents())
        if not self._silent:
            self.silence()

    def _has_room(self) -> bool:
        return self._outbox is None or (not self._full and self._outbox.has_room)

    def _admit_waiters(self) -> None:
        """Let those go on who wait for room, as far as there is some."""
        while self._waiters and self._has_room():
            self._waiters.popleft().callback(None)

    def _dismiss_waiters(self) -> None:
        """There is no room any more."""
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            waiter.errback(Failure(SessionClosed("the connection has ended")))

    def _wait_no_more(self, waiter: Deferred[None]) -> None:
        """Who waited for room has been cancelled."""
        if self._waiters and waiter in self._waiters:
            self._waiters.remove(waiter)
