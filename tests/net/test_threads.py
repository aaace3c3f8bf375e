"""Jobs and what becomes of them, on a real reactor: the compiled part, and its reference."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import weakref
from collections import UserDict
from random import Random
from time import perf_counter, sleep
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.framing import HEADER_LENGTH, Packet
from ccserver.core.session import Session
from ccserver.errors import BadBody
from ccserver.native import native
from ccserver.net import jobs, pool, reactor
from ccserver.net.jobs import PoolThread
from ccserver.net.lane import Lane
from ccserver.net.transport import READ_SIZE, DirectServer
from tests.net import ways
from tests.net.moving import Machine, MovingWorker
from tests.net.test_dispatch import Bug, Gate
from tests.support import PATIENCE, logged, take_no_time, texts

ECHO, SILENT, VIEW, BIG, RAISE, REFUSE, PUSH, REACTOR, TEXT, GATE, UNKNOWN = range(1, 12)
PLENTY = bytes(20_000)


class ThreadsCase(SynchronousTestCase):
    """Has a worker with threads on a reactor that takes a turn when it is told to.

    @cvar compiled: with the compiled part; else with what that is measured by.
    """

    compiled = False

    def setUp(self) -> None:
        ways.go(self, self.compiled)
        self.gate = Gate(self)
        self.app = App()
        self.machine = Machine(self)
        self.define()

    def define(self) -> None:
        """What clients can ask for."""

        @self.app.message(ECHO)
        def echo(session: Session, request: bytes) -> bytes:
            return request

        @self.app.message(SILENT)
        def silent(session: Session, request: bytes) -> None:
            return None

        @self.app.message(VIEW)
        def view(session: Session, request: bytes) -> memoryview:
            return memoryview(request)

        @self.app.message(BIG)
        def big(session: Session, request: bytes) -> bytes:
            return request + PLENTY

        @self.app.message(RAISE)
        def fail(session: Session, request: bytes) -> None:
            raise Bug

        @self.app.message(REFUSE)
        def refuse(session: Session, request: bytes) -> None:
            raise BadBody("no")

        @self.app.message(PUSH)
        def push(session: Session, request: bytes) -> bytes:
            session.send(PUSH, b"pushed before " + request)
            return request

        @self.app.message(REACTOR)
        async def on_the_reactor(session: Session, request: bytes) -> bytes:
            return request

        @self.app.message(TEXT)
        def text(session: Session, request: bytes) -> Any:
            return "no bytes"

        @self.app.message(GATE)
        def held(session: Session, request: bytes) -> bytes:
            self.gate.wait()
            return request

    def worker(self, threads: int = 1) -> MovingWorker:
        worker = self.machine.worker(self.app, threads=threads)
        self.pool = worker.pool
        self.machine.until(lambda: self.pool._jobs.asleep == threads)
        return worker

    def expected(self, kind: int, body: bytes) -> list[Packet]:
        """What comes back."""
        if kind in (ECHO, VIEW, REACTOR, GATE):
            return [(kind, body)]
        if kind == BIG:
            return [(kind, body + PLENTY)]
        if kind == PUSH:
            return [(kind, b"pushed before " + body), (kind, body)]
        return []

    def reached(self) -> None:
        """Turns until a handler is at the gate."""
        self.machine.until(lambda: self.gate.entered.acquire(blocking=False))

    def work_off(self) -> None:
        """Wait for what a thread has done, and work that off in the middle of a turn."""
        deadline = perf_counter() + PATIENCE
        while not self.pool._calls:
            self.assertLess(perf_counter(), deadline)
            sleep(0.001)
        self.pool.work_off()

    def idle(self) -> None:
        """Until the threads have done all that they have."""
        self.machine.turn(2)
        self.machine.until(lambda: not self.pool.unfinished)


class ThreadsTests(ThreadsCase):
    """What holds with the compiled part and without it."""

    def test_whatever_the_handlers_do_all_is_answered_in_order(self):
        random = Random(7)
        worker = self.worker(threads=3)
        clients = [worker.connect() for _ in range(12)]
        expected: list[list[Packet]] = [[] for _ in clients]
        got: list[list[Packet]] = [[] for _ in clients]
        errors = 0

        def read() -> None:
            for client, packets in zip(clients, got, strict=True):
                packets += client.packets()

        kinds = [ECHO] * 8 + [SILENT, VIEW, BIG, RAISE, REFUSE, PUSH, REACTOR, TEXT]
        for number in range(300):
            for place in random.sample(range(12), random.randrange(1, 12)):
                sent = [random.choice(kinds) for _ in range(random.choice([1, 1, 1, 2, 5]))]
                packets = [(kind, b"%d of %d" % (n, number)) for n, kind in enumerate(sent)]
                for packet in packets:
                    expected[place] += self.expected(*packet)
                errors += sum(kind in (RAISE, TEXT) for kind in sent)
                clients[place].send(*packets)
            self.machine.turn(random.randrange(3))
            read()
        self.machine.until(lambda: read() or sum(map(len, got)) >= sum(map(len, expected)))
        self.idle()
        read()
        for client, packets in zip(clients, got, strict=True):
            session = client.protocol.session
            self.assertEqual(session.packets_out, len(packets))
            self.assertEqual(session.bytes_out, len(client.got))
            self.assertTrue(client.protocol.lane.idle)
        self.assertEqual(got, expected)
        self.assertEqual(worker.counts.handler_errors, errors)
        self.flushLoggedErrors(Bug, TypeError)

    def test_whoever_has_the_interpreter_every_job_is_done_once(self):
        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        sys.setswitchinterval(1e-6)
        seen: list[bytes] = []

        @self.app.message(20)
        def note(session: Session, request: bytes) -> bytes:
            seen.append(request)
            return request

        worker = self.worker(threads=4)
        clients = [worker.connect() for _ in range(20)]
        random = Random(3)
        for number in range(100):
            for place, client in enumerate(clients):
                client.send((20, b"%d %d" % (place, number)))
            if random.random() < 0.3:
                self.pool._jobs.rouse()  # more than one is at it
            held = random.choice(clients).protocol.lane
            held.hold(lambda at_rest: None)
            self.machine.turn(random.randrange(1, 4))
            held.unhold()
        self.idle()
        for place, client in enumerate(clients):
            client.expect(*(b"%d %d" % (place, number) for number in range(100)))
        self.assertEqual((len(seen), len(set(seen))), (2000, 2000))

    def test_a_job_that_its_lane_has_taken_back_is_left_out(self):
        worker = self.worker()
        one, two, three = (worker.connect() for _ in range(3))
        one.send((GATE, b"one"))
        self.reached()
        two.send((ECHO, b"two"))
        three.send((ECHO, b"three"))
        self.machine.turn(2)
        two.protocol.lane.hold(lambda at_rest: None)
        self.gate.open()
        one.expect(b"one")
        three.expect(b"three")
        self.idle()
        self.assertEqual((two.bodies(), two.protocol.lane.waiting), ([], 1))
        two.protocol.lane.unhold()
        two.expect(b"two")

    def test_the_time_of_each_handler_begins_when_the_one_before_has_returned(self):
        take_no_time(self)
        times: list[tuple[float, float, float]] = []

        @self.app.message(20)
        def handler(session: Session, request: bytes) -> None:
            thread = threading.current_thread()
            assert isinstance(thread, PoolThread)
            times.append((thread.began, thread.since, perf_counter()))

        worker = self.worker()
        one, two = worker.connect(), worker.connect()
        before = perf_counter()
        one.send((20, b""), (20, b""))
        two.send((20, b""))
        self.machine.turn()
        self.machine.until(lambda: len(times) == 3)
        self.idle()
        (began, since, first), (began_2, since_2, second), (began_3, since_3, third) = times
        self.assertEqual(began, since)
        self.assertEqual(began, began_2)
        self.assertEqual(began_3, since_3)
        in_order = [before, began, first, since_2, second, began_3, third, perf_counter()]
        self.assertEqual(in_order, sorted(in_order))

    def test_so_it_does_behind_a_job_that_was_taken_back(self):
        began: list[float] = []

        @self.app.message(20)
        def handler(session: Session, request: bytes) -> None:
            thread = threading.current_thread()
            assert isinstance(thread, PoolThread)
            began.append(thread.since)

        worker = self.worker()
        one, two = worker.connect(), worker.connect()
        one.send((20, b""))
        self.machine.until(lambda: began and self.pool._jobs.asleep)
        self.idle()
        before = perf_counter()
        one.send((20, b""))
        two.send((20, b""))
        worker.reactor.doIteration(0)
        self.assertEqual(self.pool.queued, 2)
        one.protocol.lane.hold(lambda at_rest: None)
        self.machine.until(lambda: len(began) == 2)
        self.assertLess(before, began[1])

    def test_who_looks_at_a_thread_sees_whose_turn_it_is(self):
        take_no_time(self)
        worker = self.worker()
        client = worker.connect()
        client.send((ECHO, b"a"), (ECHO, b"b"), (GATE, b"c"), (ECHO, b"d"))
        self.reached()
        (thread,) = self.pool._threads
        self.assertIs(thread.lane, client.protocol.lane)
        assert thread.handler is not None
        self.assertEqual(thread.handler.code, GATE)
        self.assertEqual(thread.answered()[1], 2)
        self.gate.open()
        client.expect(b"a", b"b", b"c", b"d")
        self.assertEqual((thread.lane, thread.handler, thread.began), (None, None, 0.0))
        self.assertEqual(thread.answered(), (b"", 0))
        self.machine.until(lambda: self.pool._jobs.asleep)
        self.assertEqual(thread._untold, 0.0)

    def test_one_that_is_given_up_says_no_more(self):
        worker = self.worker()
        before, client = worker.connect(), worker.connect()
        before.send((ECHO, b"before"))
        client.send((ECHO, b"a"), (GATE, b"late"))
        self.reached()
        self.pool.handler_timeout = 60.0
        self.pool.check(perf_counter() + 100.0)
        before.expect(b"before")
        client.expect(b"a")
        self.gate.open()
        self.machine.until(lambda: worker.counts.late_replies == 1)
        self.assertEqual((client.bodies(), client.protocol.session.packets_out), ([], 1))
        self.machine.until(lambda: not self.pool.unfinished and not self.pool.stuck)

    def test_what_garbage_sends_comes_once_and_so_do_the_replies(self):
        self.addCleanup(gc.set_threshold, *gc.get_threshold())

        class Garbage:
            def __init__(self, session: Session) -> None:
                self.session, self.itself = session, self

            def __del__(self) -> None:
                self.session.send(21, b"garbage")

        @self.app.message(20)
        def leave(session: Session, request: bytes) -> bytes:
            gc.collect()
            gc.set_threshold(0)
            Garbage(session)
            gc.set_threshold(1)  # what is made next has it collected
            if request == b"flushed":
                session.send(20, b"a push")
            return request

        worker = self.worker()
        for request, push in ((b"plain", []), (b"flushed", [b"a push"])):
            client = worker.connect()
            client.send((ECHO, b"before"), (20, request), (ECHO, b"behind"))
            self.idle()
            gc.set_threshold(0)
            gc.collect()
            self.idle()
            bodies = client.bodies()
            self.assertEqual(bodies.count(b"garbage"), 1)
            bodies.remove(b"garbage")
            self.assertEqual(bodies, [b"before", *push, request, b"behind"])

    def test_where_what_is_done_cannot_be_settled_it_is_done_all_the_same(self):
        def fail(*args: Any) -> int:
            raise MemoryError

        worker = self.worker()
        client = worker.connect()
        self.patch(pool, "settle", fail)
        for body in (b"a", b"b"):
            client.send((ECHO, body), (ECHO, b"next"))
            client.expect(body, b"next")
        self.assertEqual(self.pool.unfinished, 0)
        self.assertIn(self.pool, worker.reactor.getReaders())
        self.assertTrue(self.flushLoggedErrors(MemoryError))

    def test_a_thread_keeps_nobody_who_is_gone(self):
        worker = self.worker()
        client = worker.connect()
        client.send((ECHO, b"a"), (PUSH, b"b"))
        client.expect(b"a", b"pushed before b", b"b")
        protocol = weakref.ref(client.protocol)
        client.sock.close()
        self.machine.until(lambda: not len(worker.connections))
        self.machine.until(lambda: self.pool._jobs.asleep == 1)
        del client
        gc.collect()
        self.assertIsNone(protocol())

    def test_where_a_job_cannot_be_done_its_own_lane_goes_on(self):
        @self.app.message(20)
        def spoil(session: Session, request: bytes) -> bytes:
            self.pool.handlers = UserDict()  # type: ignore[assignment]
            return request

        events = logged(self)
        worker = self.worker()
        handlers = self.pool.handlers
        one, two = worker.connect(), worker.connect()
        one.send((20, b"one"))
        two.send((ECHO, b"lost"))
        one.expect(b"one")
        self.idle()
        self.assertEqual(worker.counts.handler_errors, 1)
        self.assertEqual([t for t in texts(events) if "job" in t], ["a job of the pool has failed"])
        self.pool.handlers = handlers
        for client in (one, two):
            client.send((ECHO, b"next"))
            client.expect(b"next")
        self.flushLoggedErrors(TypeError, KeyError)

    def test_what_a_client_sends_while_its_job_is_done_comes_behind(self):
        worker = self.worker()
        client = worker.connect()
        client.send((GATE, b"a"))
        self.reached()
        client.send((ECHO, b"b"), (REACTOR, b"c"), (ECHO, b"d"))
        self.machine.turn(3)
        self.gate.open()
        client.expect(b"a", b"b", b"c", b"d")

    def test_replies_and_what_others_send_leave_in_one_go(self):
        worker = self.worker()
        client, other = worker.connect(), worker.connect()
        sends: list[bytes] = []
        original = DirectServer.flush
        self.patch(reactor, "flush", None)  # the compiled one goes round it
        self.patch(
            DirectServer,
            "flush",
            lambda transport: (
                sends.append(b"".join(transport._corked or ())),
                original(transport),
            )[1],
        )
        client.send((GATE, b"reply"))
        self.reached()
        client.protocol.session.send(PUSH, b"push")
        self.gate.open()
        self.work_off()
        self.machine.turn()
        self.assertEqual(client.bodies(), [b"push", b"reply"])
        self.assertEqual([len(data) for data in sends if data], [2 * HEADER_LENGTH + 9])
        self.assertEqual(other.bodies(), [])

    def test_many_bytes_do_not_wait_for_the_end_of_the_turn(self):
        take_no_time(self)
        worker = self.worker()
        client = worker.connect()
        for count in (3, 4):
            client.send((GATE, b""), *[(BIG, b"")] * count)
            self.reached()
            self.gate.open()
            self.work_off()
            waits = sum(map(len, client.protocol.transport._corked or ()))
            much = HEADER_LENGTH + count * (HEADER_LENGTH + len(PLENTY))
            self.assertEqual(waits, much if much <= READ_SIZE else 0)
            client.expect(b"", *[PLENTY] * count)

    def test_a_reply_comes_behind_what_a_slow_client_has_not_taken(self):
        worker = self.worker()
        client = worker.connect(buffer=4096)
        client.send((GATE, b"reply"))
        self.reached()
        for number in range(20):
            client.protocol.session.send(PUSH, b"%d" % number + PLENTY)
            self.machine.turn()
        self.assertIsNotNone(client.protocol.lane.outbox)
        self.gate.open()
        self.machine.until(lambda: not self.pool.unfinished)
        client.expect(*(b"%d" % number + PLENTY for number in range(20)), b"reply")

    def test_who_has_ended_gets_his_reply_and_the_end(self):
        worker = self.worker()
        client = worker.connect()
        client.send((GATE, b"reply"))
        self.reached()
        client.sock.shutdown(socket.SHUT_WR)
        self.machine.turn(3)
        self.gate.open()
        client.expect(b"reply")
        client.read_to_end()

    def test_a_lane_comes_to_rest_behind_its_job(self):
        rests: list[bool] = []
        worker = self.worker()
        client = worker.connect()
        client.send((GATE, b"a"))
        self.reached()
        client.protocol.lane.hold(rests.append)
        self.assertEqual(rests, [])
        self.gate.open()
        client.expect(b"a")
        self.machine.until(lambda: rests)
        self.assertEqual(rests, [True])

    def test_a_handler_that_is_known_to_take_long_is_taken_to(self):
        take_no_time(self)
        worker = self.worker(threads=2)
        before, one, behind = (worker.connect() for _ in range(3))
        self.pool.slow[GATE] = 5
        before.send((ECHO, b"before"))
        one.send((GATE, b"late"))
        behind.send((ECHO, b"behind"))
        before.expect(b"before")
        behind.expect(b"behind")
        self.assertEqual(self.pool.slow, {GATE: 4})
        self.gate.open()
        one.expect(b"late")

    def test_what_is_done_is_told_in_time_though_there_is_more_to_do(self):
        self.patch(jobs, "FLUSH_AFTER", 0.005)
        self.patch(jobs, "LONG", PATIENCE)

        @self.app.message(20)
        def takes_a_while(session: Session, request: bytes) -> None:
            end = perf_counter() + 0.003
            while perf_counter() < end:
                pass

        @self.app.message(21)
        def silent_gate(session: Session, request: bytes) -> None:
            self.gate.wait()

        worker = self.worker()
        clients = [worker.connect() for _ in range(5)]
        for client, code in zip(clients, (21, 20, 20, 20, 21), strict=True):
            client.send((code, b""))
            self.machine.turn(2)
        self.gate.reached()
        self.assertFalse(self.pool._woken)
        self.gate.open()
        self.gate.reached()
        self.assertTrue(self.pool._woken)

    def test_as_long_as_too_many_wait_who_brings_more_is_not_read(self):
        worker = self.worker()
        clients = [worker.connect() for _ in range(4)]
        self.pool.limit = 2
        for client in clients:
            client.send((GATE, b"a"))
            self.machine.turn()
        paused = [client.protocol.lane.paused for client in clients]
        self.assertEqual(paused, [False, False, True, True])
        self.gate.open(4)
        for client in clients:
            client.expect(b"a")
        self.machine.until(lambda: not any(c.protocol.lane.paused for c in clients))

    def test_what_is_done_behind_the_stop_is_not_kept(self):
        worker = self.worker()
        client = worker.connect()
        client.send((GATE, b"a"))
        self.reached()
        (thread,) = self.pool._threads
        self.pool.stop()
        self.gate.open()
        thread.join(PATIENCE)
        self.assertFalse(thread.is_alive())
        self.assertFalse(self.pool._calls)
        self.pool.start(threads=False)  # so that it can be stopped again


class CompiledThreadsTests(ThreadsTests):
    compiled = True
    if native is None:
        skip = "the compiled part has not been built"

    def test_what_is_plain_never_comes_to_python(self):
        self.patch(jobs, "FLUSH_AFTER", PATIENCE)
        self.patch(jobs, "LONG", PATIENCE)
        worker = self.worker()
        clients = [worker.connect() for _ in range(20)]
        for client in clients:
            client.send((ECHO, b"warm-up"))
            client.expect(b"warm-up")
        for owner, name in (
            (Lane, "done"), (Lane, "finished"), (PoolThread, "_go_on"), (DirectServer, "write"),
        ):  # fmt: skip
            self.patch(owner, name, lambda *arguments, name=name: self.fail(name))
        submitted: list[Any] = []
        original = Lane.submit
        self.patch(Lane, "submit", lambda *args: (submitted.append(args), original(*args))[1])
        for client in clients:
            client.send(*[(ECHO, b"a")] * 3)
        for client in clients:
            client.expect(*[b"a"] * 3)
        self.assertLessEqual(len(submitted), 2, "the first of a turn")

    def test_what_it_is_given_is_looked_at(self):
        for function in (native.do_jobs, native.settle, native.submit):
            self.assertRaises(TypeError, function)
            self.assertRaises((TypeError, AttributeError), function, *[object()] * 4)


class TimerTests(SynchronousTestCase):
    def test_a_thread_of_the_pool_has_its_timers_in_time(self):
        slack: list[str] = []

        def look() -> None:
            with open(f"/proc/{threading.get_native_id()}/timerslack_ns") as file:
                slack.append(file.read().strip())

        machine = Machine(self)
        worker = machine.worker(App(), threads=1)
        done: list[Any] = []
        worker.pool.run(look).addBoth(done.append)
        machine.until(lambda: done)
        self.assertEqual((done, slack), ([None], [str(jobs.SLACK)]))

    def test_where_it_cannot_be_said_it_works_all_the_same(self):
        self.patch(jobs, "get_native_id", lambda: "none")
        jobs.set_slack()
        self.assertFalse(os.path.exists("/proc/none"))
