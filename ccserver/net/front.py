"""The front of a listening address: what stands between its connections and their sessions."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from ccserver.core.session import CloseReason
from ccserver.net.factory import PacketFactory
from ccserver.net.intake import address_text
from ccserver.net.opening import Opening
from ccserver.net.protocol import PacketProtocol
from ccserver.net.proxied import Proxied, ProxyTerms
from ccserver.net.tls import Encrypted, TlsTerms


class Front(Factory):
    """Makes what the connections of an address begin with.

    First comes a proxy's header, then the TLS handshake, then the session.

    @ivar sessions: makes the sessions.
    """

    noisy = False
    log = Logger()

    def __init__(
        self, sessions: PacketFactory, proxy: ProxyTerms | None, tls: TlsTerms | None
    ) -> None:
        """
        @param proxy: what is asked of proxies; None: there are none.
        @param tls: how connections are encrypted; None: not at all.
        """
        self.sessions = sessions
        self._proxy = proxy
        self._tls = tls

    def buildProtocol(  # type: ignore[override]
        self, addr: IAddress
    ) -> Opening | PacketProtocol | None:
        """What a connection begins with; None, which closes it, if it is not admitted."""
        connections = self.sessions.connections
        if connections.full:
            reason, why = CloseReason.CONNECTION_LIMIT, f"{len(connections)} connections"
        elif self._proxy is None:
            return self.behind_header(addr)
        elif self._proxy.trust(addr):
            return Proxied(self, addr, self._proxy.timeout)
        else:
            reason, why = CloseReason.PROXY, "no address of a proxy"
        connections.counts.accepted += 1
        connections.counts.closed[reason] += 1
        self.tell(reason, addr, why)
        return None

    def behind_header(
        self, client: IAddress, first: bytes = b""
    ) -> Opening | PacketProtocol | None:
        """What follows when it is known whose the connection is.

        @param first: what has come of it already.
        """
        session = self.sessions.buildProtocol(client)
        if session is None:
            return None
        following = session if self._tls is None else Encrypted(self, client, self._tls, session)
        following.first = first
        return following

    def tell(self, reason: CloseReason, client: Any, why: str) -> None:
        """Log that a connection is refused."""
        more = self.sessions.connections.admit_line(reason)
        if more is not None:
            self.log.warn(
                "{reason}: {peer} refused: {why}{more}",
                reason=reason,
                peer=address_text(client),
                why=why,
                more=more,
            )
