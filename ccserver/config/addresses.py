"""Addresses as a file has them: where to listen, and the networks that clients come from."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from ccserver.config.values import Kind, Whole

MAX_ADDRESSES = 256
"""How many of them one may listen on."""

_WILDCARDS = frozenset({"0.0.0.0", "::"})

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Address(NamedTuple):
    """Where to listen: an IPv4 or IPv6 literal and a port."""

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """Whether C{host} is an IPv6 literal."""
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"

    def collides(self, other: Address) -> bool:
        """Whether the two cannot be bound together: IPv6 sockets are taken as IPv6 only."""
        return (
            self.port == other.port
            and self.is_ipv6 == other.is_ipv6
            and (self.host == other.host or not {self.host, other.host}.isdisjoint(_WILDCARDS))
        )


class Listener(NamedTuple):
    """An address to listen on, and what its connections begin with.

    @ivar tls: they are encrypted.
    @ivar proxy: a proxy's header (PROXY protocol) stands before all else.
    """

    address: Address
    tls: bool = False
    proxy: bool = False

    def __str__(self) -> str:
        words = ("tls" if self.tls else "", "proxy" if self.proxy else "")
        return " ".join([str(self.address), *filter(None, words)])


class Networks(Kind[tuple[Network, ...]]):
    """Addresses and networks of clients; there may be none."""

    allowed = "addresses and networks like 10.0.0.1, 10.0.0.0/8, ::1, fd00::/8, separated by commas"

    def parse(self, text: str, base: str) -> tuple[Network, ...]:
        return tuple(self._network(part.strip()) for part in text.split(",") if text)

    def show(self, value: tuple[Network, ...]) -> str:
        return ", ".join(map(str, value))

    def _network(self, text: str) -> Network:
        try:
            if "%" in text or ("/" in text and not text.partition("/")[2].isdecimal()):
                raise ValueError
            return ipaddress.ip_network(text)
        except ValueError:
            why = "no network" if "/" not in text else "no network, or has bits behind its prefix"
            raise ValueError(f'"{text}" is {why}') from None


class Listeners(Kind[tuple[Listener, ...]]):
    """Addresses to listen on, and words on how."""

    allowed = (
        "addresses and ports like 127.0.0.1:5678, [::1]:5678, *:5678 or 5678, "
        "each with tls or proxy or both behind it where it is to be"
    )

    def parse(self, text: str, base: str) -> tuple[Listener, ...]:
        parts = text.split(",")
        if len(parts) > MAX_ADDRESSES:
            raise ValueError(f"more than {MAX_ADDRESSES} addresses")
        return tuple(self._listener(part.strip()) for part in parts)

    def show(self, value: tuple[Listener, ...]) -> str:
        return ", ".join(map(str, value))

    def _listener(self, text: str) -> Listener:
        name, *words = text.split() or [""]
        address = self._address(name)
        for word in words:
            if word.lower() not in ("tls", "proxy"):
                raise ValueError(f'"{word}" behind {address} is neither tls nor proxy')
        lower = [word.lower() for word in words]
        if len(set(lower)) != len(lower):
            raise ValueError(f"the same word twice behind {address}")
        return Listener(address, "tls" in lower, "proxy" in lower)

    def _address(self, text: str) -> Address:
        host, colon, port = text.rpartition(":")
        if not colon:
            host = "*"
        try:
            number = Whole(1, 65535).parse(port, "")
        except ValueError as error:
            raise ValueError(f'the port of "{text}" is {error} (1 to 65535)') from None
        return Address(self._host(host), number)

    def _host(self, text: str) -> str:
        if text == "*":
            return "0.0.0.0"
        try:
            if text.startswith("[") and text.endswith("]"):
                return str(ipaddress.IPv6Address(text[1:-1]))
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise ValueError(f'"{text}" is no IPv4 address and no IPv6 address in []') from None
