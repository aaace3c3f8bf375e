"""The pool: handlers that hold a thread too long, wake-ups, and its end."""

from __future__ import annotations

import gc
import os
import select
import threading
from time import perf_counter
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.counts import Counts
from ccserver.core.limits import SessionLimits
from ccserver.core.session import Session
from ccserver.net import jobs
from ccserver.net.dispatch import Dispatch
from ccserver.net.lane import Lane
from ccserver.net.pool import Pool
from tests.net.test_dispatch import DispatchCase, Gate
from tests.support import PATIENCE, FakeConnection, FakeReactor, logged, texts, wait_for_pool

ECHO, GATE, THREAD = 1, 2, 3

LATER = 1000.0
"""Seconds, more than any handler of these tests has held its thread."""


class StuckCase(DispatchCase):
    """Has a handler that holds a thread until the gate is opened."""

    def setUp(self) -> None:
        DispatchCase.setUp(self)
        self.gate = Gate(self)
        self.lost: list[Any] = []
        self.echo(ECHO)
        self.echo(THREAD, thread=True)

        def stubborn(session: Session, request: bytes) -> bytes:
            self.gate.wait()
            return b"late"

        self.app.message(GATE)(stubborn)

        async def note(session: Session, reason: Any) -> None:
            self.lost.append(str(reason))

        self.app.on_connection_lost(note)

    def connect(self, threads: int = 2, **worker: Any) -> FakeConnection:
        connection = DispatchCase.connect(self, threads, **worker)
        self.pool = self.worker.pool
        self.pool.handler_timeout = 60.0
        return connection

    def stuck(self, *before: tuple[int, bytes]) -> FakeConnection:
        """A connection whose handler holds a thread, behind the packets C{before}."""
        client = self.connect()
        client.receive(*before, (GATE, b""), (THREAD, b"dropped"))
        self.gate.reached()
        return client

    def check(self, later: float = LATER) -> None:
        self.pool.check(perf_counter() + later)

    def let_return(self) -> None:
        self.gate.open(100)
        self.worker.wait(lambda: not self.pool.stuck)


class HandlerTimeoutTests(StuckCase):
    def test_its_connection_is_closed_with_the_reason_handler(self):
        client = self.stuck()
        self.check()
        self.assertTrue(client.transport.ended)
        self.assertEqual(client.session.close_reason, "handler")

    def test_what_was_answered_before_is_sent(self):
        client = self.stuck((ECHO, b"a"), (THREAD, b"b"), (THREAD, b"c"))
        self.check()
        self.assertEqual(client.bodies(), [b"a", b"b", b"c"])
        self.assertEqual(client.session.packets_out, 3)

    def test_what_it_replies_late_is_dropped_and_counted(self):
        client = self.stuck((THREAD, b"b"))
        self.check()
        client.sent()
        self.let_return()
        self.assertEqual(client.sent(), [])
        self.assertEqual(self.worker.counts.late_replies, 1)
        self.assertEqual(client.session.packets_out, 1)

    def test_what_it_or_anybody_sends_late_is_dropped(self):
        client = self.stuck()
        self.check()
        client.session.send(9, b"push")
        self.assertEqual(client.sent(), [])

    def test_before_its_time_and_with_no_limit_it_is_left_alone(self):
        client = self.stuck()
        self.check(59.0 - PATIENCE)
        self.pool.handler_timeout = 0.0
        self.check()
        self.assertIsNone(client.session.close_reason)
        self.let_return()
        self.worker.idle()
        self.assertEqual(client.bodies(), [b"late", b"dropped"])

    def test_the_time_begins_with_each_handler(self):
        now = [0.0]
        self.patch(jobs, "perf_counter", lambda: now[0])
        self.patch(jobs, "do_jobs", None)  # it has a clock of its own
        self.patch(jobs, "SLICE", LATER)

        @self.app.message(4)
        def slow(session: Session, request: bytes) -> None:
            now[0] += 50.0

        client = self.connect()
        client.receive((4, b""), (4, b""), (GATE, b""))
        self.gate.reached()
        self.pool.check(160.0)
        self.assertIsNone(client.session.close_reason)
        self.pool.check(160.1)
        self.assertEqual(client.session.close_reason, "handler")

    def test_one_that_returns_while_it_is_looked_at_is_not_given_up(self):
        client = self.stuck()

        def stack(thread: jobs.PoolThread) -> list[str]:
            self.gate.open(100)
            self.assertTrue(select.select([self.pool], [], [], PATIENCE)[0], "its job is done")
            return []

        self.patch(jobs.PoolThread, "stack", stack)
        self.check()
        self.worker.idle()
        self.assertIsNone(client.session.close_reason)
        self.assertEqual(client.bodies(), [b"late", b"dropped"])

    def test_replies_that_its_thread_has_handed_on_are_sent(self):
        self.patch(jobs, "FLUSH_AFTER", -1.0)
        client = self.stuck((THREAD, b"b"))
        self.check()
        self.assertEqual(client.bodies(), [b"b"])

    def test_its_stack_is_logged_once(self):
        events = logged(self)
        self.stuck((THREAD, b"b"))
        self.check()
        self.check()
        (event,) = [event for event in events if "stack" in event]
        (text,) = texts([event])
        self.assertIn(f"handler stubborn of code {GATE} has held a thread for", text)
        self.assertEqual(event["session"].peer, "127.0.0.1:5000")
        self.assertIn("in stubborn", "\n".join(event["stack"]))
        self.assertIn("self.gate.wait()", "\n".join(event["stack"]))

    def test_the_end_is_told_once_when_it_has_returned(self):
        client = self.stuck()
        self.check()
        client.end()
        client.turn()
        self.assertFalse(client.connected)
        self.assertEqual(self.lost, [])
        self.let_return()
        self.worker.idle()
        self.assertEqual(self.lost, ["handler"])

    def test_also_where_it_returns_before_the_connection_has_ended(self):
        client = self.stuck()
        self.check()
        self.let_return()
        self.assertEqual(self.lost, [])
        client.end()
        client.turn()
        self.assertEqual(self.lost, ["handler"])

    def test_where_the_client_has_gone_its_own_reason_is_told(self):
        client = self.stuck()
        client.reset()
        self.check()
        self.assertEqual(self.pool.stuck, 1)
        self.let_return()
        self.assertEqual(self.lost, ["client_reset"])

    def test_a_hook_that_holds_its_thread_is_given_up_too(self):
        def held(session: Session, reason: Any) -> None:
            self.gate.wait()

        self.app.on_connection_lost(held)
        client = self.connect()
        client.reset()
        self.gate.reached()
        events = logged(self)
        self.check()
        self.assertEqual((self.pool.stuck, self.pool.unfinished), (1, 0))
        (event,) = [event for event in events if "stack" in event]
        self.assertRegex(texts([event])[0], "^hook held has held a thread for .* s: its")
        self.let_return()
        self.assertEqual((self.pool.stuck, self.pool.unfinished), (0, 0))

    def test_a_stop_does_not_wait_for_it(self):
        self.stuck()
        self.assertEqual(self.pool.unfinished, 1)
        self.check()
        self.assertEqual(self.pool.unfinished, 0)
        self.let_return()
        self.assertEqual(self.pool.unfinished, 0)

    def test_the_pool_grows_by_its_thread_and_shrinks_when_it_returns(self):
        self.stuck()
        self.check()
        self.assertEqual((self.pool.size, self.pool.threads, self.pool.stuck), (2, 3, 1))
        self.let_return()
        self.worker.wait(lambda: self.pool.threads == 2)
        again = Gate(self)
        for _ in range(2):
            self.pool.run(again.wait)
        again.reached()
        again.reached()

    def test_its_new_thread_is_scheduled_as_the_others_whatever_the_reactor_is_by_then(self):
        self.stuck()
        usual = os.sched_getscheduler(0)
        self.addCleanup(os.sched_setscheduler, 0, usual, os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self.check()
        self.assertEqual(self.pool.threads, 3)
        found: list[int] = []
        again = Gate(self)

        def look() -> None:
            found.append(os.sched_getscheduler(0))
            again.wait()

        for _ in range(2):
            self.pool.run(look)
        again.reached()
        again.reached()
        self.assertEqual(found, [usual] * 2)

    def test_others_are_served_when_all_threads_were_held(self):
        clients = [self.stuck()]
        clients += [self.worker.connect() for _ in range(2)]
        for client in clients[1:]:
            client.receive((GATE, b""))
        self.gate.reached()
        self.check()
        self.gate.reached()
        self.check()
        other = self.worker.connect()
        other.receive((THREAD, b"served"))
        self.worker.wait(lambda: other.transport.value())
        self.assertEqual(other.bodies(), [b"served"])

    def test_it_grows_up_to_a_bound_and_says_so(self):
        events = logged(self)
        self.connect()
        for _ in range(6):
            self.worker.connect().receive((GATE, b""))
        for _ in range(2):
            self.gate.reached()
            self.gate.reached()
            self.check()
        self.check()
        self.assertEqual((self.pool.threads, self.pool.stuck), (4, 4))
        self.assertEqual(self.pool.queued, 2)
        self.assertEqual(sum("all 4 threads are held" in text for text in texts(events)), 1)
        self.let_return()
        self.worker.idle()
        self.worker.wait(lambda: self.pool.threads == 2)

    def test_it_is_not_noticed_where_no_handler_is_late(self):
        self.connect()
        self.check()
        self.assertEqual((self.pool.threads, self.pool.stuck), (2, 0))


class FairnessTests(DispatchCase):
    def test_a_long_job_lets_those_of_others_go_first(self):
        self.patch(jobs, "FLUSH_AFTER", -1.0)
        self.patch(jobs, "SLICE", -1.0)
        gate, seen = Gate(self), []

        def handler(session: Session, request: bytes) -> bytes:
            gate.wait()
            seen.append(request)
            return request

        self.on(1, handler, thread=True)
        one = self.connect(threads=1)
        other = self.worker.connect()
        one.receive(*((1, b"a%d" % n) for n in range(3)))
        gate.reached()
        other.receive((1, b"b"))
        gate.open(100)
        self.worker.idle()
        self.assertEqual(seen, [b"a0", b"b", b"a1", b"a2"])
        self.assertEqual(one.bodies(), [b"a0", b"a1", b"a2"])


class WakeUpTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.pool = Pool(self.reactor, 1)

    def test_a_call_from_before_the_start_is_made_behind_it(self):
        seen: list[int] = []
        self.pool.call(seen.append, 1)
        self.pool.start()
        self.addCleanup(self.pool.stop)
        wait_for_pool(self.pool, lambda: seen)
        self.pool.call(seen.append, 2)
        wait_for_pool(self.pool, lambda: len(seen) == 2)

    def test_a_function_counts_until_its_end_is_known(self):
        self.pool.start()
        self.addCleanup(self.pool.stop)
        done = self.pool.run(int, "1")
        self.assertEqual(self.pool.unfinished, 1)
        wait_for_pool(self.pool, lambda: done.called)
        self.assertEqual(self.pool.unfinished, 0)
        self.pool.run(int, "x").addErrback(lambda failure: None)
        wait_for_pool(self.pool, lambda: not self.pool.unfinished)

    def test_the_stop_makes_the_calls_that_wait(self):
        seen: list[int] = []
        self.pool.start()
        self.pool.call(seen.append, 1)
        self.pool.stop()
        self.assertEqual(seen, [1])

    def test_what_comes_behind_the_stop_hits_no_other_file(self):
        gate = Gate(self)
        self.pool.start()
        done = self.pool.run(gate.wait)
        done.addErrback(lambda failure: None)
        gate.reached()
        number = self.pool.fileno()
        (thread,) = [t for t in threading.enumerate() if isinstance(t, jobs.PoolThread)][-1:]
        self.pool.stop()
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
        for file in files:
            self.addCleanup(os.close, file)
        self.assertNotIn(number, files)
        gate.open()
        thread.join(PATIENCE)
        self.assertFalse(thread.is_alive())

    def test_its_descriptor_is_closed_with_its_last_user(self):
        self.pool.start()
        number = self.pool.fileno()
        threads = self.pool._threads.copy()
        self.pool.stop()
        for thread in threads:
            thread.join(PATIENCE)
        del self.pool, self.reactor, thread, threads
        gc.collect()
        self.assertRaises(OSError, os.fstat, number)

    def test_jobs_gathered_in_the_last_turn_are_done(self):
        gathered: list[Any] = []
        self.reactor.flush_later = gathered.append
        pool = Pool(self.reactor, 1)
        pool.start()
        seen, app = threading.Event(), App()

        @app.message(1)
        def handler(session: Session, request: bytes) -> None:
            seen.set()

        session = Session(1, "peer", "server", SessionLimits(), 0.0)
        dispatch = Dispatch(app, pool, 64, Counts())
        Lane(session, FakeConnection, dispatch).take([(1, b"")])
        self.assertEqual(gathered, [pool])
        self.assertEqual(pool.queued, 1)
        pool.stop()
        self.assertTrue(seen.wait(PATIENCE))


class FewThreadsTests(StuckCase):
    def test_a_thread_that_cannot_be_started_is_not_counted_on(self):
        client = self.stuck()

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        events = logged(self)
        self.patch(threading.Thread, "start", start)
        self.check()
        self.assertEqual((self.pool.threads, self.pool.stuck), (2, 1))
        self.assertIn("no further thread: can't start new thread", texts(events)[-1])
        self.assertEqual(client.session.close_reason, "handler")
        other = self.worker.connect()
        other.receive((THREAD, b"a"))
        self.worker.wait(other.bodies)


class CrowdTests(DispatchCase):
    """Two threads, and jobs of two connections may wait for them."""

    def setUp(self) -> None:
        DispatchCase.setUp(self)
        self.gate = Gate(self)
        self.on(GATE, lambda s, r: self.gate.wait(), thread=True)
        self.echo(ECHO)
        self.echo(THREAD, thread=True)
        first = self.connect(threads=2)
        self.worker.pool.limit = 4
        self.clients = [first, *(self.worker.connect(5001 + n) for n in range(5))]
        for client in self.clients:
            client.receive((GATE, b""))

    def reading(self) -> list[bool]:
        return [client.reading for client in self.clients]

    def test_who_brings_more_is_not_read_until_his_own_is_done(self):
        self.assertEqual(self.reading(), [True] * 4 + [False] * 2)
        self.gate.open(6)
        self.worker.idle()
        self.assertEqual(self.reading(), [True] * 6)

    def test_what_he_has_sent_already_is_answered_all_the_same(self):
        self.clients[5].receive((ECHO, b"a"), (THREAD, b"b"))
        self.assertFalse(self.clients[5].reading)
        self.gate.open(6)
        self.worker.idle()
        self.assertEqual(self.clients[5].bodies(), [b"a", b"b"])
        self.assertTrue(self.clients[5].reading)

    def test_others_are_served_meanwhile(self):
        late = self.worker.connect(6000)
        late.receive((ECHO, b"now"))
        self.assertEqual(late.bodies(), [b"now"])
        self.assertTrue(late.reading)

    def test_one_that_ends_meanwhile_is_let_go(self):
        self.clients[5].end()
        self.gate.open(6)
        self.worker.idle()
        self.clients[5].turn()
        self.assertFalse(self.clients[5].connected)
