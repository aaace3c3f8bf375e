"""Slices: who has had its own goes on behind all others, and nothing is lost or overtaken."""

from __future__ import annotations

import threading
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.session import CloseReason
from ccserver.native import native
from ccserver.net import dispatch, lane
from ccserver.net.lane import BATCH
from ccserver.net.slices import STRIDE, Slices
from ccserver.net.statistics import collect
from tests.net import ways
from tests.support import PATIENCE, FakeConnection, FakeWorker

ECHO, WAIT, CLOSE, UNKNOWN, RAISE, THREAD, SLOW = range(1, 8)

MOMENT = 1e-9
"""A slice that is over at the second look at the clock."""

FIRST = 2
"""Packets that are handled in the first one: as many as the second look is behind."""


class Broken:
    """A runner for which there is no memory."""

    def send(self, task: object) -> None:
        raise MemoryError


class Waiting:
    """Waits for so many slices, and tells when it has one."""

    def __init__(self, slices: Slices, name: str, times: int, told: list[str]) -> None:
        self.slices, self.name, self.times, self.told = slices, name, times, told
        slices.wait(self)

    def next_slice(self) -> None:
        self.told.append(self.name)
        self.times -= 1
        if self.times:
            self.slices.wait(self)
        if self.name == "bad":
            raise ArithmeticError


def due(clock: Clock) -> list[Any]:
    """What is to be called in the next turn."""
    return [call for call in clock.getDelayedCalls() if call.getTime() <= clock.seconds()]


def take_turn(clock: Clock) -> None:
    """Call what is due, as a reactor does: what is to be called at once from there comes next."""
    for call in due(clock):
        function, arguments = call.func, call.args
        call.cancel()
        function(*arguments)


class SlicesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.slices = Slices(self.clock, 1.0)
        self.told: list[str] = []

    def turns(self) -> list[str]:
        """Who had a slice in each turn, until nobody waits."""
        while self.clock.getDelayedCalls():
            before = len(self.told)
            try:
                take_turn(self.clock)
            except ArithmeticError:
                self.told.append("!")
            if len(self.told) > before:
                self.told.append("|")
        return self.told

    def test_each_has_its_own_in_order(self):
        for name in "abc":
            Waiting(self.slices, name, 1, self.told)
        self.assertEqual("".join(self.turns()), "a|b|c|")

    def test_who_wants_more_comes_behind_the_others(self):
        for name, times in (("a", 3), ("b", 1), ("c", 2)):
            Waiting(self.slices, name, times, self.told)
        self.assertEqual("".join(self.turns()), "a|b|c|a|c|a|")

    def test_one_that_fails_does_not_keep_the_others_waiting(self):
        for name in ("a", "bad", "c"):
            Waiting(self.slices, name, 2, self.told)
        self.assertEqual("".join(self.turns()), "a|bad!|c|a|bad!|c|")

    def test_who_leaves_has_none_and_the_others_do(self):
        waiting = [Waiting(self.slices, name, 1, self.told) for name in "abc"]
        self.assertTrue(self.slices.leave(waiting[1]))
        self.assertFalse(self.slices.leave(waiting[1]))
        self.assertEqual("".join(self.turns()), "a|c|")
        self.assertFalse(self.slices.leave(waiting[0]))

    def test_somebody_may_wait_again_behind_all_who_have_left(self):
        self.slices.leave(Waiting(self.slices, "a", 1, self.told))
        self.assertFalse(self.slices.wanted)
        Waiting(self.slices, "b", 1, self.told)
        self.assertTrue(self.slices.wanted)
        self.assertEqual("".join(self.turns()), "b|")

    def test_those_whose_clients_have_gone_have_every_second_slice(self):
        for name, times in (("a", 3), ("b", 2)):
            Waiting(self.slices, name, times, self.told)
        for name in "xyz":
            self.slices.leave(waiting := Waiting(self.slices, name, 1, self.told))
            self.slices.wait(waiting, gone=True)
        self.assertEqual("".join(self.turns()), "a|x|b|y|a|z|b|a|")

    def test_or_all_where_nobody_else_waits(self):
        for name in "xyz":
            self.slices.leave(waiting := Waiting(self.slices, name, 1, self.told))
            self.slices.wait(waiting, gone=True)
        self.assertEqual("".join(self.turns()), "x|y|z|")
        self.assertFalse(self.slices.wanted)

    def test_nothing_is_to_be_called_where_nobody_waits(self):
        self.assertEqual(self.clock.getDelayedCalls(), [])
        Waiting(self.slices, "a", 1, self.told)
        self.turns()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class LaneTests(SynchronousTestCase):
    """The lanes of a worker whose slices are as short as can be."""

    compiled = False

    def setUp(self) -> None:
        ways.go(self, self.compiled)
        self.app = App()
        self.waits: list[Deferred[None]] = []
        self.ends: list[Any] = []

        @self.app.message(ECHO)
        async def echo(session: Any, request: bytes) -> bytes:
            return request

        @self.app.message(WAIT)
        async def wait(session: Any, request: bytes) -> bytes:
            self.waits.append(Deferred())
            await self.waits[-1]
            return request

        @self.app.message(CLOSE)
        async def close(session: Any, request: bytes) -> bytes:
            session.close()
            return request

        @self.app.message(RAISE)
        async def fail(session: Any, request: bytes) -> bytes:
            raise ArithmeticError

        @self.app.message(THREAD)
        def thread(session: Any, request: bytes) -> bytes:
            return request

        @self.app.on_connection_lost
        async def lost(session: Any, reason: CloseReason) -> None:
            self.ends.append(reason)

    def connect(self, **worker: Any) -> FakeConnection:
        options: dict[str, Any] = {"slice_seconds": MOMENT, "lane_packets": 1000, **worker}
        self.worker = FakeWorker(self, self.app, **options)
        return self.worker.connect()

    def turn(self) -> None:
        take_turn(self.worker.reactor)

    def slices(self, client: FakeConnection) -> list[int]:
        """How many bodies are sent now and in each slice that follows; they are in order."""
        sent = [client.bodies()]
        while due(self.worker.reactor):
            self.turn()
            sent.append(client.bodies())
        bodies = [body for part in sent for body in part]
        self.assertEqual(bodies, sorted(bodies))
        return [len(part) for part in sent]

    @staticmethod
    def many(count: int, code: int = ECHO) -> list[tuple[int, bytes]]:
        return [(code, b"%04d" % n) for n in range(count)]

    def test_what_is_more_than_a_slice_is_answered_bit_by_bit_in_order(self):
        client = self.connect()
        client.receive(*self.many(100))
        sent = self.slices(client)
        self.assertEqual(sum(sent), 100)
        self.assertLessEqual(sent[0], FIRST)
        self.assertGreater(len(sent), 3)

    def test_others_are_served_in_between(self):
        one = self.connect()
        other = self.worker.connect(5001)
        one.receive(*self.many(100))
        other.receive((ECHO, b"quick"))
        self.assertEqual(other.bodies(), [b"quick"])
        self.assertLessEqual(len(one.sent()), FIRST)

    def test_two_that_send_much_take_turns(self):
        clients = [self.connect()]
        clients.append(self.worker.connect(5001))
        for client in clients:
            client.receive(*self.many(200))
            client.sent()
        progress = []
        while due(self.worker.reactor):
            self.turn()
            progress.append([len(client.sent()) for client in clients])
        self.assertTrue(all(0 in sent for sent in progress), progress)
        kept_waiting = [sent.index(0) for sent in progress[:6]]
        self.assertEqual(kept_waiting, [1, 0, 1, 0, 1, 0])

    def test_what_comes_meanwhile_is_answered_behind_it(self):
        client = self.connect()
        client.receive(*self.many(40))
        client.receive((ECHO, b"9999"))
        self.assertEqual(sum(self.slices(client)), 41)

    def test_its_client_is_not_read_while_too_much_waits(self):
        client = self.connect(lane_packets=50)
        client.receive(*self.many(200))
        self.assertFalse(client.reading)
        self.assertEqual(sum(self.slices(client)), 200)
        self.assertTrue(client.reading)

    def test_few_packets_are_handled_whatever_they_take(self):
        for count in (1, FIRST):
            client = self.connect()
            client.receive(*self.many(count))
            self.assertEqual(len(client.sent()), count)
            self.assertFalse(self.worker.dispatch.slices.wanted)

    def test_packets_that_wait_have_a_slice_together_not_each_batch_its_own(self):
        times = iter(range(1, 1000))
        self.patch(dispatch, "perf_counter", lambda: 1.0)  # so no batch is more than a slice
        self.patch(lane, "perf_counter", lambda: float(next(times)))
        client = self.connect(slice_seconds=1.5)
        client.receive((WAIT, b"0000"))
        client.receive(*self.many(6 * BATCH))
        self.waits.pop().callback(None)
        self.assertEqual(self.slices(client), [2 * BATCH + 1, 2 * BATCH, 2 * BATCH])

    def test_time_that_handlers_wait_is_nobodys_slice(self):
        times = iter(range(1, 1000))
        self.patch(dispatch, "perf_counter", lambda: float(next(times)))
        client = self.connect(slice_seconds=3.5)
        packets = self.many(4 * STRIDE)
        for place in (0, STRIDE + 1):
            packets[place] = (WAIT, packets[place][1])
        client.receive(*packets)
        for _ in range(2):  # looks behind 1, 2, 4 and 8 packets; then, behind the wait, 16 and 24
            self.waits.pop().callback(None)
            self.assertFalse(self.worker.dispatch.slices.wanted)
        self.assertEqual(len(client.sent()), 4 * STRIDE)

    def test_without_slices_all_are_handled(self):
        client = self.connect(slice_seconds=0.0)
        client.receive(*self.many(1000))
        self.assertEqual(len(client.sent()), 1000)

    def test_what_fails_is_refused_or_dropped_counts_too(self):
        for code, counted in ((UNKNOWN, "refused"), (RAISE, "failed")):
            client = self.connect()
            client.receive(*self.many(100, code), (ECHO, b"0"))
            counts = self.worker.counts
            first = counts.refused["unknown_code"] + counts.handler_errors
            self.assertLessEqual(first, 2 * FIRST, counted)
            self.assertEqual(sum(self.slices(client)), 1)
            self.assertEqual(counts.refused["unknown_code"] + counts.handler_errors, 100)
        self.flushLoggedErrors(ArithmeticError)

    def test_a_handler_that_waits_waits_in_its_place(self):
        client = self.connect()
        packets = self.many(60)
        packets[30] = (WAIT, packets[30][1])
        client.receive(*packets)
        self.assertEqual(sum(self.slices(client)), 30)
        self.waits.pop().callback(None)
        self.assertEqual(sum(self.slices(client)), 30)

    def test_what_goes_to_threads_goes_there(self):
        client = self.connect(threads=1)
        packets = self.many(60)
        packets[30] = (THREAD, packets[30][1])
        client.receive(*packets)
        sent = client.bodies()
        while len(sent) < 60:
            self.turn()
            self.worker.idle()
            sent += client.bodies()
        self.assertEqual(sent, [body for _, body in packets])

    def test_a_handler_that_closes_is_the_last(self):
        client = self.connect()
        packets = self.many(100)
        packets[40] = (CLOSE, packets[40][1])
        client.receive(*packets)
        self.assertEqual(sum(self.slices(client)), 41)
        self.assertIs(client.session.close_reason, CloseReason.HANDLER)

    def test_close_from_elsewhere_drops_what_waits(self):
        client = self.connect()
        client.receive(*self.many(100))
        first = len(client.sent())
        client.session.close()
        self.assertTrue(client.protocol.lane.idle)
        client.turn()
        client.end()
        client.turn()
        self.assertEqual((len(client.sent()), self.ends), (0, [CloseReason.HANDLER]))
        self.assertLessEqual(first, FIRST)

    def test_a_handler_that_closes_at_the_end_of_a_slice_ends_at_once(self):
        client = self.connect()
        packets = self.many(100)
        packets[FIRST - 1] = (CLOSE, b"")
        client.receive(*packets)
        self.assertTrue(client.protocol.lane.idle)
        self.assertFalse(self.worker.dispatch.slices.wanted)

    def test_the_clients_end_comes_behind_the_replies(self):
        client = self.connect()
        client.receive(*self.many(100))
        client.end()
        self.assertEqual(sum(self.slices(client)), 100)
        client.turn()
        self.assertEqual(self.ends, [CloseReason.CLIENT_CLOSED])

    def test_what_waits_of_a_broken_connection_is_handled_and_then_its_hooks(self):
        client = self.connect()
        client.receive(*self.many(100, RAISE))
        client.reset()
        self.assertEqual(self.ends, [])
        self.slices(client)
        self.assertEqual(self.worker.counts.handler_errors, 100)
        self.assertEqual(self.ends, [CloseReason.CLIENT_RESET])
        self.flushLoggedErrors(ArithmeticError)

    def test_what_is_left_of_a_broken_connection_takes_up_room_and_is_told_of(self):
        for code in (ECHO, THREAD):
            client = self.connect(connections=1, threads=1)
            connections, pool = self.worker.connections, self.worker.pool
            if code == THREAD:
                client.receive((WAIT, b""))
            client.receive(*self.many(100, code))
            client.reset()
            self.assertTrue(connections.full)
            figures = collect(connections, pool)
            self.assertEqual((figures["connections"], figures["remnants"]), (0, 1))
            self.assertGreater(figures["lane_packets"], 90)
            self.assertIsNone(self.worker.try_connect(5001))
            if code == THREAD:
                self.waits.pop().callback(None)
                self.worker.wait(lambda: not self.worker.connections.remnants)
            self.slices(client)
            self.assertFalse(connections.full)
            self.assertEqual(collect(connections, pool)["remnants"], 0)
            self.assertEqual(self.ends.pop(), CloseReason.CLIENT_RESET)

    def test_so_does_what_a_thread_has_in_hand(self):
        held, entered = threading.Semaphore(0), threading.Semaphore(0)
        self.addCleanup(held.release, 100)

        @self.app.message(SLOW)
        def slow(session: Any, request: bytes) -> None:
            entered.release()
            assert held.acquire(timeout=PATIENCE)

        client = self.connect(connections=1, threads=1)
        client.receive(*self.many(40, SLOW))
        assert entered.acquire(timeout=PATIENCE)
        client.reset()
        self.assertTrue(self.worker.connections.full)
        held.release(40)
        self.worker.wait(lambda: not self.worker.connections.full)
        self.assertEqual(self.ends, [CloseReason.CLIENT_RESET])

    def test_its_place_is_not_free_in_between(self):
        client = self.connect(connections=1)
        looks: list[bool] = []
        connections = self.worker.connections
        connections.on_freed = lambda: looks.append(connections.full)
        client.receive(*self.many(100))
        client.reset()
        self.assertEqual(looks, [True])
        self.slices(client)
        self.assertEqual(looks, [True, False])

    def test_what_cannot_be_handled_any_more_takes_up_none(self):
        client = self.connect(connections=1)
        client.receive(*self.many(100))
        client.reset()
        runners: list[Any] = self.worker.dispatch.idle_runners
        runners.append(Broken())
        self.assertRaises(MemoryError, self.turn)
        self.assertFalse(self.worker.connections.full)

    def test_a_living_one_comes_before_what_is_left_of_many(self):
        client = self.connect()
        for port in range(50):
            gone = self.worker.connect(6000 + port)
            gone.receive(*self.many(100))
            gone.reset()
        client.receive(*self.many(20))
        sent, turns = len(client.sent()), 0
        while sent < 20:
            self.turn()
            sent, turns = sent + len(client.sent()), turns + 1
        self.assertLess(turns, 25)

    def test_a_connection_that_is_cut_is_let_go(self):
        client = self.connect()
        client.receive(*self.many(100))
        client.protocol.abort()
        self.assertEqual(self.ends, [CloseReason.SHUTDOWN])

    def test_a_lane_that_is_to_rest_does_so_at_once(self):
        client = self.connect()
        client.receive(*self.many(100))
        first = len(client.sent())
        rests: list[bool] = []
        client.protocol.lane.hold(rests.append)
        self.assertEqual(rests, [True])
        self.turn()
        self.assertEqual(client.sent(), [])
        client.protocol.lane.unhold()
        self.assertEqual(first + sum(self.slices(client)), 100)

    def test_a_client_that_does_not_read_is_waited_for(self):
        client = self.connect()
        client.receive(*self.many(100))
        first = len(client.sent())
        client.block()
        self.turn()
        self.assertEqual(due(self.worker.reactor), [])
        client.unblock()
        self.assertEqual(first + sum(self.slices(client)), 100)


class CompiledLaneTests(LaneTests):
    compiled = True
    if native is None:
        skip = "the compiled part has not been built"
