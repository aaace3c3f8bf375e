"""The queue: jobs that wait for a thread, and threads that wait for a job."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class JobQueue(Generic[T]):
    """First in, first out; and nobody is woken but by L{rouse}.

    A thread that is awake takes what it finds, so one thread does many short jobs in a row. To
    wake another costs a switch of the interpreter lock for each of its jobs: who puts jobs in, or
    is about to hold a thread with one, says when it pays. May be used from any thread.
    """

    def __init__(self) -> None:
        self._jobs: deque[T] = deque()
        self._asleep: deque[None] = deque()  # as many as sleep and have not been called
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()

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

    def rouse(self) -> bool:
        """Wake a thread, if one sleeps and a job waits; whether it did."""
        if not self._jobs:
            return False
        try:
            self._asleep.pop()
        except IndexError:
            return False
        self._calls.put(None)
        return True

    def take(self) -> T:
        """The next job; sleeps until it is called and there is one."""
        while True:
            try:
                return self._jobs.popleft()
            except IndexError:
                pass
            self._asleep.append(None)
            # who put a job in before this line may have seen nobody asleep
            if self._jobs:
                try:
                    self._asleep.pop()
                    continue
                except IndexError:
                    pass  # we have been called meanwhile
            self._calls.get()
