"""Watching: what a reactor watches descriptors for, in a byte for each of them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from select import EPOLLIN, EPOLLOUT
from typing import Any

from twisted.internet.epollreactor import EPollReactor

FIRST = 1024
"""Descriptors for which there is a byte at first."""


class Watched:
    """The descriptors that are watched for one kind of event."""

    def __init__(self, watched: bytearray, event: int) -> None:
        self._watched = watched
        self._event = event

    def __contains__(self, fd: int) -> bool:
        return 0 <= fd < len(self._watched) and bool(self._watched[fd] & self._event)

    def __iter__(self) -> Iterator[int]:
        return iter([fd for fd, events in enumerate(self._watched) if events & self._event])


class WatchingReactor(EPollReactor):
    """An L{EPollReactor} that has no sets of the descriptors it reads and writes.

    A set has 52 bytes for each of 10,000 members, and looking into two of them is most of what
    Twisted does around a call of epoll_ctl.
    """

    _poller: Any
    _selectables: dict[int, Any]
    _continuousPolling: Any
    _reads: Any
    _writes: Any
    doIteration: Any

    def __init__(self) -> None:
        self._watched = bytearray(FIRST)
        EPollReactor.__init__(self)
        self._reads = Watched(self._watched, EPOLLIN)
        self._writes = Watched(self._watched, EPOLLOUT)

    def begin(self, selectable: Any, fd: int) -> None:
        """Read C{selectable}, which is no file, and new: nobody has watched it."""
        watched = self._watched
        if fd >= len(watched):
            self._make_room(fd)
        self._poller.register(fd, EPOLLIN)
        watched[fd] = EPOLLIN
        self._selectables[fd] = selectable

    def addReader(self, reader: Any) -> None:
        if not self._watch(reader, EPOLLIN):
            self._continuousPolling.addReader(reader)

    def addWriter(self, writer: Any) -> None:
        if not self._watch(writer, EPOLLOUT):
            self._continuousPolling.addWriter(writer)

    def removeReader(self, reader: Any) -> None:
        if not self._unwatch(reader, EPOLLIN) and self._continuousPolling.isReading(reader):
            self._continuousPolling.removeReader(reader)

    def removeWriter(self, writer: Any) -> None:
        if not self._unwatch(writer, EPOLLOUT) and self._continuousPolling.isWriting(writer):
            self._continuousPolling.removeWriter(writer)

    def forget(self, fd: int) -> None:
        """Watch the descriptor C{fd}, which is no file's, for nothing any more."""
        watched = self._watched
        if 0 <= fd < len(watched) and watched[fd]:
            del self._selectables[fd]
            watched[fd] = 0  # first: who comes behind us under this number is to be watched
            self._poller.unregister(fd)

    def _watch(self, selectable: Any, event: int) -> bool:
        """Watch for C{event}, too; False if epoll cannot, for it is a file."""
        fd: int = selectable.fileno()
        watched = self._watched
        if not 0 <= fd < len(watched):
            self._make_room(fd)
        events = watched[fd]
        if events & event:
            return True
        try:
            if events:
                self._poller.modify(fd, events | event)
            else:
                self._poller.register(fd, event)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            return False
        watched[fd] = events | event
        self._selectables[fd] = selectable
        return True

    def _unwatch(self, selectable: Any, event: int) -> bool:
        """Watch for C{event} no more; whether it was watched for."""
        fd: int = selectable.fileno()
        watched = self._watched
        if not 0 <= fd < len(watched):
            fd = self._find(selectable)
        events = watched[fd] if fd >= 0 else 0
        if not events & event:
            return False
        left = events ^ event
        if left:
            self._poller.modify(fd, left)
            watched[fd] = left
        else:
            self.forget(fd)
        return True

    def _make_room(self, fd: int) -> None:
        if fd < 0:
            raise ValueError(f"{fd} is no descriptor")
        self._watched.extend(bytes(max(fd + 1, 2 * len(self._watched)) - len(self._watched)))

    def _find(self, selectable: Any) -> int:
        """The descriptor that C{selectable}, which has closed it, is watched under; -1: none."""
        for fd, other in self._selectables.items():
            if other is selectable:
                return fd
        return -1
