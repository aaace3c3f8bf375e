"""Hand-over: a connection moves to another worker, and its client does not notice."""

from __future__ import annotations

import threading
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.framing import HEADER, encode
from ccserver.core.limits import FloodLimit, Heartbeat, SessionLimits
from ccserver.core.outbox import SendLimits
from ccserver.core.session import CloseReason
from ccserver.net.giver import WINDOW, Giver
from ccserver.net.reactor import DirectReactor
from tests.net.moving import SERVER, TIMEOUT, Machine, in_thread
from tests.support import PATIENCE, logged, texts


class MovingCase(SynchronousTestCase):
    """Has an old and a new worker of one application."""

    reactor_class: Any = DirectReactor

    def setUp(self) -> None:
        self.machine = Machine(self)
        self.machine.reactor_class = self.reactor_class
        self.app = App()
        self.events: list[Any] = []
        self.waits: list[Deferred[bytes]] = []
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.addCleanup(self.gate.release, 1000)

        @self.app.message(1)
        async def echo(session: Any, request: bytes) -> bytes:
            return request

        @self.app.message(2)
        async def wait(session: Any, request: bytes) -> bytes:
            result: Deferred[bytes] = Deferred()
            self.waits.append(result)
            return await result

        @self.app.message(3)
        def block(session: Any, request: bytes) -> bytes:
            self.entered.release()
            assert self.gate.acquire(timeout=PATIENCE)
            return request

        @self.app.message(4)
        async def big(session: Any, request: bytes) -> None:
            for number in range(int(request)):
                session.send(4, number.to_bytes(4, "big") * 10000)

        @self.app.message(5)
        async def count(session: Any, request: bytes) -> bytes:
            number = session.state["count"] = session.state.get("count", 0) + 1
            return b"%d" % number

    def start(self, limits: SessionLimits | None = None, **more: Any) -> Any:
        """The client of a connection to the old worker."""
        self.old = self.machine.worker(self.app, limits, **more)
        self.new = self.machine.worker(self.app, limits, **more)
        self.client = self.old.connect()
        return self.client

    def move(self) -> Any:
        report = self.machine.move(self.old, self.new)
        return report.moved or report.left

    def assert_moved(self) -> None:
        self.assertEqual(self.move(), 1)

    def stays(self, reason: str) -> None:
        """The connection does not move, and goes on where it is."""
        self.assertEqual(self.machine.move(self.old, self.new), (0, {reason: 1}))
        self.client.send((1, b"still here"))
        self.client.expect(b"still here")
        self.assertEqual((len(self.old.connections), len(self.new.connections)), (1, 0))


class StreamTests(MovingCase):
    def test_a_packet_may_be_split_at_every_byte(self):
        client = self.start()
        packet = encode(1, b"split")
        for place in range(len(packet) + 1):
            client.send_bytes(packet[:place])
            self.machine.turn(2)
            self.assert_moved()
            client.send_bytes(packet[place:])
            client.expect(b"split")
            self.old, self.new = self.new, self.old
        self.assertEqual(self.old.only.session.bytes_in, len(packet) * (len(packet) + 1))
        self.assertEqual(self.old.only.session.packets_in, len(packet) + 1)

    def test_what_comes_meanwhile_waits_in_the_kernel(self):
        client = self.start()
        reports = self.machine.give(self.old, self.new)
        client.send((1, b"meanwhile"))
        self.machine.until(lambda: reports)
        client.expect(b"meanwhile")
        self.assertEqual(self.new.only.session.packets_in, 1)

    def test_replies_that_were_not_sent_come_in_order_and_once(self):
        client = self.start(send_limits=SendLimits(0, 0, 0))
        client.send((4, b"200"), (1, b"end"))
        self.machine.turn(3)
        self.assertGreater(self.old.only.lane.unsent, 0)
        self.assert_moved()
        client.send((4, b"3"), (1, b"more"))
        numbers = [*range(200), None, *range(3), None]
        bodies = [b"end" if n is None else n.to_bytes(4, "big") * 10000 for n in numbers]
        bodies[-1] = b"more"
        client.expect(*bodies)

    def test_what_was_partly_sent_goes_on_in_the_middle(self):
        client = self.start()
        client.send((4, b"100"))
        self.machine.turn(3)
        transport = client.protocol.transport
        self.machine.until(lambda: transport.unsent % 40008 or not client.read(10_001))
        self.assertGreater(transport.unsent, 0)
        self.assert_moved()
        client.read_to(100 * 40008)
        want = b"".join(encode(4, n.to_bytes(4, "big") * 10000) for n in range(100))
        self.assertEqual(bytes(client.got), want)

    def test_a_client_that_does_not_read_is_not_read_after_the_move_either(self):
        client = self.start(lane_packets=2)
        client.send((4, b"100"))
        self.machine.turn(3)
        self.assert_moved()
        client.send(*[(1, b"%d" % number) for number in range(5)])
        self.machine.turn(3)
        client.send((1, b"not read"))
        self.machine.turn(3)
        self.assertEqual(self.new.only.session.packets_in, 1 + 5)
        client.read_to(100 * 40008 + 5 * 9 + 16)
        self.assertTrue(client.got.endswith(b"not read"))

    def test_nor_is_one_of_which_so_many_bytes_wait(self):
        client = self.start(lane_bytes=1000)
        client.send((4, b"90"), *[(1, bytes(28000))] * 3)
        self.machine.turn(3)
        for _ in range(5):
            client.send((1, bytes(400)))
            self.machine.turn(3)
        self.assertEqual(self.old.only.session.packets_in, 4 + 4)
        self.assert_moved()
        self.machine.turn(3)
        self.assertEqual(self.new.only.session.packets_in, 4 + 4)
        client.read_to(90 * 40008 + 3 * 28008 + 5 * 408)
        self.assertTrue(self.new.only.lane.idle)

    def test_an_end_of_the_stream_is_seen_by_the_new_worker(self):
        client = self.start()
        reports = self.machine.give(self.old, self.new)
        client.send((1, b"last"))
        client.sock.shutdown(1)
        self.machine.until(lambda: reports)
        client.expect(b"last")
        self.machine.until(lambda: self.new.counts.closed)
        self.assertEqual(self.new.counts.closed, {CloseReason.CLIENT_CLOSED: 1})

    def test_a_connection_moves_as_often_as_one_likes(self):
        client = self.start()
        for number in range(1, 30):
            client.send((5, b""))
            client.expect(b"%d" % number)
            self.assert_moved()
            self.old, self.new = self.new, self.old


class StockReactorStreamTests(StreamTests):
    reactor_class = EPollReactor


class HandlerTests(MovingCase):
    def test_a_handler_that_waits_has_its_reply_sent_where_it_is(self):
        client = self.start()
        client.send((2, b""), (1, b"behind"), (1, b"it"))
        self.machine.turn(2)
        reports = self.machine.give(self.old, self.new)
        self.machine.turn(5)
        self.assertEqual((reports, len(self.new.connections)), ([], 0))
        self.waits.pop().callback(b"waited")
        self.machine.until(lambda: reports)
        self.assertEqual(reports, [(1, {})])
        client.expect(b"waited", b"behind", b"it")
        self.assertEqual(self.new.only.session.packets_in, 3)

    def test_the_next_handler_that_waits_does_so_in_the_new_worker(self):
        client = self.start()
        client.send((2, b""), (2, b""))
        self.machine.turn(2)
        reports = self.machine.give(self.old, self.new)
        self.waits[0].callback(b"first")
        self.machine.until(lambda: reports)
        self.machine.until(lambda: len(self.waits) == 2)
        self.waits[1].callback(b"second")
        client.expect(b"first", b"second")

    def test_a_thread_stops_behind_the_call_it_is_in(self):
        client = self.start(threads=1)
        client.send(*[(3, b"%d" % number) for number in range(3)])
        self.machine.until(lambda: self.entered.acquire(blocking=False))
        reports = self.machine.give(self.old, self.new)
        self.machine.turn(3)
        self.assertEqual(reports, [])
        self.gate.release()
        self.machine.until(lambda: reports)
        self.assertEqual(reports, [(1, {})])
        self.assertFalse(self.old.pool.unfinished)
        self.gate.release(2)
        client.expect(b"0", b"1", b"2")
        self.assertEqual(self.new.only.session.packets_out, 3)

    def test_a_job_that_no_thread_has_begun_is_done_in_the_new_worker(self):
        self.start(threads=1)
        self.client.send((3, b"in the thread"))
        self.machine.until(lambda: self.entered.acquire(blocking=False))
        other = self.old.connect()
        other.send((3, b"one"), (3, b"two"))
        self.machine.turn(3)
        self.assertEqual(self.old.pool.unfinished, 2)
        report = self.machine.move(self.old, self.new, [other.protocol])
        self.assertEqual(report, (1, {}))
        self.gate.release(3)
        other.expect(b"one", b"two")
        self.client.expect(b"in the thread")
        self.machine.until(lambda: not self.old.pool.unfinished)
        self.assertEqual(other.packets(), [])

    def test_past_the_timeout_it_is_served_on_here(self):
        client = self.start()
        client.send((2, b""), (1, b"behind"))
        self.machine.turn(2)
        reports = self.machine.give(self.old, self.new)
        self.machine.advance(TIMEOUT - 0.1)
        self.assertEqual(reports, [])
        self.machine.advance(0.2)
        self.assertEqual(reports, [(0, {"handler": 1})])
        client.send((1, b"new"))
        self.waits.pop().callback(b"waited")
        client.expect(b"waited", b"behind", b"new")
        self.assert_moved()

    def test_past_the_timeout_a_thread_goes_on_with_its_job(self):
        client = self.start(threads=1)
        client.send((3, b"0"), (3, b"1"))
        self.machine.until(lambda: self.entered.acquire(blocking=False))
        reports = self.machine.give(self.old, self.new)
        self.machine.advance(TIMEOUT + 1)
        self.assertEqual(reports, [(0, {"handler": 1})])
        self.gate.release(2)
        client.expect(b"0", b"1")

    def test_one_that_waits_keeps_no_other(self):
        client = self.start()
        client.send((2, b""))
        others = [self.old.connect() for _ in range(3 * WINDOW)]
        self.machine.turn(2)
        reports = self.machine.give(self.old, self.new)
        self.machine.until(lambda: len(self.new.connections) == len(others))
        self.assertEqual(reports, [])
        self.waits.pop().callback(b"")
        self.machine.until(lambda: reports)
        self.assertEqual(reports, [(3 * WINDOW + 1, {})])


class PushTests(MovingCase):
    def test_what_a_thread_sent_before_the_move_comes(self):
        client = self.start()
        in_thread(self.old.only.session.send, 9, b"pushed")
        reports = self.machine.give(self.old, self.new)
        in_thread(client.protocol.session.send, 9, b"gone")
        self.machine.until(lambda: reports)
        client.send((1, b"asked"))
        client.expect(b"pushed", b"asked")

    def test_what_a_thread_sends_while_the_connection_is_brought_to_rest_comes(self):
        client = self.start(threads=1)
        session = self.old.only.session
        client.send((3, b"reply"))
        self.machine.until(lambda: self.entered.acquire(blocking=False))
        reports = self.machine.give(self.old, self.new)
        in_thread(session.send, 9, b"pushed")
        self.gate.release()
        self.machine.until(lambda: reports)
        client.expect(b"pushed", b"reply")

    def test_a_push_in_the_moment_of_leaving_comes_or_was_too_late(self):
        client = self.start()
        session = client.protocol.session
        dump_state = session.__class__.dump_state

        def meanwhile(it: Any) -> bytes:
            in_thread(session.send, 9, b"in time")
            return bytes(dump_state(it))

        self.patch(session.__class__, "dump_state", meanwhile)
        self.assert_moved()
        session.send(9, b"too late")
        in_thread(session.send, 9, b"too late")
        self.machine.turn(3)
        client.send((1, b"asked"))
        client.expect(b"in time", b"asked")

    def test_a_close_by_a_thread_in_the_moment_of_leaving_counts(self):
        client = self.start()
        session = client.protocol.session
        dump_state = session.__class__.dump_state

        def meanwhile(it: Any) -> bytes:
            in_thread(session.close)
            return bytes(dump_state(it))

        self.patch(session.__class__, "dump_state", meanwhile)
        self.assertEqual(self.move(), {"closing": 1})
        client.read_to_end()

    def test_the_session_of_the_old_worker_does_nothing_any_more(self):
        client = self.start()
        session = client.protocol.session
        self.assert_moved()
        session.send(9, b"nothing")
        session.close()
        self.machine.turn(3)
        client.send((1, b"asked"))
        client.expect(b"asked")


class HookTests(MovingCase):
    def hooks(self, thread: bool) -> None:
        """Note in C{events} which hooks are called, and with what state."""
        for name in ("on_connection_made", "on_handover", "on_adopt", "on_connection_lost"):
            self.hook(name, thread)

    def hook(self, name: str, thread: bool) -> None:
        def note(session: Any, *reason: str) -> None:
            self.events.append((name, dict(session.state), *reason))
            session.state[name] = session.state.get(name, 0) + 1

        async def note_async(session: Any, *reason: str) -> None:
            note(session, *reason)

        getattr(self.app, name)(note if thread else note_async)

    def check_order(self) -> None:
        client = self.start(threads=1)
        client.send((1, b"x"))
        client.expect(b"x")
        self.assert_moved()
        client.send((1, b"y"))
        client.expect(b"y")
        client.sock.close()
        self.machine.until(lambda: len(self.events) == 4)
        one = dict.fromkeys(("on_connection_made", "on_handover", "on_adopt"), 1)
        names = list(one)
        self.assertEqual(
            self.events,
            [
                ("on_connection_made", {}),
                ("on_handover", {names[0]: 1}),
                ("on_adopt", {names[0]: 1, names[1]: 1}),
                ("on_connection_lost", one, CloseReason.CLIENT_CLOSED),
            ],
        )

    def test_they_are_called_in_order_on_the_reactor(self):
        self.hooks(False)
        self.check_order()

    def test_they_are_called_in_order_in_threads(self):
        self.hooks(True)
        self.check_order()

    def test_on_adopt_comes_before_what_waited(self):
        @self.app.on_adopt
        async def greet(session: Any) -> None:
            session.send(9, b"adopted")

        client = self.start()
        client.send((2, b""), (1, b"behind"))
        self.machine.turn(2)
        reports = self.machine.give(self.old, self.new)
        self.waits.pop().callback(b"waited")
        self.machine.until(lambda: reports)
        client.expect(b"waited", b"adopted", b"behind")

    def test_on_adopt_that_raises_is_logged_and_the_connection_stays(self):
        @self.app.on_adopt
        async def fail(session: Any) -> None:
            raise KeyError("adopt")

        client = self.start()
        self.assert_moved()
        client.send((1, b"x"))
        client.expect(b"x")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_on_handover_may_refuse(self):
        @self.app.on_handover
        async def refuse(session: Any) -> bool:
            return False

        @self.app.on_handover
        async def never(session: Any) -> None:
            self.events.append("asked although refused")

        self.start()
        self.stays("refused")
        self.assertEqual(self.events, [])

    def test_on_handover_in_a_thread_may_refuse(self):
        @self.app.on_handover
        def refuse(session: Any) -> bool:
            return False

        self.start(threads=1)
        self.stays("refused")

    def test_on_handover_that_raises_refuses(self):
        @self.app.on_handover
        async def fail(session: Any) -> None:
            raise KeyError("handover")

        self.start()
        self.stays("refused")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(self.old.counts.handler_errors, 1)

    def test_on_handover_that_takes_too_long_is_a_handler_that_does(self):
        @self.app.on_handover
        async def slow(session: Any) -> None:
            result: Deferred[bytes] = Deferred()
            self.waits.append(result)
            await result

        client = self.start()
        reports = self.machine.give(self.old, self.new)
        self.machine.advance(TIMEOUT + 1)
        self.assertEqual(reports, [(0, {"handler": 1})])
        client.send((1, b"still here"))
        self.waits.pop().callback(b"")
        client.expect(b"still here")

    def test_the_hook_of_a_new_connection_runs_where_it_was_accepted(self):
        @self.app.on_connection_made
        def made(session: Any) -> None:
            self.entered.release()
            assert self.gate.acquire(timeout=PATIENCE)
            self.events.append(threading.current_thread())

        client = self.start(threads=1)
        client.send((1, b"x"))
        other = self.old.connect()  # whose hook waits for the thread
        other.send((1, b"y"))
        self.machine.until(lambda: self.entered.acquire(blocking=False))
        reports = self.machine.give(self.old, self.new)
        self.machine.turn(3)
        self.gate.release(2)
        self.machine.until(lambda: reports)
        client.expect(b"x")
        other.expect(b"y")
        self.assertEqual(reports, [(2, {})])
        self.assertEqual(len(self.events), 2)
        self.assertTrue(set(self.events) <= set(self.old.pool._threads))


class StateTests(MovingCase):
    def test_the_applications_values_move_along(self):
        client = self.start()
        values = {"name": "ä", "ids": (1, 2**70), "seen": {b"\x00", None}, "at": 1.5}
        client.protocol.session.state.update(values)
        self.assert_moved()
        self.assertEqual(self.new.only.session.state, values)

    def test_a_value_that_is_not_plain_keeps_the_connection_here(self):
        client = self.start()
        client.protocol.session.state["user"] = {"lock": threading.Lock()}
        events = logged(self)
        self.stays("state")
        self.assertEqual(
            texts(events),
            ["not handed over: session.state['user']['lock']: _thread.lock is not plain"],
        )

    def test_what_is_known_of_the_connection_moves_along(self):
        client = self.start()
        client.send((1, b"x"))
        client.expect(b"x")
        old = client.protocol.session
        self.machine.now += 5
        self.new.factory.server = "10.0.0.1:1"  # the port it came to may be gone
        self.assert_moved()
        new = self.new.only.session
        names = ("id", "peer", "server", "started", "bytes_in", "bytes_out", "packets_in")
        for name in (*names, "packets_out"):
            self.assertEqual(getattr(new, name), getattr(old, name), name)
        self.assertEqual(new.server, SERVER)

    def test_the_line_of_its_end_tells_of_its_whole_life(self):
        client = self.start(log_ends=True)
        client.send((1, b"x"))
        client.expect(b"x")
        self.machine.now += 5
        events = logged(self)
        self.assert_moved()
        client.send((1, b"xy"))
        client.expect(b"xy")
        self.machine.now += 2
        client.sock.close()
        self.machine.until(lambda: self.new.counts.closed)
        ends = [text for text in texts(events) if text.startswith("closed")]
        self.assertEqual(
            ends,
            ["closed: client_closed, 7.000 s, in 19 bytes 2 packets, out 19 bytes 2 packets"],
        )

    def test_it_is_counted_as_moved_and_neither_as_accepted_nor_as_closed(self):
        self.start()
        self.old.counts.accepted = 1
        self.assert_moved()
        self.assertEqual((self.old.counts.handed_over, self.new.counts.adopted), (1, 1))
        self.assertEqual((self.new.counts.accepted, self.old.counts.closed), (0, {}))
        self.assertEqual((len(self.old.connections), len(self.new.connections)), (0, 1))


class LimitsTests(MovingCase):
    def start_with(self, old: SessionLimits, new: SessionLimits, **more: Any) -> Any:
        self.old = self.machine.worker(self.app, old)
        self.new = self.machine.worker(self.app, new, **more)
        self.client = self.old.connect()
        return self.client

    def ends(self, reason: CloseReason) -> None:
        self.client.read_to_end()
        self.client.sock.close()
        self.machine.until(lambda: self.new.counts.closed)
        self.assertEqual(self.new.counts.closed, {reason: 1})

    def test_the_new_workers_bound_holds_for_a_packet_that_is_incomplete(self):
        client = self.start_with(SessionLimits(), SessionLimits(max_packet_length=100))
        client.send((2, b""))
        client.send_bytes(HEADER.pack(101, 1, 0))
        self.machine.turn(2)
        reports = self.machine.give(self.old, self.new)
        self.waits.pop().callback(b"answered before")
        self.machine.until(lambda: reports)
        client.expect(b"answered before")
        self.ends(CloseReason.BAD_LENGTH)

    def test_quick_packets_are_counted_on(self):
        limits = SessionLimits(flood=FloodLimit(0.1, 10))
        client = self.start_with(limits, limits)
        client.send(*[(1, b"")] * 6)
        client.expect(*[b""] * 6)
        self.assert_moved()
        client.send(*[(1, b"")] * 6)
        client.expect(*[b""] * 4)
        self.ends(CloseReason.FLOOD)

    def test_packets_that_waited_are_not_counted_again(self):
        limits = SessionLimits(flood=FloodLimit(0.1, 10))
        client = self.start_with(limits, limits)
        client.send((2, b""), *[(1, b"")] * 9)
        self.machine.turn(2)
        reports = self.machine.give(self.old, self.new)
        self.waits.pop().callback(b"")
        self.machine.until(lambda: reports)
        client.expect(*[b""] * 10)
        self.assertEqual(self.new.only.session.packets_in, 10)

    def test_silence_is_counted_on(self):
        limits = SessionLimits(heartbeat=Heartbeat(5))
        self.start_with(limits, limits)
        self.machine.now += 20
        self.assert_moved()
        self.machine.now += 4
        self.new.connections.check_heartbeats()
        self.assertIsNone(self.new.only.session.close_reason)
        self.machine.now += 7
        self.old.connections.check_heartbeats()
        self.assertEqual(self.old.counts.closed, {})
        self.new.connections.check_heartbeats()
        self.ends(CloseReason.IDLE)

    def test_silence_that_nobody_counted_begins_with_the_move(self):
        self.start_with(SessionLimits(), SessionLimits(heartbeat=Heartbeat(5)))
        self.machine.now += 100
        self.assert_moved()
        for _ in range(5):
            self.machine.now += 5
            self.new.connections.check_heartbeats()
        self.assertIsNone(self.new.only.session.close_reason)
        self.machine.now += 5
        self.new.connections.check_heartbeats()
        self.ends(CloseReason.IDLE)

    def test_the_limit_of_connections_keeps_none_out(self):
        client = self.start_with(SessionLimits(), SessionLimits(), connections=0)
        self.assert_moved()
        client.send((1, b"x"))
        client.expect(b"x")

    def test_a_worker_that_stops_answers_what_came_and_closes(self):
        client = self.start_with(SessionLimits(), SessionLimits())
        self.new.connections.draining = True
        client.send((2, b""), (1, b"waited"))
        self.machine.turn(2)
        reports = self.machine.give(self.old, self.new)
        client.send((1, b"came"))
        self.waits.pop().callback(b"")
        self.machine.until(lambda: reports)
        client.expect(b"", b"waited", b"came")
        self.ends(CloseReason.DRAIN)


class StayTests(MovingCase):
    def test_tls(self):
        client = self.start()
        client.protocol.transport.TLS = True
        self.assertEqual(self.move(), {"tls": 1})
        client.protocol.transport.TLS = False

    def test_a_transport_of_another_kind(self):
        client = self.start()
        transport, client.protocol.transport = client.protocol.transport, object()
        self.assertEqual(self.move(), {"tls": 1})
        client.protocol.transport = transport

    def test_one_that_has_begun_to_end(self):
        client = self.start()
        client.send((2, b""))
        self.machine.turn(2)
        client.sock.shutdown(1)
        self.machine.turn(2)
        self.assertEqual(self.move(), {"closing": 1})
        self.waits.pop().callback(b"answered")
        client.expect(b"answered")

    def test_one_that_has_ended_before_its_turn(self):
        client = self.start()
        connections = [client.protocol]
        client.sock.close()
        self.machine.until(lambda: self.old.counts.closed)
        self.assertEqual(self.machine.move(self.old, self.new, connections), (0, {"closing": 1}))

    def ends_while_it_comes_to_rest(self, end: Any) -> None:
        client = self.start()
        client.send((2, b""))
        self.machine.turn(2)
        reports = self.machine.give(self.old, self.new)
        end(client)
        self.machine.until(lambda: reports)
        self.assertEqual(reports, [(0, {"closing": 1})])
        self.waits.pop().callback(b"answered")
        client.expect(b"answered")
        self.assertEqual(client.packets(), [])

    def test_one_that_the_application_closes_while_it_comes_to_rest(self):
        self.ends_while_it_comes_to_rest(lambda client: client.protocol.session.close())

    def test_one_whose_worker_stops_while_it_comes_to_rest(self):
        self.ends_while_it_comes_to_rest(lambda client: self.old.connections.finish())

    def test_one_that_breaks_while_it_comes_to_rest(self):
        client = self.start()
        client.send((2, b""))
        self.machine.turn(2)
        reports = self.machine.give(self.old, self.new)
        client.protocol.abort()
        self.machine.until(lambda: reports)
        self.assertEqual(reports, [(0, {"closing": 1})])
        self.waits.pop().callback(b"too late")


class TwoChannelsTests(MovingCase):
    def test_one_that_comes_to_rest_for_another_channel_is_left_to_it(self):
        client = self.start()
        client.send((2, b""))
        self.machine.turn(2)
        first = self.machine.give(self.old, self.new)
        self.machine.turn(2)
        second = self.machine.move(self.old, self.new)
        self.waits.pop().callback(b"waited")
        self.machine.until(lambda: first)
        self.assertEqual((first, second), ([(1, {})], (0, {"handler": 1})))
        client.expect(b"waited")

    def test_one_that_is_on_its_way_through_another_channel_is_left_to_it(self):
        client = self.start()
        connections = list(self.old.connections)
        ours, _theirs = self.machine.channel()
        Giver(self.old.reactor, ours, TIMEOUT).give(connections)
        self.assertEqual(len(self.old.connections), 0)
        second = self.machine.move(self.old, self.new, connections)
        self.assertEqual(second, (0, {"closing": 1}))
        self.assertEqual(client.packets(), [])


class ManyTests(MovingCase):
    def test_many_that_cannot_be_carried_cost_few_lines(self):
        self.start()
        for _ in range(50):
            self.old.connect().protocol.session.state["x"] = object()
        events = logged(self)
        self.assertEqual(self.machine.move(self.old, self.new), (1, {"state": 50}))
        self.assertLess(len(events), 20)

    def test_many_move_with_their_traffic(self):
        self.start()
        clients = [self.client, *(self.old.connect() for _ in range(300))]
        for number, client in enumerate(clients):
            packet = encode(1, b"%d" % number)
            client.send_bytes(packet + packet[: number % len(packet)])
        self.machine.turn(3)
        self.assertEqual(self.machine.move(self.old, self.new), (301, {}))
        for number, client in enumerate(clients):
            packet = encode(1, b"%d" % number)
            client.send_bytes(packet[number % len(packet) :] + packet)
            client.expect(*[b"%d" % number] * 3)

    def test_new_ones_may_be_accepted_meanwhile(self):
        self.start()
        reports = self.machine.give(self.old, self.new)
        other = self.old.connect()
        self.machine.until(lambda: reports)
        self.assertEqual(reports, [(1, {})])
        other.send((1, b"x"))
        other.expect(b"x")

    def test_nothing_to_move_is_done_at_once(self):
        self.start()
        self.assertEqual(self.machine.move(self.old, self.new, []), (0, {}))
