"""Clients that are gone without a word: their kernel answers nothing any more."""

from __future__ import annotations

import ctypes
import re
import socket
import struct
import time
from typing import Any, ClassVar

from ccserver.net.sending import unacknowledged
from tests.functional import codes
from tests.functional.server import Client, ServerCase, measured, wait_until

SO_ATTACH_FILTER = 26
"""Of asm-generic/socket.h; Python has no name for it."""

RETURN = 0x06
"""BPF_RET | BPF_K: the packet is cut to so many bytes; to 0, it is thrown away."""


def vanish(sock: socket.socket) -> None:
    """From now on C{sock} gets no segment, and acknowledges none: as if its cable were cut."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", RETURN, 0, 0, 0))
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program))
    )


class GoneCase(ServerCase):
    def served(self) -> Client:
        client = self.connect()
        client.ask(codes.PING)
        return client

    def assert_ended(self, client: Client, began: float, what: str) -> None:
        line = rf"closed: client_reset, .*client: {re.escape(client.address)}"
        wait_until(lambda: re.search(line, self.server.log), line)
        measured(what, time.monotonic() - began)


class KeepAliveTests(GoneCase):
    options: ClassVar[dict[str, Any]] = {
        "KeepAlive": 1,
        "KeepAliveInterval": 1,
        "KeepAliveCount": 2,
    }

    def test_a_client_that_is_gone_without_a_word_is_found_and_one_that_is_silent_stays(self):
        silent, gone = self.served(), self.served()
        began = time.monotonic()
        vanish(gone.socket)
        self.assert_ended(gone, began, "keepalive, 1 s and 2 questions: a client is found gone, s")
        silent.ask(codes.PING)


class UserTimeoutTests(GoneCase):
    options: ClassVar[dict[str, Any]] = {"TcpUserTimeout": 1, "KeepAlive": 0}

    def test_a_client_that_is_gone_with_its_replies_on_their_way_is_found(self):
        gone = self.served()
        gone.send((codes.LATER, b"1500"))
        # if it sent that again and again, the server's kernel would begin its time-outs anew
        wait_until(lambda: not unacknowledged(gone), "the request to be acknowledged")
        vanish(gone.socket)
        began = time.monotonic()
        self.assert_ended(gone, began, "TcpUserTimeout 1 s: a client is found gone, s")
