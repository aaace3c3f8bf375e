"""The pool: the worker's threads, and the one way back from them."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from threading import current_thread, get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.app import Handler
from ccserver.native import native
from ccserver.net.jobqueue import NOBODY, JobQueue
from ccserver.net.jobs import Call, Claim, Job, PoolThread, policy

if TYPE_CHECKING:
    from ccserver.net.lane import Lane
    from ccserver.net.sending import Sender

T = TypeVar("T")

GROWTH = 2
"""How many times its size the pool may have in threads, while handlers hold them too long."""

LOOK = 0.001
"""Seconds between two looks at whether the threads that are awake get on with what waits."""

settle: Callable[..., int] | None = native.settle if native else None
"""Does what L{Lane.done} does for jobs that come first of the calls, as far as that is plain."""


@implementer(IReadDescriptor)
class Pool:
    """The worker's threads, and the one way back from them to the reactor.

    L{call}, L{flush_job}, L{in_reactor} and L{wake_up} are called from any thread; L{take}, L{done}
    and L{prepare_to_wait} by its own threads; all else in the reactor's.

    @ivar size: how many threads there are for handlers that return in time.
    @ivar policy: how they are scheduled (sched(7)): like the thread that made the pool. None: that
        cannot be asked.
    @ivar handler_timeout: seconds that a handler may hold a thread; 0: as long as it likes.
    @ivar limit: how many jobs may be unfinished before those who submit more are not read.
    @ivar unfinished: jobs submitted whose end nobody has heard of, but for those given up.
    @ivar handlers: what its threads call, by code.
    @ivar slow: the codes whose handlers hold a thread for long, and for how many calls more they
        are taken to, see L{PoolThread}.
    """

    log = Logger()

    # what every job looks at, in slots for the compiled part
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_calls",
        "_flush_later",
        "_gathered",
        "_jobs",
        "_looking",
        "handlers",
        "limit",
        "slow",
        "unfinished",
    )

    def __init__(
        self, reactor: Any, size: int, handler_timeout: float = 0.0, room: int = 10_000
    ) -> None:
        """@param room: how many jobs may wait for a thread."""
        self.size = size
        self.policy = policy()
        self.limit = size + room
        self.handler_timeout = handler_timeout
        self.unfinished = 0
        self._reactor = reactor
        self._jobs: JobQueue[Job] = JobQueue()
        self._threads: list[PoolThread] = []
        self._started = 0
        self._leaving = 0  # threads that are to end when they come to it
        self._stuck: set[Lane] = set()
        self._calls: deque[Call] = deque()
        self._woken = False
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # not before the last thread that may call has let go of us: it must not hit another file
        weakref.finalize(self, os.close, self._eventfd).atexit = False
        self._home = 0
        self._gathered: list[Job] = []
        self._flush_later = getattr(reactor, "flush_later", None)
        self._looking = False  # jobs have waited at the end of the last turn, too
        self.slow: dict[int, int] = {}
        self.handlers: dict[int, Handler] = {}

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    @property
    def queued(self) -> int:
        """How many jobs wait for a thread: of each lane one at most."""
        return len(self._jobs) + len(self._gathered)

    @property
    def crowded(self) -> bool:
        """Whether more jobs wait than should."""
        return self.unfinished > self.limit

    @property
    def stuck(self) -> int:
        """How many threads are held by handlers that were given up."""
        return len(self._stuck)

    def start(self, threads: bool = True) -> None:
        """Begin, in the reactor's thread; C{threads} is false where only calls come back."""
        self._home = get_ident()
        self._reactor.addReader(self)
        if threads:
            for _ in range(self.size):
                self._start_thread()

    def stop(self) -> None:
        """End the threads behind the jobs they have; those that still run one are left.

        What they call from now on is not done any more.
        """
        self.work_off()
        self._jobs.put(self._gathered)
        self._gathered.clear()
        self._calls = deque(maxlen=0)
        self._jobs.put([None] * (len(self._threads) - self._leaving))
        while self._jobs.rouse():
            pass
        self._reactor.removeReader(self)

    def take(self, eventfd: int) -> Job:
        """The next job; waits for one, on the caller's C{eventfd}."""
        return self._jobs.take(eventfd, self._untold)

    def _untold(self) -> int:
        """The eventfd by which the reactor is to be told of what is done, if it is to be."""
        if self._woken or not self._calls:
            return NOBODY
        self._woken = True
        return self._eventfd

    def done(self, call: Call, late: bool) -> bool:
        """Let the reactor make C{call}, at the latest when no job waits any more; from a thread.

        @param late: at once.
        @return: whether it has been told, or will be at once.
        """
        self._calls.append(call)
        if late or self._flush_later is None:
            self.wake_up()
            return True
        return not self._jobs  # the thread tells it when it goes to sleep

    def in_reactor(self) -> bool:
        """Whether the caller is the reactor's thread."""
        return get_ident() == self._home

    def submit(self, lane: Lane, claim: Claim) -> None:
        """Let a thread handle the packets of C{claim}, in order, and tell C{lane}."""
        self.unfinished += 1
        if self._flush_later is None:
            self._put((lane, claim))
            return
        if not self._gathered and not self._looking:
            self._flush_later(self)
        self._gathered.append((lane, claim))

    def flush(self) -> None:
        """Hand the jobs of this turn over, now that the reactor has nothing to do.

        One thread does them all, if it can. As long as some wait, the reactor looks again after
        L{LOOK} seconds at the latest: if each thread that is awake is held by what it does, one
        more is woken. So a handler that is slow without being known for it holds up the others
        for that long.
        """
        jobs = self._jobs
        if self._gathered:
            jobs.put(self._gathered)
            self._gathered.clear()
        self._looking = len(jobs) > 0
        if not self._looking:
            if self._calls:
                self.wake_up()  # the last job may take long, and what was done before it is untold
            return
        awake, held = len(self._threads) - jobs.asleep, True
        if awake:
            now = perf_counter()
            held = sum([thread.is_held(now) for thread in self._threads]) >= awake
            if held and self._calls:
                self.wake_up()
        if held:
            self._reactor.waking = jobs.call()
        self._reactor.flush_later(self)
        # where nobody can be woken, and nothing is to be done, there is less to look for
        self._reactor.nap = LOOK if jobs.asleep or self._calls else 10 * LOOK

    def flush_failed(self) -> None:
        """Try again in the next turn."""
        self._looking = True
        self._reactor.flush_later(self)

    def run(self, function: Callable[..., T], *args: Any) -> Deferred[T]:
        """Call C{function} in a thread; fires with what it returns or raises."""
        done: Deferred[T] = Deferred()

        def job() -> None:
            try:
                result = function(*args)
            except BaseException:
                self.call(finished, done.errback, Failure())
            else:
                self.call(finished, done.callback, result)

        def finished(fire: Callable[[Any], None], result: Any) -> None:
            self.unfinished -= 1
            fire(result)

        self.unfinished += 1
        self._put(job)
        return done

    def flush_job(self, lane: Sender) -> None:
        """Hand on the replies so far, if the caller is the thread that does a job of C{lane}."""
        thread = current_thread()
        if isinstance(thread, PoolThread) and thread.lane is lane:
            thread.flush()

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Call C{function} in the reactor's thread, behind all such calls made before.

        Many calls share one wake-up: only the first after the reactor has begun to work them
        off writes to the eventfd.
        """
        self._calls.append((function, args))
        self.wake_up()

    def prepare_to_wait(self) -> None:
        """The calling thread is about to be held: let others do what waits, here and there."""
        if self._calls:
            self.wake_up()
        self._jobs.rouse()

    def wake_up(self) -> None:
        """Let the reactor do what it was called for; from any thread."""
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._eventfd, 1)

    def check(self, now: float) -> None:
        """Give up the handlers that hold a thread too long; to be called about once a second.

        The connection of such a handler is closed, what it replies is dropped, and a thread is
        started in the place of its own, as long as there are less than L{GROWTH} times as many
        as there should be.

        @param now: of C{time.perf_counter}, which the threads go by.
        """
        if not self.handler_timeout:
            return
        if any(self._overdue(thread, now) for thread in self._threads):
            self.work_off()  # some may be done, or have handed replies on
            for thread in self._threads.copy():
                lane = self._overdue(thread, now)
                if lane is not None:
                    self._give_up(thread, lane, now)

    def _overdue(self, thread: PoolThread, now: float) -> Lane | None:
        lane = thread.lane  # before its time, see PoolThread
        if lane is None or now - thread.since <= self.handler_timeout or lane in self._stuck:
            return None
        return lane

    def _give_up(self, thread: PoolThread, lane: Lane, now: float) -> None:
        handler, (replies, count), stack = thread.handler, thread.answered(), thread.stack()
        if thread.lane is not lane or handler is None:
            return  # it has returned, and all of this may be of another job
        self.log.error(
            "{title} has held a thread for {seconds:.1f} s: its connection is closed",
            title=handler.title,
            seconds=now - thread.since,
            session=lane.session,
            stack=stack,
        )
        self._stuck.add(lane)
        self.unfinished -= 1
        lane.give_up(replies, count)
        self._fit()

    def returned(self, lane: Lane) -> None:
        """A job of a lane that was given up once has ended."""
        if lane in self._stuck:
            self._stuck.discard(lane)
            self._fit()
        else:
            self.unfinished -= 1

    def ended(self, thread: PoolThread) -> None:
        """C{thread} does no more."""
        self._threads.remove(thread)
        self._leaving -= 1
        self._fit()

    def fileno(self) -> int:
        return self._eventfd

    def logPrefix(self) -> str:
        return "pool"

    def connectionLost(self, reason: Failure) -> None:
        """Nothing: the eventfd is closed with the pool's last user."""

    def doRead(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            pass  # a handler has let the reactor go on, which has read it
        self.work_off()

    def work_off(self) -> None:
        """Do what threads have called for so far."""
        self._woken = False  # before the work: a call that comes now wakes us again
        calls = self._calls
        left = len(calls)
        if settle is None:
            self._make(left)
            return
        while left > 0 and calls:  # there may be none because one of them has worked off the rest
            try:
                left -= settle(self, calls, left)
            except MemoryError:  # for the number of those that it has settled
                self.log.failure("calls from threads are not counted")
            if left > 0:
                self._make(1)
                left -= 1

    def _make(self, count: int) -> None:
        """Make the next C{count} calls."""
        calls = self._calls
        for _ in range(count):
            if not calls:
                return  # one of them has worked off the rest
            function, args = calls.popleft()
            try:
                function(*args)
            except BaseException:
                self.log.failure("call from a thread")

    def _fit(self) -> None:
        """Have as many threads as there should be besides those that are stuck."""
        free = len(self._threads) - self._leaving - len(self._stuck)
        if free > self.size:
            self._leaving += 1
            self._put(None)
        elif free < self.size:
            if len(self._threads) < GROWTH * self.size:
                try:
                    self._start_thread()
                except (OSError, RuntimeError) as error:
                    self.log.error("no further thread: {error}", error=error)
            elif not free:
                self.log.error(
                    "all {threads} threads are held by handlers: what goes to them waits",
                    threads=len(self._threads),
                )

    def _put(self, job: Job) -> None:
        self._jobs.put([job])
        self._jobs.rouse()

    def _start_thread(self) -> None:
        thread = PoolThread(self, f"pool-{self._started}")
        thread.start()
        self._started += 1
        self._threads.append(thread)
