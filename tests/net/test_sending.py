"""The sending side: what waits for a client that is behind, and how little of it there is."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.counts import Counts
from ccserver.core.framing import FrameDecoder, encode
from ccserver.core.limits import SessionLimits
from ccserver.core.outbox import ROOM, Overflow, SendLimits
from ccserver.core.session import CloseReason, Session
from ccserver.errors import SendTimeout, SessionClosed
from ccserver.net import throttle
from ccserver.net.connections import Connections
from ccserver.net.dispatch import Dispatch
from ccserver.net.errand import Errand
from ccserver.net.factory import PacketFactory
from ccserver.net.pool import Pool
from ccserver.net.protocol import PacketProtocol
from ccserver.net.reactor import DirectReactor
from ccserver.net.reply import OUTPUT_MARK
from ccserver.net.transport import READ_SIZE, DirectServer
from tests.net.moving import in_thread
from tests.net.sockets import PLENTY, FakeSocket, Wire
from tests.support import PATIENCE, FakeWorker, logged, texts

ECHO, BIG, PUSH, WAIT, STREAM = range(1, 6)
KIB = 1024
MIB = 1 << 20
ANY = SendLimits(0, 0, 0, 0, 0, 0)


class Kernel:
    """A worker, and one connection of it whose kernel and client are the test.

    @ivar socket: what the client gets, and what the kernel takes.
    """

    def __init__(self, test: Any, app: App, limits: SendLimits | None = None) -> None:
        self.wire = Wire(test, DirectReactor, DirectServer)
        reactor: Any = self.wire.reactor
        self.counts = Counts()
        self.pool = Pool(reactor, 0)
        self.pool.start(False)
        self.connections = Connections(100, 0, self.counts, reactor.seconds)
        self.dispatch = Dispatch(app, self.pool, 64, self.counts, limits)
        self.factory = PacketFactory(
            "10.0.0.1:1", SessionLimits(), self.connections, self.dispatch, reactor
        )
        self.protocol = PacketProtocol(self.factory, "10.0.0.9:5000")
        self.transport, self.socket = self.wire.connect(self.protocol)
        self._decoder = FrameDecoder(0xFFFF)
        self._read = 0

    @property
    def session(self) -> Session:
        return self.protocol.session

    @property
    def lane(self) -> Any:
        return self.protocol.lane

    @property
    def unsent(self) -> int:
        """All bytes that wait for the client in this process."""
        return self.lane.unsent + self.transport.unsent

    def take(self, size: int) -> None:
        """The kernel takes C{size} bytes more."""
        self.socket.room += size
        self.wire.settle()

    def ask(self, *packets: tuple[int, bytes]) -> None:
        self.socket.incoming.append(b"".join(encode(code, body) for code, body in packets))
        self.wire.turn()

    def bodies(self) -> list[bytes]:
        """Those of the packets that the client has got since the last call."""
        data = self.socket.received[self._read :]
        self._read += len(data)
        return [body for _, body in self._decoder.feed(data)]

    def move(self) -> None:
        """The connection moves to another worker, which is this one."""
        old, rested = self.protocol, list[bool]()
        old.lane.hold(rested.append)
        assert rested == [True]
        waiting, unsent = old.detach()
        carried = old.session.carry(waiting, old.session.dump_state())
        old.transport.socket = FakeSocket(-1)
        old.gone()
        self.protocol = PacketProtocol(self.factory, carried.peer)
        transport = DirectServer(self.socket, self.protocol, ("-", 0), None, 0, self.wire.reactor)
        self.transport = transport
        self.protocol.adopt(transport, carried, unsent)


class SendingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.app = App()
        self.waits: list[Deferred[Any]] = []
        self.failed: list[BaseException] = []
        self.streamed = 0

        @self.app.message(ECHO)
        async def echo(session: Session, request: bytes) -> bytes:
            return request

        @self.app.message(BIG)
        async def big(session: Session, request: bytes) -> bytes:
            return bytes(int(request))

        @self.app.message(PUSH)
        async def push(session: Session, request: bytes) -> bytes:
            for number in range(int(request)):
                session.send(PUSH, struct.pack(">I", number) * KIB)
            return b"pushed"

        @self.app.message(WAIT)
        async def wait(session: Session, request: bytes) -> Any:
            self.waits.append(Deferred())
            return await self.waits[-1]

        @self.app.message(STREAM)
        async def stream(session: Session, request: bytes) -> bytes:
            try:
                for number in range(int(request)):
                    await session.send_async(STREAM, struct.pack(">I", number) * KIB)
                    self.streamed += 1
            except SessionClosed as error:
                self.failed.append(error)
                raise
            return b"streamed"

    def start(self, limits: SendLimits | None = None, room: int = PLENTY) -> Kernel:
        kernel = Kernel(self, self.app, limits)
        kernel.socket.room = room
        return kernel

    def assert_cut(self, kernel: Kernel, reason: CloseReason = CloseReason.SEND_QUEUE_FULL) -> None:
        """It was closed because of what waited, and nothing is left of it."""
        kernel.wire.settle()
        self.assertTrue(kernel.socket.was_reset)
        self.assertEqual(kernel.counts.closed, {reason: 1})
        self.assertEqual((kernel.lane.unsent, len(kernel.dispatch.behind)), (0, 0))
        self.assertEqual((kernel.counts.waiting.bytes, kernel.counts.waiting.messages), (0, 0))


class ReplyTests(SendingCase):
    """Replies need no limit: who does not read them is not answered any further."""

    def test_small_replies_to_what_waits_are_bounded_within_a_turn(self):
        """Batches whose replies are small must not add up."""
        kernel = self.start(room=0)
        kernel.ask((WAIT, b""))
        kernel.ask(*[(BIG, b"1000")] * 4000)
        most = 0
        flush = DirectServer.flush

        def note(transport: Any) -> None:
            nonlocal most
            most = max(most, kernel.unsent)
            flush(transport)

        self.patch(DirectServer, "flush", note)
        self.waits.pop().callback(b"")
        kernel.wire.settle()
        self.assertGreater(most, 0)
        self.assertLess(max(most, kernel.unsent), 3 * READ_SIZE)
        kernel.take(PLENTY)
        self.assertEqual(len(kernel.bodies()), 4001)

    def test_a_client_that_reads_is_never_cut_however_many_requests_it_sends(self):
        kernel = self.start(SendLimits(hard=65536, soft=0, messages=1), room=0)
        for _ in range(20):
            kernel.ask(*[(ECHO, b"x" * 100)] * 500)
        kernel.take(PLENTY)
        self.assertEqual(kernel.bodies(), [b"x" * 100] * 10000)

    def test_replies_wait_behind_pushes_and_are_bounded_as_well(self):
        kernel = self.start(room=1000)
        kernel.ask((PUSH, b"100"))
        for _ in range(100):
            kernel.ask((BIG, b"10000"))
        self.assertLess(kernel.unsent - 100 * 4 * KIB, 3 * OUTPUT_MARK)
        self.assertGreater(kernel.lane.waiting, 50)
        kernel.take(PLENTY)
        sizes = [len(body) for body in kernel.bodies()]
        self.assertEqual(sizes, [4096] * 100 + [len(b"pushed")] + [10000] * 100)

    def test_who_is_behind_with_pushes_is_answered_all_the_same(self):
        """A client that reads slowly, and is always behind, is not taken for a silent one."""
        kernel = self.start(room=1000)
        kernel.session.send(PUSH, bytes(60000))
        kernel.wire.turn()
        kernel.session.send(PUSH, bytes(60000), "drop_old")
        kernel.ask((ECHO, b"ping"))
        self.assertFalse(kernel.lane.blocked)
        self.assertTrue(kernel.lane.idle)
        kernel.take(PLENTY)
        self.assertEqual([len(body) for body in kernel.bodies()], [60000, 60000, 4])


class PushTests(SendingCase):
    def test_pushes_to_who_reads_are_not_counted(self):
        kernel = self.start(SendLimits(hard=65536, soft=0, messages=1))
        kernel.ask((PUSH, b"1000"))
        kernel.wire.settle()
        self.assertEqual(len(kernel.bodies()), 1001)

    def test_more_bytes_than_the_hard_limit_close_at_once(self):
        kernel = self.start(room=0)
        events = logged(self)
        kernel.ask((PUSH, b"12000"))
        self.assert_cut(kernel)
        self.assertEqual(len([t for t in texts(events) if "send_queue_full" in t]), 1)

    def test_what_waits_never_exceeds_the_limit_by_much(self):
        kernel = self.start(SendLimits(hard=1 << 20, soft=0, messages=0), room=0)
        for _ in range(300):
            kernel.session.send(PUSH, bytes(4000))
            kernel.wire.turn()
            if kernel.session.close_reason is not None:
                break
            self.assertLess(kernel.unsent, (1 << 20) + 2 * READ_SIZE)
        self.assert_cut(kernel)

    def test_more_packets_than_allowed_close(self):
        kernel = self.start(room=0)
        kernel.session.send(PUSH, b"first")
        kernel.wire.turn()
        for _ in range(400):
            kernel.session.send(PUSH, b"x")
        kernel.wire.turn()
        self.assertIsNone(kernel.session.close_reason)
        kernel.session.send(PUSH, b"x")
        self.assert_cut(kernel)

    def test_above_the_soft_limit_for_too_long_closes(self):
        kernel = self.start(SendLimits(hard=0, soft=65536, seconds=30), room=0)
        kernel.session.send(PUSH, bytes(60000))
        kernel.wire.turn()
        for _ in range(2):
            kernel.session.send(PUSH, bytes(60000))
        for second in range(31):
            kernel.dispatch.check(float(second))
        self.assertIsNone(kernel.session.close_reason)
        kernel.dispatch.check(31.0)
        self.assert_cut(kernel)

    def test_who_takes_nothing_for_too_long_is_closed(self):
        kernel = self.start(SendLimits(stall=30), room=0)
        kernel.session.send(PUSH, bytes(60000))
        kernel.wire.turn()
        kernel.session.send(PUSH, bytes(60000))
        for second in range(31):
            kernel.dispatch.check(float(second))
        self.assertIsNone(kernel.session.close_reason)
        kernel.session.send(PUSH, b"what is added is not taken")
        kernel.dispatch.check(31.0)
        self.assert_cut(kernel, CloseReason.SEND_TIMEOUT)

    def test_so_is_who_is_owed_a_few_replies_alone(self):
        kernel = self.start(SendLimits(stall=30), room=100)
        kernel.ask((BIG, b"10000"))
        for second in range(32):
            kernel.dispatch.check(float(second))
        self.assert_cut(kernel, CloseReason.SEND_TIMEOUT)

    def test_who_takes_a_little_is_not(self):
        kernel = self.start(SendLimits(stall=30), room=0)
        kernel.session.send(PUSH, bytes(60000))
        kernel.wire.turn()
        kernel.session.send(PUSH, bytes(60000))
        for second in range(100):
            if second % 25 == 0:
                kernel.socket.room = 100
                kernel.wire.turn()
            kernel.dispatch.check(float(second))
        self.assertIsNone(kernel.session.close_reason)

    def test_who_catches_up_is_behind_no_more(self):
        kernel = self.start(room=0)
        kernel.ask((PUSH, b"100"))
        self.assertEqual(kernel.dispatch.behind, {kernel.lane})
        kernel.take(200_000)
        kernel.take(PLENTY)
        self.assertEqual((kernel.dispatch.behind, kernel.lane.outbox), (set(), None))
        self.assertEqual(len(kernel.bodies()), 101)

    def test_pushes_and_replies_of_one_handler_keep_their_order(self):
        kernel = self.start(room=10)
        for _ in range(3):
            kernel.ask((PUSH, b"2"), (ECHO, b"echo"))
        kernel.take(PLENTY)
        sizes = [len(body) for body in kernel.bodies()]
        self.assertEqual(sizes, [4096, 4096, 6, 4] * 3)

    def test_what_is_sent_is_counted_once_and_what_is_dropped_not(self):
        kernel = self.start(SendLimits(hard=0, soft=65536), room=0)
        for _ in range(100):
            kernel.session.send(PUSH, bytes(10000), "drop_old")
            kernel.wire.turn()
        kernel.take(PLENTY)
        got = len(kernel.bodies())
        self.assertEqual(kernel.session.packets_out, got)
        self.assertEqual(kernel.session.bytes_out, got * 10008)
        self.assertEqual(kernel.counts.waiting.dropped, {"drop_old": 100 - got})

    def test_a_packet_that_is_partly_sent_is_never_dropped(self):
        kernel = self.start(SendLimits(hard=0, soft=65536), room=0)
        for number in range(100):
            kernel.session.send(PUSH, b"%04d" % number * 2500, "drop_old")
            kernel.take(137)
        kernel.take(PLENTY)
        for body in kernel.bodies():
            self.assertEqual(body, body[:4] * 2500)

    def test_the_latest_under_a_key_replaces_what_waits(self):
        kernel = self.start(room=0)
        kernel.session.send(PUSH, b"first")
        kernel.wire.turn()
        for number in range(1000):
            kernel.session.send(PUSH, b"a%d" % number, "latest", "a")
            kernel.session.send(PUSH, b"b%d" % number, Overflow.LATEST, "b")
        kernel.take(PLENTY)
        self.assertEqual(kernel.bodies(), [b"first", b"a999", b"b999"])

    def test_a_policy_that_is_none_is_an_error(self):
        kernel = self.start()
        self.assertRaises(ValueError, kernel.session.send, PUSH, b"", "drop")

    def test_what_is_left_is_sent_at_a_close(self):
        kernel = self.start(room=0)
        kernel.ask((PUSH, b"50"))
        kernel.session.close()
        kernel.session.send(PUSH, b"too late")
        kernel.take(PLENTY)
        self.assertEqual([len(body) for body in kernel.bodies()], [4096] * 50 + [6])
        self.assertEqual(kernel.socket.shut, [1])

    def test_what_waits_is_forgotten_with_the_connection(self):
        kernel = self.start(room=0)
        kernel.ask((PUSH, b"50"))
        kernel.protocol.abort()
        kernel.wire.settle()
        self.assertEqual((kernel.counts.waiting.bytes, kernel.dispatch.behind), (0, set()))


class ThreadTests(SendingCase):
    def test_every_policy_works_from_a_thread(self):
        kernel = self.start(room=0)
        kernel.session.send(PUSH, b"first")
        kernel.wire.turn()
        for policy in ("drop_new", "drop_old", "latest", "close"):
            in_thread(kernel.session.send, PUSH, policy.encode(), policy)
        in_thread(kernel.session.send, PUSH, b"newest", "latest")
        kernel.pool.doRead()
        kernel.take(PLENTY)
        want = [b"first", b"drop_new", b"drop_old", b"newest", b"close"]
        self.assertEqual(kernel.bodies(), want)

    def test_a_thread_that_is_faster_than_the_reactor_waits_for_it(self):
        self.patch(throttle, "PATIENCE", PATIENCE)
        kernel = self.start(ANY, room=0)

        def push() -> None:
            for _ in range(1000):
                kernel.session.send(PUSH, bytes(8000))

        most = 0
        thread = threading.Thread(target=push, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.001)  # it goes on as long as it may
            most = max(most, sum(len(args[0]) for _, args in list(kernel.pool._calls)))
            kernel.pool.work_off()
        self.assertGreater(most, 0)
        self.assertLess(most, throttle.MARK + 2 * 8008)
        kernel.pool.work_off()
        self.assertEqual(kernel.session.packets_out, 1000)

    def test_so_it_does_where_its_packets_are_short(self):
        """What a call needs was 30 MiB for 1 MiB of empty packets."""
        waits = list[float]()
        on_its_way = throttle.Throttle()
        self.patch(on_its_way._less, "wait", waits.append)
        count = 0
        while not waits:
            on_its_way.enter(8)
            count += 1
        self.assertLess(count, 2 + throttle.MARK // 200)
        for _ in range(count):
            on_its_way.leave(8)
        self.assertEqual(on_its_way._size, 0)

    def test_it_does_not_wait_for_ever(self):
        self.patch(throttle, "PATIENCE", 0.0)
        kernel = self.start(ANY)
        in_thread(lambda: [kernel.session.send(PUSH, bytes(60000)) for _ in range(50)])
        kernel.pool.work_off()
        self.assertEqual(kernel.session.packets_out, 50)


class RoomTests(SendingCase):
    def test_who_waits_for_room_is_never_closed_and_costs_little(self):
        kernel = self.start(room=0)
        kernel.ask((STREAM, b"2000"))
        most = 0
        while self.streamed < 2000:
            most = max(most, kernel.unsent)
            kernel.take(10000)
        kernel.take(PLENTY)
        self.assertLess(most, ROOM + 3 * READ_SIZE)
        bodies = kernel.bodies()
        self.assertEqual(bodies, [struct.pack(">I", n) * KIB for n in range(2000)] + [b"streamed"])

    def test_there_is_room_at_once_where_the_client_reads(self):
        kernel = self.start()
        kernel.ask((STREAM, b"500"))
        self.assertEqual(self.streamed, 500)

    def test_what_follows_waits_for_the_handler(self):
        kernel = self.start(room=0)
        kernel.ask((STREAM, b"100"), (ECHO, b"behind"))
        kernel.take(PLENTY)
        self.assertEqual(kernel.bodies()[-2:], [b"streamed", b"behind"])

    def test_it_fails_when_the_connection_ends(self):
        for end in ("abort", "close"):
            self.failed.clear()
            kernel = self.start(room=0)
            kernel.ask((STREAM, b"100"))
            getattr(kernel.protocol if end == "abort" else kernel.session, end)()
            kernel.wire.settle()
            self.assertEqual([type(error) for error in self.failed], [SessionClosed], end)
            self.assertEqual(kernel.counts.handler_errors, 0, "whose fault would it be")

    def test_it_fails_once_the_connection_has_ended(self):
        kernel = self.start()
        session = kernel.session
        kernel.protocol.abort()
        kernel.wire.settle()
        self.failureResultOf(Deferred.fromCoroutine(session.send_async(1, b"")), SessionClosed)

    def test_a_client_that_half_closes_gets_all_of_it(self):
        kernel = self.start(room=0)
        kernel.ask((STREAM, b"100"))
        kernel.socket.incoming.append(b"")
        kernel.wire.turn()
        kernel.take(PLENTY)
        self.assertEqual(len(kernel.bodies()), 101)

    def test_waiting_may_be_cancelled(self):
        kernel = self.start(room=0)
        kernel.ask((PUSH, b"50"))
        waiting = Deferred.fromCoroutine(kernel.session.send_async(9, b"never"))
        self.assertNoResult(waiting)
        waiting.cancel()
        waiting.addErrback(lambda failure: None)
        kernel.take(PLENTY)
        self.assertNotIn(b"never", kernel.bodies())

    def test_only_the_reactor_waits(self):
        kernel = self.start()
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                kernel.lane.room()
            except RuntimeError as error:
                raised.append(error)

        in_thread(wait)
        self.assertEqual(len(raised), 1)

    def test_a_stream_goes_on_in_another_worker_behind_the_handler(self):
        kernel = self.start(room=0)
        kernel.ask((STREAM, b"30"))
        self.assertLess(self.streamed, 30)
        kernel.take(PLENTY)
        kernel.move()
        kernel.ask((ECHO, b"there"))
        self.assertEqual(kernel.bodies()[-2:], [b"streamed", b"there"])


class ThreadRoomTests(SendingCase):
    """A thread may wait for room as well."""

    def errand(self, kernel: Kernel) -> Errand:
        """One that waits for room."""
        kernel.ask((PUSH, b"100"))
        errand = Errand(kernel.lane, encode(PUSH, b"late"))
        errand.go()
        self.assertEqual(len(kernel.lane._waiters), 1)
        return errand

    def test_who_waits_is_never_closed_and_costs_little(self):
        kernel = self.start(SendLimits(messages=20), room=0)

        def stream() -> None:
            for number in range(300):
                kernel.session.send_blocking(STREAM, struct.pack(">I", number) * KIB, PATIENCE)

        most = 0
        thread = threading.Thread(target=stream, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.001)  # it goes on as far as it can
            most = max(most, kernel.unsent)
            kernel.pool.work_off()
            kernel.take(20000)
        kernel.take(PLENTY)
        self.assertLess(most, ROOM + 3 * READ_SIZE)
        self.assertEqual(kernel.bodies(), [struct.pack(">I", n) * KIB for n in range(300)])

    def test_one_that_has_waited_too_long_leaves_and_sends_nothing(self):
        kernel = self.start(room=0)
        errand = self.errand(kernel)
        self.assertRaises(SendTimeout, errand.wait, 0.0)
        kernel.pool.work_off()
        self.assertFalse(kernel.lane._waiters)
        kernel.take(PLENTY)
        self.assertNotIn(b"late", kernel.bodies())
        self.assertIsNone(kernel.session.close_reason)

    def test_also_before_the_reactor_has_heard_of_it(self):
        kernel = self.start()
        raised: list[BaseException] = []

        def send() -> None:
            try:
                kernel.session.send_blocking(PUSH, b"late", timeout=0.0)
            except SendTimeout as error:
                raised.append(error)

        in_thread(send)
        self.assertEqual(str(raised[0]), "no room for a packet within 0 s")
        kernel.wire.settle()
        self.assertEqual(kernel.bodies(), [])

    def test_one_whose_connection_ends_is_told(self):
        kernel = self.start(room=0)
        errand = self.errand(kernel)
        kernel.protocol.abort()
        self.assertRaises(SessionClosed, errand.wait, 0.0)
        late = Errand(kernel.lane, b"")
        late.go()
        self.assertRaises(SessionClosed, late.wait, 0.0)
        kernel.wire.settle()
        self.assertRaises(SessionClosed, kernel.session.send_blocking, PUSH, b"")

    def test_what_cannot_be_sent_is_raised_there(self):
        kernel = self.start()
        self.patch(kernel.transport, "write", None)
        errand = Errand(kernel.lane, b"x")
        errand.go()
        self.assertRaises(TypeError, errand.wait, 0.0)

    def test_the_reactor_cannot_wait(self):
        kernel = self.start()
        self.assertRaises(RuntimeError, kernel.session.send_blocking, PUSH, b"")

    def test_on_the_way_to_another_process_there_is_room(self):
        kernel = self.start()
        kernel.lane.hold([].append)
        waiting, _ = kernel.protocol.detach()
        in_thread(kernel.session.send_blocking, PUSH, b"kept back")
        kernel.protocol.reattach(waiting)
        kernel.wire.settle()
        self.assertEqual(kernel.bodies(), [b"kept back"])

    def test_a_handler_sends_behind_the_replies_before_it_and_need_not_catch_the_end(self):
        @self.app.message(10)
        def reply(session: Session, request: bytes) -> bytes:
            return b"reply"

        @self.app.message(11)
        def blocks(session: Session, request: bytes) -> bytes:
            session.send_blocking(11, b"block")
            return b"done"

        @self.app.message(12)
        def closed(session: Session, request: bytes) -> None:
            session.close()
            session.send_blocking(12, b"lost")

        worker = FakeWorker(self, self.app, threads=1)
        client = worker.connect()
        client.receive((10, b""), (11, b""), (12, b""))
        worker.wait(lambda: client.protocol.lane.idle)
        self.assertEqual(client.bodies(), [b"reply", b"block", b"done"])
        self.assertEqual(worker.counts.handler_errors, 0)


class MoveTests(SendingCase):
    def test_what_waits_travels_in_order(self):
        kernel = self.start(room=1234)
        kernel.ask((PUSH, b"50"))
        kernel.move()
        kernel.session.send(PUSH, b"there")
        kernel.take(PLENTY)
        self.assertEqual([len(b) for b in kernel.bodies()], [4096] * 50 + [6, 5])
        self.assertEqual(kernel.counts.waiting.bytes, 0)

    def test_a_client_that_never_reads_costs_no_more_for_being_moved_often(self):
        kernel = self.start(SendLimits(hard=1 << 20, soft=0, messages=0), room=0)
        for _ in range(50):
            for _ in range(20):
                kernel.session.send(PUSH, bytes(4000))
            kernel.wire.turn()
            if kernel.session.close_reason is not None:
                break
            self.assertLess(kernel.unsent, (1 << 20) + 3 * READ_SIZE)
            kernel.move()
        self.assert_cut(kernel)

    def test_what_is_sent_on_the_way_is_not_lost_if_it_stays(self):
        kernel = self.start()
        kernel.lane.hold([].append)
        waiting, _ = kernel.protocol.detach()
        kernel.session.send(PUSH, b"kept back")
        in_thread(kernel.session.send, PUSH, b"from a thread")
        kernel.protocol.reattach(waiting)
        kernel.wire.settle()
        self.assertEqual(kernel.bodies(), [b"kept back", b"from a thread"])

    def kept_back(self, policy: str) -> Kernel:
        """A connection that has stayed after all, and was sent too much meanwhile."""
        kernel = self.start(SendLimits(hard=100_000))
        kernel.lane.hold([].append)
        waiting, _ = kernel.protocol.detach()
        for _ in range(5):
            kernel.session.send(PUSH, bytes(30_000), policy)
        kernel.protocol.reattach(waiting)
        return kernel

    def test_no_more_is_kept_back_than_may_wait(self):
        kernel = self.kept_back("drop_new")
        kernel.wire.settle()
        self.assertEqual(len(kernel.bodies()), 3)
        self.assertIsNone(kernel.session.close_reason)

    def test_and_what_must_not_be_missing_closes(self):
        self.assert_cut(self.kept_back("close"))

    def test_a_close_on_the_way_holds_if_it_stays(self):
        kernel = self.start()
        kernel.lane.hold([].append)
        waiting, _ = kernel.protocol.detach()
        kernel.session.close()
        kernel.protocol.reattach(waiting)
        kernel.wire.settle()
        self.assertEqual(kernel.socket.shut, [1])

    def test_what_waited_still_waits_if_it_stays(self):
        kernel = self.start(room=0)
        kernel.ask((PUSH, b"50"))
        kernel.lane.hold([].append)
        waiting, unsent = kernel.protocol.detach()
        self.assertEqual(sum(map(len, unsent)), 50 * 4104 + 14)
        kernel.dispatch.check(0.0)
        kernel.protocol.reattach(waiting)
        kernel.take(PLENTY)
        self.assertEqual(len(kernel.bodies()), 51)


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"), st.sampled_from(Overflow), st.integers(0, 2), st.integers(5, 40000)
        ),
        st.tuples(st.just("ask"), st.integers(5, 20000)),
        st.tuples(st.just("room"), st.integers(1, 200_000)),
        st.tuples(st.just("turn")),
        st.tuples(st.just("move")),
    ),
    max_size=40,
)


class AnySequenceTests(SendingCase):
    """Whatever is sent, however the kernel takes it, wherever the connection is moved to."""

    def run_steps(self, steps: list[Any], limits: SendLimits) -> Kernel:
        """What was sent, as (number, policy or None, key), goes to C{sent}."""
        kernel = self.start(limits, room=0)
        self.sent: list[tuple[int, Overflow | None, int | None]] = []
        for step, *values in steps:
            if kernel.session.close_reason is not None:
                break
            number = len(self.sent)
            if step == "push":
                overflow, key, size = values
                kernel.session.send(PUSH, self.body(number, size), overflow, key)
                self.sent.append((number, overflow, key if overflow is Overflow.LATEST else None))
            elif step == "ask":
                self.sent.append((number, None, None))
                kernel.ask((ECHO, self.body(number, values[0])))
            elif step == "room":
                kernel.socket.room += values[0]
                kernel.wire.turn()
            elif step == "turn":
                kernel.wire.turn()
            elif kernel.lane.idle:
                kernel.move()
        return kernel

    def body(self, number: int, size: int) -> bytes:
        return struct.pack(">I", number) + bytes([number % 251]) * (size - 4)

    def numbers(self, kernel: Kernel) -> Iterator[int]:
        """Those of the packets that came, each whole."""
        for body in kernel.bodies():
            number = int.from_bytes(body[:4], "big")
            self.assertEqual(body, self.body(number, len(body)))
            yield number

    def assert_in_order(self, got: list[int]) -> None:
        """But for replies, which come behind later pushes where their handlers had to wait."""
        asked = {number for number, policy, _ in self.sent if policy is None}
        for place, number in enumerate(got):
            later = got[place + 1 :]
            self.assertTrue(all(each > number for each in later if each not in asked), got)
            if number in asked:
                self.assertTrue(all(each > number for each in later), got)

    @given(STEPS)
    @settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
    @example(
        [
            ("push", Overflow.CLOSE, 0, 32760),
            ("push", Overflow.CLOSE, 0, 32761),
            ("ask", 5),
            ("push", Overflow.CLOSE, 0, 5),
        ]
    )
    def test_with_room_for_all_nothing_is_missing_but_what_was_replaced(self, steps: list[Any]):
        kernel = self.run_steps(steps, ANY)
        kernel.take(PLENTY)
        got = list(self.numbers(kernel))
        self.assertEqual(len(set(got)), len(got))
        last = {key: number for number, _, key in self.sent if key is not None}
        latest = {number for number, _, key in self.sent if key is not None}
        must = [number for number in got if number not in latest]
        self.assertEqual(
            sorted(must), [number for number, _, _ in self.sent if number not in latest]
        )
        self.assert_in_order(must)
        for key, number in last.items():
            of_key = [each for each in got if self.sent[each][2] == key]
            self.assertEqual(of_key, sorted(of_key))
            self.assertEqual(of_key[-1], number)
        dropped = kernel.counts.waiting.dropped
        self.assertEqual(dropped.total(), len(self.sent) - len(got))
        self.assertEqual(kernel.session.packets_out, len(got))
        self.assertEqual(kernel.session.bytes_out, len(kernel.socket.received))
        self.assertEqual((kernel.counts.waiting.bytes, kernel.counts.waiting.messages), (0, 0))

    @given(STEPS)
    @settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
    def test_without_room_what_must_come_comes_or_the_connection_is_closed(self, steps: list[Any]):
        limits = SendLimits(hard=150_000, soft=80_000, seconds=0, messages=10, total=200_000)
        kernel = self.run_steps(steps, limits)
        closed = kernel.session.close_reason
        kernel.take(PLENTY)
        got = list(self.numbers(kernel))
        self.assertEqual(len(set(got)), len(got))
        replaceable = {number for number, _, key in self.sent if key is not None}
        self.assert_in_order([number for number in got if number not in replaceable])
        must = [number for number, policy, _ in self.sent if policy in (None, Overflow.CLOSE)]
        came = [number for number in got if number in set(must)]
        if closed is None:
            self.assertEqual(sorted(came), must)
            dropped = kernel.counts.waiting.dropped
            self.assertEqual(dropped.total(), len(self.sent) - len(got))
        else:
            self.assertEqual(closed, CloseReason.SEND_QUEUE_FULL)
            for policy in (None, Overflow.CLOSE):  # replies, and what else must come
                of_kind = [number for number in came if self.sent[number][1] is policy]
                all_of_it = [number for number in must if self.sent[number][1] is policy]
                self.assertEqual(of_kind, all_of_it[: len(of_kind)])
        self.assertEqual((kernel.counts.waiting.bytes, kernel.counts.waiting.messages), (0, 0))


class AnyTransportTests(SynchronousTestCase):
    """On a transport that tells no more than producers are told."""

    def test_pushes_wait_while_it_has_enough(self):
        client = FakeWorker(self, App(), send_limits=SendLimits(messages=3)).connect()
        client.block()
        for number in range(3):
            client.session.send(9, b"%d" % number)
        self.assertEqual(client.bodies(), [])
        client.unblock()
        self.assertEqual(client.bodies(), [b"0", b"1", b"2"])

    def test_too_many_close(self):
        worker = FakeWorker(self, App(), send_limits=SendLimits(messages=3))
        client = worker.connect()
        client.block()
        for number in range(4):
            client.session.send(9, b"%d" % number)
        self.assertTrue(client.transport.aborted)
        self.assertEqual(worker.counts.closed, {"send_queue_full": 1})
