"""The taker: adopts connections that come through a channel from another process."""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.core.carried import HEAD_LIMIT, Carried
from ccserver.net.departure import MAGIC, RECORD
from ccserver.net.giver import NOT_TAKEN, TAKEN
from ccserver.net.intake import ceiling

READS = 8
"""Reads of one turn; a read has at most one descriptor, so this bounds the adoptions too."""

READ_SIZE = 65536
RIGHTS_SIZE = socket.CMSG_LEN(array.array("i").itemsize)

Adopt = Callable[[socket.socket, Carried, list[bytes]], None]
"""Adopts a connection: its socket, what goes with it, and its unsent bytes."""


class _Damaged(Exception):
    """What came is no record."""


@implementer(IReadWriteDescriptor)
class Taker:
    """Adopts what a L{Giver} at the other end of a channel gives.

    A connection that C{adopt} does not take, because it raises, and one for which this process has
    no descriptor, but those that are spare, stay where they are. What comes and is no record ends
    the channel.
    """

    log = Logger()

    def __init__(self, reactor: Any, channel: socket.socket, adopt: Adopt) -> None:
        """@param channel: belongs to the taker, which closes it."""
        channel.setblocking(False)
        self._reactor = reactor
        self._channel = channel
        self._adopt = adopt
        self._descriptors: deque[int | None] = deque()  # None: one that we could not have
        self._have = bytearray()  # of the record's fixed part and its head
        self._need = RECORD.size
        self._unsent_left: int | None = None  # None: its fixed part is not complete
        self._unsent: list[bytes] = []
        self._answers = b""
        self._adopted = 0
        self._without = 0  # that could not be had for want of descriptors
        self._done: Deferred[int] | None = None

    def take(self) -> Deferred[int]:
        """Adopt what comes; fires at its end with how many. Never fails; call it once."""
        done = self._done = Deferred[int]()
        self._reactor.addReader(self)
        return done

    def stop(self) -> None:
        """Take no more."""
        self._finish()

    def fileno(self) -> int:
        return self._channel.fileno()

    def logPrefix(self) -> str:
        return "taker"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor cannot go on with the channel."""
        self._finish()

    def doRead(self) -> None:
        for _ in range(READS):
            try:
                # socket.recv_fds drops its flags (Python 3.11)
                data, rights, flags, _ = self._channel.recvmsg(
                    READ_SIZE, RIGHTS_SIZE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                break
            except OSError:
                data, rights, flags = b"", [], 0
            for _, _, descriptor in rights:
                self._descriptors.extend(map(_kept, array.array("i", descriptor)))
            if flags & socket.MSG_CTRUNC:
                self._descriptors.append(None)
            if not data:
                self._finish()
                return
            try:
                self._receive(memoryview(data))
            except _Damaged as error:
                self.log.error("hand-over: {error}", error=str(error))
                self._finish()
                return
        self._answer()

    def doWrite(self) -> None:
        self._reactor.removeWriter(self)
        self._answer()

    def _receive(self, data: memoryview) -> None:
        while data:
            if self._unsent_left and len(self._have) == self._need:
                part = data[: self._unsent_left]
                self._unsent.append(bytes(part))
                self._unsent_left -= len(part)
            else:
                part = data[: self._need - len(self._have)]
                self._have += part
                if self._unsent_left is None and len(self._have) == self._need:
                    self._begin_record()
            data = data[len(part) :]
            if self._unsent_left == 0 and len(self._have) == self._need:
                self._end_record()

    def _begin_record(self) -> None:
        magic, size, unsent = RECORD.unpack(self._have)
        if magic != MAGIC or not 0 < size <= HEAD_LIMIT:
            raise _Damaged(f"{bytes(self._have)!r} begins no record")
        if not self._descriptors:
            raise _Damaged("a record without a descriptor")
        self._need += size
        self._unsent_left = unsent

    def _end_record(self) -> None:
        head, unsent = self._have, self._unsent
        self._have, self._need = bytearray(), RECORD.size
        self._unsent_left, self._unsent = None, []
        try:
            carried = Carried.load(bytes(memoryview(head)[RECORD.size :]))
        except ValueError as error:
            raise _Damaged(str(error)) from None
        descriptor = self._descriptors.popleft()
        if descriptor is None:
            self._without += 1
            taken = False
        else:
            taken = self._take(descriptor, carried, unsent)
        self._adopted += taken
        self._answers += bytes([TAKEN if taken else NOT_TAKEN])

    def _take(self, descriptor: int, carried: Carried, unsent: list[bytes]) -> bool:
        """Adopt a connection; whether that was done."""
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError as error:
            os.close(descriptor)
            raise _Damaged(f"a descriptor that is no socket: {error}") from None
        try:
            self._adopt(sock, carried, unsent)
        except Exception:
            self.log.failure("hand-over: {peer} was not adopted", peer=carried.peer)
            sock.close()
            return False
        return True

    def _answer(self) -> None:
        """Say what has become of the records so far."""
        if not self._answers or self._done is None:
            return
        try:
            sent = self._channel.send(self._answers)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._finish()
            return
        self._answers = self._answers[sent:]
        if self._answers:
            self._reactor.addWriter(self)

    def _finish(self) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        if self._answers:
            with suppress(OSError):
                self._channel.send(self._answers)
        if self._have:
            self.log.warn("hand-over: it ended inside a record")
        if self._without:
            self.log.error(
                "hand-over: no descriptors left for {count} connections", count=self._without
            )
        while self._descriptors:
            descriptor = self._descriptors.popleft()
            if descriptor is not None:
                os.close(descriptor)
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._channel.close()
        done.callback(self._adopted)


def _kept(descriptor: int) -> int | None:
    """C{descriptor}; None, and it is closed, if it is one of the spare ones."""
    if descriptor < ceiling():
        return descriptor
    os.close(descriptor)
    return None
