"""Administration: what operators ask of a master, by signal or command, one thing at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredLock, gatherResults, succeed
from twisted.python.failure import Failure

from ccserver.config import Config
from ccserver.core.balance import Move, plan
from ccserver.errors import OperationFailed, StartError
from ccserver.process.descriptors import room
from ccserver.process.fleet import STOPPING, Fleet
from ccserver.process.listening import keepalive
from ccserver.process.logs import LEVELS, LineObserver, ProcessLogger
from ccserver.process.moment import Moment
from ccserver.process.operations import Progress
from ccserver.process.reload import reload
from ccserver.process.selection import ConnectionFilter, selected
from ccserver.process.status import fleet_status
from ccserver.process.succession import Succession
from ccserver.process.systemd import Systemd
from ccserver.process.workers import WorkerOfMaster

Result = dict[str, Any]


class Administered(Protocol):
    """The server, for whom administers it."""

    def stop_later(self, graceful: bool) -> None:
        """Stop it, in a later turn of the reactor."""

    def open_log_anew(self) -> Deferred[None]:
        """Open the log file anew, in all its processes; fires when that is done."""

    def configured(self, config: Config) -> None:
        """C{config} holds from now on."""


class _Shared:
    """A reload that waits for its turn, and all who asked for it."""

    def __init__(self) -> None:
        self.done: Moment[Result] = Moment()
        self.listeners: list[Progress] = []

    def progress(self, text: str) -> None:
        for listener in self.listeners:
            listener(text)


class Administration:
    """Does what operators ask for, in turn where it changes the fleet (implements L{Operations}).

    @ivar doing: the operation that is going on, such as "reload"; empty where there is none.
    """

    log = ProcessLogger()

    def __init__(
        self,
        reactor: Any,
        fleet: Fleet,
        observer: LineObserver,
        path: str,
        succession: Succession,
        server: Administered,
        systemd: Systemd,
    ) -> None:
        """@param path: the absolute path of the configuration."""
        self.doing = ""
        self._step = ""
        self._reactor = reactor
        self._fleet = fleet
        self._observer = observer
        self._path = path
        self._succession = succession
        self._server = server
        self._systemd = systemd
        self._closed = ""  # why nothing is begun any more
        self._turn = DeferredLock()
        self._waiting: _Shared | None = None
        self._reloaded: tuple[float, str | None] | None = None  # when, and why not
        self._started = reactor.seconds()

    @property
    def busy(self) -> bool:
        """Whether an operation is going on, or none can be begun any more."""
        return bool(self.doing or self._closed)

    @property
    def _state(self) -> str:
        if self._closed:
            return "stopping"
        return _STATES.get(self.doing, "serving" if self._fleet.places else "paused")

    def begin_stop(self) -> None:
        """From now on the server stops: nothing else is begun, and no new master takes over."""
        self._closed = self._closed or STOPPING
        self._succession.stop()

    def status(self) -> Deferred[Result]:
        now = self._reactor.seconds()
        left = sum(each.connections for each in self._fleet.workers)
        step = f"{left} connections left" if self._closed else self._step
        when, why = self._reloaded or (0.0, None)
        return succeed(
            {
                **fleet_status(self._fleet, now),
                "state": self._state,
                "doing": step,
                "uptime": round(now - self._started, 1),
                "last_reload": {
                    "result": None if self._reloaded is None else "failed" if why else "ok",
                    "reason": why or "",
                    "ago": None if self._reloaded is None else round(now - when, 1),
                },
            }
        )

    def connections(self, filter: ConnectionFilter, sort: str, limit: int) -> Deferred[Result]:
        async def gather() -> Result:
            workers = [each for each in self._fleet.workers if not each.silent]
            listed = await gatherResults([each.connection_rows() for each in workers])
            rows = [
                {**row, "worker": worker.slot, "pid": worker.pid}
                for worker, its in zip(workers, listed, strict=True)
                for row in its
            ]
            return selected(rows, filter, sort, limit)

        return Deferred.fromCoroutine(gather())

    def kick(self, id: int) -> Deferred[bool]:
        asked = gatherResults([each.kick(id) for each in self._fleet.workers if not each.silent])
        return asked.addCallback(any)

    def reload(self, progress: Progress) -> Deferred[Result]:
        """As L{Operations.reload}; who asks while a reload waits for its turn shares it."""
        shared = self._waiting
        if shared is None:
            shared = self._waiting = _Shared()
            shared.listeners.append(progress)
            self._in_turn("reload", self._reload, shared.progress).addBoth(shared.done.happen)
        else:
            shared.listeners.append(progress)
        return shared.done.wait()

    def upgrade(self, progress: Progress) -> Deferred[Result]:
        async def upgrade(progress: Progress) -> Result:
            try:
                return await self._succession.upgrade(self._fleet, progress)
            finally:
                heir = self._succession.heir
                if heir is not None:  # whatever became of the connections
                    self._closed = self._closed or f"process {heir} is the master now: ask it"
                    self.begin_stop()
                    self._server.stop_later(True)

        return self._in_turn("upgrade", upgrade, progress)

    def set_workers(self, count: int, progress: Progress) -> Deferred[Result]:
        async def resize(progress: Progress) -> Result:
            return await self._resize(count, progress)

        return self._in_turn("scaling", resize, progress)

    def change_workers(self, by: int, progress: Progress) -> Deferred[Result]:
        """Serve with C{by} workers more than there are, but with one at least."""

        async def resize(progress: Progress) -> Result:
            return await self._resize(max(1, len(self._fleet.places) + by), progress)

        return self._in_turn("scaling", resize, progress)

    def stop_workers(self) -> Deferred[Result]:
        """Let all workers stop gracefully; the ports stay open, and a reload starts others."""

        async def stop_all(progress: Progress) -> Result:
            await self._fleet.depart([], progress)
            return {"workers": 0}

        return self._in_turn("stop of all workers", stop_all, _nobody)

    def rebalance(self, progress: Progress) -> Deferred[Result]:
        async def rebalance(progress: Progress) -> Result:
            return await self._move(plan(self._counts()), progress)

        return self._in_turn("rebalance", rebalance, progress)

    def shift(self, moves: list[Move]) -> Deferred[Result]:
        """Make C{moves} of connections."""

        async def shift(progress: Progress) -> Result:
            return await self._move(moves, progress)

        return self._in_turn("rebalance", shift, _nobody)

    def recycle(self, process: WorkerOfMaster, reason: str) -> Deferred[Result]:
        """Put a new worker into the place of C{process}."""
        slot = process.slot

        async def recycle(progress: Progress) -> Result:
            fleet = self._fleet
            if process not in fleet.serving:
                raise OperationFailed(f"{process}, serves no more")
            fresh = await fleet.prepare([slot], fleet.generation, fleet.config, fleet.listening)
            await fleet.commit(fresh, len(fleet.places), fleet.listening, progress)
            return {"slot": slot}

        return self._in_turn(f"recycling of worker {slot} ({reason})", recycle, _nobody)

    def reopen(self) -> Deferred[None]:
        return self._server.open_log_anew()

    def stop(self, graceful: bool) -> Deferred[None]:
        self.begin_stop()
        self._server.stop_later(graceful)
        return succeed(None)

    def certificates(self) -> Deferred[Result]:
        async def renew() -> Result:
            workers = self._fleet.serving
            answers = await gatherResults([each.renew_certificates() for each in workers])
            errors = [error for _, error in answers if error]
            if errors or not answers:
                raise OperationFailed(errors[0] if errors else "no worker serves")
            return {"certificates": answers[0][0].split("; ")}

        return Deferred.fromCoroutine(renew())

    def set_log_level(self, level: int) -> Deferred[None]:
        self._observer.level = level
        self._fleet.log_level = level
        asked = gatherResults([each.set_log_level(level) for each in self._fleet.workers])
        self.log.notice("log level is {name} now", name=LEVELS[level])
        return asked.addCallback(lambda results: None)

    async def _reload(self, progress: Progress) -> Result:
        self._waiting = None
        why: str | None = None
        try:
            self._systemd.reloading()
            result = await reload(self._fleet, self._path, self._observer, progress)
            self._server.configured(self._fleet.config)
            return result
        except BaseException as error:
            why = str(error) or type(error).__name__
            raise
        finally:
            self._systemd.ready()
            self._reloaded = (self._reactor.seconds(), why)

    async def _resize(self, count: int, progress: Progress) -> Result:
        if count < 1:
            raise OperationFailed("there is at least one worker")
        fleet = self._fleet
        had = len(fleet.places)
        config = replace(fleet.config, process=replace(fleet.config.process, workers=count))
        connections = sum(each.connections for each in fleet.serving)
        warnings = []
        if connections > count * room(config):
            warnings.append(
                f"{connections} connections are too many for the file descriptors of {count} "
                "workers: those that find no room are closed within ShutdownTimeout"
            )
            self.log.warn("{note}", note=warnings[0])  # "warning" is Twisted's
        try:
            listening = fleet.listening.follow(
                config.listen.addresses, count, config.listen.backlog, keepalive(config)
            )
        except StartError as error:
            raise OperationFailed(str(error)) from None
        try:
            fresh = await fleet.prepare(range(had, count), fleet.generation, config, listening)
        except BaseException:
            listening.release(fleet.listening)
            raise
        fleet.config = config  # the same but for the count
        handed = await fleet.commit(fresh, count, listening, progress)
        if count > had:
            handed = await fleet.move(plan(self._counts()), progress)
        return {
            "workers": count,
            "handed_over": handed.moved,
            "left": handed.left,
            "warnings": warnings,
        }

    def _counts(self) -> dict[int, int]:
        """How many connections each worker that serves has, by its last beat."""
        return {each.slot: each.connections for each in self._fleet.awake}

    async def _move(self, moves: list[Move], progress: Progress) -> Result:
        handed = await self._fleet.move(moves, progress)
        return {"handed_over": handed.moved, "left": handed.left}

    def _in_turn(
        self,
        name: str,
        operation: Callable[[Progress], Awaitable[Result]],
        progress: Progress,
    ) -> Deferred[Result]:
        """Do C{operation} when all that were asked for before are over, and log how it ends."""

        def tell(text: str) -> None:
            self._step = text
            progress(text)

        async def run() -> Result:
            async with self._turn:
                if self._closed:
                    raise OperationFailed(self._closed)
                self.doing = name
                began = self._reactor.seconds()
                try:
                    result = await operation(tell)
                finally:
                    self.doing = self._step = ""
                return {**result, "seconds": round(self._reactor.seconds() - began, 3)}

        def done(result: Result) -> Result:
            told = ", ".join(f"{key} {value}" for key, value in result.items() if value)
            self.log.notice("{name} done{told}", name=name, told=told and f": {told}")
            return result

        def failed(failure: Failure) -> Failure:
            if failure.check(OperationFailed):
                self.log.error("{name} failed: {why}", name=name, why=str(failure.value))
            else:
                self.log.failure("{name} failed", failure, name=name)
            return failure

        return Deferred.fromCoroutine(run()).addCallbacks(done, failed)


_STATES = {
    "reload": "reloading",
    "upgrade": "upgrading",
    "scaling": "scaling",
    "rebalance": "rebalancing",
}


def _nobody(text: str) -> None:
    """The progress of what nobody waits for."""
