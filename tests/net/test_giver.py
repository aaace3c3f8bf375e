"""The giver: whatever the other side does, no connection is served twice, and none forgotten."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.carried import Carried
from ccserver.core.framing import encode
from ccserver.core.outbox import SendLimits
from ccserver.core.session import CloseReason
from ccserver.net.departure import MAGIC, RECORD
from ccserver.net.giver import RETRY, STEP, WINDOW, Giver
from tests.net.moving import TIMEOUT, Machine, in_thread
from tests.support import logged, texts


class OtherSide:
    """The other end of a giver's channel, in the hands of the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = bytearray()
        self.descriptors: list[int] = []

    def read(self, limit: int = 1 << 30) -> None:
        """Take what has come, at most C{limit} bytes."""
        while limit:
            try:
                data, descriptors, _, _ = socket.recv_fds(self.sock, min(limit, 65536), 1)
            except BlockingIOError:
                return
            if not data:
                return
            limit -= len(data)
            self.data += data
            self.descriptors += descriptors

    def records(self) -> list[tuple[Carried, bytes]]:
        """The records that are complete."""
        records = []
        data = bytes(self.data)
        while len(data) >= RECORD.size:
            magic, head, unsent = RECORD.unpack_from(data)
            assert magic == MAGIC
            end = RECORD.size + head
            if len(data) < end + unsent:
                break
            records.append((Carried.load(data[RECORD.size : end]), data[end : end + unsent]))
            data = data[end + unsent :]
        return records

    def answer(self, data: bytes) -> None:
        self.sock.send(data)

    def die(self) -> None:
        """The process ends, with all that it had."""
        self.sock.close()
        self.close_descriptors()

    def close_descriptors(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


class GiverCase(SynchronousTestCase):
    """Has a worker with connections that it is to give, and the other side."""

    def setUp(self) -> None:
        self.machine = Machine(self)
        self.app = App()
        self.lost: list[str] = []
        self.waits: list[Deferred[bytes]] = []

        @self.app.message(1)
        async def echo(session: Any, request: bytes) -> bytes:
            return request

        @self.app.message(2)
        async def wait(session: Any, request: bytes) -> bytes:
            result: Deferred[bytes] = Deferred()
            self.waits.append(result)
            return await result

        @self.app.message(4)
        async def big(session: Any, request: bytes) -> None:
            for _ in range(int(request)):
                session.send(4, bytes(40000))

        @self.app.message(5)
        async def many(session: Any, request: bytes) -> None:
            for _ in range(int(request)):
                session.send(5)

        @self.app.on_connection_lost
        async def gone(session: Any, reason: str) -> None:
            self.lost.append(reason)

        self.worker = self.machine.worker(self.app, threads=1)
        self.reports: list[Any] = []

    def begin(self, count: int = 1, channel: Any = None) -> None:
        """Begin to give C{count} connections."""
        self.clients = [self.worker.connect() for _ in range(count)]
        self.give(channel)

    def give(self, channel: Any = None) -> None:
        ours, theirs = self.machine.channel()
        self.other = OtherSide(theirs)
        self.addCleanup(self.other.close_descriptors)
        self.giver = Giver(self.worker.reactor, channel or ours, TIMEOUT)
        self.giver.give(self.worker.connections).addCallback(self.reports.append)

    def served_here(self, client: Any) -> None:
        client.send((1, b"here"))
        client.expect(b"here")

    def sent(self, count: int) -> None:
        """Wait until the other side has C{count} records."""

        def enough() -> bool:
            self.other.read()
            return len(self.other.records()) >= count

        self.machine.until(enough)


class FlowTests(GiverCase):
    def test_only_so_many_are_on_their_way(self):
        self.begin(3 * WINDOW)
        self.sent(WINDOW)
        self.machine.turn(20)
        self.other.read()
        self.assertEqual(len(self.other.records()), WINDOW)
        for client in self.clients[WINDOW:]:
            self.served_here(client)

    def test_with_each_answer_another_one_goes(self):
        self.begin(WINDOW + 3)
        self.sent(WINDOW)
        self.other.answer(b"+-")
        self.sent(WINDOW + 2)
        self.machine.turn(20)
        self.other.read()
        self.assertEqual(len(self.other.records()), WINDOW + 2)

    def test_a_turn_begins_or_packs_only_so_many(self):
        self.begin(3 * WINDOW)
        before = len(self.worker.connections)
        for _ in range(4):
            self.machine.turn()
            now = len(self.worker.connections)
            self.assertLessEqual(before - now, STEP)
            before = now

    def test_what_is_to_go_waits_until_the_channel_has_room(self):
        self.clients = [self.worker.connect() for _ in range(3)]
        for client in self.clients:
            client.send((4, b"100"))
        self.machine.turn(3)
        self.give()
        self.machine.turn(50)
        self.assertEqual(len(self.worker.connections), 2)
        self.served_here_later = self.clients[2].protocol.session
        self.sent(3)
        self.assertEqual(len(self.worker.connections), 0)
        self.other.answer(b"+++")
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(3, {})])
        for client, (_, unsent) in zip(self.clients, self.other.records(), strict=True):
            data = client.read() + unsent
            self.assertEqual(data, encode(4, bytes(40000)) * 100)

    def test_a_descriptor_comes_with_each_record(self):
        self.begin(5)
        self.sent(5)
        self.assertEqual(len(self.other.descriptors), 5)
        for number, descriptor in enumerate(self.other.descriptors):
            os.write(descriptor, encode(1, b"%d" % number))
        records = self.other.records()
        for number, client in enumerate(self.clients):
            self.assertEqual(client.bodies(), [b"%d" % number])
            self.assertEqual(records[number][0].id, client.protocol.session.id)

    def test_too_many_descriptors_on_their_way_are_tried_again(self):
        ours, theirs = self.machine.channel()
        faults: list[OSError | None] = [OSError(errno.ETOOMANYREFS, "too many references")] * 9
        self.begin(2, FaultySocket(ours, faults))
        self.other.sock = theirs
        self.machine.turn(5)
        left = len(faults)
        self.assertGreater(left, 0)
        self.machine.turn(5)
        self.assertEqual(len(faults), left, "without waiting")
        for _ in range(9):
            self.machine.advance(RETRY)
        self.sent(2)
        self.other.answer(b"++")
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(2, {})])

    def test_one_that_has_more_unsent_pieces_than_a_send_may_have_buffers_goes_like_any_other(self):
        self.worker.dispatch.send_limits = SendLimits(messages=0)
        self.clients = [self.worker.connect() for _ in range(3)]
        self.clients[1].send((4, b"100"), (5, b"3000"))
        self.machine.turn(3)
        self.give()
        self.sent(3)
        self.other.answer(b"+++")
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(3, {})])
        data = self.clients[1].read() + self.other.records()[1][1]
        self.assertEqual(data, encode(4, bytes(40000)) * 100 + encode(5) * 3000)

    def test_one_that_the_kernel_does_not_take_stays_and_the_others_go(self):
        for error in (errno.EMSGSIZE, errno.EBADF, errno.EINVAL):
            ours, theirs = self.machine.channel()
            self.reports.clear()
            events = logged(self)
            self.begin(3, FaultySocket(ours, [OSError(error, "not this one")]))
            self.other.sock = theirs
            self.sent(2)
            self.other.answer(b"++")
            self.machine.until(lambda: self.reports)
            self.assertEqual(self.reports, [(2, {"channel": 1})])
            self.served_here(self.clients[0])
            said = f"not handed over: [Errno {error}] not this one"
            self.assertEqual([text for text in texts(events) if text != "handed over"], [said])
            self.clients[0].sock.close()
            self.machine.turn(3)
            self.machine.now += 100

    def test_where_a_part_of_it_went_there_is_no_way_to_go_on(self):
        ours, _ = self.machine.channel()
        self.begin(3, HalfSocket(ours, OSError(errno.EMSGSIZE, "not this one")))
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(0, {"channel": 3})])
        for client in self.clients:
            self.served_here(client)

    def test_the_channel_is_closed_at_the_end(self):
        self.begin()
        self.sent(1)
        self.other.answer(b"+")
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.other.sock.recv(1), b"")
        self.assertEqual(self.worker.reactor.getReaders(), self.readers())
        self.assertEqual([c for c in self.worker.reactor.getDelayedCalls() if c.active()], [])

    def readers(self) -> list[Any]:
        mine = {*self.worker.reactor._internalReaders, self.worker.pool}
        return [each for each in self.worker.reactor.getReaders() if each in mine]


class FaultySocket:
    """A socket whose next C{sendmsg}s raise C{faults}, the last one first; or not, at None."""

    def __init__(self, sock: socket.socket, faults: list[OSError | None]) -> None:
        self._sock = sock
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendmsg(self, *arguments: Any) -> int:
        fault = self._faults.pop() if self._faults else None
        if fault is not None:
            raise fault
        return self._sock.sendmsg(*arguments)


class HalfSocket:
    """A socket that takes a byte, and then raises C{error}."""

    def __init__(self, sock: socket.socket, error: OSError) -> None:
        self._sock = sock
        self._error = error
        self._taken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendmsg(self, buffers: list[memoryview], rights: Any) -> int:
        if self._taken:
            raise self._error
        self._taken = True
        return self._sock.sendmsg([buffers[0][:1]], rights)


class EndTests(GiverCase):
    def test_the_socket_is_closed_here_without_ending_the_connection(self):
        self.begin()
        transport = self.clients[0].protocol.transport
        sock = transport.socket
        self.sent(1)
        self.other.answer(b"+")
        self.machine.until(lambda: self.reports)
        self.assertEqual(sock.fileno(), -1)
        self.clients[0].read()
        self.assertIsNone(self.clients[0].ended)
        self.other.close_descriptors()
        self.clients[0].read_to_end()
        self.assertEqual(self.lost, [])

    def test_nobody_there_keeps_all_here(self):
        self.clients = [self.worker.connect() for _ in range(3)]
        channel, theirs = self.machine.channel()
        theirs.close()
        self.give(channel)
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(0, {"channel": 3})])
        for client in self.clients:
            self.served_here(client)

    def test_one_that_is_sent_and_not_answered_is_not_served_any_more(self):
        self.begin(2)
        self.sent(2)
        self.clients[1].send((1, b"for the other side"))
        self.other.answer(b"+")
        self.other.sock.close()
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(1, {"lost": 1})])
        self.machine.turn(5)
        # the other side may live: it has the connection then
        self.assertEqual(self.clients[1].read(), b"")
        self.assertIsNone(self.clients[1].ended)
        self.other.close_descriptors()
        self.machine.until(lambda: (self.clients[1].read(), self.clients[1].ended)[1])

    def test_the_end_of_one_that_was_lost_is_told(self):
        self.begin()
        events = logged(self)
        self.sent(1)
        self.other.die()
        self.machine.until(lambda: self.reports)
        self.machine.turn(3)
        self.assertEqual(self.lost, [CloseReason.HANDOVER])
        self.assertEqual(self.worker.counts.closed, {CloseReason.HANDOVER: 1})
        self.assertEqual(texts(events), ["lost in the hand-over"])
        self.clients[0].read_to_end()

    def test_packets_of_one_that_was_lost_are_not_handled_here(self):
        client = self.worker.connect()
        client.send((2, b""), (1, b"waiting"))
        self.machine.turn(2)
        self.give()
        self.waits.pop().callback(b"answered here")
        self.sent(1)
        self.other.die()
        self.machine.until(lambda: self.reports)
        self.assertEqual(client.bodies(), [b"answered here"])

    def partly_sent(self) -> Any:
        """A connection whose record the channel does not take in one go."""
        client = self.worker.connect()
        client.send((4, b"100"), (1, b"end"))
        self.machine.turn(3)
        self.give()
        self.machine.turn(10)
        self.other.read(1000)
        self.assertEqual(len(self.worker.connections), 0)
        return client

    def test_one_that_was_partly_sent_stays(self):
        client = self.partly_sent()
        self.other.die()
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(0, {"channel": 1})])
        client.expect(*[bytes(40000)] * 100, b"end")
        self.served_here(client)

    def test_an_answer_that_came_before_the_end_counts(self):
        ours, theirs = self.machine.channel()
        theirs.send(b"+")
        self.begin(2, FaultySocket(ours, [BrokenPipeError(errno.EPIPE, "broken pipe"), None]))
        self.assertEqual(self.reports, [(1, {"channel": 1})])

    def test_one_that_the_other_side_cannot_take_is_served_here(self):
        client = self.worker.connect()
        client.send((2, b""), (1, b"waiting"))
        self.machine.turn(2)
        self.give()
        self.waits.pop().callback(b"answered here")
        self.sent(1)
        self.other.close_descriptors()
        self.other.answer(b"-")
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(0, {"target": 1})])
        client.expect(b"answered here", b"waiting")
        in_thread(client.protocol.session.send, 9, b"push")
        client.expect(b"push")
        self.served_here(client)
        self.assertEqual(self.worker.counts.handed_over, 0)

    def test_one_that_comes_back_to_a_worker_that_stops_is_finished(self):
        self.begin()
        self.sent(1)
        self.worker.connections.finish()
        self.other.close_descriptors()
        self.other.answer(b"-")
        self.machine.until(lambda: self.reports)
        self.clients[0].read_to_end()

    def test_what_is_no_answer_ends_the_channel(self):
        self.begin()
        events = logged(self)
        self.sent(1)
        self.other.answer(b"?")
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(0, {"lost": 1})])
        self.assertIn("hand-over: b'?' is no answer", texts(events))

    def test_an_answer_to_nothing_ends_the_channel(self):
        client = self.worker.connect()
        client.send((2, b""))
        self.machine.turn(2)
        self.give()
        self.other.answer(b"+")
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(0, {"channel": 1})])
        self.waits.pop().callback(b"answered")
        client.expect(b"answered")
        self.served_here(client)


class StallTests(GiverCase):
    def test_another_side_that_does_nothing_is_given_up(self):
        self.begin(WINDOW + 2)
        self.sent(WINDOW)
        self.machine.advance(TIMEOUT - 0.1)
        self.assertEqual(self.reports, [])
        self.machine.advance(0.2)
        self.assertEqual(self.reports, [(0, {"lost": WINDOW, "channel": 2})])
        self.served_here(self.clients[-1])

    def test_any_answer_is_a_sign_of_life(self):
        self.begin(3)
        self.sent(3)
        for _ in range(2):
            self.machine.advance(TIMEOUT - 0.1)
            self.other.answer(b"+")
            self.machine.turn(2)
        self.machine.advance(TIMEOUT - 0.1)
        self.assertEqual(self.reports, [])
        self.machine.advance(0.2)
        self.assertEqual(self.reports, [(2, {"lost": 1})])

    def test_handlers_that_take_their_time_are_not_its_fault(self):
        client = self.worker.connect()
        client.send((2, b""))
        self.machine.turn(2)
        self.give()
        self.machine.advance(TIMEOUT - 0.1)
        self.waits.pop().callback(b"")
        self.sent(1)
        self.machine.advance(TIMEOUT - 0.1)
        self.assertEqual(self.reports, [])
        self.other.answer(b"+")
        self.machine.turn(2)
        self.assertEqual(self.reports, [(1, {})])


class StopTests(GiverCase):
    def test_what_was_not_packed_stays(self):
        self.begin(WINDOW + 5)
        self.sent(WINDOW)
        self.giver.stop()
        self.machine.turn(2)
        self.assertEqual(self.reports, [])
        self.other.answer(b"+" * WINDOW)
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports, [(WINDOW, {"channel": 5})])
        self.served_here(self.clients[-1])

    def test_what_comes_to_rest_is_not_waited_for(self):
        client = self.worker.connect()
        client.send((2, b""))
        self.machine.turn(2)
        self.give()
        self.giver.stop()
        self.machine.turn(2)
        self.assertEqual(self.reports, [(0, {"channel": 1})])
        self.waits.pop().callback(b"answered")
        client.expect(b"answered")

    def test_a_bug_hangs_nothing(self):
        self.clients = [self.worker.connect() for _ in range(3)]
        self.clients[1].protocol.detach = lambda: 1 / 0
        self.give()
        self.machine.until(lambda: self.reports)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.served_here(self.clients[2])
