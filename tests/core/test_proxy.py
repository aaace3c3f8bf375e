"""PROXY protocol: headers as proxies send them, in any pieces, and what is none."""

from __future__ import annotations

import ipaddress
import socket
import struct

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.proxy import V1_LIMIT, V2_FIXED, V2_LIMIT, V2_START, Header, parse
from ccserver.errors import BadProxyHeader


def v2(command: int, kind: int, rest: bytes, length: int | None = None) -> bytes:
    """A header of version 2."""
    return (
        V2_START
        + struct.pack("!BBH", command, kind, len(rest) if length is None else length)
        + rest
    )


def v2_tcp(source: str, port: int, more: bytes = b"") -> bytes:
    """A header of version 2 of a client."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    address = socket.inet_pton(family, source)
    ports = struct.pack("!HH", port, 5678)
    return v2(0x21, 0x21 if ":" in source else 0x11, address + address + ports + more)


def v1_tcp(source: str, port: int) -> bytes:
    """A header of version 1 of a client."""
    return f"PROXY TCP{6 if ':' in source else 4} {source} {source} {port} 5678\r\n".encode()


ports = st.integers(0, 65535)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).filter(lambda each: each.ipv4_mapped is None).map(str)
clients = st.tuples(ipv4 | ipv6, ports)
headers = st.one_of(
    clients.map(lambda client: (v1_tcp(*client), client)),
    st.tuples(clients, st.binary(max_size=300)).map(
        lambda both: (v2_tcp(*both[0], both[1]), both[0])
    ),
    st.binary(max_size=300).map(lambda rest: (v2(0x20, 0, rest), None)),
    st.binary(max_size=216).map(lambda rest: (v2(0x21, 0x31, rest), None)),
    st.just((b"PROXY UNKNOWN\r\n", None)),
)


class VersionOneTests(SynchronousTestCase):
    def test_the_client_is_told(self):
        line = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
        self.assertEqual(parse(line + b"GET"), Header(len(line), ("192.0.2.1", 56324)))
        line = b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n"
        self.assertEqual(parse(line), Header(len(line), ("2001:db8::1", 1)))

    def test_unknown_tells_nobody_whatever_follows_on_the_line(self):
        for line in (b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff:f... 65535 \xff\r\n"):
            self.assertEqual(parse(line + b"\r\n"), Header(len(line), None))

    def test_an_ipv4_address_within_an_ipv6_one_is_told_as_what_it_is(self):
        header = parse(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n")
        self.assertEqual(header and header.client, ("192.0.2.1", 1))

    def test_the_longest_line_is_taken_and_a_longer_one_refused(self):
        line = b"PROXY UNKNOWN ".ljust(V1_LIMIT - 2, b"x") + b"\r\n"
        self.assertEqual(parse(line), Header(V1_LIMIT, None))
        self.assertEqual(parse(line[:-1]), None)
        self.assertRaises(BadProxyHeader, parse, line.replace(b"\r\n", b"x\r\n"))

    def test_wrong_lines_are_refused(self):
        for line in (
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324 65536",
            "PROXY TCP4 192.0.2.1 198.51.100.2 05632 443",
            "PROXY TCP4 192.0.2.1 198.51.100.2 +1 443",
            "PROXY TCP4 192.0.2.1 198.51.100.2  443",
            "PROXY TCP4 192.0.2.1 198.51.100.2 \N{SUPERSCRIPT TWO} 443",
            "PROXY TCP4 192.0.2.256 198.51.100.2 1 2",
            "PROXY TCP4 ::1 ::1 1 2",
            "PROXY TCP6 192.0.2.1 192.0.2.1 1 2",
            "PROXY TCP6 fe80::1%eth0 ::1 1 2",
            "PROXY UDP4 192.0.2.1 192.0.2.1 1 2",
            "PROXY ",
            "PROXY  UNKNOWN",
        ):
            self.assertRaises(BadProxyHeader, parse, line.encode() + b"\r\n")

    def test_what_is_no_header_is_refused_at_its_first_wrong_byte(self):
        for data in (b"G", b"PROXY\t", b"p", b"\0", b"\r\n\r\n\0\r\nQUIX"):
            self.assertEqual(parse(data[:-1]), None)
            self.assertRaises(BadProxyHeader, parse, data)


class VersionTwoTests(SynchronousTestCase):
    def test_the_client_is_told(self):
        header = v2_tcp("192.0.2.1", 56324, b"\x04\0\x01x")
        self.assertEqual(parse(header + b"GET"), Header(len(header), ("192.0.2.1", 56324)))
        header = v2_tcp("2001:db8::1", 1)
        self.assertEqual(parse(header), Header(len(header), ("2001:db8::1", 1)))

    def test_who_speaks_for_itself_or_for_no_tcp_client_tells_nobody(self):
        for command, kind in ((0x20, 0x11), (0x20, 0xFF), (0x21, 0), (0x21, 0x31), (0x21, 0x12)):
            header = v2(command, kind, bytes(216))
            self.assertEqual(parse(header), Header(len(header), None))

    def test_a_header_is_refused_as_soon_as_its_length_is_known(self):
        self.assertEqual(parse(v2(0x21, 0x11, b"", V2_LIMIT)), None)
        self.assertRaises(BadProxyHeader, parse, v2(0x21, 0x11, b"", V2_LIMIT + 1))
        self.assertRaises(BadProxyHeader, parse, v2(0x21, 0x11, b"", 11))
        self.assertRaises(BadProxyHeader, parse, v2(0x21, 0x21, b"", 35))

    def test_other_versions_commands_families_and_protocols_are_refused(self):
        for command, kind in ((0x11, 0x11), (0x22, 0x11), (0x21, 0x41), (0x21, 0x13)):
            self.assertRaises(BadProxyHeader, parse, v2(command, kind, bytes(216)))
        self.assertRaises(BadProxyHeader, parse, V2_START + b"\x22")


class AnyInputTests(SynchronousTestCase):
    @given(headers, st.binary(max_size=50))
    def test_a_header_is_known_with_its_last_byte_and_not_before(self, told, rest):
        header, client = told
        for size in range(len(header)):
            self.assertIs(parse(header[:size]), None)
        self.assertEqual(parse(header + rest), Header(len(header), client))

    @given(st.binary(max_size=200) | st.binary(max_size=60).map((V2_START + b"\x21").__add__))
    @example(V2_START)
    def test_any_bytes_give_a_header_or_a_refusal_that_more_bytes_do_not_change(self, data):
        answers = []
        for size in range(len(data) + 1):
            try:
                answers.append(parse(data[:size]))
            except BadProxyHeader:
                answers.append("refused")
        known = [answer for answer in answers if answer is not None]
        self.assertEqual(known, known[:1] * len(known))
        self.assertEqual(answers[: len(answers) - len(known)], [None] * (len(answers) - len(known)))

    @given(clients)
    def test_valid_headers_say_what_twisted_says(self, client):
        for header, parser in ((v1_tcp(*client), V1Parser()), (v2_tcp(*client), V2Parser())):
            info, rest = parser.feed(header + b"rest")
            ours = parse(header + b"rest")
            assert ours is not None
            assert ours.client is not None
            host = info.source.host
            host = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
            self.assertEqual(ours.client, (str(host), info.source.port))
            self.assertEqual((header + b"rest")[ours.size :], rest)

    def test_a_header_of_version_two_has_at_least_its_fixed_part(self):
        self.assertEqual(parse(v2(0x20, 0, b"")), Header(V2_FIXED, None))
