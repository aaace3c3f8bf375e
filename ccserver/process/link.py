"""The link: what master and worker say to each other, AMP over a socketpair.

Its end of file tells either side that the other is gone. What may be long travels as JSON in a
file in memory, for AMP carries at most 65535 bytes in a value.
"""

from __future__ import annotations

import json
import os
from typing import Any, ClassVar

from twisted.internet.protocol import connectionDone
from twisted.protocols import amp
from twisted.python.failure import Failure

REASON_LIMIT = 8000
"""Characters of a C{reason}, of up to 4 bytes each."""

ALL = -1
"""The C{count} of L{Give} that means every connection."""


class NoDescriptor(Exception):
    """What goes with a command found no free descriptor there: the command was not carried out."""

    code = b"NO_DESCRIPTOR"


MAY_LACK_DESCRIPTOR: dict[type[Exception], bytes] = {NoDescriptor: NoDescriptor.code}
"""The errors of commands with a descriptor."""


class Passed(amp.Argument):
    """A descriptor that goes with a command, known by what it is open on.

    AMP's own counts those that come: one that a process could not have for want of a free
    descriptor would be the next one, or a fault that ends the link.
    """

    def __init__(self) -> None:
        amp.Argument.__init__(self)

    def toStringProto(self, inObject: int, proto: Any) -> bytes:
        proto.transport.sendFileDescriptor(inObject)
        return _identity(inObject)

    def fromStringProto(self, inString: bytes, proto: Any) -> int:
        descriptor: int = proto.passed(inString)
        return descriptor


class Line(amp.AMP):
    """One end of a link: AMP that does not log that it comes and goes."""

    def __init__(self) -> None:
        amp.AMP.__init__(self)
        self._passed: dict[bytes, list[int]] = {}  # those that have come, by what they are

    def fileDescriptorReceived(self, descriptor: int) -> None:
        self._passed.setdefault(_identity(descriptor), []).append(descriptor)

    def passed(self, identity: bytes) -> int:
        """The descriptor that came with a command.

        @raise amp.RemoteAmpError: it did not come; the other side gets L{NoDescriptor}.
        """
        found = self._passed.get(identity)
        if not found:
            self.lacks_descriptor()
            raise amp.RemoteAmpError(NoDescriptor.code, "no file descriptor is left")
        descriptor = found.pop()
        if not found:
            del self._passed[identity]
        return descriptor

    def lacks_descriptor(self) -> None:
        """One could not come, for this process has too many."""

    def makeConnection(self, transport: Any) -> None:
        amp.BinaryBoxProtocol.makeConnection(self, transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.transport = None  # before those who wait for an answer ask whether there is one
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        for descriptor in [each for found in self._passed.values() for each in found]:
            os.close(descriptor)
        self._passed.clear()


class Ready(amp.Command):
    """Worker to master: it has loaded the application, and can serve."""


class Failed(amp.Command):
    """Worker to master: it cannot start; it ends with C{status}, and C{reason} is why."""

    arguments: ClassVar = [(b"status", amp.Integer()), (b"reason", amp.Unicode())]


class Room(amp.Command):
    """Worker to master: it has as many connections as it may, or has room again.

    Said first when it can serve. All else of how it is stands on its L{Board}.
    """

    arguments: ClassVar = [(b"full", amp.Boolean())]
    requiresAnswer = False


class Leave(amp.Command):
    """Worker to master: a signal asks it to stop; answers whether that is seen to.

    Then another worker takes its place and its connections, and it gets L{Stop}; or none can, and
    it gets L{Stay}.
    """

    response: ClassVar = [(b"accepted", amp.Boolean())]


class Stopping(amp.Command):
    """Worker to master: it stops by itself, its place is free; gets L{Stop}, too, if that is heard.

    It waits for the answer L{worker.HEARD_TIMEOUT} seconds at most.
    """


class Stay(amp.Command):
    """Master to worker: no other can take its place, as it has asked by L{Leave}: serve on."""


class Serve(amp.Command):
    """Master to worker: accept connections."""


class StopAccepting(amp.Command):
    """Master to worker: accept what waits, then no more; answers how many connections it has."""

    response: ClassVar = [(b"connections", amp.Integer())]


class Take(amp.Command):
    """Master to worker: adopt the connections that come through C{channel}."""

    arguments: ClassVar = [(b"channel", Passed())]
    errors: ClassVar = MAY_LACK_DESCRIPTOR


class Give(amp.Command):
    """Master to worker: hand C{count} connections over through C{channel}.

    Answers when each has gone or stays: how many have C{moved}, and in C{left}, as JSON, how many
    have not, by reason.
    """

    arguments: ClassVar = [(b"channel", Passed()), (b"count", amp.Integer())]
    response: ClassVar = [(b"moved", amp.Integer()), (b"left", amp.Unicode())]
    errors: ClassVar = MAY_LACK_DESCRIPTOR


class Lend(amp.Command):
    """Master to worker: accept from the socket C{listening} on C{address} of another slot too."""

    arguments: ClassVar = [
        (b"slot", amp.Integer()),
        (b"address", amp.Unicode()),
        (b"listening", Passed()),
    ]
    errors: ClassVar = MAY_LACK_DESCRIPTOR


class Return(amp.Command):
    """Master to worker: accept no more from the sockets lent from C{slot}."""

    arguments: ClassVar = [(b"slot", amp.Integer())]


class KeepWaiting(amp.Command):
    """Master to worker: whether connections beyond C{worker_connections} wait, as others have room.

    Else they are closed at once. Until it is said, they wait where there are other workers.
    """

    arguments: ClassVar = [(b"wait", amp.Boolean())]


class Stop(amp.Command):
    """Master to worker: stop.

    C{graceful}: answer what has been received first, for at most C{timeout} seconds.
    """

    arguments: ClassVar = [(b"graceful", amp.Boolean()), (b"timeout", amp.Float())]


class Reopen(amp.Command):
    """Master to worker: open the log file anew; answers why it cannot."""

    response: ClassVar = [(b"error", amp.Unicode())]


class RenewCertificates(amp.Command):
    """Master to worker: read the certificates anew; answers what they are, or why it cannot."""

    response: ClassVar = [(b"what", amp.Unicode()), (b"error", amp.Unicode())]


class SetLogLevel(amp.Command):
    """Master to worker: log up to C{level}, 0 to 8."""

    arguments: ClassVar = [(b"level", amp.Integer())]


class List(amp.Command):
    """Master to worker: write a row for each connection into C{file}, as JSON."""

    arguments: ClassVar = [(b"file", Passed())]
    errors: ClassVar = MAY_LACK_DESCRIPTOR


class Kick(amp.Command):
    """Master to worker: close the connection C{id}; answers whether there was one."""

    arguments: ClassVar = [(b"id", amp.Integer())]
    response: ClassVar = [(b"found", amp.Boolean())]


def _identity(descriptor: int) -> bytes:
    """The same for all descriptors of one file or socket, in all processes."""
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}".encode()


def memory_file(name: str, value: Any = None) -> int:
    """The descriptor of a file in memory, with C{value} as JSON in it unless it is None.

    @raise OSError: none could be made; nothing stays open.
    """
    fd = os.memfd_create(name)
    try:
        if value is not None:
            write_json(fd, value)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_json(fd: int, value: Any) -> None:
    """Write C{value} as JSON into the file C{fd}, whose offset stays at its beginning."""
    data = memoryview(json.dumps(value).encode())
    place = 0
    while place < len(data):
        place += os.pwrite(fd, data[place:], place)


def read_json(fd: int) -> Any:
    """What L{write_json} has written into the file C{fd}."""
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        return json.loads(file.read())
