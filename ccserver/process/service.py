"""The service that twistd runs: log, sockets, signals and exit status, however it serves."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType
from typing import Any

from setproctitle import setproctitle
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import ILogObserver
from twisted.python.components import Componentized

from ccserver.config import Config
from ccserver.errors import OperationFailed, StartError
from ccserver.process.descriptors import raise_limit
from ccserver.process.host import Host
from ccserver.process.inheritance import inherited
from ccserver.process.listening import Listening, keepalive
from ccserver.process.logs import LineObserver, ProcessLogger, bridge_stdlib
from ccserver.process.worker import ECHO

GRACEFUL = (signal.SIGTERM, signal.SIGQUIT)
REOPEN = signal.SIGUSR1
OPERATIONS = (signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU)
SIGNALS = (*GRACEFUL, signal.SIGINT, REOPEN, *OPERATIONS)


class ServerService(Service):
    """What twistd starts. Opens nothing before C{privilegedStartService}.

    TERM and QUIT stop gracefully, within C{ShutdownTimeout}; a second one, or INT, at once.
    USR1 opens the log file anew. A TERM or INT also ends the process, at the end, by that
    signal, which is twistd's convention; QUIT, with status 0.
    """

    log = ProcessLogger()
    name = "ccserver"

    def __init__(self, reactor: Any, config: Config, observer: LineObserver, host: Host) -> None:
        self._reactor = reactor
        self._config = config
        self._observer = observer
        self._host = host
        listen = config.listen
        self._listening = Listening(listen.addresses, listen.backlog, keepalive(config))
        self._graceful = True
        self._stopping = False
        self._failed = False
        self._stopped_at = 0.0
        self._stopped_by = 0  # the signal
        self._asked_to_stop = False  # the reactor; twice is an error

    def setServiceParent(self, parent: Any) -> None:
        """Become part of C{parent}, whose log goes where the configuration says.

        Of an application: then there is no pid file yet, which a signal would leave behind.
        """
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
            self._take_signals()
        Service.setServiceParent(self, parent)

    def privilegedStartService(self) -> None:
        """Open the log and the ports, which may need root's rights.

        @raise StartError: one of them cannot be opened.
        """
        owner = self._host.owner
        self._observer.file.is_exposed = owner is not None
        try:
            self._observer.open()
            if owner is not None:
                owner.own_file(self._observer.path)
        except OSError as error:
            raise StartError(f"cannot open the log file: {error}") from None
        bridge_stdlib()
        for warning in self._config.warnings:
            self.log.warn("{text}", text=warning)  # "warning" has a meaning of its own in Twisted
        raise_limit()  # each slot has a socket for each address, and a link
        passed = inherited(self._host.systemd, os.environ, self._listening.addresses)
        self._listening.open(self._slots(), passed)
        if owner is not None:
            self._listening.give(owner.uid)
        Service.privilegedStartService(self)

    def startService(self) -> None:
        self._take_signals()
        self._reactor.callWhenRunning(self._run)
        Service.startService(self)

    def stopService(self) -> Deferred[None]:
        """Stop serving; fires when all is over, within C{ShutdownTimeout} and a second."""
        self._stopping = True
        Service.stopService(self)
        self.log.notice("stopping")
        self._host.systemd.stopping()
        return self._end(self._graceful).addErrback(
            lambda failure: self.log.failure("while stopping", failure)
        )

    def fail(self, status: int, reason: str) -> None:
        """End the server with an exit status that says why it cannot serve."""
        if self._failed:
            return  # the first failure decides, and has stopped the reactor
        self.log.emerg("{reason}", reason=reason)
        self._failed = True
        self._graceful = False
        atexit.register(_exit, status)
        if self._reactor.running and not self._stopping:
            self._stop_now(False)

    def stop_later(self, graceful: bool) -> None:
        """Stop in a later turn of the reactor; the end is clean, with status 0."""
        self._reactor.callLater(0, self._stop_now, graceful)

    def open_log_anew(self) -> Deferred[None]:
        """Open the log file anew, in all our processes; fires when that is done.

        Fails with L{OperationFailed} where one of them could not: that one keeps the old file.
        """
        own = ""
        try:
            self._observer.reopen()
        except OSError as error:
            self.log.error("reopen: {error}", error=error)
            own = str(error)

        def look(others: list[str]) -> None:
            for why in filter(None, (own, *others)):
                raise OperationFailed(f"the log was not opened anew: {why}")

        return self._others_reopen().addCallback(look)

    def _slots(self) -> int:
        """For how many workers sockets are opened."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Serve: the reactor runs."""
        raise NotImplementedError

    def _end(self, graceful: bool) -> Deferred[None]:
        """Stop serving."""
        raise NotImplementedError

    def _hasten(self) -> None:
        """A graceful stop is under way: stop at once."""
        raise NotImplementedError

    def _operate(self, number: signal.Signals) -> None:
        """Do what one of L{OPERATIONS} asks for."""
        raise NotImplementedError

    def _others_reopen(self) -> Deferred[list[str]]:
        """Let our other processes open the log file anew; fires with why they could not."""
        return succeed([])

    def _run(self) -> None:
        if self._stopping:
            return  # before it began
        self._take_signals()  # again: the reactor has taken TERM and INT for itself
        setproctitle(f"ccserver: master process {self._config.path}")
        self._begin()

    def _take_signals(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._handle, signal.Signals(number))

    def _handle(self, number: signal.Signals) -> None:
        if number is REOPEN:
            self.open_log_anew().addErrback(lambda failure: None)  # which is in the log
        elif number in OPERATIONS:
            self.log.notice("{name} received", name=number.name)
            self._operate(number)
        elif number == self._stopped_by and self._is_echo():
            pass
        elif self._stopping or self._asked_to_stop:
            how = "again" if self._stopped_by else "received"
            self.log.notice("{name} {how}: stopping at once", name=number.name, how=how)
            self._stop_now(False)
        else:
            self.log.notice("{name} received", name=number.name)
            self._graceful = number in GRACEFUL
            self._stopped_at = self._reactor.seconds()
            self._stopped_by = number
            self._ask_to_stop()
            if number is signal.SIGQUIT:
                self._reactor.stop()
            elif number is signal.SIGINT:
                self._reactor.sigInt(number)
            else:
                self._reactor.sigTerm(number)

    def _is_echo(self) -> bool:
        return bool(self._reactor.seconds() - self._stopped_at < ECHO)

    def _stop_now(self, graceful: bool) -> None:
        if self._stopping:
            if not graceful:
                self._hasten()
            return
        self._graceful = self._graceful and graceful
        if not self._asked_to_stop:
            self._ask_to_stop()
            self._reactor.stop()

    def _ask_to_stop(self) -> None:
        """The server is to stop; it begins to in a later turn of the reactor."""
        self._asked_to_stop = True


def _exit(status: int) -> None:
    """End with C{status}: twistd has none for a service that failed while it ran."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
