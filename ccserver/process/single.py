"""One process for everything (C{WorkerProcesses = 0}): to debug, and to test."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from ccserver.errors import AppError, CcserverError
from ccserver.loading import load_app
from ccserver.process.service import ServerService
from ccserver.process.serving import Server
from ccserver.process.worker import EXIT_APP, EXIT_START


class SingleProcess(ServerService):
    """Serves in the process and on the reactor that twistd has."""

    _server: Server | None = None

    def _slots(self) -> int:
        return 1

    def _begin(self) -> None:
        Deferred.fromCoroutine(self._serve()).addErrback(
            lambda failure: self.fail(EXIT_START, failure.getErrorMessage())
        )

    async def _serve(self) -> None:
        config = self._config
        sockets = zip(config.listen.addresses, self._listening.take(0), strict=True)
        try:
            app = load_app(config.app.app, config.app.path)
            server = Server(self._reactor, config, app, sockets)
            await server.start()
        except CcserverError as error:
            self.log.failure("cannot start")
            self.fail(EXIT_APP if isinstance(error, AppError) else EXIT_START, str(error))
            return
        self._server = server
        self.log.notice(
            "ready: one process, listening on {addresses}",
            addresses=", ".join(map(str, config.listen.addresses)),
        )

    def _end(self, graceful: bool) -> Deferred[None]:
        self._listening.close()
        return self._stop(graceful)

    def _hasten(self) -> None:
        self._stop(False)

    def _stop(self, graceful: bool) -> Deferred[None]:
        async def stop() -> None:
            if self._server is not None:
                await self._server.stop(graceful, self._config.process.shutdown_timeout)

        return Deferred.fromCoroutine(stop())
