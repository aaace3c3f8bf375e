"""A listening address with TLS: handshakes, packets, and all the ways to end."""

from __future__ import annotations

import os
import ssl
import struct
import tempfile

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from ccserver.core.addresses import AccessList, AddressLimits, Origins
from ccserver.core.framing import encode
from ccserver.net.closing import CloseTimeouts
from ccserver.net.tls import SILENT_BYTES, UNREAD_ANSWERS
from tests.authority import Authority, written
from tests.core.test_proxy import v1_tcp
from tests.net.fronts import CLOSE, ECHO, TIMEOUT, WAIT, FrontCase, TlsClient
from tests.net.sockets import FakeSocket
from tests.support import logged, texts

FLUSH_TIMEOUT, LINGER_TIMEOUT = CloseTimeouts().flush, CloseTimeouts().linger

AUTHORITY = Authority()
CERTIFICATE, KEY = AUTHORITY.issue("localhost")


class TlsCase(FrontCase):
    """Has a context for the server, and one for clients."""

    def setUp(self) -> None:
        FrontCase.setUp(self)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            path = written(os.path.join(folder, "a.pem"), CERTIFICATE, KEY)
            self.context.load_cert_chain(path)
        self.trust = ssl.create_default_context(cadata=AUTHORITY.pem.decode())

    def tls(self, socket: FakeSocket | None = None) -> TlsClient:
        """A client behind its handshake."""
        client = TlsClient(
            self, socket or self.connect(self.front(context=self.context)), self.trust
        )
        client.shake_hands()
        return client


class Records:
    """What a client of TLS 1.3 sends, record by record: C{ssl} cannot ask for new keys."""

    HASH = hashes.SHA384()  # that of TLS_AES_256_GCM_SHA384

    def __init__(self, secret: bytes) -> None:
        """@param secret: C{CLIENT_TRAFFIC_SECRET_0} of C{SSLKEYLOGFILE}."""
        self._secret = secret
        self._sent = 0

    def data(self, data: bytes) -> bytes:
        return self._record(0x17, data)

    def new_keys(self) -> bytes:
        """A record that has new keys follow, and asks for such of the other side."""
        record = self._record(0x16, b"\x18\x00\x00\x01\x01")
        self._secret, self._sent = self._expand(b"traffic upd", 48), 0
        return record

    def _record(self, kind: int, data: bytes) -> bytes:
        number = int.from_bytes(self._expand(b"iv", 12), "big") ^ self._sent
        self._sent += 1
        head = struct.pack("!BHH", 0x17, 0x0303, len(data) + 17)
        key = AESGCM(self._expand(b"key", 32))
        return head + key.encrypt(number.to_bytes(12, "big"), data + bytes([kind]), head)

    def _expand(self, label: bytes, size: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack("!HB", size, len(label)) + label + b"\0"
        return HKDFExpand(self.HASH, size, info).derive(self._secret)


class ConversationTests(TlsCase):
    def test_a_session_begins_behind_the_handshake(self):
        socket = self.connect(self.front(context=self.context))
        self.assertEqual((self.made, len(self.connections.openings)), ([], 1))
        self.tls(socket)
        self.assertEqual((self.made, len(self.connections.openings)), (["10.0.0.9:5000"], 0))
        self.assertEqual(self.wire.reactor.getDelayedCalls(), [])

    @given(st.lists(st.binary(max_size=40000), max_size=4), st.integers(1, 70000))
    @settings(deadline=None)
    def test_packets_arrive_whole_however_they_are_cut(self, bodies, step):
        client = self.tls()
        packets = [(ECHO, body) for body in bodies if len(body) < 28000]
        if packets:
            client.send(*packets, step=max(step, 50))
        client.exchange()
        self.assertEqual(client.received(), packets)

    def test_packets_that_come_with_the_end_of_the_handshake_are_answered(self):
        client = TlsClient(self, self.connect(self.front(context=self.context)), self.trust)
        for _ in range(2):
            try:
                client.tls.do_handshake()
            except ssl.SSLWantReadError:
                client.exchange()
        client.send((ECHO, b"a"), (ECHO, b"b"))
        self.assertEqual(client.received(), [(ECHO, b"a"), (ECHO, b"b")])

    def test_behind_a_proxy_the_handshake_follows_the_header(self):
        front = self.front(proxy=True, context=self.context)
        socket = self.connect(front)
        client = TlsClient(self, socket, self.trust)
        self.come(socket, v1_tcp("192.0.2.1", 1234)[:9])
        try:
            client.tls.do_handshake()
        except ssl.SSLWantReadError:
            hello = client._outgoing.read()
        self.come(socket, v1_tcp("192.0.2.1", 1234)[9:] + hello)
        client.exchange()
        client.shake_hands()
        client.send((ECHO, b"x"))
        self.assertEqual(client.received(), [(ECHO, b"x")])
        self.assertEqual(self.made, ["192.0.2.1:1234"])

    def test_it_cannot_be_handed_over(self):
        self.tls()
        (connection,) = self.connections
        self.assertEqual(connection.reason_to_stay, "tls")

    def test_a_client_that_does_not_read_stops_its_handlers_at_the_usual_bound(self):
        client = self.tls()
        client.socket.room = 0
        for _ in range(100):
            client.tls.write(encode(ECHO, bytes(20000)))
            client.exchange()
        (connection,) = self.connections
        self.assertTrue(connection.lane.blocked and connection.lane.paused)
        transport = connection.transport
        unsent = len(transport.dataBuffer) + transport._tempDataLen
        self.assertLess(unsent, 200_000)
        client.socket.room = 1 << 30
        for _ in range(200):
            client.exchange()
        self.assertEqual(len(client.received()), 100)


class EndTests(TlsCase):
    def test_a_client_that_sends_no_more_gets_its_replies(self):
        for in_tls in (True, False):
            self.counts.closed.clear()
            self.counts.accepted = 0
            client = self.tls()
            client.send((WAIT, b"a"), (ECHO, b"b"))
            if in_tls:
                client.say_goodbye()
            else:
                self.come(client.socket, b"")
            self.assertEqual(client.received(), [])
            self.waits.pop().callback(None)
            client.exchange()
            self.wire.settle()
            client.exchange()
            self.assertEqual(client.received(), [(WAIT, b"a"), (ECHO, b"b")])
            self.assertNothingLeft({"client_closed": 1})

    def test_an_end_inside_a_packet_is_known(self):
        client = self.tls()
        client.tls.write(encode(ECHO, b"hello")[:-1])
        client.exchange()
        client.say_goodbye()
        self.wire.settle()
        self.assertNothingLeft({"truncated": 1})

    def test_the_server_says_goodbye_behind_what_it_has_to_say_and_the_client_has_time(self):
        client = self.tls()
        client.send((ECHO, b"a"), (CLOSE, b"b"), (ECHO, b"c"))
        self.assertEqual(client.received(), [(ECHO, b"a"), (CLOSE, b"b")])
        client.exchange()
        client.received()
        self.assertTrue(client.ended)
        self.assertEqual((client.socket.shut, client.socket.closed), ([1], False))
        client.tls.write(b"x" * 100)
        client.exchange()
        self.come(client.socket, b"")
        self.wire.settle()
        self.assertTrue(client.socket.closed)
        self.assertFalse(client.socket.was_reset)
        self.assertNothingLeft({"handler": 1})

    def test_the_server_s_close_amid_many_records_loses_no_reply(self):
        client = self.tls()
        client.send((ECHO, bytes(20000)), (CLOSE, b""), (ECHO, bytes(20000)))
        client.exchange()
        self.assertEqual([len(body) for _, body in client.received()], [20000, 0])
        self.assertTrue(client.ended)

    def test_a_client_that_does_not_close_is_cut(self):
        client = self.tls()
        client.send((CLOSE, b""))
        self.passes(CloseTimeouts().linger)
        self.wire.settle()
        self.assertTrue(client.socket.closed)
        self.assertNothingLeft({"handler": 1})

    def test_a_client_that_does_not_read_is_cut(self):
        client = self.tls()
        client.socket.room = 0
        client.send((ECHO, bytes(20000)), (CLOSE, b""))
        for _ in range(11):
            self.passes(CloseTimeouts().flush / 10)
        self.wire.settle()
        self.assertTrue(client.socket.was_reset)
        self.assertNothingLeft({"handler": 1})

    def test_a_reset_ends_it(self):
        client = self.tls()
        client.socket.broken = ConnectionResetError(104, "reset")
        self.wire.settle()
        self.assertNothingLeft({"client_reset": 1})
        self.assertEqual(self.lost, ["client_reset"])

    def test_bytes_that_are_not_the_client_s_end_it(self):
        events = logged(self)
        client = self.tls()
        self.come(client.socket, b"\x17\x03\x03\x00\x20" + bytes(32))
        self.wire.settle()
        self.assertTrue(client.socket.was_reset)
        self.assertNothingLeft({"tls": 1})
        self.assertEqual(self.lost, ["tls"])
        self.assertIn("tls: 10.0.0.9:5000 refused: ", texts(events)[0])

    def test_bytes_without_end_and_without_a_packet_end_it(self):
        client = self.tls()
        # a record as long as one may be, of which the last byte never comes
        self.come(client.socket, *[b"\x17\x03\x03\x40\x00" + bytes(1000)])
        self.assertFalse(client.socket.closed)
        (connection,) = self.connections
        connection.transport._silent = SILENT_BYTES
        self.come(client.socket, b"x")
        self.wire.settle()
        self.assertNothingLeft({"tls": 1})


class NewKeysTests(TlsCase):
    """A client may ask for new keys at any time, and is answered."""

    def setUp(self) -> None:
        TlsCase.setUp(self)
        with tempfile.TemporaryDirectory() as folder:
            path = self.trust.keylog_filename = os.path.join(folder, "keys")
            self.client = self.tls()
            with open(path) as file:
                secrets = dict(line.split()[::2] for line in file if not line.startswith("#"))
        self.assertEqual(self.client.tls.cipher()[0], "TLS_AES_256_GCM_SHA384")
        self.records = Records(bytes.fromhex(secrets["CLIENT_TRAFFIC_SECRET_0"]))
        (self.connection,) = self.connections

    def asked(self, times: int) -> bytes:
        return b"".join([self.records.new_keys() for _ in range(times)])

    def test_one_that_reads_the_answers_may_ask_for_ever(self):
        for _ in range(10):
            self.come(self.client.socket, self.asked(300) + self.records.data(b"\0"))
            self.client.socket.sent.clear()
            if self.connection.session.close_reason is not None:
                break
            self.come(self.client.socket, self.records.data(encode(ECHO)[1:]))
            self.client.socket.sent.clear()
        self.assertEqual(self.connection.session.packets_in, 10)

    def test_one_that_does_not_read_them_costs_no_more_than_a_bound(self):
        self.client.socket.room = 0
        most = 0
        for byte in encode(ECHO, bytes(100)):
            if self.connection.lost:
                break
            # the byte of a packet shows that it is not silent
            self.come(self.client.socket, self.asked(1000) + self.records.data(bytes([byte])))
            most = max(most, self.connection.transport.transport.unsent)
        self.wire.settle()
        self.assertNothingLeft({"tls": 1})
        self.assertLess(most, UNREAD_ANSWERS + 65536)


class HandshakeTests(TlsCase):
    def test_one_that_is_not_complete_in_time_is_cut_then(self):
        events = logged(self)
        for data in (b"", b"\x16\x03\x01\x02\x00\x01"):
            socket = self.connect(self.front(context=self.context))
            self.come(socket, *filter(None, [data]))
            self.passes(TIMEOUT - 0.1)
            self.assertFalse(socket.closed)
            self.passes(0.1)
            self.wire.settle()
            self.assertTrue(socket.closed)
        self.assertNothingLeft({"tls": 2})
        self.assertEqual(
            texts(events)[0], "tls: 10.0.0.9:5000 refused: nothing complete within 5 s"
        )

    def test_plain_text_is_closed_at_once(self):
        events = logged(self)
        for data in (encode(ECHO, bytes(9)), b"GET / HTTP/1.0\r\n"):
            socket = self.connect(self.front(context=self.context))
            self.come(socket, data)
            self.wire.settle()
            self.assertTrue(socket.closed)
        self.assertNothingLeft({"tls": 2})
        self.assertIn("wrong version number", texts(events)[0])
        self.assertIn("http request", texts(events)[1])

    def test_a_client_that_does_not_believe_us_is_counted(self):
        self.trust = ssl.create_default_context()
        client = TlsClient(self, self.connect(self.front(context=self.context)), self.trust)
        self.assertRaises(ssl.SSLCertVerificationError, client.shake_hands)
        client.exchange()
        self.wire.settle()
        self.assertNothingLeft({"tls": 1})

    def test_one_who_only_connects_is_no_news(self):
        events = logged(self)
        self.come(self.connect(self.front(context=self.context)), b"")
        self.wire.settle()
        self.assertNothingLeft({"client_closed": 1})
        self.assertEqual(texts(events), [])

    @given(st.binary(min_size=1, max_size=300))
    @settings(deadline=None)
    def test_any_bytes_are_refused_or_waited_for(self, data):
        self.counts.closed.clear()
        self.counts.accepted = 0
        socket = self.connect(self.front(context=self.context))
        self.come(socket, data)
        self.passes(TIMEOUT)
        self.wire.settle()
        self.assertNothingLeft({"tls": 1})

    def test_a_worker_that_drains_does_not_wait_for_it(self):
        socket = self.connect(self.front(context=self.context))
        self.come(socket, b"\x16\x03\x01\x02\x00\x01")
        self.assertEqual(self.connections.hasten_openings(), 0)  # it cannot be handed over anyway
        self.connections.finish()
        self.wire.settle()
        self.assertFalse(socket.was_reset)
        self.assertNothingLeft({"drain": 1})

    def test_a_worker_that_stops_cuts_it(self):
        self.connect(self.front(context=self.context))
        self.connections.abort()
        self.wire.settle()
        self.assertNothingLeft({"shutdown": 1})


class RoomTests(TlsCase):
    limit = 1

    def test_openings_take_up_the_room_of_connections(self):
        front = self.front(context=self.context)
        first = self.connect(front)
        self.assertIsNone(self.accept(front))
        client = self.tls(first)
        client.send((ECHO, b"x"))
        self.assertEqual(client.received(), [(ECHO, b"x")])
        self.assertIsNone(self.accept(front))


class AddressTests(TlsCase):
    def setUp(self) -> None:
        self.origins = Origins(AddressLimits(connections=1), AccessList())
        TlsCase.setUp(self)

    def test_handshakes_count_for_their_client_s_address(self):
        front = self.front(context=self.context)
        first = self.connect(front)
        self.assertIsNone(self.accept(front))
        self.assertIsNotNone(self.accept(front, "10.0.0.10"))
        self.assertEqual(self.counts.closed, {"address_limit": 1})
        self.come(first, b"GET / HTTP/1.0\r\n")
        self.wire.settle()
        client = self.tls(self.connect(front))
        client.send((ECHO, b"x"))
        self.assertEqual(client.received(), [(ECHO, b"x")])
        self.assertIsNone(self.accept(front))

    def test_behind_a_proxy_the_client_s_address_counts_and_not_the_proxy_s(self):
        front = self.front(proxy=True, context=self.context)
        sockets = [self.connect(front) for _ in range(3)]
        self.come(sockets[0], v1_tcp("192.0.2.1", 1))
        self.come(sockets[1], v1_tcp("192.0.2.2", 1))
        self.come(sockets[2], v1_tcp("192.0.2.1", 2))
        self.wire.settle()
        self.assertEqual([each.closed for each in sockets], [False, False, True])
