"""The queue: jobs that wait for a thread, and threads that wait for a job."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, TypeVar

from ccserver.native import native

T = TypeVar("T")

NOBODY = -1
"""Instead of an eventfd: nobody is to be told."""


def sleep_in_python(eventfd: int, telling: int) -> None:
    """Write to the eventfd C{telling}, if it is one, and wait for C{eventfd}."""
    if telling != NOBODY:
        os.eventfd_write(telling, 1)
    while True:
        with suppress(InterruptedError):
            os.eventfd_read(eventfd)
            return


sleep: Callable[[int, int], None] = native.sleep if native else sleep_in_python


class JobQueue(Generic[T]):
    """First in, first out; and nobody is woken but by L{rouse}, or who has asked L{call}.

    A thread that is awake takes what it finds, so one thread does many short jobs in a row. To
    wake another costs a switch of the interpreter lock for each of its jobs: who puts jobs in, or
    is about to hold a thread with one, says when it pays. May be used from any thread.
    """

    __slots__ = ("_asleep", "_jobs")

    def __init__(self) -> None:
        self._jobs: deque[T] = deque()
        self._asleep: deque[int] = deque()  # the eventfds of those that sleep

    def __len__(self) -> int:
        """How many jobs wait."""
        return len(self._jobs)

    @property
    def asleep(self) -> int:
        """How many threads sleep."""
        return len(self._asleep)

    def put(self, jobs: Iterable[T]) -> None:
        """Let C{jobs} wait, behind all others; no thread is woken."""
        self._jobs.extend(jobs)

    def call(self) -> int:
        """The eventfd to write to for a thread to wake; L{NOBODY}: none sleeps, or no job waits.

        It is that of the one that went to sleep last, whose stack is in the processor's cache, and
        who is taken to be awake from now on.
        """
        if not self._jobs:
            return NOBODY
        try:
            return self._asleep.pop()
        except IndexError:
            return NOBODY

    def rouse(self) -> bool:
        """Wake a thread, if one sleeps and a job waits; whether it did."""
        eventfd = self.call()
        if eventfd != NOBODY:
            os.eventfd_write(eventfd, 1)
        return eventfd != NOBODY

    def take(self, eventfd: int, untold: Callable[[], int]) -> T:
        """The next job; sleeps until it is called and there is one.

        @param eventfd: the calling thread's own.
        @param untold: is asked before it sleeps: the eventfd to write to by then.
        """
        while True:
            try:
                return self._jobs.popleft()
            except IndexError:
                pass
            self._asleep.append(eventfd)
            # who put a job in before this line may have seen nobody asleep
            if self._jobs:
                try:
                    self._asleep.remove(eventfd)
                    continue
                except ValueError:
                    pass  # we have been called meanwhile
            sleep(eventfd, untold())
