"""A worker's listening address with something before the packets, and its clients, in memory."""

from __future__ import annotations

import contextlib
import ssl
from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.addresses import NetworkSet, Origins
from ccserver.core.counts import Counts
from ccserver.core.framing import FrameDecoder, Packet, encode
from ccserver.core.limits import SessionLimits
from ccserver.core.session import Session
from ccserver.net.connections import Connections
from ccserver.net.dispatch import Dispatch
from ccserver.net.factory import PacketFactory
from ccserver.net.front import Front
from ccserver.net.pool import Pool
from ccserver.net.proxied import ProxyTerms
from ccserver.net.reactor import DirectReactor
from ccserver.net.tls import TlsTerms
from ccserver.net.transport import DirectServer
from tests.net.sockets import FakeSocket, Wire

ECHO, WAIT, CLOSE = 1, 2, 3
TIMEOUT = 5.0


class FrontCase(SynchronousTestCase):
    """Has an application that tells whom it sees, and proxies at 10.0.0.0/8 and ::1."""

    limit = 100
    origins: Origins | None = None

    def setUp(self) -> None:
        self.wire = Wire(self, DirectReactor, DirectServer)
        self.app = App()
        self.waits: list[Deferred[None]] = []
        self.made: list[str] = []
        self.lost: list[str] = []

        @self.app.message(ECHO)
        async def echo(session: Session, request: bytes) -> bytes:
            return request

        @self.app.message(WAIT)
        async def wait(session: Session, request: bytes) -> bytes:
            result: Deferred[None] = Deferred()
            self.waits.append(result)
            await result
            return request

        @self.app.message(CLOSE)
        async def close(session: Session, request: bytes) -> bytes:
            session.close()
            return request

        @self.app.on_connection_made
        async def made(session: Session) -> None:
            self.made.append(session.peer)

        @self.app.on_connection_lost
        async def lost(session: Session, reason: str) -> None:
            self.lost.append(reason)

        self.counts = Counts()
        reactor = self.wire.reactor
        self.connections = Connections(
            self.limit, 0, self.counts, reactor.seconds, origins=self.origins
        )
        pool = Pool(reactor, 0)
        pool.start(False)
        self.addCleanup(pool.stop)
        dispatch = Dispatch(self.app, pool, 64, self.counts)
        self.sessions = PacketFactory(
            "10.0.0.1:5678", SessionLimits(), self.connections, dispatch, reactor
        )

    def front(self, proxy: bool = False, context: ssl.SSLContext | None = None) -> Front:
        networks = NetworkSet([ip_network("10.0.0.0/8"), ip_network("::1")])
        return Front(
            self.sessions,
            ProxyTerms(networks, TIMEOUT) if proxy else None,
            None if context is None else TlsTerms(lambda: context, TIMEOUT),
        )

    def accept(self, front: Front, host: str = "10.0.0.9") -> FakeSocket | None:
        """The socket of a connection from C{host}; None if it is closed at once."""
        address = IPv6Address if ":" in host else IPv4Address
        protocol: Any = front.buildProtocol(address("TCP", host, 5000))
        return None if protocol is None else self.wire.connect(protocol)[1]

    def connect(self, front: Front, host: str = "10.0.0.9") -> FakeSocket:
        accepted = self.accept(front, host)
        assert accepted is not None
        return accepted

    def come(self, client: FakeSocket, *segments: bytes) -> None:
        """The server reads C{segments}, one by one."""
        for segment in segments:
            client.incoming.append(segment)
            self.wire.turn()

    def passes(self, seconds: float) -> None:
        self.wire.poller.now += seconds
        self.wire.turn()

    def assertNothingLeft(self, closed: dict[str, int]) -> None:
        """All connections are gone, for these reasons, and no timer is left."""
        self.assertEqual(dict(self.counts.closed), closed)
        self.assertEqual(self.counts.accepted, sum(closed.values()))
        self.assertEqual((len(self.connections), self.connections.openings), (0, set()))
        self.assertEqual(self.wire.reactor.getDelayedCalls(), [])


class TlsClient:
    """A client that speaks TLS over a L{FakeSocket}."""

    def __init__(self, case: FrontCase, socket: FakeSocket, context: ssl.SSLContext) -> None:
        self._case = case
        self.socket = socket
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._decoder = FrameDecoder(0xFFFF)
        self.ended = False

    def shake_hands(self) -> None:
        for _ in range(5):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            self.exchange()

    def exchange(self, step: int = 1 << 20) -> None:
        """Let what was written arrive at the other side, C{step} bytes at a time."""
        while self._outgoing.pending:
            self._case.come(self.socket, self._outgoing.read(step))
        self._case.wire.turn(3)
        for sent in self.socket.sent:
            self._incoming.write(sent)
        self.socket.sent.clear()

    def send(self, *packets: Packet, step: int = 1 << 20) -> None:
        self.tls.write(b"".join(encode(code, body) for code, body in packets))
        self.exchange(step)

    def say_goodbye(self) -> None:
        """Send no more."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.exchange()

    def received(self) -> list[Packet]:
        """The packets that have come; C{ended} says whether the server has said goodbye."""
        packets: list[Packet] = []
        while True:
            try:
                data = self.tls.read(65536)
            except ssl.SSLWantReadError:
                return packets
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                self.ended = True
                return packets
            packets += self._decoder.feed(data)
