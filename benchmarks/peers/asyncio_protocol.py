"""An echo server on asyncio, or with --uvloop on uvloop: tight loop, one write for each read."""

import asyncio
import socket
import struct
import sys
import zlib
from typing import cast

HEADER = struct.Struct(">HHI")
MAX_PACKET = 29000
BACKLOG = 4096


class Echo(asyncio.Protocol):
    """Parses all the packets of a read and joins their replies into one write."""

    __slots__ = ("_rest", "_transport")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._rest = b""
        self._transport = cast(asyncio.Transport, transport)
        connection = cast(socket.socket, transport.get_extra_info("socket"))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        offset, size = 0, len(data)
        last = size - 8
        replies = []
        unpack_from, pack, crc32 = HEADER.unpack_from, HEADER.pack, zlib.crc32
        while offset <= last:
            length, code, crc = unpack_from(data, offset)
            if not 8 <= length <= MAX_PACKET:
                self._transport.abort()
                return
            end = offset + length
            if end > size:
                break
            body = data[offset + 8 : end]
            offset = end
            if crc32(body) == crc:
                replies.append(pack(8 + len(body), code, crc32(body)))
                replies.append(body)
        self._rest = data[offset:] if offset < size else b""
        if replies:
            self._transport.write(b"".join(replies))


async def serve(port: int) -> None:
    """Listen, say so, and serve until a signal comes."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", port, backlog=BACKLOG)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if "--uvloop" in sys.argv[2:]:
        import uvloop

        uvloop.run(serve(int(sys.argv[1])))
    else:
        asyncio.run(serve(int(sys.argv[1])))
