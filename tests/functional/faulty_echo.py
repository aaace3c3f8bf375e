"""An echo server with a fault, and a load generator let loose on it."""

from __future__ import annotations

import socketserver
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

HEADER = struct.Struct(">HHI")
BAD = 10  # the packet of each connection on which a server's fault shows
DEADLINE = 60

# What is sent, packet by packet, for the nth packet of a connection.
Answer = Callable[[int, bytes], list[bytes]]


def good(index: int, packet: bytes) -> list[bytes]:
    return [packet]


def packed(code: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), code, zlib.crc32(body)) + body


def flipped(packet: bytes, position: int) -> bytes:
    """One bit of the packet is another."""
    changed = bytearray(packet)
    changed[position] ^= 1
    return bytes(changed)


def only_at_bad(fault: Callable[[bytes], list[bytes]]) -> Answer:
    """The fault shows on one packet; before and after it all is well."""
    return lambda index, packet: fault(packet) if index == BAD else [packet]


class EchoConnection(socketserver.StreamRequestHandler):
    """Reads whole packets and sends what the server's C{answer} says."""

    server: EchoServer
    disable_nagle_algorithm = True

    def handle(self) -> None:
        index = 0
        try:
            while header := self.rfile.read(HEADER.size):
                body = self.rfile.read(HEADER.unpack(header)[0] - HEADER.size)
                for reply in self.server.answer(index, header + body):
                    self.wfile.write(reply)
                index += 1
        except ConnectionError:
            pass  # the generator has seen enough; a fault may also end a connection so


class EchoServer(socketserver.ThreadingTCPServer):
    """A server with one fault."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), EchoConnection)
        self.answer = answer
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


def run_generator(
    test: SynchronousTestCase, command: list[str], answer: Answer, *options: str
) -> subprocess.CompletedProcess[str]:
    """Let the generator loose on a server that answers so."""
    server = EchoServer(answer)
    test.addCleanup(server.stop)
    arguments = ["--warmup=0", "--stall=0.3", *options, *map(str, server.server_address)]
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
