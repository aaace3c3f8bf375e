"""A lane at rest: what is being handled ends, nothing new begins, and nothing is forgotten."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.net import lane
from tests.net.moving import in_thread
from tests.net.test_dispatch import Gate
from tests.support import FakeConnection, FakeWorker


class HoldCase(SynchronousTestCase):
    """Has a connection, whose lane is to come to rest."""

    def setUp(self) -> None:
        self.app = App()
        self.gate = Gate(self)
        self.waits: list[Deferred[Any]] = []
        self.told: list[bool] = []
        self.hooks: list[str] = []

        @self.app.message(1)
        async def echo(session: Any, request: bytes) -> bytes:
            return request

        @self.app.message(2)
        async def wait(session: Any, request: bytes) -> Any:
            result: Deferred[Any] = Deferred()
            self.waits.append(result)
            return await result

        @self.app.message(3)
        def block(session: Any, request: bytes) -> bytes:
            self.gate.wait()
            return request

        @self.app.message(4)
        async def hold_me(session: Any, request: bytes) -> bytes:
            self.hold()
            return request

        @self.app.message(5)
        async def close_me(session: Any, request: bytes) -> None:
            session.close()

    def connect(self, **worker: Any) -> FakeConnection:
        self.worker = FakeWorker(self, self.app, **worker)
        self.client = self.worker.connect()
        self.lane = self.client.protocol.lane
        return self.client

    def hold(self, *hooks: Any) -> None:
        self.lane.hold(self.told.append, hooks)


class RestTests(HoldCase):
    def test_a_lane_with_nothing_to_do_is_at_rest_at_once(self):
        self.connect()
        self.hold()
        self.assertEqual(self.told, [True])
        self.assertFalse(self.client.reading)

    def test_what_comes_then_waits(self):
        client = self.connect()
        self.hold()
        client.receive((1, b"a"), (1, b"b"))
        self.assertEqual(client.bodies(), [])
        self.assertEqual(self.lane.waiting, 2)

    def test_unhold_goes_on(self):
        client = self.connect()
        self.hold()
        client.receive((1, b"a"), (2, b""))
        client.receive((1, b"b"))
        self.lane.unhold()
        self.assertTrue(client.reading)
        self.waits.pop().callback(b"waited")
        client.receive((1, b"c"))
        self.assertEqual(client.bodies(), [b"a", b"waited", b"b", b"c"])

    def test_unhold_without_hold_does_nothing(self):
        client = self.connect()
        self.lane.unhold()
        client.receive((1, b"a"))
        self.assertEqual(client.bodies(), [b"a"])

    def test_a_handler_that_waits_is_waited_for_and_not_what_is_behind_it(self):
        client = self.connect()
        client.receive((2, b""), (1, b"behind"))
        client.receive((1, b"it"))
        self.hold()
        self.assertEqual(self.told, [])
        self.waits.pop().callback(b"waited")
        self.assertEqual((self.told, client.bodies()), ([True], [b"waited"]))
        self.assertEqual(self.lane.waiting, 2)
        self.lane.unhold()
        self.assertEqual(client.bodies(), [b"behind", b"it"])

    def test_a_handler_that_waits_again_is_waited_for_again(self):
        @self.app.message(6)
        async def twice(session: Any, request: bytes) -> Any:
            for _ in range(2):
                result: Deferred[Any] = Deferred()
                self.waits.append(result)
                reply = await result
            return reply

        client = self.connect()
        client.receive((6, b""))
        self.hold()
        self.waits[0].callback(None)
        self.assertEqual(self.told, [])
        self.waits[1].callback(b"done")
        self.assertEqual((self.told, client.bodies()), ([True], [b"done"]))

    def test_unhold_before_it_is_at_rest_is_as_if_nothing_had_been(self):
        client = self.connect()
        client.receive((2, b""), (1, b"behind"))
        self.hold()
        self.lane.unhold()
        self.waits.pop().callback(b"waited")
        self.assertEqual((self.told, client.bodies()), ([], [b"waited", b"behind"]))

    def test_it_may_be_held_again(self):
        client = self.connect()
        for _ in range(3):
            self.hold()
            client.receive((1, b"a"))
            self.lane.unhold()
        self.assertEqual(self.told, [True] * 3)
        self.assertEqual(client.bodies(), [b"a"] * 3)

    def test_a_handler_may_hold_its_own_lane(self):
        client = self.connect()
        client.receive((4, b"first"), (1, b"behind"))
        self.assertEqual((self.told, client.bodies()), ([True], [b"first"]))
        self.lane.unhold()
        self.assertEqual(client.bodies(), [b"behind"])

    def test_a_handler_may_hold_its_own_lane_where_nothing_is_behind_it(self):
        client = self.connect()
        client.receive((4, b"first"))
        self.assertEqual((self.told, client.bodies()), ([True], [b"first"]))
        client.receive((1, b"behind"))
        self.assertEqual(client.bodies(), [])

    def test_a_client_that_does_not_read_does_not_matter(self):
        client = self.connect()
        client.block()
        client.receive((1, b"a"))
        self.hold()
        self.assertEqual(self.told, [True])
        client.unblock()
        self.assertEqual((client.bodies(), client.reading), ([], False))
        self.lane.unhold()
        self.assertEqual(client.bodies(), [b"a"])

    def test_reading_stays_paused_where_too_many_packets_wait(self):
        client = self.connect(lane_packets=2)
        client.receive((2, b""))
        client.receive(*[(2, b"")] * 4)
        self.hold()
        self.lane.unhold()
        self.assertFalse(client.reading)

    def test_or_too_many_bytes_of_those_that_a_handler_had_in_hand(self):
        self.patch(lane, "BATCH", 1)
        client = self.connect(lane_bytes=1000)
        client.receive((2, b""), *[(2, bytes(400))] * 3)
        self.hold()
        self.waits.pop().callback(b"")
        self.assertEqual(self.told, [True])
        self.lane.unhold()
        self.assertFalse(client.reading)
        self.waits.pop().callback(b"")
        self.assertTrue(client.reading)


class ThreadTests(HoldCase):
    def test_a_thread_stops_behind_the_call_it_is_in(self):
        client = self.connect(threads=1)
        client.receive(*[(3, b"%d" % number) for number in range(3)])
        self.gate.reached()
        self.hold()
        self.assertEqual(self.told, [])
        self.gate.open()
        self.worker.wait(lambda: self.told)
        self.assertEqual(client.bodies(), [b"0"])
        self.assertEqual((self.lane.waiting, self.worker.pool.unfinished), (2, 0))
        self.lane.unhold()
        self.gate.open(2)
        self.worker.idle()
        self.assertEqual(client.bodies(), [b"1", b"2"])

    def test_a_job_that_waits_for_a_thread_is_taken_back(self):
        self.connect(threads=1)
        self.client.receive((3, b"first"))
        self.gate.reached()
        other = self.worker.connect()
        other.receive((3, b"a"), (1, b"b"))
        other.protocol.lane.hold(self.told.append)
        self.assertEqual(self.told, [True])
        self.assertEqual(self.worker.pool.unfinished, 1)
        other.protocol.lane.unhold()
        self.gate.open(2)
        self.worker.idle()
        self.assertEqual((self.client.bodies(), other.bodies()), ([b"first"], [b"a", b"b"]))

    def test_a_close_by_a_thread_drops_what_waits_though_nobody_has_heard_of_it(self):
        client = self.connect(threads=1)
        self.hold()
        client.receive((1, b"a"))
        in_thread(client.session.close)
        self.lane.unhold()
        self.assertEqual(client.bodies(), [])

    def test_unhold_while_a_thread_is_at_it_lets_it_go_on(self):
        client = self.connect(threads=1)
        client.receive(*[(3, b"%d" % number) for number in range(3)])
        self.gate.reached()
        self.hold()
        self.lane.unhold()
        self.gate.open(3)
        self.worker.idle()
        self.assertEqual((self.told, client.bodies()), ([], [b"0", b"1", b"2"]))


class HookTests(HoldCase):
    def hook(self, name: str, thread: bool = False) -> int:
        """The code of a hook that says its name."""

        def note(session: Any) -> None:
            if thread:
                self.gate.wait()
            self.hooks.append(name)

        async def note_async(session: Any) -> None:
            note(session)

        return self.worker.dispatch._hook(note if thread else note_async, False)

    def test_they_are_called_when_all_else_has_ended(self):
        client = self.connect(threads=1)
        client.receive((2, b""), (1, b"behind"))
        hooks = [(self.hook("first"), b""), (self.hook("in a thread", True), b"")]
        self.hold(*hooks, (self.hook("last"), b""))
        self.assertEqual(self.hooks, [])
        self.waits.pop().callback(b"waited")
        self.assertEqual((self.hooks, self.told), (["first"], []))
        self.gate.open()
        self.worker.wait(lambda: self.told)
        self.assertEqual(self.hooks, ["first", "in a thread", "last"])
        self.assertEqual(client.bodies(), [b"waited"])

    def test_those_of_a_new_connection_come_before_them(self):
        @self.app.on_connection_made
        def made(session: Any) -> None:
            self.gate.wait()
            self.hooks.append("made")

        self.connect(threads=1)
        self.gate.reached()
        other = self.worker.connect()  # whose hook no thread has begun
        other.receive((1, b"packet"))
        hook = self.hook("held")
        other.protocol.lane.hold(self.told.append, [(hook, b"")])
        self.gate.open(2)
        self.worker.wait(lambda: self.told)
        self.assertEqual(self.hooks, ["made", "made", "held"])
        self.assertEqual(other.bodies(), [])

    def test_a_client_that_does_not_read_does_not_keep_them(self):
        self.connect()
        self.client.block()
        self.hold((self.hook("called"), b""))
        self.assertEqual((self.hooks, self.told), (["called"], [True]))

    def test_they_are_called_once(self):
        self.connect()
        self.hold((self.hook("called"), b""))
        self.lane.unhold()
        self.hold()
        self.assertEqual(self.hooks, ["called"])

    def test_unhold_while_one_waits_goes_on_behind_it(self):
        client = self.connect(threads=1)
        self.hold((self.hook("late", True), b""))
        client.receive((1, b"a"))
        self.lane.unhold()
        self.assertEqual(client.bodies(), [])
        self.gate.open()
        self.worker.idle()
        self.assertEqual((self.told, client.bodies()), ([], [b"a"]))


class EndTests(HoldCase):
    def test_an_end_is_told_and_goes_its_way(self):
        client = self.connect()
        client.receive((2, b""), (1, b"behind"))
        self.hold()
        client.end()
        self.assertEqual(self.told, [False])
        self.waits.pop().callback(b"waited")
        self.assertEqual(client.bodies(), [b"waited", b"behind"])
        client.turn()
        self.assertFalse(client.connected)

    def test_an_end_at_rest_is_told_too(self):
        client = self.connect()
        self.hold()
        client.receive((1, b"a"))
        client.end()
        self.assertEqual((self.told, client.bodies()), ([True, False], [b"a"]))

    def test_a_close_drops_what_waits(self):
        client = self.connect()
        self.hold()
        client.receive((1, b"a"))
        client.session.close()
        self.assertEqual((self.told, client.bodies()), ([True, False], []))
        client.turn()
        self.assertTrue(client.transport.end_told)

    def test_a_close_by_a_hook_is_told(self):
        async def close(session: Any) -> None:
            session.close()

        client = self.connect()
        self.hold((self.worker.dispatch._hook(close, False), b""))
        self.assertEqual(self.told, [False])
        client.turn()
        self.assertTrue(client.transport.end_told)

    def test_a_broken_connection_has_its_packets_handled(self):
        @self.app.on_connection_lost
        async def lost(session: Any, reason: str) -> None:
            self.hooks.append(reason)

        client = self.connect()
        self.hold()
        client.receive((2, b""), (1, b"a"))
        client.reset()
        self.assertEqual((self.told, len(self.waits)), ([True, False], 1))
        self.waits.pop().callback(b"")
        self.assertEqual(self.hooks, ["client_reset"])

    def test_nothing_is_told_behind_unhold(self):
        client = self.connect()
        self.hold()
        self.lane.unhold()
        client.end()
        self.assertEqual(self.told, [True])


class DepartureTests(HoldCase):
    def test_a_lane_that_has_departed_handles_nothing(self):
        client = self.connect()
        self.hold()
        client.receive((1, b"a"), (1, b"b"))
        self.assertEqual(self.lane.depart(), [(1, b"a"), (1, b"b")])
        client.session.send(9, b"late")
        client.unblock()
        self.assertEqual(client.bodies(), [])

    def test_it_may_come_back(self):
        client = self.connect()
        self.hold()
        client.receive((1, b"a"))
        waiting = self.lane.depart()
        self.lane.come_back(waiting)
        client.session.send(9, b"push")
        client.receive((1, b"b"))
        self.assertEqual(client.bodies(), [b"a", b"push", b"b"])
        self.assertTrue(client.reading)

    def test_a_close_meanwhile_holds_when_it_comes_back(self):
        client = self.connect()
        self.hold()
        client.receive((1, b"a"))
        waiting = self.lane.depart()
        self.lane.close()
        self.assertEqual((client.bodies(), client.transport.ended), ([], False))
        self.lane.come_back(waiting)
        self.assertEqual((client.bodies(), client.transport.ended), ([], True))

    def test_a_job_of_before_cannot_come_twice(self):
        self.connect(threads=1)
        self.client.receive((3, b"first"))
        self.gate.reached()
        other = self.worker.connect()
        other.receive((3, b"a"))
        other.protocol.lane.hold(self.told.append)
        waiting = other.protocol.lane.depart()
        self.gate.open(2)
        self.worker.idle()
        self.assertEqual((waiting, other.bodies()), ([(3, b"a")], []))
