"""The errand: a packet that a thread has to send, and waits for until there is room for it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ccserver.core.outbox import Overflow
from ccserver.errors import SendTimeout, SessionClosed

if TYPE_CHECKING:
    from ccserver.net.sending import Sender


class Errand:
    """One packet, from the thread that makes it to the reactor that sends it.

    Exactly one of both ends it: the reactor by sending, or the thread by waiting no longer.
    """

    def __init__(self, sender: Sender, frame: bytes) -> None:
        self._sender = sender
        self._frame = frame
        self._done: Future[None] = Future()
        self._room: Deferred[None] | None = None  # what it waits for

    def wait(self, timeout: float) -> None:
        """Wait until it is sent; in the thread.

        @raise SessionClosed: the connection has ended before.
        @raise SendTimeout: there was no room for so many seconds; it will not be sent.
        """
        try:
            self._done.result(timeout)
        except TimeoutError:
            if self._done.cancel():
                self._sender.call(self._leave)
                raise SendTimeout(f"no room for a packet within {timeout:g} s") from None
            self._done.result()  # it is being sent in this moment

    def go(self) -> None:
        """Send it, if there is room, or when there will be; in the reactor's thread."""
        self._room = None
        if self._done.cancelled():
            return
        try:
            self._room = self._sender.room()
        except SessionClosed as error:
            self._fail(error)
            return
        if self._room is not None:
            self._room.addCallbacks(lambda _: self.go(), self._room_failed)
        elif self._done.set_running_or_notify_cancel():
            try:
                self._sender.push(self._frame, Overflow.CLOSE, None)
            except BaseException as error:  # the thread must not wait for ever
                self._done.set_exception(error)
            else:
                self._done.set_result(None)

    def _room_failed(self, failure: Failure) -> None:
        if not self._done.cancelled():
            self._fail(failure.value)

    def _fail(self, error: BaseException | None) -> None:
        if self._done.set_running_or_notify_cancel():
            self._done.set_exception(error)

    def _leave(self) -> None:
        """Nobody waits for it any more: let go of the place."""
        if self._room is not None:
            self._room.cancel()
