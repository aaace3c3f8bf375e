import contextlib
import re
import struct
import time
from typing import ClassVar
from zlib import crc32

from ccserver.core.framing import encode
from tests.functional import apps
from tests.functional.server import ServerCase, ServerProcess, wait_until
from tests.functional.stopwatch import Stopwatch

HEADER = struct.Struct(">HHI")
ANSWERED = encode(apps.REACTOR, b"good")
LINES_PER_SECOND = 10


def lines_with(log, *words):
    return [line for line in log.splitlines() if all(word in line for word in words)]


class RefusalTests(ServerCase):
    """The table of bad input, PROTOCOL.md 2."""

    def dropped(self, client, data):
        """Send C{data}; nothing comes back, and what is sent behind it is answered."""
        client.socket.sendall(data + ANSWERED)
        self.assertEqual(client.read(len(ANSWERED)), ANSWERED)

    def closed(self, client, data):
        """Send C{data}; the connection ends within a second, without a reply."""
        with Stopwatch(self.server) as watch:
            client.socket.sendall(data)
            self.assertEqual(client.rest(), [])
        self.assertLess(watch.seconds, 1.0)

    def logged(self, data, *words):
        """Send C{data} until a line says C{words} of the connection: their number is limited."""

        def look():
            with self.server.connect() as client:
                client.socket.sendall(data)
                client.end()
                client.rest()
            words_and_peer = [*words, f"client: {client.address}"]
            return lines_with(self.server.log, *words_and_peer)

        wait_until(look, f"a line with {words}")

    def test_a_packet_length_below_the_header_closes(self):
        for length in (0, 7):
            self.closed(self.connect(), HEADER.pack(length, 1, 0))

    def test_a_packet_length_above_the_maximum_closes_before_the_body_is_there(self):
        for length in (29001, 0x7FFF, 0x8000, 0xFFFF):
            self.closed(self.connect(), HEADER.pack(length, 1, 0))

    def test_the_longest_packet_is_answered(self):
        body = bytes(range(256)) * 113 + bytes(64)
        self.assertEqual(self.connect().ask(apps.REACTOR, body[: 29000 - 8]), body[: 29000 - 8])

    def test_a_bad_length_is_logged_with_peer_code_and_reason(self):
        self.logged(HEADER.pack(7, 4711, 0), "refused bad_length, code 4711")

    def test_the_packets_in_front_of_a_fatal_one_are_answered(self):
        for code in apps.ECHOES:
            client = self.connect()
            client.socket.sendall(encode(code, b"one") + encode(code, b"two") + bytes(8))
            self.assertEqual(client.rest(), [(code, b"one"), (code, b"two")])

    def test_the_packets_behind_a_fatal_one_are_not_executed(self):
        before = int(self.connect().ask(apps.COUNT))
        client = self.connect()
        client.socket.sendall(ANSWERED + bytes(8) + encode(apps.COUNT) * 3)
        self.assertEqual(client.rest(), [(apps.REACTOR, b"good")])
        self.assertEqual(int(self.connect().ask(apps.COUNT)), before + 1)

    def test_a_wrong_checksum_is_dropped(self):
        client = self.connect()
        right = crc32(b"body")
        swapped = int.from_bytes(right.to_bytes(4, "big"), "little")
        for wrong in (right ^ 1, right ^ 1 << 31, swapped, 0):
            self.dropped(client, HEADER.pack(12, apps.REACTOR, wrong) + b"body")

    def test_a_checksum_of_no_body_that_is_not_0_is_dropped(self):
        for wrong in (1, 0x80000000, 0xFFFFFFFF):
            self.dropped(self.connect(), HEADER.pack(8, apps.PING, wrong))

    def test_a_checksum_above_the_signed_range_is_right(self):
        body = next(body for body in map(b"%d".__mod__, range(100)) if crc32(body) >= 1 << 31)
        self.assertEqual(self.connect().ask(apps.REACTOR, body), body)

    def test_a_wrong_checksum_is_logged_with_peer_code_and_reason(self):
        self.logged(HEADER.pack(12, 4712, 1) + b"body", "refused bad_crc, code 4712")

    def test_an_unknown_code_is_dropped(self):
        for code in (9999, 0x7FFF, 0x8000, 0xFFFF):
            self.dropped(self.connect(), encode(code, b"body"))

    def test_an_unknown_code_is_logged_with_peer_code_and_reason(self):
        self.logged(encode(4713, b"body"), "refused unknown_code, code 4713")

    def test_a_body_of_another_size_is_dropped(self):
        for size in (0, 1, 15, 17, 1000):
            self.dropped(self.connect(), encode(apps.POINT, bytes(size)))

    def test_a_ping_with_a_body_is_dropped(self):
        self.dropped(self.connect(), encode(apps.PING, b"x"))

    def test_a_body_of_another_size_is_logged_with_peer_code_and_reason(self):
        self.logged(encode(apps.POINT, b"x"), f"refused bad_body, code {apps.POINT}")

    def test_an_end_of_stream_inside_a_packet_closes(self):
        whole = encode(apps.REACTOR, b"body")
        for size in range(1, len(whole)):
            client = self.connect()
            client.socket.sendall(ANSWERED + whole[:size])
            client.end()
            self.assertEqual(client.rest(), [(apps.REACTOR, b"good")])

    def test_an_end_of_stream_inside_a_packet_is_logged_with_peer_and_reason(self):
        self.logged(bytes(7), "closed: truncated")

    def test_what_is_no_such_protocol_is_closed_without_a_copy_in_the_log(self):
        data = b"\xff\xffGET / HTTP/1.1\r\nHost: secret.example\r\n\r\n"
        self.closed(self.connect(), data)
        self.logged(data, "refused bad_length")
        self.assertNotIn("secret.example", self.server.log)


class ChecksumPolicyTests(ServerCase):
    options: ClassVar = {"OnBadChecksum": "close"}

    def test_a_wrong_checksum_closes_behind_the_replies_before_it(self):
        client = self.connect()
        client.socket.sendall(ANSWERED + HEADER.pack(12, 1, 1) + b"body" + ANSWERED)
        self.assertEqual(client.rest(), [(apps.REACTOR, b"good")])
        line = wait_until(
            lambda: lines_with(self.server.log, f"client: {client.address}", "closed:"),
            "a line for the end of the connection",
        )
        self.assertIn("closed: bad_crc", line[0])


class LineLimitTests(ServerCase):
    def test_a_flood_of_bad_packets_is_no_flood_of_lines(self):
        start = time.monotonic()
        client = self.connect()
        client.socket.sendall(encode(4714) * 20000)
        client.ask(apps.PING)
        seconds = time.monotonic() - start
        lines = lines_with(self.server.log, "unknown_code")
        self.assertGreater(len(lines), 0)
        self.assertLessEqual(len(lines), LINES_PER_SECOND * (int(seconds) + 2))

        def told():
            client.socket.sendall(encode(4714))
            found = re.findall(r"\(([0-9]+) more such lines suppressed\)", self.server.log)
            return sum(map(int, found)) > 15000

        wait_until(told, "lines that tell what was suppressed, which may take several seconds")


class HandlerTests(ServerCase):
    def unanswered(self, code):
        """Send a request; it gets no answer, the next one does."""
        client = self.connect()
        client.send((code, b"body"), (apps.PING, b""))
        self.assertEqual(client.receive(), (apps.PING, b""))
        return client

    def raised(self, code, name, what):
        before = len(self.server.log)
        client = self.unanswered(code)
        log = self.server.log[before:]
        self.assertEqual(len(lines_with(log, "[error]", name, f"client: {client.address}")), 1)
        self.assertEqual(log.count("Traceback"), 1)
        self.assertIn(what, log)

    def test_a_handler_on_the_reactor_that_raises_costs_its_request_only(self):
        self.raised(apps.RAISE_REACTOR, "raise_on_reactor", "ValueError: no such song")

    def test_a_handler_in_a_thread_that_raises_costs_its_request_only(self):
        self.raised(apps.RAISE_THREAD, "raise_in_thread", "ValueError: no such song")

    def test_a_reply_that_does_not_fit_into_a_packet_is_not_sent(self):
        self.raised(apps.TOO_LONG, "return_too_much", "PacketTooLong")

    def test_a_reply_of_another_type_is_not_sent(self):
        self.raised(apps.WRONG_TYPE, "return_text", "TypeError")

    def test_none_sends_nothing(self):
        self.unanswered(apps.SILENT)

    def test_a_message_is_decoded_and_its_reply_encoded(self):
        body = struct.pack(">ii8s", -1, 7, b"ann")
        self.assertEqual(self.connect().ask(apps.POINT, body), struct.pack(">ii8s", 7, -1, b"ann"))

    def test_what_a_thread_pushes_arrives_in_order(self):
        client = self.connect()
        client.send((apps.PUSH, b""))
        pushed = [client.receive() for _ in range(apps.PUSHES)]
        self.assertEqual(pushed, [(apps.PUSH, b"%d" % number) for number in range(apps.PUSHES)])

    def test_a_handler_that_closes_is_answered_and_what_follows_is_not(self):
        client = self.connect()
        client.send((apps.CLOSE, b"bye"), (apps.REACTOR, b"more"))
        self.assertEqual(client.rest(), [(apps.CLOSE, b"bye")])

    def test_a_client_that_keeps_the_reactor_busy_keeps_nobody_waiting_for_long(self):
        busy, other = self.connect(), self.connect()
        other.ask(apps.PING)
        busy.socket.sendall(encode(apps.BLOCK, b"1") * 1000)
        for _ in range(10):
            other.ask(apps.PING)
        busy.socket.setblocking(False)
        got = 0
        with contextlib.suppress(BlockingIOError):
            while data := busy.socket.recv(65536):
                got += len(data)
        self.assertLess(got, 500 * len(encode(apps.BLOCK, b"1")))

    def test_handlers_that_sleep_do_not_keep_those_on_the_reactor_waiting(self):
        sleeping = [self.connect() for _ in range(10)]
        for client in sleeping:
            client.send((apps.SLEEP, b"1000"))
        with Stopwatch(self.server) as watch:
            self.connect().ask(apps.PING)
        self.assertLess(watch.seconds, 0.9)
        for client in sleeping:
            self.assertEqual(client.receive(), (apps.SLEEP, b"1000"))

    def test_behind_a_slow_request_the_next_ones_of_the_connection_wait(self):
        client = self.connect()
        for code in (apps.SLEEP, apps.LATER):
            client.send((code, b"100"), (apps.REACTOR, b"a"), (apps.THREAD, b"b"))
            replies = [client.receive() for _ in range(3)]
            self.assertEqual(replies, [(code, b"100"), (apps.REACTOR, b"a"), (apps.THREAD, b"b")])


class ConnectionLimitTests(ServerCase):
    options: ClassVar = {"worker_connections": 5}

    def test_a_connection_beyond_the_limit_is_closed_and_a_place_that_is_left_is_free(self):
        clients = [self.connect() for _ in range(5)]
        for client in clients:
            client.ask(apps.PING)
        for _ in range(3):
            refused = self.connect()
            self.assertEqual(refused.rest(), [])
        self.assertIn("connection_limit", self.server.log)
        clients[0].close()

        def served():
            with self.server.connect() as client:
                try:
                    client.send((apps.PING, b""))
                    return client.receive() is not None
                except ConnectionError:
                    return False

        wait_until(served, "the free place to be given")
        for client in clients[1:]:
            client.ask(apps.PING)


class HalfCloseTests(ServerCase):
    def test_all_that_was_sent_before_a_half_close_is_answered_before_the_end(self):
        for code in apps.ECHOES:
            client = self.connect()
            packets = [(code, b"%d" % number) for number in range(1000)]
            client.send(*packets)
            client.end()
            self.assertEqual(client.rest(), packets)

    def test_a_slow_answer_still_arrives_behind_a_half_close(self):
        for code in (apps.SLEEP, apps.LATER):
            client = self.connect()
            client.send((code, b"200"), (apps.REACTOR, b"more"))
            client.end()
            self.assertEqual(client.rest(), [(code, b"200"), (apps.REACTOR, b"more")])

    def test_a_connection_that_only_ends_is_only_ended(self):
        client = self.connect()
        client.end()
        self.assertEqual(client.rest(), [])


class ResetTests(ServerCase):
    options: ClassVar = {"workers": 2}

    def test_clients_that_reset_before_their_replies_do_not_hurt_the_workers(self):
        before = self.server.workers()
        for number in range(200):
            client = self.server.connect()
            client.send(*[(code, b"x" * 500) for code in apps.ECHOES for _ in range(10)])
            if number % 2:
                client.receive()
            client.reset()
        seen = set()

        def ask_all():
            with self.server.connect() as client:
                seen.add(int(client.ask(apps.PID)))
            return seen == set(before.values())

        wait_until(ask_all, "an answer of each worker")
        self.assertEqual(self.server.workers(), before)
        self.assertNotIn("Traceback", self.server.log)


class ServerOfOneProcessTests(ServerCase):
    """C{WorkerProcesses = 0}: the same protocol."""

    options: ClassVar = {"workers": 0}

    def test_there_is_no_other_process(self):
        self.assertEqual(self.server.processes(), [self.server.master])

    def test_every_kind_of_handler_answers_in_order(self):
        packets = [(code, b"%d" % number) for number in range(100) for code in apps.ECHOES]
        client = self.connect()
        client.send(*packets)
        client.end()
        self.assertEqual(client.rest(), packets)

    def test_bad_packets_are_dropped(self):
        client = self.connect()
        client.socket.sendall(
            encode(9999) + HEADER.pack(12, 1, 0) + b"body" + encode(apps.PING, b"x") + ANSWERED
        )
        self.assertEqual(client.receive(), (apps.REACTOR, b"good"))

    def test_a_bad_length_closes(self):
        client = self.connect()
        client.socket.sendall(ANSWERED + bytes(8) + ANSWERED)
        self.assertEqual(client.rest(), [(apps.REACTOR, b"good")])

    def test_term_answers_what_is_in_hand(self):
        with ServerProcess(workers=0) as server:
            clients = [server.connect() for _ in range(20)]
            for client in clients:
                client.send((apps.SLEEP, b"200"))
            server.stop()
            for client in clients:
                self.assertEqual(client.rest(), [(apps.SLEEP, b"200")])
            self.assertEqual(server.wait(), -15)
            self.assertNotIn("Traceback", server.log)
