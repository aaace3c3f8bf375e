"""An echo server with TLS on our transport: C{python -m ...tls_echo PEM stock|direct}.

Prints its port, and runs until its standard input ends.
"""

from __future__ import annotations

import socket
import sys

from OpenSSL import SSL
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory

from ccserver.net.port import DirectPort
from ccserver.net.reactor import DirectReactor


def main(pem: str, kind: str) -> None:
    reactor = DirectReactor() if kind == "direct" else EPollReactor()
    installReactor(reactor)
    context = DefaultOpenSSLContextFactory(pem, pem, sslmethod=SSL.TLS_SERVER_METHOD)

    class Echo(Protocol):
        """Repeats what comes, after a greeting in clear, and closes at C{bye}."""

        def connectionMade(self) -> None:
            self.transport.write(b"clear\n")
            self.transport.startTLS(context, Factory())

        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data[:1])
            self.transport.writeSequence([data[1:-1], data[-1:]])
            if data.endswith(b"bye"):
                self.transport.loseConnection()

    class StandardInput:
        """Stops the reactor when the one who started us is gone."""

        def fileno(self) -> int:
            return 0

        def logPrefix(self) -> str:
            return "stdin"

        def doRead(self) -> None:
            reactor.removeReader(self)
            reactor.stop()

        def connectionLost(self, reason: object) -> None:
            reactor.stop()

    listening = socket.create_server(("127.0.0.1", 0))
    DirectPort(listening, Factory.forProtocol(Echo), reactor).startListening()
    reactor.addReader(StandardInput())
    print(listening.getsockname()[1], flush=True)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
