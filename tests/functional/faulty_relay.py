"""A relay in front of a server, in threads of the test's process, that spoils what it passes on."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.functional.conversations import HEADER

Spoil = Callable[["Stream", bytes], "list[bytes] | None"]
"""What is passed on of one packet of a stream of replies; None ends the stream."""


class Stream:
    """The replies of one connection, on their way to the client.

    @ivar index: of the packet that is passed on.
    @ivar held: for whoever spoils them.
    @ivar client: where they go.
    """

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.index = 0
        self.held: Any = None

    def pass_on(self, server: socket.socket, spoil: Spoil) -> None:
        """Pass on packet by packet, until either side ends."""
        with server.makefile("rb") as replies:
            while header := replies.read(HEADER.size):
                packet = header + replies.read(HEADER.unpack(header)[0] - HEADER.size)
                passed = spoil(self, packet)
                self.index += 1
                if passed is None:
                    return
                self.client.sendall(b"".join(passed))

    def reset(self) -> None:
        """End it with a RST."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _upward(client: socket.socket, server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := client.recv(65536):
            server.sendall(data)
        server.shutdown(socket.SHUT_WR)


def _connected(client: socket.socket, port: int, spoil: Spoil) -> None:
    with client, socket.create_connection(("127.0.0.1", port)) as server:
        upward = threading.Thread(target=_upward, args=(client, server), daemon=True)
        upward.start()
        with contextlib.suppress(OSError):
            Stream(client).pass_on(server, spoil)
        for each in (client, server):
            with contextlib.suppress(OSError):
                # a client that is to be reset is not to see an end before
                each.shutdown(socket.SHUT_RD if each is client else socket.SHUT_RDWR)
        upward.join()


@contextlib.contextmanager
def relay(port: int, spoil: Spoil) -> Iterator[int]:
    """The port on which connections are passed on to C{port}."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    arguments = (client, port, spoil)
                    threading.Thread(target=_connected, args=arguments, daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
