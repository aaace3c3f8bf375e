"""Faults of the kernel and the network, at every place where they can come, in memory."""

from __future__ import annotations

import array
import errno
import gc
import os
import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.framing import HEADER, encode
from ccserver.core.session import Session
from ccserver.net.giver import Giver
from tests.net.moving import TIMEOUT, Machine
from tests.net.sockets import AGAIN, PIPE, PLENTY, RESET, FakeSocket, Wire
from tests.support import FakeWorker, logged, texts

REQUESTS = [(1, b"first"), (2, b""), (1, b""), (1, b"fourth"), (2, b"x")]
STREAM = b"".join(encode(code, body) for code, body in REQUESTS)
PUSHED = encode(9, b"pushed")
BIG = bytes(range(256)) * 4
REPLIES = b"".join(
    encode(1, body) if code == 1 else PUSHED + encode(2, BIG) for code, body in REQUESTS
)


def application() -> App:
    app = App()

    @app.message(1)
    async def echo(session: Session, request: bytes) -> bytes:
        return request

    @app.message(2)
    async def more(session: Session, request: bytes) -> bytes:
        session.send(9, b"pushed")
        return BIG

    return app


class FaultCase(SynchronousTestCase):
    """A worker, whose connections are in the hands of the test, as many as it wants."""

    def setUp(self) -> None:
        self.wire = Wire(self, Wire.reactor_class, Wire.transport_class)
        self.worker = FakeWorker(self, application())
        self.worker.factory.clock = self.wire.reactor
        self.events = logged(self)

    def connect(self) -> FakeSocket:
        return self.wire.connect(self.worker.factory.buildProtocol(None))[1]

    def assert_gone(self, sock: FakeSocket, what: object) -> None:
        """The connection has ended, and nothing of it is left."""
        self.assertTrue(sock.closed, what)
        self.assertEqual(list(self.worker.connections), [], what)
        self.assertEqual(sum(self.worker.counts.closed.values()), 1, what)
        self.worker.counts.closed.clear()
        self.assertEqual(self.wire.reactor.getDelayedCalls(), [], what)
        self.assertEqual([text for text in texts(self.events) if "rror" in text], [], what)
        del self.wire.poller.sockets[sock.fd]


class WriteTests(FaultCase):
    def answered(self, sock: FakeSocket, what: object) -> None:
        """The client has got all, closes, and is gone."""
        self.assertEqual(sock.received, REPLIES, what)
        sock.incoming.append(b"")
        self.wire.settle()
        self.assert_gone(sock, what)

    def test_sends_that_take_only_so_many_bytes(self):
        for size in [*range(1, 80), 255, 256, 1023, 1024, 1032, len(REPLIES) - 1, len(REPLIES)]:
            sock = self.connect()
            sock.faults = [size] * (len(REPLIES) // size + 1)
            sock.incoming.append(STREAM)
            while sock.faults:
                left = len(sock.faults)
                self.wire.settle()
                if len(sock.faults) == left:
                    break
            self.answered(sock, size)

    def test_a_first_send_that_takes_so_many_bytes_and_a_kernel_that_is_full_behind_it(self):
        for size in range(0, len(REPLIES), 7):
            sock = self.connect()
            sock.room = size
            sock.incoming.append(STREAM)
            self.wire.settle()
            self.assertEqual(sock.received, REPLIES[:size])
            sock.room = PLENTY
            self.wire.settle()
            self.answered(sock, size)

    def test_a_kernel_that_is_full_at_any_send(self):
        pieces = [STREAM[place : place + 5] for place in range(0, len(STREAM), 5)]
        for number in range(len(pieces) + 3):
            for fault in (AGAIN, 0):
                sock = self.connect()
                sock.faults = [PLENTY] * number + [fault]
                for piece in pieces:
                    sock.incoming.append(piece)
                    self.wire.turn()
                self.wire.settle()
                sock.faults = []
                self.answered(sock, (number, fault))

    def test_a_broken_pipe_at_any_send(self):
        for error in (PIPE, RESET):
            for number in range(6):
                sock = self.connect()
                sock.faults = [7] * number + [error]
                sock.incoming.append(STREAM)
                self.wire.turn(2)
                sock.broken = error
                self.wire.settle()
                self.assertTrue(REPLIES.startswith(sock.received))
                self.assert_gone(sock, (error, number))


class ReadTests(FaultCase):
    def test_a_reset_behind_any_byte(self):
        for place in range(len(STREAM) + 1):
            sock = self.connect()
            sock.incoming += [STREAM[:place], RESET] if place else [RESET]
            self.wire.settle()
            self.assert_gone(sock, place)

    def test_a_reset_behind_any_byte_of_the_replies(self):
        for place in range(0, len(REPLIES), 11):
            sock = self.connect()
            sock.room = place
            sock.incoming.append(STREAM)
            self.wire.settle()
            sock.broken = RESET
            self.wire.settle()
            self.assertEqual(sock.received, REPLIES[:place])
            self.assert_gone(sock, place)

    def test_the_end_of_the_stream_behind_any_byte(self):
        expected, ends, position = {0: b""}, b"", 0
        for code, body in REQUESTS:
            position += HEADER.size + len(body)
            ends += encode(1, body) if code == 1 else PUSHED + encode(2, BIG)
            expected[position] = ends
        for place in range(len(STREAM) + 1):
            sock = self.connect()
            sock.incoming += [STREAM[:place], b""] if place else [b""]
            self.wire.settle()
            complete = max(end for end in expected if end <= place)
            self.assertEqual(sock.received, expected[complete], place)
            reason = "client_closed" if place in expected else "truncated"
            self.assertEqual(dict(self.worker.counts.closed), {reason: 1}, place)
            self.assert_gone(sock, place)

    def test_wake_ups_for_nothing_between_any_two_bytes(self):
        sock = self.connect()
        for place in range(len(STREAM)):
            sock.incoming += [AGAIN]
            self.wire.turn()
            sock.incoming[:] = [STREAM[place : place + 1]]
            self.wire.turn()
        self.wire.settle()
        self.assertEqual(sock.received, REPLIES)


class Channel:
    """A giver's end of a channel that breaks, or is full, behind so many bytes.

    The kernel takes a descriptor with the first byte.
    """

    def __init__(self, sock: socket.socket, room: int, error: OSError) -> None:
        self._sock = sock
        self.room = room
        self.error = error

    def sendmsg(self, chunks: list[memoryview], rights: Any) -> int:
        if not self.room:
            raise self.error
        left, part = self.room, []
        for chunk in chunks:  # as many as came, for the kernel does not take any number
            part.append(chunk[:left])
            left -= len(part[-1])
        sent = self._sock.sendmsg(part, rights)
        self.room -= sent
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class ChannelTests(SynchronousTestCase):
    """The way between two workers, cut at any byte of a connection's record."""

    def setUp(self) -> None:
        self.machine = Machine(self)
        self.app = application()
        self.source = self.machine.worker(self.app)
        self.target = self.machine.worker(self.app)
        self.reports: list[Any] = []
        self.events = logged(self)

    def give(self, room: int, error: OSError) -> tuple[Any, Channel]:
        """A client, whose connection is on its way through a channel."""
        client = self.source.connect()
        client.send_bytes(STREAM[:15])
        self.machine.turn(2)
        ours, theirs = self.machine.channel()
        channel: Any = Channel(ours, room, error)
        self.target.take(theirs)
        self.reports.clear()
        giver = Giver(self.source.reactor, channel, TIMEOUT)
        giver.give(self.source.connections).addCallback(self.reports.append)
        return client, channel

    def served(self, client: Any) -> None:
        """What the client began to say is gone on with."""
        client.send_bytes(STREAM[15:])
        client.read_to(len(REPLIES))
        self.assertEqual(bytes(client.got), REPLIES)
        client.sock.close()
        self.machine.turn(3)
        self.assertEqual(len(self.source.connections) + len(self.target.connections), 0)

    def size(self) -> int:
        """Bytes of the record."""
        client, channel = self.give(PLENTY, AGAIN)
        self.machine.until(lambda: self.reports)
        self.assertEqual(self.reports[0].moved, 1)
        self.served(client)
        return PLENTY - channel.room

    def test_a_channel_that_breaks_behind_any_byte_leaves_the_connection_here(self):
        size = self.size()
        gc.collect()  # what earlier tests have left open
        before = descriptors()
        for place in range(size):
            client, _ = self.give(place, OSError(errno.EPIPE, "broken"))
            self.machine.until(lambda: self.reports)
            self.assertEqual((self.reports[0].moved, self.reports[0].left), (0, {"channel": 1}))
            self.served(client)
            self.machine.until(lambda: descriptors() <= before)
        self.assertEqual(self.target.counts.adopted, 1)

    def test_a_channel_that_is_full_behind_any_byte_brings_it_there(self):
        for place in range(self.size()):
            client, channel = self.give(place, BlockingIOError(errno.EAGAIN, "full"))
            self.machine.turn(2)
            self.assertEqual(self.reports, [])
            channel.room = PLENTY
            self.machine.until(lambda: self.reports)
            self.assertEqual(self.reports[0].moved, 1)
            self.served(client)

    def test_a_channel_that_takes_one_byte_at_a_time_brings_it_there(self):
        client, channel = self.give(1, BlockingIOError(errno.EAGAIN, "full"))

        def one_more() -> Any:
            channel.room = 1
            return self.reports

        self.machine.until(one_more)
        self.assertEqual(self.reports[0].moved, 1)
        self.served(client)

    def test_too_many_descriptors_on_their_way_are_tried_again_at_any_byte(self):
        for place in (0, 1, 20, self.size() - 1):
            client, channel = self.give(place, OSError(errno.ETOOMANYREFS, "too many"))
            self.machine.turn(3)
            channel.room = PLENTY
            self.machine.advance(1.0)
            self.machine.until(lambda: self.reports)
            self.assertEqual(self.reports[0].moved, 1)
            self.served(client)

    def test_the_other_worker_gone_behind_any_byte_loses_no_client_without_a_word(self):
        """It goes on here, or it has ended: a client never waits for nobody."""
        for place in range(0, self.size(), 13):
            client = self.source.connect()
            ours, theirs = self.machine.channel()
            channel: Any = Channel(ours, place, BlockingIOError(errno.EAGAIN, "full"))
            self.reports.clear()
            giver = Giver(self.source.reactor, channel, TIMEOUT)
            giver.give(self.source.connections).addCallback(self.reports.append)
            self.machine.turn(2)
            self.drop(theirs)
            channel.room = PLENTY
            self.machine.until(lambda: self.reports)
            self.assertEqual(self.reports[0].left, {"channel": 1})
            client.send((1, b"here"))
            client.expect(b"here")
            client.sock.close()
            self.machine.turn(3)

    def drop(self, end: socket.socket) -> None:
        """The process at this end is gone, and all descriptors that were on their way to it."""
        rights = socket.CMSG_LEN(array.array("i").itemsize)
        try:
            for _, _, data in end.recvmsg(65536, rights)[1]:
                os.close(array.array("i", data)[0])
        except BlockingIOError:
            pass
        end.close()


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))
