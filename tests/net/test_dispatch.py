"""Dispatch: every packet is answered in order, by whatever mixture of handlers."""

from __future__ import annotations

import gc
import inspect
import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.session import CloseReason, Session
from ccserver.errors import BadBody, PacketTooLong, ProtocolError
from ccserver.message import Message, field
from ccserver.net import dispatch, jobs, lane
from ccserver.net.pool import Pool
from tests.support import (
    PATIENCE,
    FakeConnection,
    FakeReactor,
    FakeWorker,
    connect,
    logged,
    take_no_time,
    texts,
    wait_for_pool,
)


class Number(Message):
    value: int = field.u16()


class Bug(Exception):
    """What a handler of the tests raises."""


class Gate:
    """Holds a handler in its thread until the test lets it go on."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Semaphore(0)
        test.addCleanup(self.open, 1000)

    def wait(self) -> None:
        self.entered.release()
        assert self._open.acquire(timeout=PATIENCE)

    def reached(self) -> None:
        """Wait until a handler is in."""
        assert self.entered.acquire(timeout=PATIENCE)

    def open(self, times: int = 1) -> None:
        self._open.release(times)


class DispatchCase(SynchronousTestCase):
    """Has an application, and connections to workers that serve it."""

    def setUp(self) -> None:
        self.app = App()
        self.waits: list[Deferred[Any]] = []

    def on(self, code: int, function: Callable[[Session, Any], Any], thread: bool = False) -> None:
        """Handle C{code} by C{function}, on the reactor or in a thread."""
        if thread:

            def handler(session: Session, request: bytes) -> Any:
                return function(session, request)

            self.app.message(code)(handler)
        else:

            async def handler_async(session: Session, request: bytes) -> Any:
                return function(session, request)

            self.app.message(code)(handler_async)

    def echo(self, code: int, thread: bool = False) -> None:
        self.on(code, lambda session, request: request, thread)

    def waiting(self, code: int) -> None:
        """Handle C{code} by waiting for a Deferred of C{waits}, whose result is the reply."""

        @self.app.message(code)
        async def handler(session: Session, request: bytes) -> Any:
            result: Deferred[Any] = Deferred()
            self.waits.append(result)
            return await result

    def connect(self, threads: int = 0, **worker: Any) -> FakeConnection:
        connection: FakeConnection = connect(self, self.app, threads=threads, **worker)
        self.worker = connection.worker
        return connection


class RepliesCase(DispatchCase):
    """What a handler may return and raise; the same in a thread as on the reactor."""

    thread: bool

    def answers(self, function: Callable[[Session, Any], Any], *bodies: bytes) -> list[Any]:
        """What comes back for C{bodies}, sent in one go to the handler C{function}."""
        self.on(3, function, self.thread)
        self.client = self.connect(threads=1)
        self.client.receive(*((3, body) for body in bodies or [b"x"]))
        self.worker.idle()
        return self.client.sent()

    def requests(self, annotation: Any, body: bytes) -> list[Any]:
        """What a handler with this annotation of its request is called with."""
        got: list[Any] = []

        def remember(session: Session, request: Any) -> None:
            got.append(request)

        if self.thread:

            def handler(session: Session, request: annotation) -> None:
                remember(session, request)

        else:

            async def handler(session: Session, request: annotation) -> None:
                remember(session, request)

        handler.__annotations__["request"] = annotation
        self.app.message(3)(handler)
        self.client = self.connect(threads=1)
        self.client.receive((3, body))
        self.worker.idle()
        return got

    def test_bytes_are_sent_under_the_code_of_the_request(self):
        self.assertEqual(self.answers(lambda s, r: r + b"!", b"a"), [(3, b"a!")])

    def test_no_bytes_are_a_header(self):
        self.assertEqual(self.answers(lambda s, r: b""), [(3, b"")])

    def test_a_message_is_sent_as_its_body(self):
        self.assertEqual(self.answers(lambda s, r: Number(value=258)), [(3, b"\x01\x02")])

    def test_none_sends_nothing(self):
        self.assertEqual(self.answers(lambda s, r: None), [])
        self.assertEqual(self.worker.counts.handler_errors, 0)

    def test_other_kinds_of_bytes_are_bytes(self):
        for kind in (bytearray, memoryview, type("Mine", (bytes,), {})):
            self.app = App()
            self.assertEqual(self.answers(lambda s, r, kind=kind: kind(b"a")), [(3, b"a")])

    def test_replies_of_one_read_are_written_in_one_go(self):
        take_no_time(self)
        self.answers(lambda s, r: r, *[b"a"] * 20)
        self.assertEqual(self.client.transport.writes, 1)

    def test_anything_else_is_the_handlers_error(self):
        for wrong in ("text", 5, [b"a"], object()):
            self.app = App()
            self.assertEqual(self.answers(lambda s, r, wrong=wrong: wrong), [])
            self.assertEqual(self.worker.counts.handler_errors, 1)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 4)

    def test_a_reply_that_fits_no_packet_is_the_handlers_error(self):
        self.assertEqual(self.answers(lambda s, r: bytes(65528)), [])
        self.assertEqual(len(self.flushLoggedErrors(PacketTooLong)), 1)
        self.assertEqual(self.worker.counts.handler_errors, 1)

    def test_the_longest_reply_fits(self):
        self.assertEqual(self.answers(lambda s, r: bytes(65527)), [(3, bytes(65527))])

    def test_a_message_that_cannot_be_encoded_is_the_handlers_error(self):
        self.assertEqual(self.answers(lambda s, r: Number(value=70000)), [])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_message_that_is_encoded_as_no_bytes_is_the_handlers_error(self):
        for wrong in ("text", 5, None):
            self.app = App()
            kind = type("Odd", (Number,), {"encode": lambda message, wrong=wrong: wrong})
            self.assertEqual(self.answers(lambda s, r, kind=kind: kind(value=1)), [])
            self.assertEqual(self.worker.counts.handler_errors, 1)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 3)

    def test_of_many_that_raise_each_is_counted_and_some_are_logged(self):
        def raises(session, request):
            raise Bug("again")

        self.assertEqual(self.answers(raises, *[b"a"] * 1000), [])
        self.assertEqual(self.worker.counts.handler_errors, 1000)
        seconds = 5  # that it may take here, at most
        lines = len(self.flushLoggedErrors(Bug))
        self.assertTrue(10 <= lines <= 10 * seconds, lines)

    def test_what_it_raises_is_logged_counted_and_not_sent(self):
        def raises(session, request):
            raise Bug("secret")

        self.assertEqual(self.answers(raises), [])
        self.assertEqual(len(self.flushLoggedErrors(Bug)), 1)
        self.assertEqual(self.worker.counts.handler_errors, 1)
        self.assertTrue(self.client.connected)

    def test_the_log_names_handler_and_code(self):
        def raises(session, request):
            raise Bug

        events = logged(self)
        self.answers(raises)
        self.flushLoggedErrors(Bug)
        name = self.app.handlers[3].name
        self.assertIn(f"handler {name} of code 3 raised", texts(events))
        self.assertTrue(any(event.get("session") is self.client.session for event in events))

    def test_raising_what_is_no_exception_ends_nothing(self):
        for kind in (SystemExit, KeyboardInterrupt):

            def raises(session, request, kind=kind):
                if request == b"bad":
                    raise kind
                return request

            self.app = App()
            self.assertEqual(self.answers(raises, b"bad", b"good"), [(3, b"good")])
            self.assertEqual(len(self.flushLoggedErrors(kind)), 1)

    def test_who_comes_behind_one_that_raises_is_answered(self):
        def raises_once(session, request):
            if request == b"bad":
                raise Bug
            return request

        answers = self.answers(raises_once, b"a", b"bad", b"b", b"bad", b"c")
        self.assertEqual([body for _, body in answers], [b"a", b"b", b"c"])
        self.assertEqual(len(self.flushLoggedErrors(Bug)), 2)

    def test_a_protocol_error_is_the_peers_fault(self):
        class Rude(ProtocolError):
            reason = "rude"

        def raises(session, request):
            raise Rude("no manners")

        self.assertEqual(self.answers(raises), [])
        self.assertEqual(self.worker.counts.refused, {"rude": 1})
        self.assertEqual(self.worker.counts.handler_errors, 0)

    def test_an_unknown_code_is_counted_and_skipped(self):
        self.echo(3, self.thread)
        self.client = self.connect(threads=1)
        self.client.receive((3, b"a"), (9, b"?"), (3, b"b"), (9, b"?"))
        self.worker.idle()
        self.assertEqual(self.client.bodies(), [b"a", b"b"])
        self.assertEqual(self.worker.counts.refused, {"unknown_code": 2})

    def test_a_message_is_decoded(self):
        self.assertEqual(self.requests(Number, b"\x01\x02"), [Number(value=258)])

    def test_bytes_come_as_they_are(self):
        self.assertEqual(self.requests(bytes, b"\x01\x02"), [b"\x01\x02"])

    def test_none_is_an_empty_body(self):
        self.assertEqual(self.requests(None, b""), [None])

    def test_a_body_of_the_wrong_size_is_refused(self):
        for annotation, body in ((Number, b"\x01"), (None, b"x")):
            self.app = App()
            self.assertEqual(self.requests(annotation, body), [])
            self.assertEqual(self.worker.counts.refused, {"bad_body": 1})
            self.assertTrue(self.client.connected)

    def test_what_was_sent_is_counted(self):
        self.answers(lambda s, r: r if r else None, b"a", b"", b"ccc")
        session = self.client.session
        self.assertEqual((session.packets_out, session.bytes_out), (2, 9 + 11))


class AsyncRepliesTests(RepliesCase):
    thread = False


class ThreadRepliesTests(RepliesCase):
    thread = True

    def test_the_handler_runs_in_a_thread_of_the_pool(self):
        names = []
        self.answers(lambda s, r: names.append(threading.current_thread().name))
        self.assertNotEqual(names, [threading.current_thread().name])

    def test_consecutive_packets_are_one_job(self):
        gate = Gate(self)
        self.on(3, lambda s, r: gate.wait(), thread=True)
        client = self.connect(threads=3)
        client.receive(*[(3, b"")] * 10)
        self.assertEqual(self.worker.pool.unfinished, 1)
        gate.open(10)
        self.worker.idle()
        self.assertEqual(self.worker.pool.unfinished, 0)

    def test_a_quick_reply_does_not_wait_for_a_slow_handler_behind_it(self):
        self.patch(jobs, "FLUSH_AFTER", -1.0)
        gate = Gate(self)
        self.on(3, lambda s, r: r, thread=True)
        self.on(4, lambda s, r: gate.wait(), thread=True)
        client = self.connect(threads=1)
        client.receive((3, b"quick"), (4, b""))
        gate.reached()
        got: list[Any] = []
        self.worker.wait(lambda: got.extend(client.bodies()) or got)
        self.assertEqual(got, [b"quick"])


del RepliesCase


class OrderTests(DispatchCase):
    def setUp(self) -> None:
        super().setUp()
        self.echo(1)
        self.waiting(2)
        self.echo(3, thread=True)

    def test_what_follows_a_handler_that_waits_waits_too(self):
        client = self.connect(threads=1)
        client.receive((2, b""), (1, b"b"), (3, b"c"))
        client.receive((1, b"d"))
        self.assertEqual(client.sent(), [])
        self.waits.pop().callback(b"a")
        self.worker.idle()
        self.assertEqual(client.bodies(), [b"a", b"b", b"c", b"d"])

    def test_what_follows_a_thread_waits_too(self):
        gate = Gate(self)
        self.on(4, lambda s, r: gate.wait() or r, thread=True)
        client = self.connect(threads=2)
        client.receive((4, b"a"), (1, b"b"))
        client.receive((3, b"c"))
        gate.reached()
        self.assertEqual(client.sent(), [])
        gate.open()
        self.worker.idle()
        self.assertEqual(client.bodies(), [b"a", b"b", b"c"])

    def test_replies_from_before_a_wait_are_not_held_back(self):
        client = self.connect()
        client.receive((1, b"a"), (2, b""), (1, b"c"))
        self.assertEqual(client.bodies(), [b"a"])

    def test_connections_do_not_wait_for_each_other(self):
        one = self.connect()
        other = self.worker.connect()
        one.receive((2, b""), (1, b"later"))
        other.receive((1, b"now"))
        self.assertEqual(other.bodies(), [b"now"])
        self.assertEqual(one.bodies(), [])

    def test_a_handler_that_gives_others_their_turn_does_not_get_ahead_of_itself(self):
        self.on(5, lambda s, r: self.waits.pop().callback(b"woken") or b"waker")
        sleeper = self.connect()
        waker = self.worker.connect()
        sleeper.receive((2, b""), (1, b"behind"))
        waker.receive((5, b""), (1, b"after"))
        self.assertEqual(sleeper.bodies(), [b"woken", b"behind"])
        self.assertEqual(waker.bodies(), [b"waker", b"after"])

    def test_a_packet_that_comes_in_while_a_handler_runs_waits_for_it(self):
        client = self.connect()
        self.on(6, lambda s, r: client.receive((1, b"inner")) or b"outer")
        client.worker.dispatch.handlers.update(self.app.handlers)
        client.receive((6, b""), (1, b"next"))
        self.assertEqual(client.bodies(), [b"outer", b"next", b"inner"])


KINDS = ("now", "wait", "wait twice", "thread", "bug", "thread bug", "none", "unknown", "push")
KINDS += ("thread push", "bad body", "protocol error")


class AnyMixtureTests(DispatchCase):
    """Whatever the handlers do, each connection's replies come in the order of its requests."""

    def setUp(self) -> None:
        super().setUp()
        code = KINDS.index
        self.echo(code("now"))
        self.echo(code("thread"), thread=True)
        self.on(code("none"), lambda session, request: None)
        self.on(code("bug"), self.bug)
        self.on(code("thread bug"), self.bug, thread=True)
        self.on(code("push"), self.push)
        self.on(code("thread push"), self.push, thread=True)

        @self.app.message(code("wait"))
        async def wait(session: Session, request: bytes) -> bytes:
            await self.wait()
            return request

        @self.app.message(code("wait twice"))
        async def wait_twice(session: Session, request: bytes) -> bytes:
            await self.wait()
            session.send(99, request)
            await self.wait()
            return request

        @self.app.message(code("bad body"))
        async def bad_body(session: Session, request: Number) -> bytes:
            return b"never"

        @self.app.message(code("protocol error"))
        async def protocol_error(session: Session, request: bytes) -> bytes:
            raise BadBody("no")

        self.worker = FakeWorker(self, self.app, threads=2, lane_packets=3)

    def bug(self, session: Session, request: bytes) -> bytes:
        raise Bug

    def push(self, session: Session, request: bytes) -> bytes:
        session.send(99, request)
        return request

    def wait(self) -> Deferred[None]:
        result: Deferred[None] = Deferred()
        self.waits.append(result)
        return result

    def expected(self, kind: str, body: bytes) -> list[tuple[int, bytes]]:
        reply = (KINDS.index(kind), body)
        if kind in ("push", "thread push", "wait twice"):
            return [(99, body), reply]
        return [reply] if kind in ("now", "wait", "thread") else []

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 2),  # which connection
                st.lists(st.sampled_from(KINDS), max_size=6),  # what it sends in one segment
                st.booleans(),  # whether a handler that waits may go on behind it
                st.booleans(),  # whether the threads' replies come in behind it
            ),
            max_size=12,
        )
    )
    @settings(deadline=None, max_examples=150)
    def test_replies_come_in_the_order_of_the_requests(
        self, segments: list[tuple[int, list[str], bool, bool]]
    ):
        clients = [self.worker.connect() for _ in range(3)]
        expected: list[list[tuple[int, bytes]]] = [[], [], []]
        number = 0
        for place, kinds, goes_on, threads_come in segments:
            packets = []
            for kind in kinds:
                number += 1
                body = b"%03d" % number
                packets.append((KINDS.index(kind), body))
                expected[place] += self.expected(kind, body)
            clients[place].receive(*packets)
            if goes_on and self.waits:
                self.waits.pop(number % len(self.waits)).callback(None)
            if threads_come:
                self.worker.idle()
        while self.waits or self.worker.pool.unfinished:
            if self.waits:
                self.waits.pop(0).callback(None)
            self.worker.idle()
        self.flushLoggedErrors(Bug)
        self.assertEqual([client.sent() for client in clients], expected)
        self.assertTrue(all(client.reading for client in clients))
        for client in clients:
            client.reset()


class SendTests(DispatchCase):
    def test_what_an_async_handler_sends_comes_before_its_reply(self):
        self.echo(1)
        self.on(2, lambda session, request: session.send(9, b"pushed") or b"reply")
        client = self.connect()
        client.receive((1, b"a"), (2, b""), (1, b"b"))
        self.assertEqual(client.bodies(), [b"a", b"pushed", b"reply", b"b"])

    def test_so_it_does_after_a_wait(self):
        @self.app.message(2)
        async def handler(session: Session, request: bytes) -> bytes:
            session.send(9, b"before")
            await self.waits[0]
            session.send(9, b"after")
            return b"reply"

        self.waits.append(Deferred())
        client = self.connect()
        client.receive((2, b""))
        self.assertEqual(client.bodies(), [b"before"])
        self.waits[0].callback(None)
        self.assertEqual(client.bodies(), [b"after", b"reply"])

    def test_what_a_thread_sends_comes_before_its_reply_and_behind_those_before(self):
        self.echo(3, thread=True)
        self.on(4, lambda s, r: s.send(9, b"one") or s.send(9, b"two") or b"reply", thread=True)
        client = self.connect(threads=1)
        client.receive((3, b"a"), (4, b""), (3, b"b"))
        self.worker.idle()
        self.assertEqual(client.bodies(), [b"a", b"one", b"two", b"reply", b"b"])

    def test_a_handler_may_send_to_another_connection(self):
        for thread, code in ((False, 2), (True, 4)):
            self.app = App()
            self.on(code, lambda s, r: self.other.session.send(9, r) or b"done", thread)
            client = self.connect(threads=1)
            self.other = self.worker.connect()
            client.receive((code, b"hello"))
            self.worker.wait(lambda: self.other.transport.value())
            self.assertEqual(self.other.sent(), [(9, b"hello")])

    def test_any_thread_may_send(self):
        client = self.connect()
        thread = threading.Thread(target=lambda: client.session.send(9, b"hello"))
        thread.start()
        thread.join()
        self.assertEqual(client.sent(), [], "only the reactor's thread writes")
        self.worker.pool.doRead()
        self.assertEqual(client.sent(), [(9, b"hello")])

    def test_sending_while_a_handler_waits_does_not_wait(self):
        self.waiting(2)
        client = self.connect()
        client.receive((2, b""))
        client.session.send(9, b"now")
        self.assertEqual(client.bodies(), [b"now"])

    def test_what_is_sent_is_counted(self):
        client = self.connect()
        client.session.send(9, b"hello")
        self.assertEqual((client.session.packets_out, client.session.bytes_out), (1, 13))

    def test_sending_on_a_lost_connection_does_nothing(self):
        client = self.connect()
        session = client.session
        client.reset()
        session.send(9, b"hello")
        self.assertEqual(client.sent(), [])


class CloseTests(DispatchCase):
    def setUp(self) -> None:
        super().setUp()
        self.echo(1)
        self.echo(3, thread=True)
        self.waiting(2)
        self.on(5, lambda s, r: s.close() or b"bye")
        self.on(6, lambda s, r: s.close() or b"bye", thread=True)

    def test_the_reply_of_the_async_handler_that_closes_is_still_sent(self):
        client = self.connect()
        client.receive((1, b"a"), (5, b""), (1, b"dropped"))
        self.assertEqual(client.bodies(), [b"a", b"bye"])
        self.assertTrue(client.transport.ended)

    def test_the_reply_of_the_thread_that_closes_is_still_sent(self):
        client = self.connect(threads=1)
        client.receive((3, b"a"), (6, b""), (3, b"dropped"), (1, b"dropped"))
        self.worker.idle()
        self.assertEqual(client.bodies(), [b"a", b"bye"])
        self.assertTrue(client.transport.ended)

    def test_the_reason_is_the_handler(self):
        client = self.connect()
        client.receive((5, b""))
        self.assertIs(client.session.close_reason, CloseReason.HANDLER)

    def test_no_more_is_read(self):
        client = self.connect()
        client.receive((5, b""))
        client.sent()
        client.receive((1, b"late"))
        self.assertEqual(client.sent(), [])

    def test_the_reply_that_is_waited_for_is_sent_and_what_waits_behind_it_is_dropped(self):
        client = self.connect()
        client.receive((2, b""), (1, b"dropped"))
        client.session.close()
        self.assertFalse(client.transport.ended)
        self.waits.pop().callback(b"a")
        self.assertEqual(client.bodies(), [b"a"])
        self.assertTrue(client.transport.ended)

    def test_any_thread_may_close(self):
        client = self.connect()
        thread = threading.Thread(target=client.session.close)
        thread.start()
        thread.join()
        self.assertFalse(client.transport.ended)
        self.worker.pool.doRead()
        self.assertTrue(client.transport.ended)

    def test_closing_twice_is_no_fault(self):
        client = self.connect()
        client.session.close()
        client.session.close()
        client.turn()
        client.session.close()
        client.end()
        client.turn()
        client.session.close()
        self.assertFalse(client.connected)
        self.assertEqual(client.clock.getDelayedCalls(), [])


class FullLaneTests(DispatchCase):
    """What waits is bounded, and reading is paused at the bound."""

    def setUp(self) -> None:
        super().setUp()
        self.echo(1)
        self.waiting(2)

    def test_reading_is_paused_when_so_many_packets_wait(self):
        client = self.connect(lane_packets=4)
        client.receive((2, b""))
        client.receive(*[(1, b"")] * 3)
        self.assertTrue(client.reading)
        client.receive((1, b""))
        self.assertFalse(client.reading)

    def test_so_it_is_behind_a_thread(self):
        gate = Gate(self)
        self.on(3, lambda s, r: gate.wait(), thread=True)
        client = self.connect(threads=1, lane_packets=4)
        client.receive((3, b""))
        client.receive(*[(1, b"")] * 4)
        self.assertFalse(client.reading)
        gate.open()
        self.worker.idle()
        self.assertTrue(client.reading)

    def test_it_is_resumed_when_half_of_them_are_left(self):
        self.patch(lane, "BATCH", 1)
        client = self.connect(lane_packets=4)
        client.receive((2, b""))
        client.receive((2, b""), (2, b""), (2, b""), (2, b""))
        states = []
        while self.waits:
            states.append(client.reading)
            self.waits.pop().callback(b"")
        self.assertEqual(states, [False, False, True, True, True])

    def test_so_many_bytes_are_a_bound_as_well(self):
        client = self.connect(lane_bytes=1000)
        client.receive((2, b""))
        for _ in range(4):  # the read of the first one that waits does not count
            self.assertTrue(client.reading)
            client.receive((1, bytes(326)))
        self.assertFalse(client.reading)
        self.waits.pop().callback(b"")
        self.assertTrue(client.reading)

    def test_and_half_of_them_are_where_it_is_resumed(self):
        self.patch(lane, "BATCH", 1)
        client = self.connect(lane_bytes=1000)
        client.receive((2, b""))
        for _ in range(4):
            client.receive((2, bytes(326)))
        states = []
        while self.waits:
            states.append(client.reading)
            self.waits.pop().callback(b"")
        self.assertEqual(states, [False, False, True, True, True])

    def test_every_packet_is_answered_all_the_same(self):
        client = self.connect(lane_packets=1)
        client.receive((2, b""), (1, b"b"), (2, b""))
        client.receive((1, b"d"))
        self.waits.pop().callback(b"a")
        self.waits.pop().callback(b"c")
        self.assertEqual(client.bodies(), [b"a", b"b", b"c", b"d"])
        self.assertTrue(client.reading)


class SlowReaderTests(DispatchCase):
    """Who does not read his replies is not answered any further."""

    def setUp(self) -> None:
        super().setUp()
        self.handled = 0
        self.on(1, self.big)
        self.on(3, self.big, thread=True)

    def big(self, session: Session, request: bytes) -> bytes:
        self.handled += 1
        return request + bytes(1000)

    def test_a_blocked_connection_handles_nothing(self):
        client = self.connect()
        client.block()
        client.receive((1, b""))
        self.assertEqual(self.handled, 0)
        client.unblock()
        self.assertEqual(len(client.sent()), 1)

    def test_reading_is_paused_when_too_many_wait(self):
        client = self.connect(lane_packets=4)
        client.block()
        client.receive(*[(1, b"")] * 4)
        self.assertFalse(client.reading)
        client.unblock()
        self.assertTrue(client.reading)
        self.assertEqual(self.handled, 4)

    def check_bound(self, code: int) -> None:
        client = self.connect(threads=1)
        client.transport.limit = 65536
        bodies = [b"%03d" % n for n in range(400)]
        client.receive(*((code, body) for body in bodies))
        self.worker.idle()
        self.assertLess(self.handled, 150)
        got = client.bodies()
        while len(got) < 400:
            client.unblock()
            self.worker.idle()
            more = client.bodies()
            self.assertTrue(more)
            got += more
        self.assertEqual([body[:3] for body in got], bodies)

    def test_one_read_asks_for_more_than_the_client_takes_on_the_reactor(self):
        self.check_bound(1)

    def test_one_read_asks_for_more_than_the_client_takes_in_a_thread(self):
        self.check_bound(3)

    def test_a_client_that_blocks_while_a_handler_waits_gets_the_reply_alone(self):
        self.waiting(2)
        client = self.connect()
        client.receive((2, b""))
        client.receive((1, b""))
        client.block()
        self.waits.pop().callback(b"a")
        self.assertEqual((client.bodies(), self.handled), ([], 0))
        client.unblock()
        self.assertEqual((client.bodies(), self.handled), ([b"a", bytes(1000)], 1))


class HookTests(DispatchCase):
    def setUp(self) -> None:
        super().setUp()
        self.seen: list[Any] = []
        self.on(1, lambda s, r: self.seen.append("packet"))
        self.on(3, lambda s, r: self.seen.append("packet"), thread=True)
        self.on(5, lambda s, r: s.close())
        self.on(6, lambda s, r: s.close(), thread=True)

    def lost_hook(self, name: str, thread: bool = False) -> None:
        if thread:

            @self.app.on_connection_lost
            def lost(session: Session, reason: str) -> None:
                self.seen.append((name, reason))

        else:

            @self.app.on_connection_lost
            async def lost_async(session: Session, reason: str) -> None:
                self.seen.append((name, reason))

    def test_made_comes_before_the_first_packet(self):
        for thread in (False, True):
            self.app.connection_made.clear()
            self.seen.clear()
            if thread:
                self.app.on_connection_made(lambda session: self.seen.append("made"))
            else:

                @self.app.on_connection_made
                async def made(session: Session) -> None:
                    self.seen.append("made")

            client = self.connect(threads=1)
            client.receive((1, b""))
            self.worker.idle()
            self.assertEqual(self.seen, ["made", "packet"])

    def test_the_first_packet_waits_for_a_made_hook_that_waits(self):
        @self.app.on_connection_made
        async def made(session: Session) -> None:
            self.waits.append(Deferred())
            await self.waits[0]
            session.send(9, b"welcome")

        self.echo(7)
        client = self.connect()
        client.receive((7, b"first"))
        self.assertEqual(client.sent(), [])
        self.waits[0].callback(None)
        self.assertEqual(client.bodies(), [b"welcome", b"first"])

    def test_a_made_hook_sets_the_state_that_handlers_see(self):
        @self.app.on_connection_made
        def made(session: Session) -> None:
            session.state["name"] = b"ada"

        self.on(7, lambda session, request: session.state["name"])
        client = self.connect(threads=1)
        client.receive((7, b""))
        self.worker.idle()
        self.assertEqual(client.bodies(), [b"ada"])

    def test_lost_is_told_the_reason(self):
        self.lost_hook("lost")
        self.connect().reset()
        self.assertEqual(self.seen, [("lost", "client_reset")])

    def test_lost_comes_behind_all_packets(self):
        for thread in (False, True):
            self.seen.clear()
            self.app.connection_lost.clear()
            self.lost_hook("lost", thread)
            gate = Gate(self)
            self.on(10 + thread, lambda s, r, gate=gate: gate.wait(), thread=True)
            client = self.connect(threads=1)
            client.receive((10 + thread, b""), (1, b""), (3, b""))
            gate.reached()
            client.reset()
            gate.open()
            self.worker.idle()
            self.assertEqual(self.seen, ["packet", "packet", ("lost", "client_reset")])

    def test_hooks_are_called_in_the_order_they_were_given(self):
        for name, thread in (("a", False), ("b", True), ("c", False), ("d", True)):
            self.lost_hook(name, thread)
        self.connect(threads=2).reset()
        self.worker.idle()
        self.assertEqual([name for name, _ in self.seen], ["a", "b", "c", "d"])

    def test_a_hook_that_raises_is_logged_and_the_next_is_called(self):
        @self.app.on_connection_lost
        async def lost(session: Session, reason: str) -> None:
            raise Bug

        @self.app.on_connection_lost
        def lost_thread(session: Session, reason: str) -> None:
            raise Bug

        self.lost_hook("lost")
        events = logged(self)
        self.connect(threads=1).reset()
        self.worker.idle()
        self.assertEqual([name for name, _ in self.seen], ["lost"])
        self.assertEqual(len(self.flushLoggedErrors(Bug)), 2)
        self.assertEqual(texts(events), ["hook lost raised", "hook lost_thread raised"])

    def test_a_made_hook_that_raises_does_not_end_the_connection(self):
        @self.app.on_connection_made
        async def made(session: Session) -> None:
            raise Bug

        client = self.connect()
        client.receive((1, b""))
        self.assertEqual(self.seen, ["packet"])
        self.assertEqual(len(self.flushLoggedErrors(Bug)), 1)

    def test_a_made_hook_may_close(self):
        @self.app.on_connection_made
        async def made(session: Session) -> None:
            session.close()

        client = self.connect()
        client.receive((1, b""))
        self.assertEqual(self.seen, [])
        self.assertTrue(client.transport.ended)

    def test_all_lost_hooks_are_called_after_a_handler_has_closed(self):
        for thread, code in ((False, 5), (True, 6)):
            for hooks_in_thread in (False, True):
                self.seen.clear()
                self.app.connection_lost.clear()
                self.lost_hook("a", hooks_in_thread)
                self.lost_hook("b", hooks_in_thread)
                client = self.connect(threads=1)
                client.receive((code, b""))
                self.worker.idle()
                client.turn()
                client.end()
                client.turn()
                self.worker.idle()
                self.assertEqual(
                    self.seen, [("a", "handler"), ("b", "handler")], (thread, hooks_in_thread)
                )

    def test_lost_hooks_are_called_when_a_thread_closes_a_connection_that_is_gone(self):
        self.lost_hook("lost")
        gate = Gate(self)
        self.on(7, lambda s, r: gate.wait() or s.close(), thread=True)
        client = self.connect(threads=1)
        client.receive((7, b""))
        gate.reached()
        client.reset()
        gate.open()
        self.worker.idle()
        self.assertEqual(self.seen, [("lost", "client_reset")])

    def test_no_packet_can_call_a_hook(self):
        self.lost_hook("lost")
        client = self.connect()
        for code in (0xFFFF, 0xFFFE, 0x7FFF):
            client.receive((code, b""))
        self.assertEqual(self.seen, [])
        self.assertEqual(self.worker.counts.refused, {"unknown_code": 3})


class LostTests(DispatchCase):
    def test_what_waits_is_still_handled_and_its_replies_are_dropped(self):
        handled = []
        self.waiting(2)
        self.on(1, lambda s, r: handled.append(r) or r)
        self.on(3, lambda s, r: handled.append(r) or r, thread=True)
        client = self.connect(threads=1)
        client.receive((2, b""), (1, b"b"), (3, b"c"))
        client.reset()
        self.waits.pop().callback(b"a")
        self.worker.idle()
        self.assertEqual(handled, [b"b", b"c"])
        self.assertEqual(client.sent(), [])

    def test_a_blocked_lane_goes_on_when_the_connection_is_lost(self):
        handled = []
        self.on(1, lambda s, r: handled.append(r) or r)
        client = self.connect()
        client.block()
        client.receive((1, b"a"))
        client.reset()
        self.assertEqual(handled, [b"a"])

    def test_a_reply_never_reaches_a_later_connection(self):
        self.waiting(2)
        old = self.connect()
        old.receive((2, b""))
        old.reset()
        new = self.worker.connect()
        self.waits.pop().callback(b"late")
        self.assertEqual(new.sent(), [])


class AwaitTests(DispatchCase):
    def test_a_handler_that_raises_what_ends_generators_ends_nothing(self):
        def leave(session: Session, request: bytes) -> bytes:
            raise GeneratorExit

        self.on(1, leave)
        self.echo(2)
        client = self.connect()
        client.receive((1, b""), (2, b"a"))
        client.receive((2, b"b"))
        self.assertEqual(client.bodies(), [b"a", b"b"])
        self.assertEqual(len(self.flushLoggedErrors(GeneratorExit)), 1)
        self.assertEqual(self.worker.counts.handler_errors, 1)

    def test_a_handler_that_still_waits_when_all_is_over_is_no_fault(self):
        self.waiting(1)
        client = self.connect()
        runner = self.worker.dispatch.take_runner()
        self.worker.dispatch.idle_runners = [runner]
        client.receive((1, b""))
        self.assertEqual(len(self.waits), 1)
        runner.close()
        self.assertEqual(self.worker.counts.handler_errors, 0)

    def test_a_deferreds_result_is_what_await_gives(self):
        self.waiting(2)
        client = self.connect()
        client.receive((2, b""))
        self.waits.pop().callback(b"result")
        self.assertEqual(client.bodies(), [b"result"])

    def test_a_deferred_that_has_its_result_is_not_waited_for(self):
        @self.app.message(2)
        async def handler(session: Session, request: bytes) -> bytes:
            result: Deferred[bytes] = Deferred()
            result.callback(b"there")
            return await result

        client = self.connect()
        client.receive((2, b""))
        self.assertEqual(client.bodies(), [b"there"])

    def test_a_deferred_that_fails_raises_in_the_handler(self):
        @self.app.message(2)
        async def handler(session: Session, request: bytes) -> bytes:
            self.waits.append(Deferred())
            try:
                await self.waits[0]
            except Bug:
                return b"caught"
            return b"not raised"

        client = self.connect()
        client.receive((2, b""))
        self.waits[0].errback(Bug())
        self.assertEqual(client.bodies(), [b"caught"])

    def test_a_failure_that_nobody_catches_is_the_handlers_error(self):
        self.waiting(2)
        self.echo(1)
        client = self.connect()
        client.receive((2, b""), (1, b"next"))
        self.waits.pop().errback(Bug())
        gc.collect()  # an unhandled error in a Deferred would be logged once more
        self.assertEqual([failure.type for failure in self.flushLoggedErrors()], [Bug])
        self.assertEqual(self.worker.counts.handler_errors, 1)
        self.assertEqual(client.bodies(), [b"next"])

    def test_a_deferred_that_is_cancelled_raises_in_the_handler(self):
        self.waiting(2)
        client = self.connect()
        client.receive((2, b""))
        self.waits.pop().cancel()
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)
        self.assertEqual(client.session.close_reason, None)

    def test_a_protocol_error_behind_a_wait_is_the_peers_fault(self):
        self.waiting(2)
        client = self.connect()
        client.receive((2, b""))
        self.waits.pop().errback(BadBody("no"))
        self.assertEqual(self.worker.counts.refused, {"bad_body": 1})

    def test_awaiting_what_is_no_deferred_is_no_end_of_the_connection(self):
        class Odd:
            def __await__(self):
                return (yield 42)

        @self.app.message(2)
        async def handler(session: Session, request: bytes) -> bytes:
            return repr(await Odd()).encode()

        self.echo(1)
        client = self.connect()
        client.receive((2, b""), (1, b"next"))
        self.assertEqual(client.bodies(), [b"next"])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_a_deferred_that_never_fires_holds_its_own_connection_alone(self):
        self.waiting(2)
        self.echo(1)
        stuck = self.connect()
        stuck.receive((2, b""), (1, b""))
        other = self.worker.connect()
        for _ in range(10):
            other.receive((1, b"x"))
        self.assertEqual(len(other.sent()), 10)

    def test_a_context_variable_is_the_handlers_own_across_a_wait(self):
        user: ContextVar[int] = ContextVar("user")

        @self.app.message(2)
        async def handler(session: Session, request: bytes) -> bytes:
            user.set(session.id)
            for _ in range(2):
                self.waits.append(Deferred())
                await self.waits[-1]
            return b"same" if user.get() == session.id else b"another's"

        first = self.connect()
        second = self.worker.connect()
        first.receive((2, b""))
        second.receive((2, b""))
        while self.waits:
            self.waits.pop(0).callback(None)
        self.assertEqual(first.bodies() + second.bodies(), [b"same", b"same"])

    def test_awaiting_another_coroutine_waits_for_what_that_awaits(self):
        async def inner() -> bytes:
            self.waits.append(Deferred())
            return await self.waits[0]

        @self.app.message(2)
        async def handler(session: Session, request: bytes) -> bytes:
            return b"got " + await inner()

        client = self.connect()
        client.receive((2, b""))
        self.waits[0].callback(b"it")
        self.assertEqual(client.bodies(), [b"got it"])


def runners() -> int:
    """How many generators of dispatch there are."""
    gc.collect()
    return sum(
        inspect.isgenerator(it) and it.gi_code.co_filename == dispatch.__file__
        for it in gc.get_objects()
    )


class CostTests(DispatchCase):
    """What is not needed for a packet is not made for it."""

    def test_a_handler_that_never_waits_costs_no_deferred(self):
        made = []
        original = Deferred.__init__

        def counted(deferred, *args, **kwargs):
            made.append(deferred)
            original(deferred, *args, **kwargs)

        self.echo(1)
        client = self.connect()
        self.patch(Deferred, "__init__", counted)
        for _ in range(10):
            client.receive(*[(1, b"")] * 10)
        self.assertEqual(len(client.sent()), 100)
        self.assertEqual(made, [])

    def test_handlers_that_never_wait_share_one_runner(self):
        self.echo(1)
        first = self.connect()
        before = runners()
        clients = [first, *(self.worker.connect() for _ in range(9))]
        for client in clients * 5:
            client.receive(*[(1, b"")] * 3)
        self.assertLessEqual(runners() - before, 1)

    def test_runners_that_have_waited_are_used_again(self):
        self.waiting(2)
        first = self.connect()
        before = runners()
        clients = [first, *(self.worker.connect() for _ in range(9))]
        for _ in range(5):
            for client in clients:
                client.receive((2, b""))
            while self.waits:
                self.waits.pop().callback(b"")
        self.assertLessEqual(runners() - before, 10)

    def test_many_completions_share_one_wake_up(self):
        writes = []
        original = os.eventfd_write
        self.patch(os, "eventfd_write", lambda fd, n: writes.append(fd) or original(fd, n))
        self.echo(3, thread=True)
        client = self.connect(threads=1)
        clients = [client, *(self.worker.connect() for _ in range(19))]
        for client in clients:
            client.receive((3, b"x"))
        behind = threading.Event()
        self.worker.pool.run(behind.set)  # the only thread gets to it behind all of them
        self.assertTrue(behind.wait(PATIENCE))
        self.assertEqual(writes.count(self.worker.pool.fileno()), 1)
        self.worker.idle()
        self.assertEqual([client.bodies() for client in clients], [[b"x"]] * 20)


class PoolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.pool = Pool(self.reactor, 2)
        self.pool.start()
        self.stopped = False
        self.addCleanup(self.stop)

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.pool.stop()

    def result_of(self, function: Callable[..., Any], *args: Any) -> Any:
        done = self.pool.run(function, *args)
        wait_for_pool(self.pool, lambda: done.called)
        return done

    def test_a_function_is_run_in_a_thread(self):
        name = self.successResultOf(self.result_of(threading.get_ident))
        self.assertNotEqual(name, threading.get_ident())

    def test_it_gets_its_arguments(self):
        self.assertEqual(self.successResultOf(self.result_of(pow, 2, 5)), 32)

    def test_what_it_raises_is_the_failure(self):
        self.failureResultOf(self.result_of(int, "x"), ValueError)

    def test_even_what_is_no_exception(self):
        def leave() -> None:
            raise SystemExit

        self.failureResultOf(self.result_of(leave), SystemExit)
        self.assertEqual(self.successResultOf(self.result_of(pow, 2, 5)), 32)

    def test_it_fires_in_the_reactors_thread(self):
        done = self.pool.run(int)
        idents: list[int] = []
        done.addCallback(lambda _: idents.append(threading.get_ident()))
        wait_for_pool(self.pool, lambda: idents)
        self.assertEqual(idents, [threading.get_ident()])

    def test_who_asks_learns_whether_he_is_the_reactors_thread(self):
        self.assertTrue(self.pool.in_reactor())
        self.assertFalse(self.successResultOf(self.result_of(self.pool.in_reactor)))

    def test_calls_come_in_the_order_they_were_made(self):
        seen: list[int] = []
        for number in range(100):
            self.pool.call(seen.append, number)
        self.assertEqual(seen, [], "not before the reactor takes them")
        self.pool.doRead()
        self.assertEqual(seen, list(range(100)))

    def test_a_call_made_in_a_call_waits_for_the_next_turn(self):
        seen: list[str] = []
        self.pool.call(lambda: self.pool.call(seen.append, "second") or seen.append("first"))
        self.pool.doRead()
        self.assertEqual(seen, ["first"])
        wait_for_pool(self.pool, lambda: len(seen) == 2)

    def test_a_call_that_raises_is_logged_and_the_next_is_made(self):
        seen: list[int] = []
        self.pool.call(int, "x")
        self.pool.call(seen.append, 1)
        self.pool.doRead()
        self.assertEqual(seen, [1])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_jobs_given_before_the_stop_are_done(self):
        done = threading.Semaphore(0)
        for _ in range(20):
            self.pool.run(done.release)
        self.stop()
        self.assertTrue(all(done.acquire(timeout=PATIENCE) for _ in range(20)))

    def test_the_threads_end_with_the_stop(self):
        threads = [self.successResultOf(self.result_of(threading.current_thread))]
        self.stop()
        for thread in threads:
            thread.join(PATIENCE)
            self.assertFalse(thread.is_alive())

    def test_a_thread_that_never_ends_keeps_no_process_alive(self):
        thread = self.successResultOf(self.result_of(threading.current_thread))
        self.assertTrue(thread.daemon)

    def test_the_reactor_watches_it_until_the_stop(self):
        self.assertEqual(self.reactor.readers, [self.pool])
        self.stop()
        self.assertEqual(self.reactor.readers, [])

    def test_what_comes_behind_the_stop_is_no_fault(self):
        self.stop()
        self.pool.call(int)

    def test_without_threads_calls_still_come_back(self):
        pool = Pool(self.reactor, 5)
        before = set(threading.enumerate())
        pool.start(threads=False)
        self.addCleanup(pool.stop)
        self.assertEqual(set(threading.enumerate()) - before, set())
        seen: list[int] = []
        thread = threading.Thread(target=pool.call, args=(seen.append, 1))
        thread.start()
        thread.join()
        pool.doRead()
        self.assertEqual(seen, [1])
