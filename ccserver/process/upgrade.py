"""Upgrade: a new master takes the ports and the connections over from an old one.

The old master executes the new one, as it was started itself, with its sockets and one end of a
UNIX socketpair, over which they speak AMP. Until the new one says that all its workers can serve,
and the old one agrees, nothing changes; the end of file before that tells either to give up. Behind
that it tells the old one to be the master again, unless the new one says that it retires.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import Factory, ProcessProtocol, connectionDone
from twisted.protocols import amp
from twisted.python.failure import Failure

from ccserver.errors import OperationFailed
from ccserver.process import link
from ccserver.process.channels import Target
from ccserver.process.listening import SOCKETS_VARIABLE, Listening
from ccserver.process.moment import Moment
from ccserver.process.workers import ended

VARIABLE = "CCSERVER_UPGRADE"
"""The environment variable that tells a new master that it is one, and what it goes on with."""

LINK_FD, SOCKETS_FD = 3, 4
"""The descriptors of a new master: the link to the old one, and, from there on, the sockets."""


@dataclass(frozen=True)
class Inheritance:
    """What a new master goes on with.

    @ivar spawned: how many workers there have been.
    @ivar generation: the one that comes next.
    @ivar control: the path of the control socket, which it may take over.
    """

    spawned: int
    generation: int
    control: str


class Hello(amp.Command):
    """New master to old: it is there."""

    arguments: ClassVar = [(b"pid", amp.Integer())]


class Loaded(amp.Command):
    """New master to old: its C{workers} can serve. The answer makes it the master."""

    arguments: ClassVar = [(b"workers", amp.Integer())]


class Refused(amp.Command):
    """New master to old: it cannot, and ends; C{reason} is why."""

    arguments: ClassVar = [(b"reason", amp.Unicode())]


class Retiring(amp.Command):
    """New master to old: it stops, for it was told to."""


class TakeInto(amp.Command):
    """Old master to new: the worker of C{slot} shall adopt what comes through C{channel}."""

    arguments: ClassVar = [(b"slot", amp.Integer()), (b"channel", link.Passed())]
    response: ClassVar = [(b"taken", amp.Boolean())]
    errors: ClassVar = link.MAY_LACK_DESCRIPTOR


class _SuccessorLink(link.Line):
    """The old master's end."""

    def __init__(self, successor: Successor) -> None:
        super().__init__()
        self._successor = successor

    @Hello.responder
    def hello(self, pid: int) -> dict[str, Any]:
        self._successor.pid = pid
        return {}

    @Loaded.responder
    def loaded(self, workers: int) -> Deferred[dict[str, Any]]:
        self._successor.loaded.happen(workers)
        return self._successor.accepted.wait().addCallback(lambda result: {})

    @Refused.responder
    def refused(self, reason: str) -> dict[str, Any]:
        self._successor.reason = reason
        return {}

    @Retiring.responder
    def retiring(self) -> dict[str, Any]:
        self._successor.retires = True
        return {}

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.transport = None
        self._successor.lost()  # before what it was asked fails, for then others are
        link.Line.connectionLost(self, reason)


class _Slot:
    """A slot of the new master, as a target of connections."""

    def __init__(self, successor: Successor, number: int, timeout: float) -> None:
        self.gone = successor.gone
        self._successor = successor
        self._number = number
        self._timeout = timeout

    def take(self, channel: socket.socket) -> Deferred[bool]:
        return self._successor.take(self._number, channel, self._timeout)


class Successor(ProcessProtocol):
    """The new master, as the old one sees it.

    @ivar pid: its process id, once it has said so.
    @ivar loaded: all its workers can serve; brings their number.
    @ivar accepted: it is the master now.
    @ivar gone: it has ended, or gives up.
    @ivar retires: it ends because it was told to.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self.reason = ""
        self.retires = False
        self.loaded: Moment[int] = Moment()
        self.accepted: Moment[None] = Moment()
        self.gone: Moment[None] = Moment()
        self._link: Any = _SuccessorLink(self)
        self._reactor: Any = None  # once it is started
        self._answers = True

    def start(
        self,
        reactor: Any,
        listening: Listening,
        inheritance: Inheritance,
        environment: dict[str, str],
        folder: str,
    ) -> None:
        """Execute it, as this process was executed in C{folder}.

        @raise OSError: it cannot be executed.
        """
        self._reactor = reactor
        ours, theirs = socket.socketpair()
        with ours, theirs, open(os.devnull, "rb") as null:
            sockets, told = listening.inheritance(SOCKETS_FD)
            environment = {
                **environment,
                VARIABLE: json.dumps(asdict(inheritance)),
                SOCKETS_VARIABLE: told,
            }
            descriptors = {0: null.fileno(), 1: 1, 2: 2, LINK_FD: theirs.fileno(), **sockets}
            arguments = [sys.executable, *sys.orig_argv[1:]]
            reactor.spawnProcess(
                self, sys.executable, arguments, environment, folder, childFDs=descriptors
            )
            factory = Factory.forProtocol(lambda: self._link)
            factory.noisy = False
            reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)

    def slots(self, count: int, timeout: float) -> list[Target]:
        """Its slots, to hand connections over to.

        @param timeout: seconds that it has to say whether it takes some.
        """
        return [_Slot(self, number, timeout) for number in range(count)]

    def take(self, slot: int, channel: socket.socket, timeout: float) -> Deferred[bool]:
        """Let its worker of C{slot} adopt what comes through C{channel}.

        Once it has not answered within C{timeout} seconds, it is asked no more.
        """
        if self._link.transport is None or not self._answers:
            return succeed(False)

        def failed(failure: Failure) -> bool:
            self._answers = failure.check(DeferredTimeout) is None
            return False

        asked: Deferred[Any] = self._link.callRemote(TakeInto, slot=slot, channel=channel.fileno())
        asked.addTimeout(timeout, self._reactor)
        return asked.addCallbacks(lambda answer: bool(answer["taken"]), failed)

    def withdraw(self) -> None:
        """It is not to become the master: tell it so."""
        child: int | None = getattr(self.transport, "pid", None)  # until it is reaped
        # as a daemon it is no child of ours: it is there as long as the link is
        daemon = self.pid if self._link.transport is not None else None
        for pid in {child, daemon}:
            if pid is not None:
                with suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
        if self._link.transport is not None:
            self._link.transport.abortConnection()

    def processEnded(self, reason: Failure) -> None:
        # as a daemon it goes on in another process: only the end of the link tells
        end = ended(reason)
        if end.status != 0:
            self.reason = self.reason or f"the new master {end.how}"

    def lost(self) -> None:
        """The link is at its end."""
        why = self.reason or "the new master ended before it was ready: ccserver check may say why"
        self.loaded.happen(Failure(OperationFailed(why)))
        self.gone.happen(None)


class _PredecessorLink(link.Line):
    """The new master's end."""

    def __init__(self, predecessor: Predecessor) -> None:
        super().__init__()
        self._predecessor = predecessor

    @TakeInto.responder
    def take(self, slot: int, channel: int) -> Deferred[dict[str, Any]]:
        passed = socket.socket(fileno=channel)

        def close(taken: bool) -> dict[str, Any]:
            passed.close()
            return {"taken": taken}

        return self._predecessor.take(slot, passed).addCallback(close)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        link.Line.connectionLost(self, reason)
        self._predecessor.gone.happen(None)


class Predecessor:
    """The old master, as the new one sees it.

    @ivar inheritance: what it passes on.
    @ivar gone: it has ended, or does without us.
    """

    def __init__(self, inheritance: Inheritance) -> None:
        self.inheritance = inheritance
        self.gone: Moment[None] = Moment()
        self.take: Callable[[int, socket.socket], Deferred[bool]]
        self._link: Any = _PredecessorLink(self)

    @classmethod
    def found(cls, environ: MutableMapping[str, str]) -> Predecessor | None:
        """The old master of this process, if it is a new one; C{environ} forgets it."""
        told = environ.pop(VARIABLE, None)
        return None if told is None else cls(Inheritance(**json.loads(told)))

    def attach(self, reactor: Any, take: Callable[[int, socket.socket], Deferred[bool]]) -> None:
        """Talk to it, and let it hand connections over.

        @param take: lets the worker of a slot adopt what comes through a channel; fires with
            whether it will.
        """
        self.take = take
        factory = Factory.forProtocol(lambda: self._link)
        factory.noisy = False
        reactor.adoptStreamConnection(LINK_FD, socket.AF_UNIX, factory)
        os.close(LINK_FD)
        self._link.callRemote(Hello, pid=os.getpid()).addErrback(lambda failure: None)

    def loaded(self, workers: int) -> Deferred[bool]:
        """Say that C{workers} can serve; fires with whether we are the master now."""
        asked: Deferred[Any] = self._link.callRemote(Loaded, workers=workers)
        return asked.addCallbacks(lambda answer: True, lambda failure: False)

    @staticmethod
    def refuse_early(reason: str) -> None:
        """Say why we cannot, before there is a reactor that could, and give the link up."""
        told = reason[: link.REASON_LIMIT].encode("utf-8", "replace")
        box = amp.Box({amp.COMMAND: Refused.commandName, b"reason": told})
        with suppress(OSError), socket.socket(fileno=LINK_FD) as sock:
            sock.sendall(box.serialize())

    def refuse(self, reason: str) -> Deferred[Any]:
        """Say why we cannot; fires when that is known, or cannot be."""
        return self._tell(Refused, reason=reason[: link.REASON_LIMIT])

    def retire(self) -> None:
        """Say that we stop, for we were told to."""
        self._tell(Retiring)

    def _tell(self, command: type[amp.Command], **arguments: Any) -> Deferred[Any]:
        try:
            asked: Deferred[Any] = self._link.callRemote(command, **arguments)
        except Exception:  # it is gone
            return succeed(None)
        return asked.addErrback(lambda failure: None)
