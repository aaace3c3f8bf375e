"""The worker's end of the link: what the master says, put to the worker process."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from ccserver.errors import StartError
from ccserver.process import link

if TYPE_CHECKING:
    from ccserver.process.worker import WorkerProcess


class WorkerLine(link.Line):
    """Has the worker process do what the master says, and answers.

    What the system may refuse is answered as well (lists, certificates, the log file): an exception
    would end the link, and the process with it.
    """

    def __init__(self, process: WorkerProcess) -> None:
        super().__init__()
        self._process = process

    def lacks_descriptor(self) -> None:
        self._process.lacks_descriptor()

    @link.Stop.responder
    def stop(self, graceful: bool, timeout: float) -> dict[str, Any]:
        self._process.stop(graceful, timeout)
        return {}

    @link.Serve.responder
    def serve(self) -> dict[str, Any]:
        self._process.serve()
        return {}

    @link.Stay.responder
    def stay(self) -> dict[str, Any]:
        self._process.stay()
        return {}

    @link.StopAccepting.responder
    def stop_accepting(self) -> dict[str, Any]:
        return {"connections": self._process.stop_accepting()}

    @link.Take.responder
    def take(self, channel: int) -> dict[str, Any]:
        self._process.take(socket.socket(fileno=channel))
        return {}

    @link.Give.responder
    def give(self, channel: int, count: int) -> Deferred[dict[str, Any]]:
        async def give() -> dict[str, Any]:
            report = await self._process.give(socket.socket(fileno=channel), count)
            return {"moved": report.moved, "left": json.dumps(report.left)}

        return Deferred.fromCoroutine(give())

    @link.Lend.responder
    def lend(self, slot: int, address: str, listening: int) -> dict[str, Any]:
        self._process.lend(slot, address, socket.socket(fileno=listening))
        return {}

    @link.Return.responder
    def give_back(self, slot: int) -> dict[str, Any]:
        self._process.give_back(slot)
        return {}

    @link.KeepWaiting.responder
    def keep_waiting(self, wait: bool) -> dict[str, Any]:
        self._process.keep_waiting(wait)
        return {}

    @link.List.responder
    def list_connections(self, file: int) -> dict[str, Any]:
        try:
            link.write_json(file, self._process.connection_rows())
        except OSError as error:  # no memory; an answer that fails would end the link
            self._process.log.error("no connections listed: {error}", error=error)
        finally:
            os.close(file)
        return {}

    @link.Kick.responder
    def kick(self, id: int) -> dict[str, Any]:
        return {"found": self._process.kick(id)}

    @link.SetLogLevel.responder
    def set_log_level(self, level: int) -> dict[str, Any]:
        self._process.set_log_level(level)
        return {}

    @link.RenewCertificates.responder
    def renew_certificates(self) -> dict[str, Any]:
        what = error = ""
        try:
            what = self._process.renew_certificates()
        except StartError as why:
            error = str(why)
        return {"what": what[: link.REASON_LIMIT], "error": error[: link.REASON_LIMIT]}

    @link.Reopen.responder
    def reopen(self) -> dict[str, Any]:
        why = ""
        try:
            self._process.observer.reopen()
        except OSError as error:  # an answer that fails would end the link, and us with it
            self._process.log.error("reopen: {error}", error=error)
            why = str(error)
        return {"error": why[: link.REASON_LIMIT]}

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        link.Line.connectionLost(self, reason)
        self._process.orphaned()
