"""Connections that come through a proxy, which tells first whose they are (PROXY protocol)."""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.internet.address import IPv4Address, IPv6Address

from ccserver.core.addresses import NetworkSet, parse_host
from ccserver.core.proxy import parse
from ccserver.core.session import CloseReason
from ccserver.errors import BadProxyHeader
from ccserver.net.opening import Opening


class ProxyTerms(NamedTuple):
    """What is asked of proxies.

    @ivar networks: where they are; nobody else may connect.
    @ivar timeout: seconds that one has to send its header.
    """

    networks: NetworkSet
    timeout: float

    def trust(self, peer: Any) -> bool:
        """Whether a proxy may be at the address C{peer}."""
        host = parse_host(peer.host)
        return host is not None and host in self.networks


class Proxied(Opening):
    """A connection of which the proxy's header has not come yet."""

    refusal = CloseReason.PROXY
    admitted = False

    _received = b""

    def dataReceived(self, data: bytes) -> None:
        if self.refused:
            return
        self._received += data
        try:
            header = parse(self._received)
        except BadProxyHeader as error:
            self.refuse(str(error))
            return
        if header is not None:
            if header.client is not None:
                self.client = endpoint(*header.client)
            self.settle()
            first = self._received[header.size :]
            self._received = b""
            following = self._front.behind_header(self.client, first)
            if following is None:
                self.transport.loseConnection()
            else:
                self.transport.pass_on(following)


def endpoint(host: str, port: int) -> IPv4Address | IPv6Address:
    """An address as transports tell it."""
    return IPv6Address("TCP", host, port) if ":" in host else IPv4Address("TCP", host, port)
