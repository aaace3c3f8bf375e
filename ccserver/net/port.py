"""The port: a listening socket made elsewhere, whose connections are L{DirectServer}s."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IProtocolFactory

from ccserver.core.copying import another
from ccserver.net.intake import Endpoint, Intake, accept_waiting
from ccserver.net.transport import DirectServer


class DirectPort(tcp.Port):
    """A L{tcp.Port} on a listening socket made elsewhere, whose connections are L{DirectServer}s.

    Closing it leaves the other holders of the socket accepting.

    @ivar intake: decides whether it accepts; None: it does.
    @ivar no_delay: the connections that it accepts from now on have TCP_NODELAY; else they may have
        come before it was set.
    """

    intake: Intake | None = None
    no_delay = False
    numberAccepts: int
    connected: bool
    disconnecting: bool
    startReading: Callable[[], None]
    stopReading: Callable[[], None]

    def __init__(
        self,
        listening: socket.socket,
        factory: IProtocolFactory,
        reactor: Any,
        send_buffer: int = 0,
        receive_buffer: int = 0,
    ) -> None:
        """
        @param listening: bound and listening; it belongs to the port from now on.
        @param send_buffer: bytes that the kernel holds of what is sent to a client; 0: its own.
        @param receive_buffer: bytes that it holds of what a client has sent; 0: its own.
        """
        # an inherited socket that blocks would hang the worker in accept()
        listening.setblocking(False)
        # connections have those of their port; the second one must be there before they are made
        for option, size in ((socket.SO_SNDBUF, send_buffer), (socket.SO_RCVBUF, receive_buffer)):
            if size:
                # the kernel makes it twice as much, for what it needs itself
                listening.setsockopt(socket.SOL_SOCKET, option, size)
        # those to come inherit it on Linux, so it need not be set for each
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        interface = listening.getsockname()[0]
        tcp.Port.__init__(self, 0, factory, 0, interface, reactor)
        self._preexistingSocket = listening
        self._pattern = object.__new__(DirectServer)
        self._pattern.prepare(reactor)

    def open(self, sock: Any, protocol: Any, client: tuple[str, int]) -> DirectServer:
        """The transport of a connection that was accepted."""
        if another is None:
            return DirectServer(sock, protocol, client, self, 0, self.reactor)
        transport: DirectServer = another(self._pattern)
        transport.open(sock, protocol, client)
        return transport

    def _buildAddr(self, address: tuple[str, int]) -> Endpoint:
        return Endpoint(*address)

    def doRead(self) -> None:
        accept_waiting(self)
