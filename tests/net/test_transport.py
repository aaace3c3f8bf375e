"""The transport: one send a turn, nothing lost, and else what Twisted's own one does.

What every transport promises is tried with ours on our reactor, with ours on Twisted's, and with
Twisted's on either.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet import tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IPullProducer,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ccserver.app import App
from ccserver.core.framing import LONG, FrameDecoder, Refusal, encode
from ccserver.core.session import Session
from ccserver.native import native
from ccserver.net import transport as direct
from ccserver.net.peer import NOBODY
from ccserver.net.port import DirectPort
from ccserver.net.reactor import DirectReactor
from ccserver.net.transport import DirectServer
from tests.core.test_framing import header
from tests.net.sockets import AGAIN, PIPE, RESET, FakeSocket, Recorder, Wire
from tests.support import FakeWorker

BIG = 200_000

PIECES = [
    encode(1, b"good"),
    encode(2),
    encode(3, bytes(900)),
    encode(4, bytes(900))[:500],
    encode(5, b"bad")[:-1] + b"D",
    encode(6, bytes(2000)),
    b"\0\7" + bytes(6),
    b"\0",
]
"""Packets, good and bad, and beginnings of some."""


def described(refusal: Refusal) -> tuple[Any, ...]:
    """All of it that can be compared."""
    return *refusal[:4], type(refusal.fatal), type(refusal.error), str(refusal.error)


@implementer(IHalfCloseableProtocol)
class HalfCloser(Recorder):
    """Remembers which side was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []

    def readConnectionLost(self) -> None:
        self.ends.append("read")

    def writeConnectionLost(self) -> None:
        self.ends.append("write")


@implementer(IPushProducer)
class Producer:
    """Remembers what it is told, and tries to do wrong where C{on_pause} says so."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


@implementer(IPullProducer)
class Puller:
    """Writes one piece each time it is asked."""

    def __init__(self, transport: Any, pieces: list[bytes]) -> None:
        self.transport = transport
        self.pieces = pieces
        self.stopped = False

    def resumeProducing(self) -> None:
        if self.pieces:
            self.transport.write(self.pieces.pop(0))
        else:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def stopProducing(self) -> None:
        self.stopped = True


class TransportCase(SynchronousTestCase):
    """A connection on a reactor, both of the kinds that the subclass names."""

    reactor: type[EPollReactor] = DirectReactor
    server: type[tcp.Server] = DirectServer

    def setUp(self) -> None:
        self.wire = Wire(self, self.reactor, self.server)
        self.protocol = HalfCloser()
        self.transport, self.socket = self.wire.connect(self.protocol)

    def receive(self, *data: bytes) -> None:
        """The client sends, and the reactor takes a turn."""
        self.socket.incoming += data
        self.wire.turn()


class PromisesMixin:
    """What every stream transport promises."""

    def test_it_is_a_tcp_transport(self):
        verifyObject(ITCPTransport, self.transport)

    def test_what_comes_is_received(self):
        self.receive(b"hello")
        self.assertEqual(self.protocol.got, [b"hello"])

    def test_what_is_written_is_sent_in_order(self):
        for data in (b"a", b"bb", b"ccc"):
            self.transport.write(data)
        self.transport.writeSequence([b"d", b"ee"])
        self.wire.settle()
        self.assertEqual(self.socket.received, b"abbcccdee")

    def test_only_bytes_can_be_written(self):
        self.assertRaises(TypeError, self.transport.write, "text")

    def test_writing_nothing_is_no_fault(self):
        self.transport.write(b"")
        self.transport.writeSequence([])
        self.wire.settle()
        self.assertEqual(self.socket.sent, [])

    def test_what_the_kernel_does_not_take_is_sent_when_it_does(self):
        self.socket.room = 10
        self.transport.write(b"x" * 100)
        self.wire.settle()
        self.assertEqual(len(self.socket.received), 10)
        self.socket.room = 1000
        self.wire.settle()
        self.assertEqual(self.socket.received, b"x" * 100)

    def test_nothing_is_sent_while_the_kernel_takes_nothing(self):
        self.socket.room = 0
        self.transport.write(b"x" * 100)
        self.wire.settle()
        self.assertLessEqual(self.socket.calls.count("send"), 1)

    def test_lose_connection_sends_what_was_written_first(self):
        self.socket.room = 10
        self.transport.write(b"x" * 100)
        self.transport.loseConnection()
        self.wire.settle()
        self.assertFalse(self.socket.closed)
        self.socket.room = 1000
        self.wire.settle()
        self.assertEqual(self.socket.received, b"x" * 100)
        self.assertTrue(self.socket.closed)
        self.assertFalse(self.socket.was_reset)
        self.protocol.lost[0].trap(ConnectionDone)

    def test_lose_connection_is_not_reported_at_once(self):
        self.transport.loseConnection()
        self.assertEqual(self.protocol.lost, [])
        self.wire.settle()
        self.assertEqual(len(self.protocol.lost), 1)

    def test_the_end_is_reported_once(self):
        self.transport.loseConnection()
        self.transport.loseConnection()
        self.wire.settle()
        self.transport.loseConnection()
        self.transport.abortConnection()
        self.wire.settle()
        self.assertEqual(len(self.protocol.lost), 1)

    def test_writing_after_the_end_is_ignored(self):
        self.transport.loseConnection()
        self.wire.settle()
        self.transport.write(b"late")
        self.transport.writeSequence([b"late"])
        self.wire.settle()
        self.assertEqual(self.socket.sent, [])

    def test_an_abort_drops_what_was_written_and_resets(self):
        self.socket.room = 10
        self.transport.write(b"x" * 100)
        self.wire.turn()
        self.transport.write(b"more")
        self.transport.abortConnection()
        self.socket.room = 1000
        self.wire.settle()
        self.assertEqual(len(self.socket.received), 10)
        self.assertTrue(self.socket.was_reset)
        self.protocol.lost[0].trap(ConnectionAborted)

    def test_nothing_is_received_after_an_abort(self):
        self.transport.abortConnection()
        self.receive(b"late")
        self.wire.settle()
        self.assertEqual(self.protocol.got, [])

    def test_an_abort_in_data_received(self):
        self.protocol.on_data = lambda data: self.transport.abortConnection()
        self.receive(b"go")
        self.wire.settle()
        self.assertTrue(self.socket.was_reset)
        self.assertEqual(len(self.protocol.lost), 1)

    def test_the_clients_end_of_stream_is_told_and_leaves_writing(self):
        self.receive(b"last", b"")
        self.wire.settle()
        self.assertEqual(self.protocol.ends, ["read"])
        self.transport.write(b"reply")
        self.wire.settle()
        self.assertEqual(self.socket.received, b"reply")
        self.transport.loseConnection()
        self.wire.settle()
        self.protocol.lost[0].trap(ConnectionDone)

    def test_who_knows_no_half_close_is_lost_at_the_end_of_stream(self):
        protocol = Recorder()
        _, socket = self.wire.connect(protocol)
        socket.incoming.append(b"")
        self.wire.settle()
        protocol.lost[0].trap(ConnectionDone)
        self.assertTrue(socket.closed)

    def test_our_half_close_comes_behind_what_was_written_and_leaves_reading(self):
        self.socket.room = 10
        self.transport.write(b"x" * 100)
        self.transport.loseWriteConnection()
        self.wire.settle()
        self.assertEqual(self.socket.shut, [])
        self.socket.room = 1000
        self.wire.settle()
        self.assertEqual(self.socket.received, b"x" * 100)
        self.assertEqual(self.socket.shut, [1])
        self.assertEqual(self.protocol.ends, ["write"])
        self.receive(b"more")
        self.assertEqual(self.protocol.got, [b"more"])

    def test_writing_after_our_half_close_is_ignored(self):
        self.transport.loseWriteConnection()
        self.wire.settle()
        self.transport.write(b"late")
        self.wire.settle()
        self.assertEqual(self.socket.sent, [])
        self.assertEqual(self.protocol.lost, [])

    def test_both_half_closes_and_lose_connection_end_it(self):
        self.transport.loseWriteConnection()
        self.wire.settle()
        self.socket.incoming.append(b"")
        self.wire.settle()
        self.assertEqual(self.protocol.ends, ["write", "read"])
        self.transport.loseConnection()
        self.wire.settle()
        self.assertTrue(self.socket.closed)

    def test_a_reset_is_lost(self):
        self.socket.broken = RESET
        self.wire.settle()
        self.protocol.lost[0].trap(ConnectionLost, ConnectionDone)
        self.assertTrue(self.socket.closed)

    def test_an_error_of_receiving_is_lost(self):
        self.receive(RESET)
        self.wire.settle()
        self.protocol.lost[0].trap(ConnectionLost)

    def test_a_spurious_wake_up_is_no_end(self):
        self.receive(AGAIN)
        self.assertEqual((self.protocol.got, self.protocol.lost), ([], []))

    def test_an_error_of_sending_is_reported_later_not_in_write(self):
        for fault in (PIPE, RESET):
            protocol = HalfCloser()
            transport, socket = self.wire.connect(protocol)
            socket.broken = fault
            socket.faults = []
            transport.write(b"x" * 100)
            transport.write(b"x" * 100_000)
            self.assertEqual(protocol.lost, [])
            self.wire.settle()
            self.assertEqual(len(protocol.lost), 1)

    def test_a_protocol_that_raises_loses_its_own_connection_alone(self):
        other = Recorder()
        _, other_socket = self.wire.connect(other)
        self.protocol.on_data = lambda data: 1 // 0
        self.socket.incoming.append(b"bad")
        other_socket.incoming.append(b"good")
        self.wire.settle()
        self.assertEqual(len(self.protocol.lost), 1)
        self.assertEqual(other.got, [b"good"])
        self.assertGreaterEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_paused_it_reads_nothing(self):
        self.transport.pauseProducing()
        self.receive(b"a")
        self.assertEqual(self.protocol.got, [])
        self.transport.resumeProducing()
        self.wire.turn()
        self.assertEqual(self.protocol.got, [b"a"])

    def test_a_push_producer_is_paused_when_much_waits_and_resumed_when_all_is_sent(self):
        producer = Producer()
        self.transport.registerProducer(producer, True)
        self.socket.room = 0
        self.transport.write(bytes(1000))
        self.wire.settle()
        self.assertEqual(producer.told, [])
        self.transport.write(bytes(BIG))
        self.wire.settle()
        self.assertEqual(producer.told, ["pause"])
        self.socket.room = 1000
        self.wire.settle()
        self.assertEqual(producer.told, ["pause"])
        self.socket.room = 10 * BIG
        self.wire.settle()
        self.assertEqual(producer.told, ["pause", "resume"])
        self.assertEqual(len(self.socket.received), 1000 + BIG)

    def test_a_producer_is_stopped_when_the_connection_is_lost(self):
        producer = Producer()
        self.transport.registerProducer(producer, True)
        self.transport.abortConnection()
        self.wire.settle()
        self.assertEqual(producer.told, ["stop"])

    def test_a_pull_producer_is_asked_until_it_has_no_more(self):
        pieces = [b"a", b"bb", b"ccc", bytes(BIG), b"d"]
        whole = b"".join(pieces)
        self.transport.registerProducer(Puller(self.transport, pieces), False)
        self.wire.settle()
        self.assertEqual(self.socket.received, whole)
        self.assertTrue(self.socket.closed)

    def test_a_pull_producer_is_not_asked_while_the_kernel_takes_nothing(self):
        self.socket.room = 0
        pieces = [b"a", b"b", b"c"]
        self.transport.registerProducer(Puller(self.transport, pieces), False)
        self.wire.settle()
        self.assertEqual(len(pieces), 2)

    def test_no_delay_reaches_the_socket(self):
        self.transport.setTcpNoDelay(True)
        self.assertTrue(self.transport.getTcpNoDelay())

    @given(
        st.lists(
            st.tuples(
                st.lists(st.binary(min_size=1, max_size=12), max_size=4),  # written in a turn
                st.booleans(),  # in answer to data, or from outside
                st.lists(st.integers(0, 9) | st.just(AGAIN), max_size=3),  # what sends do
            ),
            max_size=10,
        ),
        st.sampled_from(["none", "lose", "half"]),
    )
    @example([([b"0123"], False, [2]), ([b"45"], True, [])], "half")
    @example([([b"0123"], False, [AGAIN]), ([b"45"], True, [])], "lose")
    @settings(
        deadline=None, max_examples=100, suppress_health_check=[HealthCheck.differing_executors]
    )
    def test_whatever_sends_take_all_is_sent_in_order(
        self, turns: list[tuple[list[bytes], bool, list[Any]]], end: str
    ):
        protocol = HalfCloser()
        transport, socket = self.wire.connect(protocol)
        expected = b""
        for number, (written, answering, faults) in enumerate(turns):
            expected += b"".join(written)
            socket.faults = list(faults)
            last = number == len(turns) - 1

            def act(data: bytes, written: list[bytes] = written, last: bool = last) -> None:
                for piece in written:
                    transport.write(piece)
                if last and end == "lose":
                    transport.loseConnection()
                elif last and end == "half":
                    transport.loseWriteConnection()

            if answering:
                protocol.on_data = act
                socket.incoming.append(b"go")
            else:
                act(b"")
            self.wire.turn()
        socket.faults = []
        self.wire.settle()
        self.assertEqual(socket.received, expected)
        self.assertEqual(socket.closed, bool(turns) and end == "lose")
        self.assertEqual(protocol.ends, ["write"] if turns and end == "half" else [])
        transport.abortConnection()
        self.wire.settle()
        del self.wire.poller.sockets[socket.fd]


class DirectTransportDirectReactorTests(PromisesMixin, TransportCase):
    pass


class DirectTransportStockReactorTests(PromisesMixin, TransportCase):
    reactor = EPollReactor


class StockTransportStockReactorTests(PromisesMixin, TransportCase):
    reactor = EPollReactor
    server = tcp.Server


class StockTransportDirectReactorTests(PromisesMixin, TransportCase):
    server = tcp.Server


class CostMixin:
    """What a packet costs."""

    def test_an_answer_costs_one_receive_and_one_send(self):
        self.protocol.on_data = self.transport.write
        self.receive(b"hello")
        self.assertEqual(self.socket.calls, ["recv", "send"])

    def test_an_answer_costs_no_change_of_what_is_polled_for(self):
        self.protocol.on_data = self.transport.write
        before = self.wire.poller.controls
        for _ in range(10):
            self.receive(b"hello")
        self.assertEqual(self.wire.poller.controls, before)
        self.assertEqual(self.socket.received, b"hello" * 10)


class DirectCostTests(CostMixin, TransportCase):
    def test_what_is_written_in_a_turn_is_one_send_at_its_end(self):
        def write(data: bytes) -> None:
            for piece in (b"a", b"b", b"c"):
                self.transport.write(piece)
            self.transport.writeSequence([b"d", b"e"])
            self.assertEqual(self.socket.sent, [])

        self.protocol.on_data = write
        self.receive(b"go")
        self.assertEqual(self.socket.sent, [b"abcde"])

    def test_what_comes_from_elsewhere_in_the_turn_is_in_it_too(self):
        other = Recorder()
        _, other_socket = self.wire.connect(other)
        self.protocol.on_data = lambda data: self.transport.write(b"mine ")
        other.on_data = lambda data: self.transport.write(b"the other's")
        other_socket.incoming.append(b"go")
        self.receive(b"go")
        self.assertEqual(self.socket.sent, [b"mine the other's"])

    def test_it_is_sent_before_the_reactor_sleeps(self):
        self.transport.write(b"hello")
        self.assertEqual(self.socket.sent, [])
        self.wire.flush()
        self.assertEqual(self.socket.sent, [b"hello"])

    def test_connections_are_sent_to_in_the_order_they_were_written_to(self):
        order: list[int] = []
        wires = [self.wire.connect(Recorder()) for _ in range(5)]
        for place in (3, 0, 4, 1, 2):
            transport, socket = wires[place]
            send = socket.send
            socket.send = lambda data, send=send, place=place: order.append(place) or send(data)
            transport.write(b"x")
        self.wire.flush()
        self.assertEqual(order, [3, 0, 4, 1, 2])

    def test_more_than_a_buffer_full_does_not_wait_for_the_end_of_the_turn(self):
        self.transport.write(b"x")
        self.transport.write(bytes(BIG))
        self.assertEqual(len(self.socket.received), BIG + 1)

    def test_an_error_in_sending_to_one_does_not_keep_the_others_from_it(self):
        protocol = Recorder()
        transport, socket = self.wire.connect(protocol)
        self.socket.broken = RESET
        self.transport.write(b"x")
        transport.write(b"hello")
        self.wire.flush()
        self.assertEqual(socket.received, b"hello")

    def test_a_connection_that_is_gone_at_the_end_of_the_turn_is_left_alone(self):
        def go(data: bytes) -> None:
            self.transport.write(b"x")
            self.transport.connectionLost(self.failure())

        self.protocol.on_data = go
        self.receive(b"go")
        self.wire.settle()
        self.assertEqual(self.socket.sent, [])
        self.assertEqual(len(self.protocol.lost), 1)

    def failure(self) -> Any:
        from twisted.python.failure import Failure

        return Failure(ConnectionLost())

    def test_it_knows_its_client_also_when_it_is_closed(self):
        for peer, kind, host in (
            ("192.0.2.1:5000", IPv4Address, "192.0.2.1"),
            ("[2001:db8::1]:5000", IPv6Address, "2001:db8::1"),
        ):
            protocol = HalfCloser()
            protocol.peer = peer
            transport, socket = self.wire.connect(protocol)
            self.assertEqual(transport.getPeer(), kind("TCP", host, 5000))
            socket.broken = RESET
            self.wire.settle()
            self.assertEqual(transport.getPeer(), kind("TCP", host, 5000))

    def test_and_its_own_address(self):
        for address, kind in ((("10.0.0.1", 5), IPv4Address), (("::1", 5, 0, 0), IPv6Address)):
            self.socket.getsockname = lambda address=address: address
            self.assertEqual(self.transport.getHost(), kind("TCP", *address))

    def test_what_the_kernel_lost_is_told_once(self):
        self.transport.connectionLost(self.failure())
        self.transport.connectionLost(self.failure())
        self.assertEqual(len(self.protocol.lost), 1)
        self.assertEqual(self.transport.fileno(), -1)


class DirectOnStockCostTests(CostMixin, TransportCase):
    reactor = EPollReactor

    def test_each_write_is_sent_at_once(self):
        self.transport.write(b"a")
        self.transport.write(b"b")
        self.assertEqual(self.socket.sent, [b"a", b"b"])


class SlowClientTests(TransportCase):
    """A client that does not read all the time, and what one event can hold together."""

    def fill(self) -> None:
        """Something waits to be sent, and the client has begun to read again."""
        self.socket.room = 5
        self.transport.write(b"0123456789")
        self.wire.turn()
        self.socket.room = 1000

    def answer_and(self, end: str) -> None:
        def act(data: bytes) -> None:
            self.transport.write(b"last")
            getattr(self.transport, end)()

        self.protocol.on_data = act
        self.socket.incoming.append(b"go")

    def test_an_event_that_is_readable_and_writable_keeps_the_order(self):
        self.fill()
        self.protocol.on_data = lambda data: self.transport.write(b"answer")
        self.receive(b"go")
        self.wire.settle()
        self.assertEqual(self.socket.received, b"0123456789answer")

    def test_and_loses_nothing_that_was_written_before_the_end(self):
        self.fill()
        self.answer_and("loseConnection")
        self.wire.settle()
        self.assertEqual(self.socket.received, b"0123456789last")
        self.assertTrue(self.socket.closed)

    def test_nor_before_our_half_close(self):
        self.fill()
        self.answer_and("loseWriteConnection")
        self.wire.settle()
        self.assertEqual(self.socket.received, b"0123456789last")
        self.assertEqual(self.protocol.ends, ["write"])
        self.assertEqual(self.protocol.lost, [])


class PacketsMixin:
    """The protocol of the worker on the transport: the data path as a whole."""

    def setUp(self) -> None:
        super().setUp()
        app = App()

        @app.message(1)
        async def echo(session: Session, request: bytes) -> bytes:
            return request

        @app.message(2)
        async def many(session: Session, request: bytes) -> bytes:
            session.send(9, b"pushed")
            return bytes(40000)

        @app.message(3)
        async def close(session: Session, request: bytes) -> bytes:
            session.close()
            return request

        @app.message(4)
        def thread(session: Session, request: bytes) -> bytes:
            return request

        self.worker = FakeWorker(self, app, threads=1)
        self.client = self.worker.factory.buildProtocol(None)
        self.transport, self.socket = self.wire.connect(self.client)

    def test_packets_are_answered(self):
        self.receive(encode(1, b"a") + encode(1, b"b"))
        self.wire.settle()
        self.assertEqual(self.socket.received, encode(1, b"a") + encode(1, b"b"))

    def test_packets_in_single_bytes_are_answered(self):
        data = encode(1, b"hello")
        for place in range(len(data)):
            self.receive(data[place : place + 1])
        self.wire.settle()
        self.assertEqual(self.socket.received, data)

    def test_a_threads_replies_are_sent(self):
        self.receive(encode(4, b"a") + encode(1, b"b"))
        self.worker.idle()
        self.wire.settle()
        self.assertEqual(self.socket.received, encode(4, b"a") + encode(1, b"b"))

    def test_a_client_that_does_not_read_is_not_answered_for_ever(self):
        self.socket.room = 0
        self.receive(encode(2) * 1000)
        self.wire.settle()
        out = self.client.session.bytes_out
        self.assertLess(out, 400_000)
        self.receive(encode(2) * 1000)
        self.wire.settle()
        self.assertEqual(self.client.session.bytes_out, out)

    def test_and_gets_all_when_it_reads_again(self):
        self.socket.room = 0
        self.receive(encode(2) * 100)
        self.wire.settle()
        self.socket.room = 1 << 30
        for _ in range(3):
            self.wire.settle()
        self.assertEqual(
            self.socket.received, (encode(9, b"pushed") + encode(2, bytes(40000))) * 100
        )

    def test_replies_before_a_bad_packet_are_sent_and_our_side_closed(self):
        self.receive(encode(1, b"a") + header(3))
        self.wire.settle()
        self.assertEqual(self.socket.received, encode(1, b"a"))
        self.assertEqual(self.socket.shut, [1])
        self.socket.incoming.append(b"")
        self.wire.settle()
        self.assertTrue(self.socket.closed)
        self.assertEqual(self.worker.reactor.getDelayedCalls(), [])

    def test_so_they_are_to_a_client_that_reads_slowly(self):
        self.socket.room = 5
        self.receive(encode(1, b"first"))
        self.socket.room = 1000
        self.receive(encode(1, b"a") + header(3))
        self.wire.settle()
        self.assertEqual(self.socket.received, encode(1, b"first") + encode(1, b"a"))
        self.assertEqual(self.socket.shut, [1])

    def test_a_client_that_leaves_when_all_is_answered_is_gone_at_once_and_let_go(self):
        self.receive(encode(1, b"a"))
        self.wire.settle()
        session, lane = self.client.session, self.client.lane
        self.receive(b"")
        if self.server is not DirectServer:
            self.wire.settle()  # Twisted's takes a turn more
        self.assertEqual(self.worker.counts.closed, {"client_closed": 1})
        self.assertEqual(len(self.worker.connections), 0)
        self.assertTrue(self.socket.closed)
        self.assertFalse(self.socket.was_reset)
        self.assertEqual(self.wire.poller.watched.get(self.socket.fd), None)
        self.assertTrue(lane.ending)
        session.send(1, b"too late")
        session.close()
        self.wire.settle()
        self.assertEqual(self.socket.received, encode(1, b"a"))
        self.assertIs(lane._peer, NOBODY)
        self.assertEqual(self.worker.reactor.getDelayedCalls(), [])

    def test_a_half_closed_client_gets_its_replies(self):
        self.receive(encode(1, b"a"), b"")
        self.wire.settle()
        self.assertEqual(self.socket.received, encode(1, b"a"))
        self.assertTrue(self.socket.closed)
        self.assertFalse(self.socket.was_reset)

    def test_the_reply_of_a_handler_that_closes_is_sent(self):
        self.receive(encode(3, b"bye"))
        self.wire.settle()
        self.assertEqual(self.socket.received, encode(3, b"bye"))
        self.assertEqual(self.socket.shut, [1])

    def test_a_reset_with_replies_waiting_ends_cleanly(self):
        self.socket.room = 0
        self.receive(encode(2) * 10)
        self.socket.broken = RESET
        self.wire.settle()
        self.assertEqual(self.worker.counts.closed, {"client_reset": 1})
        self.assertEqual(len(self.worker.connections), 0)

    def test_finish_answers_what_waits_in_the_kernel(self):
        self.socket.incoming.append(encode(1, b"a"))
        self.client.finish()
        self.wire.settle()
        self.assertEqual(self.socket.received, encode(1, b"a"))
        self.assertEqual(self.socket.shut, [1])

    def test_a_connection_that_is_made_while_the_worker_stops_is_answered_and_closed(self):
        self.worker.connections.finish()
        _, socket = self.wire.connect(self.worker.factory.buildProtocol(None))
        self.wire.settle()
        self.assertEqual(socket.shut, [1])


class PacketsOnDirectTests(PacketsMixin, TransportCase):
    pass


class PacketsOnStockReactorTests(PacketsMixin, TransportCase):
    reactor = EPollReactor


class PacketsOnStockTests(PacketsMixin, TransportCase):
    reactor = EPollReactor
    server = tcp.Server


class ListeningSocket(FakeSocket):
    """A listening socket made elsewhere, with connections that wait."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.blocking = True
        self.waiting: list[FakeSocket] = []

    def setblocking(self, blocking: bool) -> None:
        self.blocking = blocking

    def getsockname(self) -> tuple[str, int]:
        return ("10.0.0.1", 5678)

    def accept(self) -> tuple[FakeSocket, tuple[str, int]]:
        if not self.waiting:
            raise AGAIN
        return self.waiting.pop(0), ("10.0.0.9", 5000)


class PortTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.wire = Wire(self, DirectReactor, DirectServer)
        self.socket = ListeningSocket(2_000_000)
        self.factory = Factory.forProtocol(Recorder)
        self.factory.noisy = False
        self.port = DirectPort(self.socket, self.factory, self.wire.reactor)

    def test_the_socket_must_not_block(self):
        self.assertFalse(self.socket.blocking)

    def test_the_kernel_s_buffers_are_its_own_affair_unless_it_is_told(self):
        sizes = (socket.SOL_SOCKET, socket.SO_SNDBUF), (socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.assertEqual([self.socket.options.get(size) for size in sizes], [None, None])
        other = ListeningSocket(2_000_001)
        DirectPort(other, self.factory, self.wire.reactor, 32768, 16384)
        self.assertEqual([other.options.get(size) for size in sizes], [32768, 16384])

    def test_connections_are_direct_servers(self):
        self.port.startListening()
        self.socket.waiting.append(FakeSocket(2_000_001))
        made: list[Any] = []
        self.patch(Recorder, "connectionMade", lambda protocol: made.append(protocol.transport))
        self.port.doRead()
        self.assertEqual([type(transport) for transport in made], [DirectServer])

    def test_closing_it_does_not_shut_the_socket_down_for_its_other_holders(self):
        self.port.startListening()
        self.port.stopListening()
        self.wire.settle()
        self.assertTrue(self.socket.closed)
        self.assertEqual(self.socket.shut, [])


class CompiledTests(SynchronousTestCase):
    """The compiled system calls and their references, on a pair of sockets.

    Real ones, for what they promise is what the kernel does.
    """

    if native is None:
        skip = "the compiled part has not been built"

    def setUp(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setblocking(False)
            self.addCleanup(end.close)
        self.ways = (
            (native.feed_from, native.transmit),
            (direct.feed_from_in_python, direct.transmit_in_python),
        )

    def feeders(self) -> list[Callable[[], Any]]:
        """Both ways to receive, each with a decoder of its own."""
        return [
            partial(feed_from, self.ours, FrameDecoder(29000), direct.READ_SIZE)
            for feed_from, _ in self.ways
        ]

    def test_packets_that_are_there_are_returned(self):
        for feed in self.feeders():
            self.theirs.send(encode(7, b"hello") + encode(8))
            self.assertEqual(feed(), [(7, b"hello"), (8, b"")])

    def test_no_more_than_one_read_at_a_time(self):
        for feed in self.feeders():
            self.theirs.send(encode(1, bytes(20_000)) * 5)
            self.assertEqual([len(feed()), len(feed())], [3, 2])

    def test_whether_packets_are_long_is_seen_alike(self):
        spoiled = encode(1)[:-1] + b"x"
        spoiled_long = encode(1, bytes(1000))[:-1] + b"x"
        for packet, expected in (
            (encode(1, bytes(LONG - 9)), False),
            (encode(1, bytes(LONG - 7)), True),
            (spoiled, False),
            (spoiled_long, True),
        ):
            for feed_from, _ in self.ways:
                self.theirs.send(packet * (direct.READ_SIZE // len(packet) + 1))
                decoder = FrameDecoder(29000)
                feed_from(self.ours, decoder, direct.READ_SIZE)
                self.assertEqual((decoder.fed, decoder.long), (direct.READ_SIZE, expected))
                self.ours.recv(1 << 20)

    def test_nothing_there_is_a_blocking_io_error(self):
        for feed in self.feeders():
            self.assertRaises(BlockingIOError, feed)

    def test_the_end_of_the_stream_is_none(self):
        self.theirs.close()
        for feed in self.feeders():
            self.assertIsNone(feed())

    def test_a_socket_that_is_none_is_an_error(self):
        decoder = FrameDecoder(29000)
        self.assertRaises((TypeError, ValueError), native.feed_from, object(), decoder, 100)
        self.assertRaises(TypeError, native.feed_from, self.ours)
        for size in (0, -1, direct.LONG_READ + 1):
            self.assertRaises(TypeError, native.feed_from, self.ours, decoder, size)

    @given(st.lists(st.binary(max_size=300) | st.sampled_from(PIECES), max_size=12))
    def test_any_bytes_leave_both_decoders_alike(self, segments):
        decoders = [FrameDecoder(1000), FrameDecoder(1000)]
        for segment in segments:
            if not segment:
                continue
            seen = []
            for (feed_from, _), decoder in zip(self.ways, decoders, strict=True):
                self.theirs.send(segment)
                packets = feed_from(self.ours, decoder, direct.READ_SIZE)
                refused = [described(each) for each in decoder.refused]
                state = (
                    decoder.bytes,
                    decoder.packets,
                    decoder.closed,
                    decoder.noted,
                    decoder.long,
                )
                seen.append((packets, refused, state, decoder.incomplete, decoder.fed))
            self.assertEqual(seen[0], seen[1])

    def test_counts_of_any_size_are_counted_on_and_what_was_looked_up_stays(self):
        packet = encode(1, bytes(40))
        for before in (0, 250, 2**30 - 100, 2**30 - 20, 2**45, 2**60 - 100, 2**60 - 20, -10):
            for feed_from, _ in self.ways:
                decoder = FrameDecoder(1000)
                decoder.bytes = decoder.packets = before + 0
                seen = []
                for _ in range(4):
                    seen += [decoder.bytes, decoder.packets]
                    self.theirs.send(packet)
                    feed_from(self.ours, decoder, direct.READ_SIZE)
                    self.theirs.send(packet)
                    feed_from(self.ours, decoder, direct.READ_SIZE)
                self.assertEqual(seen[::2], [before + 96 * n for n in range(4)])
                self.assertEqual(seen[1::2], [before + 2 * n for n in range(4)])
                self.assertEqual(decoder.bytes, before + 4 * 96)

    def long_reads(self, way: int, stream: bytes) -> list[Any]:
        """What each long read of C{stream} has seen, until there is nothing left."""
        feed_from, _ = self.ways[way]
        decoder, seen = FrameDecoder(29000), []
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * direct.LONG_READ)
        self.assertEqual(self.theirs.send(stream), len(stream))
        while decoder.bytes < len(stream) and not decoder.closed:
            packets = feed_from(self.ours, decoder, direct.LONG_READ)
            refused = [described(each) for each in decoder.refused]
            seen.append((decoder.fed, decoder.long, packets, refused, decoder.incomplete))
        with contextlib.suppress(BlockingIOError):
            self.ours.recv(1 << 20)
        return seen

    def test_a_long_read_goes_on_only_behind_long_packets(self):
        size = direct.READ_SIZE
        long, short = encode(1, bytes(8184)), encode(2)
        for stream, expected in (
            (long * 40, direct.LONG_READ),
            (long * 8 + short * 20_000, 2 * size),
            (long * 24 + short * 9000, 4 * size),
            (short * 30_000, size),
            (long * 7 + encode(3)[:-1] + b"x" + long * 28, direct.LONG_READ),
            (long[:-1] + b"x" + encode(3)[:-1] + b"x" + long * 7 + short * 20_000, 2 * size),
            (long * 8 + b"\xff" * size * 2, 2 * size),
            (long * 9, 9 * len(long)),
        ):
            for way in (0, 1):
                self.assertEqual(self.long_reads(way, stream)[0][0], expected)

    @settings(deadline=None, max_examples=40)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([encode(1), encode(2, bytes(200)), encode(3, bytes(20_000))])
                | st.sampled_from([encode(4, b"a")[:-1] + b"b", encode(5, bytes(9000))]),
                st.integers(1, 65_536),
            ),
            min_size=1,
            max_size=8,
        ),
        st.binary(max_size=20),
    )
    def test_any_long_reads_leave_both_decoders_alike(self, parts, end):
        stream = b"".join(packet * (size // len(packet) + 1) for packet, size in parts)[:300_000]
        one, other = (self.long_reads(way, stream + end) for way in (0, 1))
        self.assertEqual(one, other)
        self.assertLessEqual(max(len(packets) for _, _, packets, _, _ in one), 8192 + 3 * 256)

    def test_chunks_are_sent_as_one(self):
        for chunks in ([b"a"], [b"a", b"", b"bc"], [b"x"] * 3000, [b"a", bytes(70_000), b"b"], []):
            for _, transmit in self.ways:
                self.assertEqual(transmit(self.ours, list(chunks)), b"")
                expected = b"".join(chunks)
                self.assertEqual(b"".join(self.everything()), expected)

    def test_what_the_kernel_does_not_take_is_given_back(self):
        chunks = [bytes([n]) * 10_000 for n in range(200)]
        for _, transmit in self.ways:
            left = transmit(self.ours, list(chunks))
            self.assertEqual(b"".join(self.everything()) + left, b"".join(chunks))
            self.assertTrue(left)

    def test_all_is_given_back_when_it_takes_nothing(self):
        for _, transmit in self.ways:
            while not transmit(self.ours, [bytes(10_000)]):
                pass
            while not transmit(self.ours, [b"x"]):
                pass
            self.assertEqual(transmit(self.ours, [b"a", b"b"]), b"ab")
            self.everything()

    def test_all_is_given_back_after_an_error_and_no_signal_comes(self):
        self.theirs.close()
        for _, transmit in self.ways:
            self.assertEqual(transmit(self.ours, [b"a", b"b"]), b"ab")

    def everything(self) -> list[bytes]:
        """What the other end has got."""
        parts = []
        while True:
            try:
                parts.append(self.theirs.recv(1 << 20))
            except BlockingIOError:
                return parts


class SharedBufferTests(SynchronousTestCase):
    def test_what_twisted_writes_below_its_tls_goes_to_no_other_connection(self):
        wire = Wire(self, DirectReactor, DirectServer)
        one, _ = wire.connect(Recorder())
        other, fake = wire.connect(Recorder())
        self.patch(tcp.Server, "startTLS", lambda *arguments: None)
        for transport in (one, other):
            transport.startTLS(None)
        FileDescriptor.write(one, b"for one")
        FileDescriptor.write(other, b"for the other")
        other.doWrite()
        self.assertEqual(fake.received, b"for the other")
        self.assertEqual(direct.NOTHING, [])


class DetachTests(SynchronousTestCase):
    """Leaving the reactor with the socket open, and what can follow."""

    reactor_class: type[EPollReactor] = DirectReactor

    def setUp(self) -> None:
        self.wire = Wire(self, self.reactor_class, DirectServer)
        self.protocol = Recorder()
        self.transport, self.fake = self.wire.connect(self.protocol)

    def test_what_can_be_sent_is_sent_first(self):
        self.transport.write(b"sent")
        self.assertEqual(self.transport.detach(), [])
        self.assertEqual(self.fake.received, b"sent")

    def test_what_cannot_be_is_given_back_in_order(self):
        self.fake.room = 3
        for data in (b"one", b"two", b"three"):
            self.transport.write(data)
            self.wire.flush()
        self.assertEqual(b"".join(self.transport.detach()), b"twothree")

    def test_what_was_partly_sent_is_given_back_from_there(self):
        self.fake.room = 0
        self.transport.write(bytes(BIG) + b"rest")
        self.wire.flush()
        self.fake.room = 1000
        self.transport.doWrite()
        self.transport.write(b"!")
        unsent = b"".join(self.transport.detach())
        self.assertEqual(self.fake.received + unsent, bytes(BIG) + b"rest!")
        self.assertEqual(len(self.fake.received), 1000)

    def test_the_reactor_does_not_know_it_any_more(self):
        self.fake.room = 0
        self.transport.write(b"x")
        self.transport.detach()
        self.fake.room, self.fake.incoming = 100, [b"data"]
        self.wire.turn(3)
        self.assertEqual((self.protocol.got, self.fake.sent), ([], []))
        self.assertNotIn(self.fake.fd, self.wire.poller.watched)

    def test_what_is_written_then_is_kept_back(self):
        self.transport.detach()
        self.transport.write(b"late")
        self.transport.write(bytes(BIG))
        self.wire.turn(3)
        self.assertEqual(self.fake.sent, [])

    def test_reattach_sends_all_in_order_and_reads_again(self):
        self.fake.room = 1
        self.transport.write(b"abc")
        self.wire.flush()
        self.transport.detach()
        self.transport.write(b"def")
        self.fake.room, self.fake.incoming = 100, [b"data"]
        self.transport.reattach()
        self.transport.resumeProducing()
        self.transport.write(b"ghi")
        self.wire.settle()
        self.assertEqual((self.fake.received, self.protocol.got), (b"abcdefghi", [b"data"]))

    def test_release_closes_without_a_word(self):
        self.fake.room = 1
        self.transport.write(b"abc")
        self.transport.detach()
        self.transport.release()
        self.assertTrue(self.fake.closed)
        self.assertEqual((self.fake.shut, self.fake.was_reset), ([], False))
        self.assertEqual(self.protocol.lost, [])

    def test_after_release_nothing_does_anything(self):
        self.transport.detach()
        self.transport.release()
        self.transport.write(b"x")
        self.transport.writeSequence([b"x"])
        self.transport.loseConnection()
        self.transport.abortConnection()
        self.transport.pauseProducing()
        self.transport.resumeProducing()
        self.transport.connectionLost(None)
        self.wire.turn(3)
        self.assertEqual((self.fake.sent, self.protocol.lost), ([], []))


class StockDetachTests(DetachTests):
    reactor_class = EPollReactor
