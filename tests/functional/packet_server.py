"""A server in a thread of the test's process: answers packets by a plain function."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ccserver.core.framing import FrameDecoder

Respond = Callable[[int, bytes], bytes | None]
"""Code and body to the bytes that are sent back; None closes the connection."""


def serve(sock: socket.socket, respond: Respond) -> None:
    """Answer the packets of one connection until either side closes it."""
    decoder = FrameDecoder(0xFFFF)
    with sock:
        try:
            while data := sock.recv(65536):
                for code, body in decoder.feed(data):
                    reply = respond(code, body)
                    if reply is None:
                        return
                    sock.sendall(reply)
        except OSError:
            pass


@contextmanager
def connected_to(respond: Respond) -> Iterator[socket.socket]:
    """One end of a socket pair, at whose other end C{respond} answers."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs, respond), daemon=True)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(10)


@contextmanager
def listening(respond: Respond, host: str = "127.0.0.1") -> Iterator[int]:
    """The port on which connections, one after the other, are answered by C{respond}."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()

        def accept() -> None:
            try:
                while True:
                    serve(listener.accept()[0], respond)
            except OSError:
                pass

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
