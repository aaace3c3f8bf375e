"""Which connections an operator wants to see, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

BY_SIZE = (
    *("age", "idle", "bytes_in", "bytes_out"),
    *("packets_in", "packets_out", "waiting", "unsent"),
)
SORTS = ("id", *BY_SIZE)
"""What to sort by: ids ascend; of all others the largest come first. The age is the key
C{seconds}."""

MAX_CONNECTIONS = 10_000
"""In one answer: they are about 3 MB of JSON."""


class AddressPattern(NamedTuple):
    """A host, a network, a port, or a host or network and a port."""

    network: IPv4Network | IPv6Network | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> AddressPattern:
        """C{10.1.2.3}, C{10.0.0.0/8}, C{::1}, with a port C{10.1.2.3:80}, C{[::1]:80}, or C{:80}.

        @raise ValueError: it is none of these.
        """
        host, port = _split(text)
        if port is not None and not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(f"{port!r} is not a port")
        if not host and port is None:
            raise ValueError("empty")
        network = ip_network(host, strict=False) if host else None
        return cls(network, None if port is None else int(port))

    def matches(self, address: str) -> bool:
        """Whether C{address}, as a connection tells it, is one of these."""
        host, port = _split(address)
        if self.port is not None and port != str(self.port):
            return False
        if self.network is None:
            return True
        try:
            return ip_address(host) in self.network
        except ValueError:
            return False


@dataclass(frozen=True)
class ConnectionFilter:
    """What a connection must be to be shown; None: anything.

    @ivar peer: a pattern of the client's address.
    @ivar server: a pattern of the address that it is connected to.
    @ivar worker: the slot of its worker.
    @raise ValueError: a pattern is not one.
    """

    peer: str | None = None
    server: str | None = None
    worker: int | None = None

    def __post_init__(self) -> None:
        for name in ("peer", "server"):
            text = getattr(self, name)
            pattern = None if text is None else AddressPattern.parse(text)
            object.__setattr__(self, f"_{name}", pattern)

    def matches(self, connection: Mapping[str, Any]) -> bool:
        """Whether the connection with these keys (see L{Operations.connections}) is to be shown."""
        if self.worker is not None and connection.get("worker") != self.worker:
            return False
        for name in ("peer", "server"):
            pattern: AddressPattern | None = getattr(self, f"_{name}")
            if pattern is not None and not pattern.matches(str(connection.get(name, ""))):
                return False
        return True


def selected(
    connections: Iterable[Mapping[str, Any]], filter: ConnectionFilter, sort: str, limit: int
) -> dict[str, Any]:
    """The first C{limit} of the connections that match, and how many do.

    May be used in each worker, and by the master on what they gave: of parts it takes the
    C{connections}, and the C{total} is the sum of theirs.
    """
    found = [connection for connection in connections if filter.matches(connection)]
    return {"connections": first(found, sort, limit), "total": len(found)}


def first(
    connections: Iterable[Mapping[str, Any]], sort: str, limit: int
) -> list[Mapping[str, Any]]:
    """The first C{limit} of C{connections} in the order C{sort}; those without a value last."""
    key = "seconds" if sort == "age" else sort

    def place(connection: Mapping[str, Any]) -> tuple[bool, float, int]:
        value, number = connection.get(key), connection.get("id", 0)
        if value is None:
            return True, 0, number
        return False, -value if sort in BY_SIZE else value, number

    return nsmallest(limit, connections, key=place)


def _split(text: str) -> tuple[str, str | None]:
    """Host and port; either may be missing."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":") if rest else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, None
