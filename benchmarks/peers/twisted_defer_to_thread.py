"""An echo server whose handler may block: deferToThread for each packet, reply in the callback.

Replies of one connection may overtake each other, as threads share the pool's queue.
"""

import sys
from typing import Any, cast

from twisted.internet import reactor as installed_reactor
from twisted.internet.threads import deferToThread

from benchmarks.peers.twisted_stock import Echo, serve

THREADS = 4  # as many as ccserver has in these measurements


def echo(body: bytes) -> bytes:
    return body


class EchoInThread(Echo):
    """Calls the handler in the reactor's thread pool."""

    def packet_received(self, code: int, body: bytes) -> None:
        done = deferToThread(echo, body)
        done.addCallback(lambda reply: self.reply(code, reply))


if __name__ == "__main__":
    cast(Any, installed_reactor).suggestThreadPoolSize(THREADS)
    serve(int(sys.argv[1]), EchoInThread)
