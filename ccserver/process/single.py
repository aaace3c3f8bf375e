"""One process for everything (C{WorkerProcesses = 0}): to debug, and to test."""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from ccserver.config import Config
from ccserver.errors import CcserverError, OperationFailed
from ccserver.loading import load_app
from ccserver.process.control import ControlSocket
from ccserver.process.host import Host
from ccserver.process.logs import LEVELS, LineObserver, ProcessLogger
from ccserver.process.operations import Progress
from ccserver.process.pulse import Pulse
from ccserver.process.selection import ConnectionFilter, selected
from ccserver.process.service import ServerService
from ccserver.process.serving import Server
from ccserver.process.status import server_status
from ccserver.process.worker import EXIT_START, exit_status

Result = dict[str, Any]

NO_WORKERS = "there are no worker processes (WorkerProcesses = 0)"


class SingleProcess(ServerService):
    """Serves in the process and on the reactor that twistd has.

    Does what operators ask for (implements L{Operations}), as far as it goes without workers.
    """

    log = ProcessLogger()

    _server: Server | None = None

    def __init__(self, reactor: Any, config: Config, observer: LineObserver, host: Host) -> None:
        ServerService.__init__(self, reactor, config, observer, host)
        self._control = ControlSocket(reactor, config.control.path, self)
        self._started = 0.0
        self._dog = Pulse(reactor, "watchdog of systemd", host.systemd.watchdog)

    def privilegedStartService(self) -> None:
        """Open the log, the ports and the control socket, which may need root's rights.

        @raise StartError: one of them cannot be opened.
        """
        ServerService.privilegedStartService(self)
        owner = self._host.owner
        self._control.open(owner=None if owner is None else (owner.uid, owner.gid))

    def status(self) -> Deferred[Result]:
        now = self._reactor.seconds()
        figures = {} if self._server is None else self._server.figures()
        about = server_status(self._config, self._listening.addresses, [figures])
        figures.pop("certificates", None)
        row = {
            "slot": 0,
            "pid": os.getpid(),
            "state": _state(self._stopping, figures),
            "generation": 1,
            "age": round(now - self._started, 1),
            "restarts": 0,
            **figures,
        }
        left = f"{figures.get('connections', 0)} connections left"
        return succeed(
            {
                **about,
                "state": "stopping" if self._stopping else "serving",
                "doing": left if self._stopping else "",
                "generation": 1,
                "uptime": round(now - self._started, 1),
                "workers": [row],
                "refused": figures.get("refused", {}),
                "closed": figures.get("closed", {}),
                "dropped": figures.get("dropped", {}),
                "handler_errors": figures.get("handler_errors", 0),
            }
        )

    def connections(self, filter: ConnectionFilter, sort: str, limit: int) -> Deferred[Result]:
        rows = [] if self._server is None else self._server.connection_rows()
        told = ({**row, "worker": 0, "pid": os.getpid()} for row in rows)
        return succeed(selected(told, filter, sort, limit))

    def kick(self, id: int) -> Deferred[bool]:
        return succeed(self._server is not None and self._server.kick(id))

    def reload(self, progress: Progress) -> Deferred[Result]:
        return fail(OperationFailed(NO_WORKERS))

    upgrade = rebalance = reload

    def set_workers(self, count: int, progress: Progress) -> Deferred[Result]:
        return fail(OperationFailed(NO_WORKERS))

    def reopen(self) -> Deferred[None]:
        return self.open_log_anew()

    def stop(self, graceful: bool) -> Deferred[None]:
        self.stop_later(graceful)
        return succeed(None)

    def certificates(self) -> Deferred[Result]:
        try:
            if self._server is None:
                raise OperationFailed("it does not serve yet")
            return succeed({"certificates": self._server.renew_certificates().split("; ")})
        except CcserverError as error:
            return fail(OperationFailed(str(error)))

    def set_log_level(self, level: int) -> Deferred[None]:
        self._observer.level = level
        if self._server is not None:
            self._server.set_log_level(level)
        self.log.notice("log level is {name} now", name=LEVELS[level])
        return succeed(None)

    def _slots(self) -> int:
        return 1

    def _begin(self) -> None:
        self._started = self._reactor.seconds()
        interval = self._host.systemd.watchdog_interval
        if interval is not None:
            self._dog.start(interval, now=True)
        Deferred.fromCoroutine(self._serve()).addErrback(
            lambda failure: self.fail(EXIT_START, failure.getErrorMessage())
        )

    async def _serve(self) -> None:
        config = self._config
        sockets = zip(config.listen.addresses, self._listening.take(0), strict=True)
        try:
            app = load_app(config.app.app, config.app.path)
            server = Server(self._reactor, config, app, sockets)
            await server.prepare()
        except CcserverError as error:
            self.fail(exit_status(error), f"cannot start: {error}")
            return
        self._server = server
        server.serve()
        self.log.notice(
            "ready: one process, listening on {addresses}",
            addresses=", ".join(map(str, config.listen.addresses)),
        )
        self._host.systemd.ready()

    def _operate(self, number: signal.Signals) -> None:
        self.log.notice("{name} has no meaning: {why}", name=number.name, why=NO_WORKERS)

    def _end(self, graceful: bool) -> Deferred[None]:
        self._listening.close()
        return self._stop(graceful).addBoth(lambda result: self._closed())

    def _closed(self) -> Deferred[None]:
        self._dog.stop()
        return self._control.close()

    def _hasten(self) -> None:
        self._stop(False)

    def _stop(self, graceful: bool) -> Deferred[None]:
        async def stop() -> None:
            if self._server is not None:
                await self._server.stop(graceful, self._config.process.shutdown_timeout)

        return Deferred.fromCoroutine(stop())


def _state(stopping: bool, figures: Result) -> str:
    if stopping:
        return "stopping"
    return "overloaded" if figures.get("overloaded") else "ready"
