"""An echo server as a Twisted user writes it: one buffer, one transport.write for each reply."""

import struct
import sys
import zlib
from typing import Any, cast

from twisted.internet import reactor as installed_reactor
from twisted.internet.protocol import Factory, Protocol

HEADER = struct.Struct(">HHI")
MAX_PACKET = 29000
BACKLOG = 4096


class Echo(Protocol):
    """Replies to each packet as soon as it is parsed."""

    def connectionMade(self) -> None:
        self._buffer = b""
        self._connection = cast(Any, self.transport)
        self._connection.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        offset, size = 0, len(buffer)
        while size - offset >= HEADER.size:
            length, code, crc = HEADER.unpack_from(buffer, offset)
            if not HEADER.size <= length <= MAX_PACKET:
                self._connection.abortConnection()
                return
            if size - offset < length:
                break
            body = buffer[offset + HEADER.size : offset + length]
            offset += length
            if zlib.crc32(body) == crc:
                self.packet_received(code, body)
        self._buffer = buffer[offset:]

    def packet_received(self, code: int, body: bytes) -> None:
        self.reply(code, body)

    def reply(self, code: int, body: bytes) -> None:
        header = HEADER.pack(HEADER.size + len(body), code, zlib.crc32(body))
        self._connection.write(header + body)


def serve(port: int, protocol: type[Echo]) -> None:
    """Listen, say so, and serve until a signal comes."""
    reactor = cast(Any, installed_reactor)
    reactor.listenTCP(port, Factory.forProtocol(protocol), backlog=BACKLOG, interface="127.0.0.1")
    reactor.callWhenRunning(print, "ready", flush=True)
    reactor.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Echo)
