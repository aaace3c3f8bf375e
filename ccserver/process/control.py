"""The control socket: where the C{ccserver} command and other programs talk to the server."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.core.counts import LineLimit
from ccserver.errors import StartError
from ccserver.process.logs import ProcessLogger
from ccserver.process.operations import Operations
from ccserver.process.requests import ControlConnection, Credentials

MODE = 0o600
PATH_LIMIT = 107 - len(".4194304")
"""Bytes of a socket's path: what the kernel's address holds, less the name it is bound under."""

BACKLOG = 64
MAX_CONNECTIONS = 16
ACCEPTS = 16
"""Connections taken in one turn of the reactor."""

LIVE_TIMEOUT = 1.0
"""Seconds in which a server takes a connection, if it lives."""

RETRY = 1.0
"""Seconds without accepting after there was no descriptor to be had."""

CLOSE_PATIENCE = 1.0
"""Seconds that clients have for reading what was sent before the server ended."""


def credentials(connection: socket.socket) -> Credentials:
    """Who is at the other end, as the kernel says."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    return Credentials(*struct.unpack("iII", data))


@implementer(IReadDescriptor)
class ControlSocket:
    """Listens on a UNIX socket, of mode 0600, and admits root and the server's own user.

    @ivar path: of the socket's file.
    @ivar open_connections: how many clients are connected.
    """

    log = ProcessLogger()

    def __init__(
        self,
        reactor: Any,
        path: str,
        operations: Operations,
        peer_of: Callable[[socket.socket], Credentials] = credentials,
    ) -> None:
        self.path = path
        self._reactor = reactor
        self._operations = operations
        self._peer_of = peer_of
        self._listening: socket.socket | None = None
        self._file: tuple[int, int] | None = None
        self._connections: set[ControlConnection] = set()
        self._retry: IDelayedCall | None = None
        self._lines = LineLimit(per_second=1)
        self._all_gone: Deferred[None] | None = None

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def open(self, take_over: bool = False, owner: tuple[int, int] | None = None) -> None:
        """Listen; may be called again, to have the path back from a server that has taken it over.

        @param take_over: replace the socket that has the path now, whose server may live.
        @param owner: user and group ids that the file is to belong to.
        @raise StartError: it cannot be opened, or a server has it.
        """
        bound = f"{self.path}.{os.getpid()}"
        if len(os.fsencode(self.path)) > PATH_LIMIT:
            raise StartError(
                f"control socket {self.path}: the path is too long; "
                f"at most {PATH_LIMIT} bytes are possible"
            )
        try:
            listening, file = _bound(bound, owner)
            try:
                self._place(bound, take_over)
            except BaseException:
                listening.close()
                raise
            finally:
                _unlink(bound)
        except OSError as error:
            raise self._failed(os.strerror(error.errno) if error.errno else str(error)) from None
        self._stop_listening()
        self._listening, self._file = listening, file
        self._reactor.addReader(self)

    def close(self) -> Deferred[None]:
        """Listen no more, and close all connections when what was written to them is sent.

        The file goes, unless another server has taken the path over.

        @return: fires when it is done, within L{CLOSE_PATIENCE}.
        """
        if self._file is not None and self._file == _identity(self.path):
            _unlink(self.path)
        self._file = None
        self._stop_listening()
        gone: Deferred[None] = Deferred()
        if not self._connections:
            gone.callback(None)
            return gone
        self._all_gone = gone
        late = self._reactor.callLater(CLOSE_PATIENCE, self._abort)
        gone.addBoth(lambda result: late.cancel() if late.active() else None)
        for connection in list(self._connections):
            connection.close()
        return gone

    def fileno(self) -> int:
        return -1 if self._listening is None else self._listening.fileno()

    def logPrefix(self) -> str:
        return "control"

    def doRead(self) -> None:
        """Accept connections that wait."""
        for _ in range(ACCEPTS):
            if self._listening is None:
                return
            try:
                connection, _address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                self._pause(error)
                return
            with connection:
                self._admit(connection)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor cannot poll the socket any more."""
        self._stop_listening()

    def _place(self, bound: str, take_over: bool) -> None:
        """Give the listening socket its name: from now on it is found."""
        if take_over:
            os.rename(bound, self.path)
            return
        try:
            os.link(bound, self.path)
        except FileExistsError:
            self._remove_dead()
            try:
                os.link(bound, self.path)
            except FileExistsError:
                raise self._taken() from None

    def _remove_dead(self) -> None:
        """Remove the file that has the path, if it is a dead server's."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise self._failed("the file is no socket, and is left alone")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(LIVE_TIMEOUT)
            try:
                probe.connect(self.path)
            except FileNotFoundError:
                return
            except ConnectionRefusedError:
                if _identity(self.path) == (found.st_dev, found.st_ino):
                    _unlink(self.path)
                return
            except (BlockingIOError, TimeoutError):
                pass  # its queue is full: it lives
        raise self._taken()

    def _taken(self) -> StartError:
        return StartError(f"another server is running: it has the control socket {self.path}")

    def _failed(self, why: str) -> StartError:
        return StartError(f"cannot open the control socket {self.path}: {why}")

    def _admit(self, accepted: socket.socket) -> None:
        try:
            peer = self._peer_of(accepted)
        except OSError:
            return
        if peer.uid not in (0, os.geteuid()):
            self._refuse(accepted, peer, "permission denied: only the server's user and root may")
        elif len(self._connections) >= MAX_CONNECTIONS:
            self._refuse(accepted, peer, f"{MAX_CONNECTIONS} clients are connected already")
        else:
            accepted.setblocking(False)
            connection = ControlConnection(self._operations, self._reactor, peer, self._lost)
            factory = Factory.forProtocol(lambda: connection)
            factory.noisy = False
            self._connections.add(connection)
            try:
                self._reactor.adoptStreamConnection(accepted.fileno(), socket.AF_UNIX, factory)
            except OSError as error:
                self._connections.discard(connection)
                self._pause(error)

    def _refuse(self, accepted: socket.socket, peer: Credentials, why: str) -> None:
        if self._lines.admit("refused", self._reactor.seconds()) is not None:
            self.log.warn(
                "control connection of uid {uid}, pid {pid}, refused: {why}",
                uid=peer.uid,
                pid=peer.pid,
                why=why,
            )
        try:
            accepted.setblocking(False)
            accepted.send(json.dumps({"error": why}).encode() + b"\n")
        except OSError:
            pass

    def _pause(self, error: OSError) -> None:
        """There are no descriptors: a socket that is readable all the time would be a busy loop."""
        if self._lines.admit("accept", self._reactor.seconds()) is not None:
            self.log.error("no control connection can be accepted: {error}", error=error)
        self._reactor.removeReader(self)
        if self._retry is None or not self._retry.active():
            self._retry = self._reactor.callLater(RETRY, self._resume)

    def _resume(self) -> None:
        if self._listening is not None:
            self._reactor.addReader(self)

    def _stop_listening(self) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        if self._listening is not None:
            self._reactor.removeReader(self)
            self._listening.close()
            self._listening = None

    def _lost(self, connection: ControlConnection) -> None:
        self._connections.discard(connection)
        if not self._connections and self._all_gone is not None:
            gone, self._all_gone = self._all_gone, None
            gone.callback(None)

    def _abort(self) -> None:
        for connection in list(self._connections):
            connection.abort()


def _bound(path: str, owner: tuple[int, int] | None) -> tuple[socket.socket, tuple[int, int]]:
    """A socket that listens at C{path}, and its file's identity."""
    _unlink(path)  # of a server that had our pid, and was killed before it could rename
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        mask = os.umask(0o777 & ~MODE)
        try:
            listening.bind(path)
        finally:
            os.umask(mask)
        if owner is not None:
            _give(path, owner)
        listening.listen(BACKLOG)
        found = os.lstat(path)
        return listening, (found.st_dev, found.st_ino)
    except BaseException:
        listening.close()
        _unlink(path)
        raise


def _give(path: str, owner: tuple[int, int]) -> None:
    """Make the socket's file another user's.

    Where he may write in its folder, a link to any file of the system can have come in its place.

    @raise OSError: it has, or the file cannot be given away.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_nlink > 1:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)
        os.chown(f"/proc/self/fd/{fd}", *owner)
    finally:
        os.close(fd)


def _identity(path: str) -> tuple[int, int] | None:
    """Which file has C{path} now."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
