"""The worker process: started by the master with the descriptors it needs, and nothing else.

C{python -P -m ccserver.process.worker}, with the link as descriptor 3, its order as 4, its board
as 5, and the listening sockets from 6 on.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from threading import Event, Thread
from typing import Any

from setproctitle import setproctitle
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.main import installReactor
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from ccserver.config import Address, Config
from ccserver.core.watch import Watch
from ccserver.errors import AppError, CcserverError, ConfigError, StartError
from ccserver.loading import load_app
from ccserver.net.giver import Report
from ccserver.net.reactor import DirectReactor
from ccserver.process import link, logs
from ccserver.process.board import Board
from ccserver.process.pulse import Pulse
from ccserver.process.scheduling import schedule
from ccserver.process.serving import Server
from ccserver.process.stacks import report_stacks_on_signal
from ccserver.process.workerline import WorkerLine

LINK_FD, ORDER_FD, BOARD_FD, SOCKETS_FD = 3, 4, 5, 6
"""The descriptors of a worker process; 0 is /dev/null, 1 and 2 are the master's."""

EXIT_CONFIG, EXIT_START, EXIT_APP = 1, 3, 4
"""Exit statuses: the configuration is wrong, the worker cannot start, the application cannot be
loaded."""

ORPHAN_TIMEOUT = 0.5
"""Seconds that a worker without a master takes to answer what it has received."""

HEARD_TIMEOUT = 0.5
"""Seconds that a master has to hear that a worker stops by itself."""

ECHO = 0.25
"""Seconds in which a second signal to stop is the same one: C{timeout} and a terminal signal the
process and its group."""

LEAVE_TIMEOUT = 5.0
"""Seconds that a master has to say whether it replaces a worker that a signal asks to stop."""

HASTE = 0.1
"""Seconds between two beats that cannot wait for their time."""

SIGNALS = (signal.SIGTERM, signal.SIGQUIT)
IGNORED = (
    signal.SIGINT,  # ^C goes to the whole foreground group: the master decides
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


log = logs.ProcessLogger()


def exit_status(error: CcserverError) -> int:
    """What a process ends with that cannot start because of C{error}.

    A refusal is one line, which others log; an exception of the application's own code, the cause
    of one, is logged here with its traceback.
    """
    cause = error.__cause__
    if cause is not None and not isinstance(cause, CcserverError):
        log.failure("{error}", Failure(cause), error=error)
    if isinstance(error, ConfigError):
        return EXIT_CONFIG
    return EXIT_APP if isinstance(error, AppError) else EXIT_START


@dataclass(frozen=True)
class Order:
    """What the master tells a worker at its start.

    @ivar text: the configuration, as the master has read it.
    @ivar path: its file's name.
    @ivar base: the folder that its relative paths start from.
    @ivar slot: the worker's number, from 0.
    @ivar process_number: which of all worker processes it is, from 0.
    @ivar stderr: log to stderr as well.
    @ivar log_level: what to log, 0 to 8, whatever the configuration says.
    """

    text: str
    path: str
    base: str
    slot: int
    process_number: int
    stderr: bool
    log_level: int


class _Watch(Thread):
    """Ends a worker without a master whose reactor is blocked, and so does not notice."""

    def __init__(self, link_fd: int, noticed: Event) -> None:
        """@param noticed: set when the reactor has seen the end of the link."""
        Thread.__init__(self, name="watch", daemon=True)
        self._fd = os.dup(link_fd)
        self._noticed = noticed

    def run(self) -> None:
        end = select.poll()
        end.register(self._fd, select.POLLRDHUP)
        end.poll()
        if not self._noticed.wait(ORPHAN_TIMEOUT):
            os._exit(EXIT_START)


class WorkerProcess:
    """A worker's life: start, say so, serve, stop.

    @ivar status: the exit status it ends with.
    """

    log = logs.ProcessLogger()

    def __init__(
        self,
        reactor: Any,
        order: Order,
        config: Config,
        observer: logs.LineObserver,
        settle: Callable[[], object] = lambda: None,
        look: Callable[[], None] | None = None,
    ) -> None:
        """
        @param settle: is called when all that stays is loaded.
        @param look: is called from then on, about once a second.
        """
        self._settle = settle
        self._look = look
        self.status = 0
        self.observer = observer
        self._reactor = reactor
        self._order = order
        self._config = config
        self._link: Any = WorkerLine(self)
        self._board = Board(BOARD_FD)
        self._server: Server | None = None
        self._stopping = False
        self._asked = False  # the master, for a replacement
        self._signalled_at = -inf
        self._ended = False
        self._noticed = Event()
        self._full: bool | None = None  # as the master knows it
        self._hasty: IDelayedCall | None = None
        self._last_haste = -HASTE
        self._shown = ""
        self._figures: dict[str, Any] = {}
        steps = (self._gather, self._show, self._show_title, self._look_on)
        self._pulse = Pulse(reactor, "worker process", *steps)

    def begin(self) -> None:
        """Take the descriptors, listen to signals, and start."""
        factory = Factory.forProtocol(lambda: self._link)
        factory.noisy = False
        self._reactor.adoptStreamConnection(LINK_FD, socket.AF_UNIX, factory)
        _Watch(LINK_FD, self._noticed).start()
        os.close(LINK_FD)
        os.set_inheritable(BOARD_FD, False)
        for number in SIGNALS:
            signal.signal(number, self._signalled)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        Deferred.fromCoroutine(self._start()).addErrback(self._broken)

    def stop(self, graceful: bool, timeout: float) -> None:
        """Stop, and end the process; a second call that is not graceful cuts the first short."""
        Deferred.fromCoroutine(self._stop(graceful, timeout)).addErrback(self._broken)

    def serve(self) -> None:
        """Accept connections."""
        if self._server is not None and not self._stopping:
            self._server.serve()

    def stay(self) -> None:
        """Serve on, though a signal has asked to stop; the next one asks again."""
        self._asked = False

    def stop_accepting(self) -> int:
        """Accept no more connections; how many there are."""
        return self._server.stop_accepting() if self._server is not None else 0

    def take(self, channel: socket.socket) -> None:
        """Adopt the connections that come through C{channel}."""
        if self._server is None or self._stopping:
            channel.close()  # the other side keeps what it was to give
        else:
            taken = Deferred.fromCoroutine(self._server.take(channel))
            taken.addCallback(lambda count: self._beat())  # the master shows the new figures

    async def give(self, channel: socket.socket, count: int) -> Report:
        """Hand C{count} connections over through C{channel}."""
        if self._server is None:
            channel.close()
            return Report(0, {})
        return await self._server.give(channel, None if count == link.ALL else count)

    def lend(self, slot: int, address: str, listening: socket.socket) -> None:
        """Accept connections from C{listening}, of another C{slot}, too."""
        if self._server is None or self._stopping:
            listening.close()
        else:
            self._server.listen(slot, address, listening)

    def lacks_descriptor(self) -> None:
        """There is none left for what the master has sent."""
        if self._server is not None:
            self._server.pause_accepting()

    def give_back(self, slot: int) -> None:
        """Accept no connections from the sockets of another C{slot} any more."""
        if self._server is not None:
            self._server.listen_no_more(slot)

    def keep_waiting(self, wait: bool) -> None:
        """Let new connections wait while there are as many as may be, or close them."""
        if self._server is not None:
            self._server.room.wait(wait)

    def connection_rows(self) -> list[dict[str, Any]]:
        """What the connections are, a row each."""
        return [] if self._server is None else self._server.connection_rows()

    def kick(self, id: int) -> bool:
        """Close a connection; whether there was one."""
        return self._server is not None and self._server.kick(id)

    def renew_certificates(self) -> str:
        """Read the certificates anew; what they are.

        @raise StartError: they are wrong, or there are none.
        """
        if self._server is None:
            raise StartError("it does not serve yet")
        return self._server.renew_certificates()

    def set_log_level(self, level: int) -> None:
        """Log up to C{level}, 0 to 8."""
        self.observer.level = level
        if self._server is not None:
            self._server.set_log_level(level)

    def orphaned(self) -> None:
        """The master is gone: so must we be, for nobody would replace or stop us."""
        self._noticed.set()
        if not self._ended:
            self.log.alert("the master process is gone: stopping")
            self.stop(True, ORPHAN_TIMEOUT)  # also where a longer stop is under way

    async def _start(self) -> None:
        config = self._config
        self._show_title()
        self._pulse.start(Watch(config.process.worker_timeout).interval)
        try:
            app = load_app(config.app.app, config.app.path)
            server = Server(
                self._reactor,
                config,
                app,
                self._sockets(config.listen.addresses),
                self._order.slot,
                self._order.process_number,
            )
            await server.prepare()
        except CcserverError as error:
            await self._fail(exit_status(error), str(error))
            return
        self._server = server
        server.room.on_change = self._beat_soon
        server.room.wait(config.process.workers > 1)  # until the master knows who has room
        server.set_log_level(self.observer.level)
        self._settle()
        self._beat()  # to load it may have taken long, in which the reactor stood still
        if not self._stopping:
            with suppress(ConnectionLost, ConnectionDone):  # stopped before it was answered
                await self._link.callRemote(link.Ready)

    async def _stop(self, graceful: bool, timeout: float) -> None:
        self._stopping = True
        self._show_title()
        if self._server is not None:
            await self._server.stop(graceful, timeout)
        self._end()

    async def _fail(self, status: int, reason: str) -> None:
        self.status = status
        self._stopping = True
        with suppress(Exception):  # no master, nobody to tell
            await self._link.callRemote(
                link.Failed, status=status, reason=reason[: link.REASON_LIMIT]
            )
        self._end()

    def _broken(self, failure: Failure) -> None:
        """A bug, not a refusal: end, the master will start another."""
        self.log.failure("worker process is broken", failure)
        self.status = self.status or EXIT_START
        self._stopping = True
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._reactor.stop()

    def _sockets(self, addresses: tuple[Address, ...]) -> list[tuple[Address, socket.socket]]:
        sockets = [socket.socket(fileno=SOCKETS_FD + place) for place in range(len(addresses))]
        for listening in sockets:
            listening.set_inheritable(False)  # what the application starts gets none
        return list(zip(addresses, sockets, strict=True))

    def _signalled(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._leave, signal.Signals(number).name)

    def _leave(self, name: str) -> None:
        """Ask the master for a replacement; stop, if there is none or at a second signal."""
        now = self._reactor.seconds()
        if self._stopping or now - self._signalled_at < ECHO:
            return
        self._signalled_at = now
        if self._server is None:
            reason = f"{name} received before it could serve"
            Deferred.fromCoroutine(self._fail(EXIT_START, reason)).addErrback(self._broken)
            return
        if self._asked:
            self._stop_alone(f"{name} again")
            return
        self.log.notice("{name} received: asking to be replaced", name=name)
        self._asked = True
        asked = self._link.callRemote(link.Leave).addTimeout(LEAVE_TIMEOUT, self._reactor)
        asked.addCallbacks(lambda answer: bool(answer["accepted"]), lambda failure: False)
        asked.addCallback(self._has_asked)

    def _has_asked(self, accepted: bool) -> None:
        if not accepted and not self._stopping:
            self._stop_alone("the master does not replace it")

    def _stop_alone(self, why: str) -> None:
        self.log.notice("{why}: stopping", why=why)
        self._stopping = True
        timeout = self._config.process.shutdown_timeout
        told = self._link.callRemote(link.Stopping).addTimeout(HEARD_TIMEOUT, self._reactor)
        told.addBoth(lambda result: self.stop(True, timeout))

    def _beat(self) -> None:
        """Show the master how we are: from the reactor itself, which may be blocked."""
        self._gather()
        self._show()

    def _gather(self) -> None:
        if self._server is not None:
            self._figures = self._server.figures()

    def _show(self) -> None:
        try:
            self._board.write(self._figures)
        except OSError as error:  # no memory: raised, it would be the end of the link
            self.log.error("the master cannot see how this worker is: {error}", error=error)
        full = None if self._server is None else self._server.full
        if full is not self._full:
            self._full = full
            self._link.callRemote(link.Room, full=full)

    def _beat_soon(self) -> None:
        """Tell the master, which should know at once, but at most every L{HASTE} seconds."""
        if self._hasty is None and not self._stopping:
            wait = max(0.0, self._last_haste + HASTE - self._reactor.seconds())
            self._hasty = self._reactor.callLater(wait, self._beat_in_haste)

    def _beat_in_haste(self) -> None:
        self._hasty = None
        self._last_haste = self._reactor.seconds()
        if not self._stopping and not self._noticed.is_set():
            self._beat()

    def _look_on(self) -> None:
        if self._look is not None and self._server is not None:
            self._look()

    def _show_title(self) -> None:
        count = len(self._server.connections) if self._server is not None else 0
        doing = " is shutting down" if self._stopping else ""
        title = f"ccserver: worker process {self._order.slot}{doing} ({count} connections)"
        if title != self._shown:
            self._shown = title
            setproctitle(title)


def keep_for_ever() -> None:
    """Spare the garbage collector what there is: to look at it again takes 30 ms each time."""
    gc.collect()
    gc.freeze()


def main() -> None:
    """Run a worker until it is told to stop."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    order = Order(**link.read_json(ORDER_FD))
    os.close(ORDER_FD)
    config = Config.parse(order.text, order.path, order.base)
    observer = logs.LineObserver(config.log.file, order.log_level, order.stderr)
    try:
        observer.open()
    except OSError as error:
        logs.last_words(f"cannot open the log file: {error}")
    logs.begin(observer)
    report_stacks_on_signal(observer.fileno())
    eagerness = schedule(config.process, order.slot)
    reactor = DirectReactor()
    installReactor(reactor)
    look = None if eagerness is None else eagerness.look
    process = WorkerProcess(reactor, order, config, observer, keep_for_ever, look)
    reactor.callWhenRunning(process.begin)
    reactor.run()
    sys.stdout.flush()
    sys.stderr.flush()
    # not sys.exit: a handler that never returns must not keep the process (its thread) alive
    os._exit(process.status)


if __name__ == "__main__":
    main()
