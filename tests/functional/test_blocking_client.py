import contextlib
import signal
import socket
import struct
import threading
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import tests.properties  # noqa: F401
from ccserver.client import Client
from ccserver.client.blocking import LONGEST_WAIT, MAX_PUSHES, WINDOW
from ccserver.core.framing import encode
from ccserver.errors import (
    BadBody,
    BadChecksum,
    BadLength,
    ConnectionClosed,
    PacketTooLong,
    ReceiveTimeout,
    RequestTimeout,
    Truncated,
)
from ccserver.message import Message, field
from tests.functional.packet_server import connected_to, listening

SHORT = 0.02
"""Seconds that a test is willing to wait for what never comes."""


class Point(Message):
    x: int = field.i16()


def echo(code, body):
    return encode(code, body)


def silence(code, body):
    return b""


class Case(SynchronousTestCase):
    def client(self, respond, **options):
        """A client on a socket pair, whose other end answers with C{respond}."""
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        sock = stack.enter_context(connected_to(respond))
        options.setdefault("timeout", 10.0)
        return stack.enter_context(Client.from_socket(sock, **options))

    def pair(self, **options):
        """A client, and the socket that it is connected to."""
        ours, theirs = socket.socketpair()
        client = Client.from_socket(ours, **options)
        self.addCleanup(client.close)
        self.addCleanup(theirs.close)
        return client, theirs


class ConnectTests(Case):
    def test_over_ipv4_by_address_and_by_name(self):
        with listening(echo) as port:
            for host in ("127.0.0.1", "localhost"):
                with Client(host, port) as client:
                    self.assertEqual(client.request(5, b"body"), b"body")

    def test_over_ipv6(self):
        with listening(echo, "::1") as port, Client("::1", port) as client:
            self.assertEqual(client.request(5, b"body"), b"body")

    def test_packets_are_not_delayed(self):
        with listening(echo) as port, Client("127.0.0.1", port) as client:
            self.assertTrue(client._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_refused_is_connection_closed(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with self.assertRaises(ConnectionClosed) as caught:
                Client("127.0.0.1", unused.getsockname()[1])
        self.assertIn("Connection refused", str(caught.exception))

    def test_a_name_or_port_that_is_none_is_connection_closed(self):
        for host, port in (("a" * 70, 5678), ("127.0.0.1", 70_000)):
            with self.assertRaises(ConnectionClosed):
                Client(host, port)

    def test_without_a_limit(self):
        with listening(echo) as port, Client("127.0.0.1", port, timeout=inf) as client:
            self.assertEqual(client.request(5), b"")


class RequestTests(Case):
    def test_bytes_are_answered_with_bytes(self):
        self.assertEqual(self.client(echo).request(5, b"body"), b"body")

    def test_messages_are_encoded_and_decoded(self):
        self.assertEqual(self.client(echo).request(5, Point(x=7), reply=Point), Point(x=7))

    def test_an_answer_that_is_no_reply_leaves_the_connection(self):
        client = self.client(echo)
        with self.assertRaises(BadBody):
            client.request(5, b"x", reply=Point)
        self.assertEqual(client.request(5, b"body"), b"body")

    def test_what_cannot_be_encoded_leaves_the_connection(self):
        client = self.client(echo)
        for code, body, error in (
            (5, bytes(65536), PacketTooLong),
            (5, Point(x=1 << 20), ValueError),
            (-1, b"", ValueError),
        ):
            with self.assertRaises(error):
                client.request(code, body)
        self.assertEqual(client.request(5, b"body"), b"body")

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.binary(max_size=30), min_size=1), st.integers(1, 40))
    def test_any_segmentation_of_the_answers_gives_the_same(self, bodies, size):
        ours, theirs = socket.socketpair()
        stream = b"".join(encode(5, body) for body in bodies)
        with Client.from_socket(ours, 10.0) as client, theirs:
            for start in range(0, len(stream), size):
                theirs.send(stream[start : start + size])
            self.assertEqual(client.pipeline([(5, b"")] * len(bodies)), bodies)


class PipelineTests(Case):
    def test_answers_are_in_the_order_of_the_requests(self):
        requests = [(n % 3, b"%d" % n) for n in range(3 * WINDOW)]
        answers = self.client(echo).pipeline(requests)
        self.assertEqual(answers, [body for _, body in requests])

    def test_large_ones_both_ways_do_not_block_each_other(self):
        body = bytes(60_000)
        self.assertEqual(self.client(echo).pipeline([(5, body)] * 200), [body] * 200)

    def test_messages_are_encoded_and_decoded(self):
        answers = self.client(echo).pipeline([(5, Point(x=n)) for n in range(3)], reply=Point)
        self.assertEqual([answer.x for answer in answers], [0, 1, 2])

    def test_none_is_answered_with_nothing(self):
        self.assertEqual(self.client(echo).pipeline([]), [])

    def test_nothing_is_sent_if_one_cannot_be_encoded(self):
        heard = []
        client = self.client(lambda code, body: heard.append(code) or encode(code))
        with self.assertRaises(PacketTooLong):
            client.pipeline([(5, b""), (6, bytes(65536))])
        client.request(7)
        self.assertEqual(heard, [7])

    def test_answers_in_flight_when_the_server_closes_are_told_as_closed(self):
        client = self.client(lambda code, body: encode(code) if code else None)
        with self.assertRaises(ConnectionClosed):
            client.pipeline([(5, b""), (0, b""), (5, b"")])


class TimeoutTests(Case):
    def test_no_answer_is_a_timeout_that_closes(self):
        client = self.client(silence)
        with self.assertRaises(RequestTimeout):
            client.request(5, timeout=SHORT)
        self.assertTrue(client.closed)
        with self.assertRaises(ConnectionClosed) as caught:
            client.request(5)
        self.assertIn("no answer to message 5 in time", str(caught.exception))

    def test_the_client_s_timeout_is_the_default(self):
        with self.assertRaises(RequestTimeout):
            self.client(silence, timeout=SHORT).request(5)

    def test_pushes_do_not_prolong_it(self):
        client, server = self.pair(timeout=SHORT)
        stop = threading.Event()

        def push():
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    server.sendall(encode(9))

        thread = threading.Thread(target=push, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        self.addCleanup(stop.set)
        with self.assertRaises(RequestTimeout):
            client.request(5)

    def test_an_answer_that_came_before_is_found_after_the_deadline(self):
        client, server = self.pair()
        server.sendall(encode(5, b"early"))
        self.assertEqual(client.request(5, timeout=0), b"early")

    def test_one_of_any_length_is_waited_for(self):
        client, server = self.pair()
        select, waits = client._selector.select, []

        def wait(seconds):
            waits.append(seconds)
            if len(waits) == 2:
                server.sendall(encode(5, b"late"))
            return select(0)

        client._selector.select = wait
        self.assertEqual(client.request(5, timeout=1e9), b"late")
        self.assertEqual(waits, [LONGEST_WAIT] * 2)

    def test_one_longer_than_poll_can_wait_is_no_error(self):
        with listening(echo) as port, Client("127.0.0.1", port, timeout=1e10) as client:
            self.assertEqual(client.request(5, b"x"), b"x")

    def test_what_the_server_does_not_read_cannot_be_sent_for_ever(self):
        client, _ = self.pair(timeout=SHORT)
        with self.assertRaises(RequestTimeout):
            for _ in range(1000):
                client.send(8, bytes(60_000))
        self.assertTrue(client.closed)


class PushTests(Case):
    def test_what_comes_before_an_answer_is_kept(self):
        client = self.client(lambda code, body: encode(9, b"news") + encode(code))
        client.request(5)
        self.assertEqual(client.receive(), (9, b"news"))

    def test_receive_waits_for_it(self):
        client = self.client(lambda code, body: encode(9, body))
        client.send(8, b"news")
        self.assertEqual(client.receive(), (9, b"news"))

    def test_receive_in_vain_leaves_the_connection(self):
        client = self.client(echo)
        for timeout in (0, SHORT):
            with self.assertRaises(ReceiveTimeout):
                client.receive(timeout)
        self.assertEqual(client.request(5, b"body"), b"body")

    def test_of_too_many_the_last_are_kept_and_the_rest_counted(self):
        client, server = self.pair()
        server.sendall(b"".join(encode(9, b"%d" % n) for n in range(MAX_PUSHES + 3)) + encode(5))
        client.request(5)
        self.assertEqual(client.pushes_lost, 3)
        self.assertEqual(client.receive(), (9, b"3"))

    def test_on_push_is_told_instead(self):
        told = []
        client = self.client(
            lambda code, body: encode(9, b"news") + encode(code),
            on_push=lambda code, body: told.append((code, body)),
        )
        client.request(5)
        self.assertEqual(told, [(9, b"news")])

    def test_on_push_may_send_a_request_of_its_own(self):
        told = []
        client = self.client(
            lambda code, body: (encode(9) if code == 5 else b"") + encode(code, b"%d" % code),
            on_push=lambda code, body: told.append(client.request(6)),
        )
        self.assertEqual(client.request(5), b"5")
        self.assertEqual(told, [b"6"])

    def test_on_push_may_close(self):
        client = self.client(
            lambda code, body: encode(9), on_push=lambda code, body: client.close()
        )
        with self.assertRaises(ConnectionClosed):
            client.request(5)

    def test_what_on_push_raises_comes_out_and_leaves_the_connection(self):
        def on_push(code, body):
            client.on_push = None
            raise ZeroDivisionError

        client = self.client(lambda code, body: encode(9) + encode(code, body), on_push=on_push)
        with self.assertRaises(ZeroDivisionError):
            client.request(5, b"lost")
        self.assertEqual(client.request(5, b"body"), b"body")


class EndTests(Case):
    def test_closed_while_an_answer_is_waited_for(self):
        with self.assertRaises(ConnectionClosed):
            self.client(lambda code, body: None).request(5)

    def test_closed_within_the_answer_says_so(self):
        client, server = self.pair()
        server.sendall(encode(5, b"body")[:-1])
        server.shutdown(socket.SHUT_WR)
        with self.assertRaises(ConnectionClosed) as caught:
            client.request(5)
        self.assertIsInstance(caught.exception.__cause__, Truncated)

    def test_reset_while_an_answer_is_waited_for(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            with Client("127.0.0.1", listener.getsockname()[1]) as client:
                server = listener.accept()[0]
                server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                server.close()
                with self.assertRaises(ConnectionClosed) as caught:
                    client.request(5)
        self.assertIn("Connection reset", str(caught.exception))

    def test_answers_sent_before_the_server_closed_are_read(self):
        client, server = self.pair()
        server.sendall(encode(5, b"a") + encode(5, b"b"))
        server.close()
        self.assertEqual(client.pipeline([(5, b""), (5, b"")]), [b"a", b"b"])

    def test_pushes_from_before_are_received_first(self):
        client, server = self.pair()
        server.sendall(encode(9, b"news"))
        server.close()
        self.assertEqual(client.receive(), (9, b"news"))
        with self.assertRaises(ConnectionClosed):
            client.receive()

    def test_nothing_is_sent_to_a_server_that_is_gone_as_if_it_were_there(self):
        client, server = self.pair()
        server.close()
        with self.assertRaises(ConnectionClosed) as caught:
            client.send(5)
        self.assertEqual(str(caught.exception), "Broken pipe")
        self.assertTrue(client.closed)

    def test_pushes_from_before_are_there_when_it_cannot_be_sent(self):
        client, server = self.pair()
        server.sendall(encode(9, b"news"))
        server.close()
        with self.assertRaises(ConnectionClosed):
            client.send(5)
        self.assertEqual(client.receive(), (9, b"news"))
        with self.assertRaises(ConnectionClosed):
            client.receive()

    def test_what_is_no_packet_closes(self):
        for data, error in (
            (b"\0\x09\0\5\0\0\0\0x", BadChecksum),
            (bytes(8), BadLength),
        ):
            client, server = self.pair()
            server.sendall(data)
            with self.assertRaises(error):
                client.request(5)
            self.assertTrue(client.closed)

    def test_close_may_be_called_again(self):
        client, _ = self.pair()
        client.close()
        client.close()
        for call in (client.request, client.send):
            with self.assertRaises(ConnectionClosed):
                call(5)

    def test_leaving_the_with_block_closes(self):
        client, server = self.pair()
        with client:
            pass
        self.assertEqual(server.recv(1), b"")

    def test_an_interruption_closes(self):
        client, _ = self.pair()

        def interrupt(number, frame):
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, SHORT)
        with self.assertRaises(KeyboardInterrupt):
            client.request(5)
        self.assertTrue(client.closed)
