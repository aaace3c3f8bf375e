"""An echo server on gevent: a greenlet for each connection, which reads, parses and sends."""

import socket
import struct
import sys
import zlib
from typing import Any

from gevent.server import StreamServer  # type: ignore  # without types, where it is there at all

HEADER = struct.Struct(">HHI")
MAX_PACKET = 29000
BACKLOG = 4096
READ_SIZE = 65536


def echo(connection: Any, address: object) -> None:
    """Serve one connection; the replies to a read's packets are one C{sendall}."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    unpack_from, pack, crc32 = HEADER.unpack_from, HEADER.pack, zlib.crc32
    rest = b""
    try:
        while data := connection.recv(READ_SIZE):
            if rest:
                data = rest + data
            offset, size = 0, len(data)
            last = size - 8
            replies = []
            while offset <= last:
                length, code, crc = unpack_from(data, offset)
                if not 8 <= length <= MAX_PACKET:
                    return
                end = offset + length
                if end > size:
                    break
                body = data[offset + 8 : end]
                offset = end
                if crc32(body) == crc:
                    replies.append(pack(8 + len(body), code, crc32(body)))
                    replies.append(body)
            rest = data[offset:] if offset < size else b""
            if replies:
                connection.sendall(b"".join(replies))
    except ConnectionError:
        pass  # the client has left


def serve(port: int) -> None:
    """Listen, say so, and serve until a signal comes."""
    server = StreamServer(("127.0.0.1", port), echo, backlog=BACKLOG)
    server.start()
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
