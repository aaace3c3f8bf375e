"""A listening address behind proxies: whose the connections are, from their first moment on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ccserver.core.framing import encode
from ccserver.core.session import CloseReason
from tests.core.test_proxy import v1_tcp, v2, v2_tcp
from tests.net.fronts import CLOSE, ECHO, TIMEOUT, FrontCase
from tests.support import logged, texts

CLIENT = ("192.0.2.1", 1234)
HELLO = encode(ECHO, b"hello")


class HeaderTests(FrontCase):
    def test_the_client_is_the_peer_from_the_first_hook_on(self):
        for header, peer in (
            (v1_tcp(*CLIENT), "192.0.2.1:1234"),
            (v2_tcp("2001:db8::1", 5), "[2001:db8::1]:5"),
        ):
            self.made.clear()
            client = self.connect(self.front(proxy=True))
            self.assertEqual(self.made, [])
            self.come(client, header)
            self.assertEqual(self.made, [peer])
            self.come(client, HELLO)
            self.assertEqual(client.received, HELLO)

    def test_who_tells_no_client_is_the_peer(self):
        for header in (b"PROXY UNKNOWN\r\n", v2(0x20, 0, b""), v2(0x21, 0x31, bytes(216))):
            self.made.clear()
            self.come(self.connect(self.front(proxy=True)), header)
            self.assertEqual(self.made, ["10.0.0.9:5000"])

    @given(st.sampled_from([v1_tcp(*CLIENT), v2_tcp(*CLIENT, b"\x04\0\1x")]), st.data())
    def test_packets_arrive_whole_however_header_and_packets_are_cut(self, header, data):
        stream = header + HELLO + encode(ECHO, b"again")
        cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
        parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        client = self.connect(self.front(proxy=True))
        self.come(client, *filter(None, parts))
        self.assertEqual(client.received, stream[len(header) :])

    def test_it_is_a_connection_like_any_other_behind_the_header(self):
        client = self.connect(self.front(proxy=True))
        self.come(client, v1_tcp(*CLIENT) + HELLO)
        (connection,) = self.connections
        self.assertIs(connection.reason_to_stay, None)  # it can be handed over
        self.come(client, encode(CLOSE), b"")
        self.wire.settle()
        self.assertNothingLeft({"handler": 1})

    def test_a_worker_that_drains_answers_what_came_with_the_header(self):
        client = self.connect(self.front(proxy=True))
        client.incoming.append(v1_tcp(*CLIENT) + HELLO)
        self.connections.hasten_openings()
        self.connections.finish()
        self.wire.turn(2)
        self.assertEqual(client.received, HELLO)
        self.assertEqual(client.shut, [1])

    def test_a_worker_that_drains_closes_what_has_said_nothing(self):
        self.come(self.connect(self.front(proxy=True)), b"PROXY")
        self.connections.finish()
        self.wire.settle()
        self.assertNothingLeft({"drain": 1})

    def test_a_header_that_waits_is_read_before_a_hand_over(self):
        client = self.connect(self.front(proxy=True))
        self.assertEqual(self.connections.hasten_openings(), 1)
        client.incoming.append(v1_tcp(*CLIENT))
        self.assertEqual(self.connections.hasten_openings(), 0)
        self.assertEqual((len(self.connections), self.connections.openings), (1, set()))


class RefusalTests(FrontCase):
    def test_only_a_proxy_may_connect(self):
        events = logged(self)
        front = self.front(proxy=True)
        for host in ("192.0.2.7", "11.0.0.1", "::2", "::ffff:11.0.0.1"):
            self.assertIsNone(self.accept(front, host))
        self.assertEqual(texts(events)[0], "proxy: 192.0.2.7:5000 refused: no address of a proxy")
        self.assertNothingLeft({"proxy": 4})
        for host in ("10.255.0.1", "::1", "::ffff:10.0.0.1"):
            self.assertIsNotNone(self.accept(front, host))

    def test_what_is_no_header_is_closed_and_counted(self):
        events = logged(self)
        for data in (
            HELLO,
            b"GET / HTTP/1.0\r\n",
            b"PROXY TCP4 x\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31",
        ):
            client = self.connect(self.front(proxy=True))
            self.come(client, data)
            self.wire.settle()
            self.assertTrue(client.closed)
        self.assertEqual(self.made, [])
        self.assertNothingLeft({"proxy": 4})
        self.assertEqual(texts(events)[0], "proxy: 10.0.0.9:5000 refused: no PROXY header")

    def test_a_header_that_is_not_complete_in_time_is_closed_then(self):
        slow = self.connect(self.front(proxy=True))
        silent = self.connect(self.front(proxy=True))
        for byte in b"PROX":
            self.come(slow, bytes([byte]))
            self.passes(TIMEOUT / 5)
        self.assertFalse(slow.closed or silent.closed)
        self.passes(TIMEOUT / 5)
        self.wire.settle()
        self.assertTrue(slow.closed and silent.closed)
        self.assertNothingLeft({"proxy": 2})

    def test_one_that_closes_before_the_header_is_no_proxy_s_fault(self):
        events = logged(self)
        self.come(self.connect(self.front(proxy=True)), b"PROXY", b"")
        self.wire.settle()
        self.assertNothingLeft({"client_closed": 1})
        self.assertEqual(texts(events), [])

    def test_a_worker_that_stops_at_once_cuts_it(self):
        client = self.connect(self.front(proxy=True))
        self.connections.abort()
        self.wire.settle()
        self.assertTrue(client.was_reset)
        self.assertNothingLeft({str(CloseReason.SHUTDOWN): 1})


class RoomTests(FrontCase):
    limit = 2

    def test_openings_take_up_the_room_of_connections(self):
        front = self.front(proxy=True)
        first, _ = self.connect(front), self.connect(front)
        self.assertIsNone(self.accept(front))
        self.assertEqual(self.counts.closed, {"connection_limit": 1})
        self.come(first, v1_tcp(*CLIENT))
        self.assertEqual((len(self.connections), len(self.connections.openings)), (1, 1))
        self.assertIsNone(self.accept(front))
