"""Keepalive: what a listening socket is told, its connections have. Both are the kernel's."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase

from ccserver.net.keepalive import KeepAlive

TCP = socket.IPPROTO_TCP


class KeepAliveTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listening.close)

    def accepted(self) -> socket.socket:
        """A connection's end in the server."""
        client = socket.create_connection(self.listening.getsockname())
        self.addCleanup(client.close)
        accepted, _ = self.listening.accept()
        self.addCleanup(accepted.close)
        return accepted

    def test_connections_inherit_it(self):
        KeepAlive(77, 11, 4, 12.5).apply(self.listening)
        it = self.accepted()
        self.assertEqual(it.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
        options = (
            socket.TCP_KEEPIDLE,
            socket.TCP_KEEPINTVL,
            socket.TCP_KEEPCNT,
            socket.TCP_USER_TIMEOUT,
        )
        self.assertEqual([it.getsockopt(TCP, option) for option in options], [77, 11, 4, 12500])

    def test_without_it_they_have_none_even_if_they_had_before(self):
        KeepAlive(77, 11, 4, 12.5).apply(self.listening)
        KeepAlive().apply(self.listening)
        it = self.accepted()
        self.assertEqual(it.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 0)
        self.assertEqual(it.getsockopt(TCP, socket.TCP_USER_TIMEOUT), 0)

    def test_a_socket_that_is_not_tcp_is_left_alone(self):
        with socket.socket(socket.AF_UNIX) as other:
            KeepAlive(77).apply(other)
            self.assertEqual(other.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 0)
