"""The fleet: which worker serves which slot, and how another takes its place.

Nothing here decides when: the master does. A worker that leaves hands its connections over first
(L{Transfers}), and is killed if it does not go then (L{Ending}).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, Protocol

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ccserver.config import Config
from ccserver.errors import OperationFailed, StartError
from ccserver.process import worker
from ccserver.process.channels import Target
from ccserver.process.ending import Ending
from ccserver.process.listening import STEER_GRACE, Listening
from ccserver.process.logs import ProcessLogger
from ccserver.process.operations import Progress
from ccserver.process.places import Place
from ccserver.process.stacks import STACKS_SIGNAL
from ccserver.process.transfers import Leaver, Transfers
from ccserver.process.workers import (
    Ended,
    Handed,
    NotReady,
    Spawner,
    WorkerOfMaster,
    WorkerState,
)

STACKS_GRACE = 0.5
"""Seconds that a blocked worker has to write down its stacks, before it is killed."""

STOPPING = "the server is stopping"

LOOK_AGAIN = 0.1
"""Seconds between two looks for somebody who serves, while there is nobody."""


class Owner(Protocol):
    """Who decides over the fleet."""

    def worker_ready(self, process: WorkerOfMaster, first: bool) -> None:
        """A worker serves; C{first}: it is the first of its slot."""

    def worker_room(self, process: WorkerOfMaster) -> None:
        """A worker has said whether it may have more connections."""

    def worker_leaves(self, process: WorkerOfMaster) -> bool:
        """A signal asks a worker to stop; whether another takes its place first."""

    def worker_gone(self, process: WorkerOfMaster) -> None:
        """A worker's process has ended."""

    def cannot_start(self, status: int, reason: str) -> None:
        """A worker cannot start, and no worker of its slot ever could."""


class Fleet:
    """The workers of a server by slot, and those on their way in or out.

    @ivar config: what new workers serve with.
    @ivar listening: the sockets they serve on.
    @ivar generation: counts the reloads.
    @ivar places: the slots, by number.
    @ivar workers: every worker process there is.
    @ivar transfers: of connections, from one worker to another.
    @ivar log_level: what workers log, until the next reload.
    """

    log = ProcessLogger()

    def __init__(
        self,
        reactor: Any,
        owner: Owner,
        config: Config,
        listening: Listening,
        spawner: Spawner,
        generation: int = 1,
    ) -> None:
        self.config = config
        self.listening = listening
        self.generation = generation
        self.places: list[Place] = []
        self._departed: list[Place] = []
        self.workers: set[WorkerOfMaster] = set()
        self.log_level = config.log.level
        self._reactor = reactor
        self._owner = owner
        self._spawner = spawner
        self._stacks_at = -inf  # when the last worker was asked for its stacks
        self._ending = Ending(reactor, self.workers)
        self.transfers = Transfers(reactor, self._retire)

    @property
    def serving(self) -> list[WorkerOfMaster]:
        """The workers that serve, by slot."""
        workers = [place.worker for place in self.places]
        return [each for each in workers if each is not None and each.state is WorkerState.READY]

    @property
    def awake(self) -> list[WorkerOfMaster]:
        """Those of them that give signs of life, by slot."""
        return [each for each in self.serving if not each.silent]

    @property
    def was_ready(self) -> bool:
        """Whether every slot has had a worker that served."""
        return all(place.slot.was_ready for place in self.places)

    @property
    def spawned(self) -> int:
        """How many workers were started."""
        return self._spawner.spawned

    def start(self) -> None:
        """Start a worker in each slot, which serves as soon as it can."""
        self.places = [Place(number) for number in range(self.config.process.workers)]
        for place in self.places:
            if not self._ending.begun:
                self._fill(place)

    async def prepare(
        self, numbers: Iterable[int], generation: int, config: Config, listening: Listening
    ) -> list[WorkerOfMaster]:
        """Workers for the slots C{numbers} that are ready to serve, and do not yet.

        @raise OperationFailed: one of them cannot; none is left.
        """
        if self._ending.begun:
            raise OperationFailed(STOPPING)
        started = [self._new(number, generation, config, listening) for number in numbers]
        timeout = config.process.ready_timeout
        try:
            await self._loaded(started, timeout)
            for each in started:
                if each.gone.over:
                    raise NotReady(f"{each}, ended as soon as it was ready")
                if each.state is WorkerState.STOPPING:
                    raise NotReady(f"{each}, was asked to stop")
            listening.listen()
        except BaseException as error:
            for each in started:
                each.state = WorkerState.STOPPING
                each.kill()
            await gatherResults([each.gone.wait() for each in started])
            if self._ending.begun:
                raise OperationFailed(STOPPING) from error
            if isinstance(error, StartError):
                raise OperationFailed(str(error)) from error
            if isinstance(error, DeferredTimeout):
                raise OperationFailed(f"a new worker was not ready within {timeout:g} s") from None
            raise
        return started

    async def commit(
        self,
        fresh: Sequence[WorkerOfMaster],
        count: int,
        listening: Listening,
        progress: Progress,
    ) -> Handed:
        """Let C{fresh} serve in their slots from now on, of which there are C{count}.

        Those who worked there, and in slots that there are no more, hand their connections over
        and leave. Returns when the hand-over is done; who has connections left drains them.
        """
        old = self.listening
        shrinks = 0 < count < old.slots
        if shrinks:
            old.steer(count)  # nobody comes any more to the sockets that go
            await deferLater(self._reactor, STEER_GRACE, lambda: None)
            if self._ending.begun:
                raise OperationFailed(STOPPING)
        self.listening = listening
        if listening is not old:
            old.release(listening)
        leavers: list[Leaver] = []
        same = count == len(self.places)
        while len(self.places) < count:
            self.places.append(Place(len(self.places)))
        for process in fresh:
            place = self.places[process.slot]
            if place.worker is not None:
                leavers.append(Leaver(place.worker, [process] if same else []))
            self._install(place, process)
        leavers.extend(Leaver(each, []) for each in self._close(count))
        for process in fresh:
            place = self.places[process.slot]
            self._serve(place, process)
            if place.worker is process and not process.lives:  # no more, since it was ready
                place.worker = None
                self._vacant(place, process, str(process))
        targets = self.awake
        try:
            return await self.transfers.leave(
                [Leaver(each, to or targets) for each, to in leavers], self.any_serving, progress
            )
        finally:
            if shrinks:
                listening.unsteer()

    async def depart(self, targets: Sequence[Target], progress: Progress) -> Handed:
        """Let all workers hand their connections over to C{targets}, and leave.

        With as many targets as slots, slot by slot; without any, they end what they have. If all
        targets are gone, what is left goes to those who serve after L{resume}.
        """

        async def remaining() -> Sequence[Target]:
            return [each for each in targets if not each.gone.over] or await self.any_serving()

        self._departed = list(self.places)
        same = len(targets) == len(self.places)
        leavers = [
            Leaver(each, [targets[each.slot]] if same else targets) for each in self._close(0)
        ]
        return await self.transfers.leave(leavers, remaining, progress)

    def resume(self, spawned: int) -> None:
        """Start workers in the slots that L{depart} has left: nobody else serves there any more.

        @param spawned: how many workers there may have been meanwhile, elsewhere too.
        """
        self._spawner.spawned = spawned
        self.listening.unsteer()  # whoever served may have had fewer slots
        self.places, self._departed = self._departed, []
        for place in self.places:
            self._fill(place)

    async def move(self, moves: Iterable[tuple[int, int, int]], progress: Progress) -> Handed:
        """Hand connections over between workers that serve: (source slot, target slot, count)."""
        by_slot = {each.slot: each for each in self.awake}
        pairs = [
            (by_slot[source], by_slot[target], count)
            for source, target, count in moves
            if source in by_slot and target in by_slot
        ]
        return await self.transfers.move(pairs, progress)

    async def any_serving(self) -> list[WorkerOfMaster]:
        """Who serves, as soon as somebody does; nobody, if that takes too long."""
        end = self._reactor.seconds() + self.config.process.ready_timeout
        while True:
            found = [each for each in self.awake if each.linked]
            if found or not self.places or self._ending.begun or self._reactor.seconds() >= end:
                return found
            await deferLater(self._reactor, LOOK_AGAIN, lambda: None)

    def replace_blocked(self, process: WorkerOfMaster, silence: float) -> None:
        """Have the stacks of a worker without a sign of life logged, and replace it."""
        self.log.alert(
            "{worker}, has given no sign of life for {seconds:.1f} seconds: its stacks follow, "
            "then it is killed",
            worker=process,
            seconds=silence,
        )
        process.state = WorkerState.BLOCKED
        # one after the other: they write into one file, letter by letter
        now = self._reactor.seconds()
        self._stacks_at = max(now, self._stacks_at + STACKS_GRACE)
        wait = self._stacks_at - now
        self._while_there(process, wait, lambda: process.send_signal(STACKS_SIGNAL))
        self._while_there(process, wait + STACKS_GRACE, process.kill)
        self._replace(process, f"{process} is blocked")

    def replace_stopping(self, process: WorkerOfMaster) -> None:
        """Replace a worker that stops by itself; what it has it ends meanwhile."""
        self._retire(process)
        self._replace(process, f"{process} was asked to stop")

    def relieve(self, process: WorkerOfMaster, others: list[WorkerOfMaster]) -> None:
        """Let one of C{others} accept from the sockets of C{process} as well."""
        for place in self.places:
            if place.worker is process and place.lender not in others:
                place.lend(self.listening, others)

    def end_relief(self, process: WorkerOfMaster) -> None:
        """Let nobody else accept from the sockets of C{process}."""
        for place in self.places:
            if place.worker is process:
                place.end_lending()

    def stop(self, graceful: bool) -> Deferred[None]:
        """Let all workers stop; fires when they are gone.

        @param graceful: what they have received is answered first, within C{ShutdownTimeout}.
        """
        for place in self.places:
            place.keep_empty()
            place.slot.stopping()
        timeout = self.config.process.shutdown_timeout if graceful else 0.0
        return self._ending.stop(graceful, timeout)

    def hasten(self) -> None:
        """A graceful stop is under way: let all workers stop at once."""
        self._ending.hasten()

    def _while_there(
        self, process: WorkerOfMaster, seconds: float, act: Callable[[], object]
    ) -> None:
        """Do C{act} in C{seconds}, unless the process is gone by then."""
        call = self._reactor.callLater(seconds, act)
        process.gone.wait().addCallback(lambda gone: call.active() and call.cancel())

    def _new(
        self, number: int, generation: int, config: Config, listening: Listening
    ) -> WorkerOfMaster:
        """Start a worker process."""
        process = self._made(number, generation, config)
        same = config.log is self.config.log  # else it is a reload, which ends what was set by hand
        level = self.log_level if same else config.log.level
        self._spawner.spawn(process, listening.of_slot(number), level, self._ended)
        return process

    def _made(self, number: int, generation: int, config: Config) -> WorkerOfMaster:
        process = WorkerOfMaster(number, generation, config, self._reactor.seconds)
        process.on_room = self._owner.worker_room
        process.on_leave = self._owner.worker_leaves
        process.on_stopping = self.replace_stopping
        self.workers.add(process)
        return process

    def _loaded(self, processes: Iterable[WorkerOfMaster], timeout: float) -> Deferred[Any]:
        """Fires when all have loaded; fails with L{NotReady}, or a timeout."""
        waiting = [each.loaded.wait() for each in processes]
        loaded = gatherResults(waiting, consumeErrors=True)
        loaded.addErrback(_first_error)
        return loaded.addTimeout(timeout, self._reactor)

    def _fill(self, place: Place) -> None:
        """Start a worker that serves in C{place} as soon as it can."""
        place.respawn = None
        place.slot.started()
        number = place.slot.number
        process = self._made(number, self.generation, self.config)
        place.worker = process  # before it is spawned: it may end within that
        sockets = self.listening.of_slot(number)
        self._spawner.spawn(process, sockets, self.log_level, self._ended)
        self._loaded([process], self.config.process.ready_timeout).addCallbacks(
            lambda result: self._serve(place, process), self._too_late, errbackArgs=(process,)
        )

    def _too_late(self, failure: Failure, process: WorkerOfMaster) -> None:
        if failure.check(DeferredTimeout) and not process.gone.over:
            timeout = self.config.process.ready_timeout
            process.reason = f"{process}, was not ready within {timeout:g} s"
            self.log.alert("{reason}: killed", reason=process.reason)
            process.kill()

    def _install(self, place: Place, process: WorkerOfMaster) -> None:
        """Make C{process}, which is ready to serve, the worker of C{place}."""
        place.keep_empty()
        place.worker = process
        place.slot.replaced()

    def _serve(self, place: Place, process: WorkerOfMaster) -> None:
        if place.worker is not process or self._ending.begun:
            return
        first = not place.slot.was_ready
        place.slot.ready(self._reactor.seconds())
        if not process.lives:
            return
        process.serve()
        place.end_lending()
        self._owner.worker_ready(process, first)

    def _close(self, count: int) -> list[WorkerOfMaster]:
        """Keep the first C{count} slots; who works in the others."""
        removed, self.places = self.places[count:], self.places[:count]
        for place in removed:
            place.keep_empty()
            place.slot.stopping()
            place.end_lending()
        return [place.worker for place in removed if place.worker is not None]

    def _replace(self, process: WorkerOfMaster, reason: str) -> None:
        """Let others serve instead of a worker that is there still, and start one in its place."""
        for place in self.places:
            if place.lender is process:
                place.lender = None
                self._lend(place)
            if place.worker is process:
                place.worker = None
                self._lend(place)
                self._vacant(place, process, reason)

    def _retire(self, process: WorkerOfMaster) -> None:
        """Let a worker that leaves end what it has left, and go."""
        self._ending.retire(process, self.config.process.shutdown_timeout)

    def _lend(self, place: Place) -> None:
        """Let somebody else accept from the sockets of C{place}."""
        place.lend(self.listening, [each for each in self.awake if each is not place.worker])

    def _ended(self, process: WorkerOfMaster, ended: Ended) -> None:
        """A worker process is gone."""
        self.workers.discard(process)
        self._owner.worker_gone(process)
        told = process.exit_status is not None  # of what, is told by who waits for it
        expected = told or process.state is WorkerState.STOPPING
        report = self.log.notice if expected else self.log.alert
        report("{worker}, {how}", worker=process, how=ended.how)
        for place in self.places:
            if place.lender is process:
                place.lender = None
            if place.worker is process:
                place.worker = None
                why = process.reason or f"worker process {process.slot} {ended.how}"
                self._vacant(place, process, why)
        self._ending.look()

    def _vacant(self, place: Place, process: WorkerOfMaster, reason: str) -> None:
        """A slot has no worker any more, or could not get C{process}: what now?"""
        delay = place.slot.exited(self._reactor.seconds())
        if self._ending.begun or delay is None:
            return
        if not place.slot.was_ready:
            status = process.exit_status or worker.EXIT_START
            self._owner.cannot_start(status, f"cannot start: {reason}")
            return
        if process.exit_status is not None:
            self.log.alert("{worker}, cannot start: {reason}", worker=process, reason=reason)
        place.respawn = self._reactor.callLater(delay, self._fill, place)


def _first_error(failure: Failure) -> Failure:
    error = failure.value
    return error.subFailure if isinstance(error, FirstError) else failure
