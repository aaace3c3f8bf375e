"""The taker: what comes through a channel is adopted, refused or thrown away, and hurts nothing."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core import plain
from ccserver.core.carried import HEAD_LIMIT, Carried
from ccserver.core.framing import encode
from ccserver.net import taker
from ccserver.net.departure import MAGIC, RECORD
from ccserver.net.intake import SPARE
from tests.net.moving import SERVER, Machine
from tests.support import logged, open_descriptors, texts


def carried(**more: Any) -> Carried:
    values = {
        "id": 7,
        "peer": "192.0.2.1:5000",
        "server": SERVER,
        "started": 900.0,
        "heard": None,
        "flood": None,
        "bytes_in": 0,
        "packets_in": 0,
        "bytes_out": 0,
        "packets_out": 0,
        "incomplete": b"",
        "pending": [],
        "state": plain.dump({}, "state", 100),
        **more,
    }
    return Carried(**values)


def record(unsent: bytes = b"", **more: Any) -> bytes:
    head = carried(**more).dump()
    return RECORD.pack(MAGIC, len(head), len(unsent)) + head + unsent


class TakerCase(SynchronousTestCase):
    """Has a worker that takes, and the giver's end of the channel in the hands of the test."""

    def setUp(self) -> None:
        self.machine = Machine(self)
        self.app = App()

        @self.app.message(1)
        async def echo(session: Any, request: bytes) -> bytes:
            return request

        self.worker = self.machine.worker(self.app)
        self.channel, theirs = self.machine.channel()
        self.taker = self.worker.take(theirs)

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """A client's end of a connection, and the end that is to be given."""
        client, ours = socket.socketpair()
        for end in (client, ours):
            end.setblocking(False)
            self.addCleanup(end.close)
        return client, ours

    def send(self, data: bytes, *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        sent = self.channel.sendmsg([data], rights if descriptors else [])
        while sent < len(data):
            self.machine.turn()
            try:
                sent += self.channel.send(data[sent:])
            except BlockingIOError:
                pass
        self.machine.turn(2)

    def answers(self) -> bytes:
        self.machine.turn(2)
        try:
            return self.channel.recv(100)
        except BlockingIOError:
            return b""

    def reply(self, client: socket.socket, body: bytes) -> None:
        client.send(encode(1, body))
        self.machine.turn(2)
        self.assertEqual(client.recv(1000), encode(1, body))


class AdoptionTests(TakerCase):
    def test_a_connection_is_served_and_acknowledged(self):
        client, ours = self.connection()
        self.send(record(), ours.fileno())
        self.assertEqual(self.answers(), b"+")
        ours.close()
        self.reply(client, b"x")
        self.channel.close()
        self.machine.turn(2)
        self.assertEqual(self.worker.adopted, [1])

    def test_a_record_may_come_in_any_pieces(self):
        client, ours = self.connection()
        data = record(b"unsent")
        self.send(data[:1], ours.fileno())
        for place in range(1, len(data)):
            self.assertEqual(len(self.worker.connections), 0)
            self.send(data[place : place + 1])
        self.assertEqual(self.answers(), b"+")
        self.assertEqual(client.recv(100), b"unsent")

    def test_what_was_not_sent_comes_first_however_much_it_is(self):
        client, ours = self.connection()
        unsent = os.urandom(3_000_000)
        head = carried(pending=[(1, b"behind")]).dump()
        self.send(RECORD.pack(MAGIC, len(head), len(unsent)) + head + unsent, ours.fileno())
        self.assertEqual(self.answers(), b"+")
        got = bytearray()
        while len(got) < len(unsent) + 14:
            self.machine.turn()
            got += client.recv(1 << 20)
        self.assertEqual(got, unsent + encode(1, b"behind"))

    def test_descriptors_are_not_inherited_by_other_programs(self):
        _, ours = self.connection()
        self.send(record(), ours.fileno())
        self.assertFalse(os.get_inheritable(self.worker.only.transport.fileno()))

    def test_a_client_that_is_gone_already_ends_as_one_does(self):
        client, ours = self.connection()
        client.close()
        self.send(record(), ours.fileno())
        self.assertEqual(self.answers(), b"+")
        ours.close()
        self.assertEqual(sum(self.worker.counts.closed.values()), 1)

    def test_what_a_newer_version_knows_more_is_left_out(self):
        client, ours = self.connection()
        values = plain.load(carried().dump())
        head = plain.dump({**values, "colour": "blue"}, "head", 10000)
        self.send(RECORD.pack(MAGIC, len(head), 0) + head, ours.fileno())
        self.assertEqual(self.answers(), b"+")
        self.reply(client, b"x")


class RefusalTests(TakerCase):
    def refused(self, expected: str, data: bytes, error: type[Exception] | None = None) -> None:
        """The connection is refused, and the next one taken."""
        client, ours = self.connection()
        events = logged(self)
        self.send(data, ours.fileno())
        self.assertEqual(self.answers(), b"-")
        ours.close()
        self.assertEqual(client.recv(1), b"")
        self.assertEqual(texts(events), [expected])
        if error is not None:
            self.assertEqual(len(self.flushLoggedErrors(error)), 1)
        client, ours = self.connection()
        self.send(record(id=8), ours.fileno())
        self.assertEqual(self.answers(), b"+")
        self.reply(client, b"x")

    def test_an_id_that_is_there_already(self):
        _, ours = self.connection()
        self.send(record(), ours.fileno())
        self.answers()
        self.refused("hand-over: 192.0.2.1:5000 was not adopted", record(), ValueError)

    def test_a_state_that_is_damaged(self):
        expected = "hand-over: 192.0.2.1:5000 was not adopted"
        self.refused(expected, record(state=b"?"), ValueError)

    def test_a_packet_that_is_called_incomplete_and_is_not(self):
        expected = "hand-over: 192.0.2.1:5000 was not adopted"
        self.refused(expected, record(incomplete=encode(1, b"x")), ValueError)

    def limited(self, more: int) -> None:
        """Of two connections, none is adopted with C{more} descriptors than there are."""
        client, ours = self.connection()
        before = open_descriptors()  # which collects what other tests have left
        events = logged(self)
        lowest = os.dup(self.channel.fileno())  # what the next one would be
        os.close(lowest)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for id in (7, 8):
            socket.send_fds(self.channel, [record(id=id)], [ours.fileno()])
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))
        try:
            self.machine.turn(3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.assertEqual(self.answers(), b"--")
        self.assertLessEqual(open_descriptors(), before)
        self.send(record(), ours.fileno())
        self.assertEqual(self.answers(), b"+")
        self.reply(client, b"x")
        self.assertEqual(texts(events), [])
        self.channel.shutdown(socket.SHUT_WR)
        self.machine.turn(2)
        self.assertEqual(texts(events), ["hand-over: no descriptors left for 2 connections"])

    def test_a_descriptor_that_we_cannot_have(self):
        self.limited(0)

    def test_those_that_are_spare_are_left_to_all_else(self):
        self.limited(SPARE)


class DamageTests(TakerCase):
    def ended(self, data: bytes, *descriptors: int) -> list[str]:
        """What is logged: C{data} ends the channel, and leaves no descriptor open."""
        events = logged(self)
        before = open_descriptors()
        self.send(data, *descriptors)
        self.assertEqual(self.worker.adopted, [0])
        self.assertLessEqual(open_descriptors(), before - 1)  # its end of the channel
        self.assertEqual(len(self.worker.connections), 0)
        return texts(events)

    def test_another_beginning(self):
        _, ours = self.connection()
        data = b"GET / HTTP/1.1\r\n\r\n"
        (text,) = self.ended(data, ours.fileno())[:1]
        self.assertIn("begins no record", text)

    def test_too_big_a_head(self):
        _, ours = self.connection()
        (text,) = self.ended(RECORD.pack(MAGIC, HEAD_LIMIT + 1, 0), ours.fileno())[:1]
        self.assertIn("begins no record", text)

    def test_a_head_that_is_none(self):
        _, ours = self.connection()
        (text,) = self.ended(RECORD.pack(MAGIC, 3, 0) + b"???", ours.fileno())[:1]
        self.assertIn("hand-over: no plain value", text)

    def test_no_descriptor(self):
        (text,) = self.ended(record())[:1]
        self.assertEqual(text, "hand-over: a record without a descriptor")

    def test_a_descriptor_that_is_no_socket(self):
        with open("/dev/null", "rb") as file:
            (text,) = self.ended(record(), file.fileno())[:1]
        self.assertIn("a descriptor that is no socket", text)

    def test_the_end_inside_a_record(self):
        client, ours = self.connection()
        self.send(record(b"unsent")[:-3], ours.fileno())
        events = logged(self)
        self.channel.close()
        ours.close()
        self.machine.turn(2)
        self.assertEqual(texts(events), ["hand-over: it ended inside a record"])
        self.assertEqual(self.worker.adopted, [0])
        self.assertEqual(client.recv(1), b"")

    def test_what_was_adopted_before_is_served_on(self):
        client, ours = self.connection()
        self.send(record(), ours.fileno())
        self.send(b"?" * 100)
        self.assertEqual(self.worker.adopted, [1])
        self.reply(client, b"x")

    def test_stop_takes_no_more(self):
        self.taker.stop()
        self.taker.stop()
        self.assertEqual(self.worker.adopted, [0])
        self.assertEqual(self.channel.recv(1), b"")


class AnyBytesTests(TakerCase):
    def descriptors(self):
        """Those that are open; garbage of other tests may be collected, and close some."""
        open_now = set()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the one by which they were listed
                os.fstat(int(name))
                open_now.add(name)
        return open_now

    @given(st.lists(st.tuples(st.binary(max_size=60), st.booleans()), max_size=5))
    @example([(record() + b"ccs2", True)])
    @example([(RECORD.pack(MAGIC, 5, 0) + b"l\xff\xff\xff\xff", True)])
    @settings(max_examples=200, deadline=None)
    def test_they_never_raise_and_never_leak(self, pieces):
        self.channel, theirs = self.machine.channel()
        ends = socket.socketpair()
        before = self.descriptors()
        try:
            taken = self.worker.take(theirs)
            for data, with_descriptor in pieces:
                try:
                    if data and with_descriptor:
                        socket.send_fds(self.channel, [data], [ends[0].fileno()])
                    elif data:
                        self.channel.send(data)
                except OSError:
                    break
                self.machine.turn(2)
            taken.stop()
            for connection in self.worker.connections:
                connection.abort()
            self.machine.turn(2)
            self.assertEqual(self.descriptors() - before, set())
            self.assertEqual(theirs.fileno(), -1)
        finally:
            self.channel.close()
            for end in ends:
                end.close()


class ReadsTests(TakerCase):
    def test_a_turn_adopts_only_so_many(self):
        for number in range(3 * taker.READS):
            _, ours = self.connection()
            socket.send_fds(self.channel, [record(id=number)], [ours.fileno()])
        counts = []
        while len(self.worker.connections) < 3 * taker.READS:
            self.machine.turn()
            counts.append(len(self.worker.connections))
        steps = [after - before for before, after in zip([0, *counts], counts, strict=False)]
        self.assertLessEqual(max(steps), taker.READS)
