"""The fleet: which worker serves which slot, and how another takes its place.

Nothing here decides when: the master does. A worker that leaves hands its connections over first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from ccserver.config import Config
from ccserver.core.supervision import Slot
from ccserver.errors import OperationFailed, StartError
from ccserver.process import link, worker
from ccserver.process.channels import Target, hand_over
from ccserver.process.listening import STEER_GRACE, Listening
from ccserver.process.logs import ProcessLogger
from ccserver.process.operations import Progress
from ccserver.process.serving import HOOK_TIMEOUT
from ccserver.process.stacks import STACKS_SIGNAL
from ccserver.process.workers import (
    Ended,
    Handed,
    NotReady,
    Spawner,
    WorkerOfMaster,
    WorkerState,
)

KILL_GRACE = 1.0
"""Seconds that a worker gets beyond the time it has to stop, and that its stop hooks have where
it stops gracefully, before it is killed."""

SILENCE = 1.5
"""Seconds without a beat, behind the time it has to stop, after which a worker is taken for
blocked: it beats once a second while it runs its stop hooks."""

STACKS_GRACE = 0.5
"""Seconds that a blocked worker has to write down its stacks, before it is killed."""

STOPPING = "the server is stopping"

PROGRESS_INTERVAL = 0.5
"""Seconds between two lines of progress."""

LOOK_AGAIN = 0.1
"""Seconds between two looks for somebody who serves, while there is nobody."""

RETRIES = 3
"""How often connections are offered to another worker when the one they were to go to is gone."""


class Owner(Protocol):
    """Who decides over the fleet."""

    def worker_ready(self, process: WorkerOfMaster, first: bool) -> None:
        """A worker serves; C{first}: it is the first of its slot."""

    def worker_beat(self, process: WorkerOfMaster) -> None:
        """A worker has given a sign of life."""

    def worker_gone(self, process: WorkerOfMaster) -> None:
        """A worker's process has ended."""

    def cannot_start(self, status: int, reason: str) -> None:
        """A worker cannot start, and no worker of its slot ever could."""


class Place:
    """A slot and who works in it.

    @ivar slot: its state.
    @ivar worker: who works in it, or is being started to; None while there is nobody.
    @ivar respawn: when the next one is started, if there is nobody.
    @ivar lender: who accepts from its sockets meanwhile.
    """

    def __init__(self, number: int) -> None:
        self.slot = Slot(number)
        self.worker: WorkerOfMaster | None = None
        self.respawn: IDelayedCall | None = None
        self.lender: WorkerOfMaster | None = None

    def keep_empty(self) -> None:
        """Start nobody any more."""
        if self.respawn is not None and self.respawn.active():
            self.respawn.cancel()
        self.respawn = None


class Fleet:
    """The workers of a server by slot, and those on their way in or out.

    @ivar config: what new workers serve with.
    @ivar listening: the sockets they serve on.
    @ivar generation: counts the reloads.
    @ivar places: the slots, by number.
    @ivar workers: every worker process there is.
    @ivar handed_over: connections that went from one worker to another.
    @ivar left: connections that could not, by reason.
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
        self.workers: set[WorkerOfMaster] = set()
        self.handed_over = 0
        self.left: Counter[str] = Counter()
        self.log_level = config.log.level
        self._reactor = reactor
        self._owner = owner
        self._spawner = spawner
        self._stopping = False
        self._all_gone: Deferred[None] | None = None
        self._kill: IDelayedCall | None = None
        self._silent: IDelayedCall | None = None

    @property
    def serving(self) -> list[WorkerOfMaster]:
        """The workers that serve, by slot."""
        workers = [place.worker for place in self.places]
        return [each for each in workers if each is not None and each.state is WorkerState.READY]

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
            if not self._stopping:
                self._fill(place)

    async def prepare(
        self, numbers: Iterable[int], generation: int, config: Config, listening: Listening
    ) -> list[WorkerOfMaster]:
        """Workers for the slots C{numbers} that are ready to serve, and do not yet.

        @raise OperationFailed: one of them cannot; none is left.
        """
        started = [self._new(number, generation, config, listening) for number in numbers]
        timeout = config.process.ready_timeout
        try:
            await self._loaded(started, timeout)
            for each in started:
                if each.gone.over:
                    raise NotReady(f"{each}, ended as soon as it was ready", None)
            listening.listen()
        except BaseException as error:
            for each in started:
                each.state = WorkerState.STOPPING
                each.kill()
            await gatherResults([each.gone.wait() for each in started])
            if self._stopping:
                raise OperationFailed(STOPPING) from error
            if isinstance(error, StartError):
                raise OperationFailed(str(error)) from error
            if isinstance(error, DeferredTimeout):
                raise OperationFailed(f"a new worker was not ready within {timeout:g} s") from None
            raise
        if self._stopping:
            raise OperationFailed(STOPPING)
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
            if self._stopping:
                raise OperationFailed(STOPPING)
        self.listening = listening
        if listening is not old:
            old.release(listening)
        leaving: list[tuple[WorkerOfMaster, Sequence[Target]]] = []
        same = count == len(self.places)
        while len(self.places) < count:
            self.places.append(Place(len(self.places)))
        for process in fresh:
            place = self.places[process.slot]
            if place.worker is not None:
                leaving.append((place.worker, [process] if same else []))
            self._install(place, process)
        leaving.extend((each, []) for each in self._close(count))
        for process in fresh:
            place = self.places[process.slot]
            self._serve(place, process)
            if process.gone.over and place.worker is process:  # it has ended since it was ready
                place.worker = None
                self._vacant(place, None, str(process))
        targets = self.serving
        handed = await self._leave([(each, to or targets) for each, to in leaving], progress)
        if shrinks:
            listening.unsteer()
        return handed

    async def depart(self, targets: Sequence[Target], progress: Progress) -> Handed:
        """Let all workers hand their connections over to C{targets}, and leave.

        With as many targets as slots, slot by slot; without any, they end what they have.
        """
        same = len(targets) == len(self.places)
        leaving = [(each, [targets[each.slot]] if same else targets) for each in self._close(0)]
        return await self._leave(leaving, progress)

    async def move(self, moves: Iterable[tuple[int, int, int]], progress: Progress) -> Handed:
        """Hand connections over between workers that serve: (source slot, target slot, count)."""
        by_slot = {each.slot: each for each in self.serving}
        moved, left = 0, Counter[str]()
        for source, target, count in moves:
            if source in by_slot and target in by_slot:
                progress(f"handing {count} connections over, {source} to {target}")
                handed = await hand_over(by_slot[source], by_slot[target], count)
                handed = handed or Handed(0, {"channel": count})
                moved += handed.moved
                left.update(handed.left)
        self._note(moved, left)
        return Handed(moved, dict(left))

    def replace_blocked(self, process: WorkerOfMaster, silence: float) -> None:
        """Have the stacks of a worker without a sign of life logged, and replace it."""
        self.log.alert(
            "{worker}, has given no sign of life for {seconds:.1f} seconds: its stacks follow, "
            "then it is killed",
            worker=process,
            seconds=silence,
        )
        process.state = WorkerState.BLOCKED
        process.send_signal(STACKS_SIGNAL)
        kill = self._reactor.callLater(STACKS_GRACE, process.kill)
        process.gone.wait().addCallback(lambda reason: kill.active() and kill.cancel())
        for place in self.places:
            if place.lender is process:
                place.lender = None
                self._lend(place)
            if place.worker is process:
                place.worker = None
                self._lend(place)
                self._vacant(place, None, f"{process} is blocked")

    def stop(self, graceful: bool) -> Deferred[None]:
        """Let all workers stop; fires when they are gone.

        @param graceful: what they have received is answered first, within C{ShutdownTimeout}.
        """
        self._stopping = True
        for place in self.places:
            place.keep_empty()
            place.slot.stopping()
        gone: Deferred[None] = Deferred()
        self._all_gone = gone
        self._stop_workers(graceful)
        self._look_for_end()
        return gone

    def hasten(self) -> None:
        """A graceful stop is under way: let all workers stop at once."""
        if self.workers:
            self._stop_workers(False)

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
        process.on_beat = self._owner.worker_beat
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
        if place.worker is not process or self._stopping:
            return
        first = not place.slot.was_ready
        place.slot.ready(self._reactor.seconds())
        if process.gone.over:
            return
        process.serve()
        self._end_lending(place)
        self._owner.worker_ready(process, first)

    def _close(self, count: int) -> list[WorkerOfMaster]:
        """Keep the first C{count} slots; who works in the others."""
        removed, self.places = self.places[count:], self.places[:count]
        for place in removed:
            place.keep_empty()
            place.slot.stopping()
            self._end_lending(place)
        return [place.worker for place in removed if place.worker is not None]

    async def _leave(
        self, leaving: list[tuple[WorkerOfMaster, Sequence[Target]]], progress: Progress
    ) -> Handed:
        """Let workers hand their connections over, each to its targets, and stop."""
        if not leaving:
            return Handed(0, {})
        sources = [source for source, _ in leaving]

        def tell() -> None:
            left = sum(source.connections for source in sources if not source.gone.over)
            progress(f"handing over: {left} connections left")

        telling = LoopingCall(tell)
        telling.clock = self._reactor
        telling.start(PROGRESS_INTERVAL, now=True)
        try:
            handed = await gatherResults(
                [Deferred.fromCoroutine(self._leave_one(*each)) for each in leaving]
            )
        finally:
            telling.stop()
        moved, left = 0, Counter[str]()
        for each in handed:
            moved += each.moved
            left.update(each.left)
        self._note(moved, left)
        return Handed(moved, dict(left))

    async def _leave_one(self, source: WorkerOfMaster, targets: Sequence[Target]) -> Handed:
        count = await source.stop_accepting()
        moved, left = 0, Counter[str]()
        waiting = list(targets)
        for _ in range(len(waiting) + RETRIES):
            if not count or not source.linked:
                break
            waiting = [each for each in waiting if not each.gone.over] or await self._any_serving()
            if not waiting:
                break
            target = waiting.pop(0)
            share = -(-count // (len(waiting) + 1)) if waiting else link.ALL
            handed = await hand_over(source, target, share)
            if handed is None:
                continue
            moved += handed.moved
            untried = handed.left.pop("channel", 0)  # the target has gone, or has no room
            left.update(handed.left)
            count = untried if share == link.ALL else count - handed.moved
        if count and targets and source.linked:
            left["channel"] += count
        if not source.gone.over:
            self._retire(source)
        return Handed(moved, dict(left))

    def _retire(self, process: WorkerOfMaster) -> None:
        """Let a worker end what it has, and go; it is killed if it does not."""
        timeout = self.config.process.shutdown_timeout
        if not self._stopping:
            process.stop(True, timeout)
        end = timeout + HOOK_TIMEOUT + KILL_GRACE
        kill = self._reactor.callLater(end, self._kill_one, process)
        process.gone.wait().addCallback(lambda reason: kill.active() and kill.cancel())

    async def _any_serving(self) -> list[Target]:
        """Who serves, as soon as somebody does; nobody, if that takes too long."""
        end = self._reactor.seconds() + self.config.process.ready_timeout
        while True:
            found: list[Target] = [each for each in self.serving if each.linked]
            if found or not self.places or self._stopping or self._reactor.seconds() >= end:
                return found
            await deferLater(self._reactor, LOOK_AGAIN, lambda: None)

    def _note(self, moved: int, left: Counter[str]) -> None:
        self.handed_over += moved
        self.left.update(left)
        if left:
            self.log.notice(
                "{moved} connections handed over, not: {left}",
                moved=moved,
                left=", ".join(f"{count} {reason}" for reason, count in sorted(left.items())),
            )

    def _lend(self, place: Place) -> None:
        """Let somebody else accept from the sockets of C{place}."""
        others = [each for each in self.serving if each is not place.worker]
        if others:
            self._lend_to(place, others)

    def relieve(self, process: WorkerOfMaster, others: list[WorkerOfMaster]) -> None:
        """Let one of C{others} accept from the sockets of C{process} as well."""
        for place in self.places:
            if place.worker is process and place.lender not in others:
                self._end_lending(place)
                self._lend_to(place, others)

    def end_relief(self, process: WorkerOfMaster) -> None:
        """Let nobody else accept from the sockets of C{process}."""
        for place in self.places:
            if place.worker is process:
                self._end_lending(place)

    def _lend_to(self, place: Place, others: list[WorkerOfMaster]) -> None:
        self._end_lending(place)
        place.lender = min(others, key=lambda each: each.connections)
        number = place.slot.number
        for address, listening in zip(
            self.listening.addresses, self.listening.of_slot(number), strict=True
        ):
            place.lender.lend(number, str(address), listening)

    def _end_lending(self, place: Place) -> None:
        if place.lender is not None:
            place.lender.give_back(place.slot.number)
            place.lender = None

    def _ended(self, process: WorkerOfMaster, ended: Ended) -> None:
        """A worker process is gone."""
        self.workers.discard(process)
        self._owner.worker_gone(process)
        expected = process.state is WorkerState.STOPPING
        report = self.log.notice if expected else self.log.alert
        report("{worker}, {how}", worker=process, how=ended.how)
        for place in self.places:
            if place.lender is process:
                place.lender = None
            if place.worker is process:
                place.worker = None
                why = process.reason or f"worker process {process.slot} {ended.how}"
                self._vacant(place, ended.status, why)
        self._look_for_end()

    def _vacant(self, place: Place, status: int | None, reason: str) -> None:
        """A slot has no worker any more, or could not get one: what now?"""
        delay = place.slot.exited(self._reactor.seconds())
        if self._stopping or delay is None:
            return
        if not place.slot.was_ready:
            known = status == worker.EXIT_APP
            self._owner.cannot_start(
                worker.EXIT_APP if known else worker.EXIT_START, f"cannot start: {reason}"
            )
            return
        place.respawn = self._reactor.callLater(delay, self._fill, place)

    def _stop_workers(self, graceful: bool) -> None:
        timeout = self.config.process.shutdown_timeout if graceful else 0.0
        for process in list(self.workers):
            process.stop(graceful, timeout)
        patience = timeout + HOOK_TIMEOUT + KILL_GRACE if graceful else KILL_GRACE
        end = self._reactor.seconds() + patience
        if self._kill is not None and self._kill.active():
            if self._kill.getTime() <= end:
                return  # signals that keep coming do not put it off
            self._kill.cancel()
        self._kill = self._reactor.callLater(patience, self._kill_workers)
        if graceful:
            self._silent = self._reactor.callLater(timeout + KILL_GRACE, self._kill_silent)

    def _kill_silent(self) -> None:
        """Kill who runs no stop hooks, for his reactor is blocked."""
        for process in list(self.workers):
            if process.silence > SILENCE:
                self._kill_one(process)
        self._silent = self._reactor.callLater(LOOK_AGAIN, self._kill_silent)

    def _kill_workers(self) -> None:
        for process in list(self.workers):
            self._kill_one(process)

    def _kill_one(self, process: WorkerOfMaster) -> None:
        self.log.alert("{worker}, does not stop: killed", worker=process)
        process.kill()

    def _look_for_end(self) -> None:
        if self._all_gone is not None and not self.workers:
            for call in (self._kill, self._silent):
                if call is not None and call.active():
                    call.cancel()
            gone, self._all_gone = self._all_gone, None
            gone.callback(None)


def _first_error(failure: Failure) -> Failure:
    error = failure.value
    return error.subFailure if isinstance(error, FirstError) else failure
