"""Keepalive: the kernel finds out that a client is gone without having said so."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class KeepAlive:
    """What the kernel does about clients that say nothing.

    @ivar idle: seconds of silence before it asks whether one is still there; 0: it never does.
    @ivar interval: seconds from one question to the next.
    @ivar count: questions without an answer that end the connection.
    @ivar user_timeout: seconds that what was sent may stay unacknowledged; 0: as the system says.
    """

    idle: int = 0
    interval: int = 75
    count: int = 9
    user_timeout: float = 0.0

    def apply(self, listening: socket.socket) -> None:
        """Have it so for the connections that clients make to C{listening} from now on.

        They inherit it on Linux, and take it along to another process: nothing is to be done for
        each of them.

        @raise OSError: the kernel does not take it.
        """
        if listening.family not in (socket.AF_INET, socket.AF_INET6):
            return
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(self.idle > 0))
        if self.idle:
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self.idle)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self.interval)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, self.count)
        milliseconds = round(self.user_timeout * 1000)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
