"""PROXY protocol: how a proxy tells, before all else, whose connection it passes on.

Versions 1 (a line of text) and 2 (binary), as HAProxy's C{proxy-protocol.txt} describes them.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from ccserver.errors import BadProxyHeader

V1_START = b"PROXY "
V1_LIMIT = 107
"""Bytes of the longest header of version 1, its end of line included."""

V2_START = b"\r\n\r\n\0\r\nQUIT\n"
V2_FIXED = 16
"""Bytes of a header of version 2 before the addresses."""

V2_LIMIT = 4096
"""Bytes behind those 16 at most: addresses, and what else proxies tell, such as a certificate."""

_LOCAL, _PROXY = 0x20, 0x21
_V1_KINDS: dict[bytes, type[IPv4Address | IPv6Address]] = {
    b"TCP4": IPv4Address,
    b"TCP6": IPv6Address,
}
_TCP4, _TCP6 = 0x11, 0x21


class Header(NamedTuple):
    """What a proxy has told.

    @ivar size: bytes of the header; behind them the client speaks.
    @ivar client: its address and port; None if the proxy speaks for itself (a health check), or
        for somebody who has no address of this kind: that of the connection is to be taken.
    """

    size: int
    client: tuple[str, int] | None


def parse(data: bytes) -> Header | None:
    """The header that C{data}, all that has come so far, begins with; None: more has to come.

    @raise BadProxyHeader: it begins with no header, or a wrong one; asked with more data, the
        answer would be the same.
    """
    if data[:1] == V2_START[:1]:
        return _parse_v2(data)
    return _parse_v1(data)


def _parse_v1(data: bytes) -> Header | None:
    if data[: len(V1_START)] != V1_START[: len(data)]:
        raise BadProxyHeader("no PROXY header")
    end = data.find(b"\r\n", 0, V1_LIMIT)
    if end < 0:
        if len(data) >= V1_LIMIT:
            raise BadProxyHeader(f"a PROXY line of more than {V1_LIMIT} bytes")
        return None
    _, protocol, *fields = data[:end].split(b" ")
    if protocol == b"UNKNOWN":
        return Header(end + 2, None)
    try:
        source, destination, source_port, destination_port = (each.decode() for each in fields)
        kind = _V1_KINDS[protocol]
        client = _name(kind(source)), _port(source_port)
        _name(kind(destination))
        _port(destination_port)
    except (KeyError, ValueError):
        raise BadProxyHeader("a PROXY line without two addresses and ports") from None
    return Header(end + 2, client)


def _name(address: IPv4Address | IPv6Address) -> str:
    """The address as text, an IPv4 address within an IPv6 one as what it is."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError("an address within a link only")
        return str(address.ipv4_mapped or address)
    return str(address)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or (text[0] == "0" and text != "0"):
        raise ValueError("not a port")
    port = int(text)
    if port > 65535:
        raise ValueError("not a port")
    return port


def _parse_v2(data: bytes) -> Header | None:
    if data[: len(V2_START)] != V2_START[: len(data)]:
        raise BadProxyHeader("no PROXY header")
    command = data[12:13]
    if command and command[0] not in (_LOCAL, _PROXY):
        raise BadProxyHeader(f"a PROXY header with version and command {command.hex()}")
    if len(data) < V2_FIXED:
        return None
    kind, length = struct.unpack_from("!BH", data, 13)
    if length > V2_LIMIT:
        raise BadProxyHeader(f"a PROXY header of {V2_FIXED + length} bytes")
    if command[0] == _PROXY and (kind >> 4 > 3 or kind & 15 > 2):
        raise BadProxyHeader(f"a PROXY header with family and protocol {kind:02x}")
    form = {_TCP4: "!4s4xH2x", _TCP6: "!16s16xH2x"}.get(kind)
    told = command[0] == _PROXY and form is not None
    if form is not None and told and length < struct.calcsize(form):
        raise BadProxyHeader("a PROXY header without two addresses and ports")
    size = V2_FIXED + length
    if len(data) < size:
        return None
    if form is None or not told:
        return Header(size, None)
    packed, port = struct.unpack_from(form, data, V2_FIXED)
    address = IPv4Address(packed) if kind == _TCP4 else IPv6Address(packed)
    return Header(size, (_name(address), port))
