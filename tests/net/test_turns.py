"""The end of a turn: one thread does what is short, and nobody waits for what is long."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.session import Session
from ccserver.net import jobs, pool
from ccserver.net.jobqueue import NOBODY, JobQueue
from ccserver.net.pool import LOOK
from tests import support
from tests.net.test_dispatch import Gate
from tests.support import PATIENCE, FakeConnection, FakeReactor, FakeWorker

SHORT, HELD, OTHER = 1, 2, 3


class TurnReactor(FakeReactor):
    """Does what is asked for the end of a turn when the test says that it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.later: list[Any] = []
        self.nap: float | None = None
        self.waking = NOBODY

    def flush_later(self, flushable: Any) -> None:
        self.later.append(flushable)

    def end_turn(self) -> float | None:
        """What is done before the reactor sleeps; how long that may be."""
        gathered, self.later = self.later, []
        for flushable in gathered:
            flushable.flush()
        nap, self.nap = self.nap, None
        waking, self.waking = self.waking, NOBODY
        if waking != NOBODY:
            os.eventfd_write(waking, 1)
        return nap


class TurnTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 100.0
        for module in (jobs, pool):
            self.patch(module, "perf_counter", lambda: self.now)
        self.patch(jobs, "do_jobs", None)  # it has a clock of its own
        self.patch(support, "FakeReactor", TurnReactor)
        self.gate = Gate(self)
        self.threads: set[int] = set()
        app = App()

        @app.message(SHORT)
        def short(session: Session, request: bytes) -> bytes:
            self.threads.add(threading.get_ident())
            return request

        @app.message(HELD)
        def held(session: Session, request: bytes) -> bytes:
            self.gate.wait()
            return request

        @app.message(OTHER)
        def other(session: Session, request: bytes) -> bytes:
            return request

        self.worker = FakeWorker(self, app, threads=4)
        self.pool = self.worker.pool
        self.reactor: Any = self.worker.reactor
        self.wait(lambda: self.pool._jobs.asleep == 4)

    def wait(self, condition: Callable[[], object]) -> None:
        """Until the threads have brought it about, which takes them no time that is counted."""
        event = threading.Event()
        for _ in range(int(PATIENCE * 1000)):
            if condition():
                return
            event.wait(0.001)
        self.fail(f"not within {PATIENCE} s")

    def clients(self, count: int) -> list[FakeConnection]:
        return [self.worker.connect(5000 + n) for n in range(count)]

    @property
    def told(self) -> bool:
        """Whether the reactor is to be woken."""
        return bool(select.select([self.pool], [], [], 0)[0])

    def test_short_jobs_are_done_by_one_thread_which_tells_once(self):
        clients = self.clients(50)
        for client in clients:
            client.receive((SHORT, b"a"), (SHORT, b"b"))
        self.assertEqual(self.reactor.end_turn(), LOOK)
        self.wait(lambda: self.told)
        self.pool.doRead()
        self.assertEqual([client.bodies() for client in clients], [[b"a", b"b"]] * 50)
        self.assertEqual(len(self.threads), 1)
        self.wait(lambda: self.pool._jobs.asleep == 4)
        self.assertFalse(self.told)

    def test_with_nothing_left_to_look_after_the_reactor_sleeps_as_long_as_it_likes(self):
        (client,) = self.clients(1)
        client.receive((SHORT, b"a"))
        self.reactor.end_turn()
        self.worker.idle()
        self.reactor.end_turn()
        self.assertIsNone(self.reactor.end_turn())

    def test_who_waits_behind_one_that_is_held_unexpectedly_goes_on_at_the_next_look(self):
        before, one, behind = self.clients(3)
        before.receive((SHORT, b"before"))
        one.receive((HELD, b"late"))
        behind.receive((SHORT, b"behind"))
        self.reactor.end_turn()
        self.gate.reached()
        self.assertFalse(self.told, "the thread believes that it is soon done")
        self.assertEqual(self.reactor.end_turn(), LOOK)
        self.assertEqual(self.pool.queued, 1, "it is not held yet")
        self.now += 2 * LOOK
        self.reactor.end_turn()
        self.worker.wait(behind.bodies)
        self.assertEqual(before.bodies(), [b"before"])

    def test_what_was_done_before_the_last_job_is_told_though_that_is_held(self):
        before, one = self.clients(2)
        before.receive((SHORT, b"before"))
        one.receive((HELD, b"late"))
        self.reactor.end_turn()
        self.gate.reached()
        self.reactor.end_turn()
        self.worker.wait(before.bodies)

    def test_one_that_took_long_holds_nobody_up_the_next_time(self):
        one, behind = self.clients(2)
        self.pool.slow[HELD] = 10
        one.receive((SHORT, b"first"), (HELD, b"late"))
        behind.receive((SHORT, b"behind"))
        self.reactor.end_turn()
        self.gate.reached()
        self.worker.wait(behind.bodies)
        self.assertEqual(one.bodies(), [b"first"])

    def test_all_threads_can_be_held_at_once(self):
        clients = self.clients(6)
        self.pool.slow[HELD] = 10
        for client in clients:
            client.receive((HELD, b"late"))
        self.reactor.end_turn()
        for _ in range(4):
            self.gate.reached()
        self.gate.open(6)
        self.worker.idle()
        self.assertEqual([client.bodies() for client in clients], [[b"late"]] * 6)

    def test_what_takes_long_is_known_for_it_and_in_time_for_it_no_more(self):
        one, two = self.clients(2)

        def slow() -> None:
            self.gate.reached()
            self.now += 2 * jobs.LONG
            self.gate.open()

        one.receive((HELD, b""))
        self.reactor.end_turn()
        slow()
        self.worker.idle()
        self.assertEqual(self.pool.slow, {HELD: jobs.SUSPICION})
        self.gate.open(100)
        for number in range(jobs.SUSPICION):
            self.assertIn(HELD, self.pool.slow)
            two.receive((HELD, b"%d" % number))
            self.reactor.end_turn()
            self.worker.idle()
        self.assertEqual(self.pool.slow, {})

    def test_a_function_holds_nobody_up(self):
        (client,) = self.clients(1)
        done = self.pool.run(self.gate.wait)
        self.gate.reached()
        client.receive((SHORT, b"a"))
        self.reactor.end_turn()
        self.worker.wait(client.bodies)
        self.gate.open()
        self.worker.wait(lambda: done.called)


class JobQueueTests(SynchronousTestCase):
    def test_first_in_first_out_and_nobody_is_woken_by_the_way(self):
        queue: JobQueue[int] = JobQueue()
        queue.put([1, 2])
        queue.put([3])
        self.assertEqual(len(queue), 3)
        self.assertEqual([queue.take(NOBODY, lambda: NOBODY) for _ in range(3)], [1, 2, 3])
        self.assertFalse(queue.rouse())

    def test_whatever_the_threads_do_every_job_is_taken_once(self):
        queue: JobQueue[int] = JobQueue()
        taken: list[int] = []
        random = Random(1)

        def work() -> None:
            eventfd = os.eventfd(0)
            while (job := queue.take(eventfd, lambda: NOBODY)) >= 0:
                taken.append(job)
            os.close(eventfd)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for first in range(0, 20_000, 20):
            queue.put(range(first, first + 20))
            if random.random() < 0.5:
                queue.rouse()
        queue.put([-1] * 4)
        while any(thread.is_alive() for thread in threads):
            queue.rouse()  # as the reactor does while jobs wait
            threads[0].join(0.001)
        self.assertEqual(sorted(taken), list(range(20_000)))
