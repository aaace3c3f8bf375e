"""TLS: a connection whose bytes are encrypted on their way.

Twisted's own TLS has no half close, which our closing needs and which a client may use, and none
of what it has for handshakes in mid-stream is needed: there are none. So this is OpenSSL on two
buffers in memory, between the transport and the protocol that speaks in clear.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from ssl import (
    MemoryBIO,
    SSLContext,
    SSLError,
    SSLWantReadError,
    SSLZeroReturnError,
)
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ccserver.core.session import CloseReason
from ccserver.net.opening import Opening
from ccserver.net.transport import READ_SIZE

if TYPE_CHECKING:
    from ccserver.net.front import Front

SILENT_BYTES = 65536
"""Bytes that a client may send without a byte of a packet in them, once it is connected.

The longest record has 16 KiB.
"""

UNREAD_ANSWERS = 65536
"""Bytes of TLS's own answers that a client may leave unread: who asks for new keys again and again
gets one each time, and we keep them until they are sent.
"""


class TlsTerms(NamedTuple):
    """How connections are encrypted.

    @ivar context: what those are encrypted with that are made now.
    @ivar timeout: seconds that a client has for the handshake.
    """

    context: Callable[[], SSLContext]
    timeout: float


@implementer(IHalfCloseableProtocol)
class Encrypted(Opening):
    """The protocol of a transport, and, when the handshake is done, the transport of a session.

    What a transport has and is not here, such as producers, is that of the transport below: all
    that is written is encrypted at once, so that nothing waits here.
    """

    refusal = CloseReason.TLS
    admitted = True

    ends_at_once = False  # our goodbye is still to be sent

    _silent = 0
    _answers = 0  # bytes that TLS itself has said since the client has read all
    _open = False  # the handshake is done
    _read_all = False  # the client sends no more
    _wrote_all = False  # we send no more

    def __init__(self, front: Front, client: Any, terms: TlsTerms, above: Any) -> None:
        """@param above: the protocol that speaks in clear, once there is a connection."""
        Opening.__init__(self, front, client, terms.timeout)
        self._above = above
        self._incoming, self._outgoing = MemoryBIO(), MemoryBIO()
        context = terms.context()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def attend(self, *_: Any) -> None:
        """What comes is no packets: the session is told of data."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def connectionMade(self) -> None:
        Opening.connectionMade(self)
        if self.first:
            self.dataReceived(self.first)
            self.first = b""

    def dataReceived(self, data: bytes) -> None:
        if self.refused or self._read_all:
            return
        self._incoming.write(data)
        if self._open:
            self._silent += len(data)
        elif not self._shake_hands():
            return
        while not self._read_all:
            clear = self._read()
            if clear is None:
                break
            if not clear:
                self.readConnectionLost()
            else:
                self._silent = 0
                self._above.dataReceived(clear)
        self._flush()
        if self._silent > SILENT_BYTES:
            self._break(f"{self._silent} bytes without a packet")
        elif self._answers > UNREAD_ANSWERS:
            self._break(f"{self._answers} bytes of answers to new keys unread")

    def readConnectionLost(self) -> None:
        """The client sends no more, whether it has said so in TLS or in TCP alone.

        Both count the same: what is cut off is seen from the length of the packet.
        """
        if not self._open:
            self.transport.loseConnection()
        elif not self._read_all:
            self._read_all = True
            self._above.readConnectionLost()

    def writeConnectionLost(self) -> None:
        if self._open:
            self._above.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._read_all = self._wrote_all = True
        self.connected = 0
        above, self._above = self._above, None
        if self._open:
            above.connectionLost(reason)
        else:
            Opening.connectionLost(self, reason)

    def write(self, data: bytes) -> None:
        if data and not self._wrote_all:
            try:
                self._tls.write(data)
            except SSLError as error:
                self._break(_said(error))
            else:
                self._flush()

    def writeSequence(self, chunks: list[bytes]) -> None:
        self.write(b"".join(chunks))

    def loseWriteConnection(self) -> None:
        """Say that we send no more, in TLS and behind that in TCP."""
        self._say_goodbye()
        self.transport.loseWriteConnection()

    def loseConnection(self) -> None:
        self._say_goodbye()
        self.transport.loseConnection()

    def _shake_hands(self) -> bool:
        """Take up what has come; whether there is a session now."""
        try:
            self._tls.do_handshake()
        except SSLWantReadError:
            self._flush()
            return False
        except SSLError as error:
            self._flush()  # the alert says why
            self.refuse(_said(error))
            return False
        self._flush()
        first = self._read()
        if self.refused:
            return False
        self.settle()
        self._open = True
        self._above.first = first or b""
        self._above.makeConnection(self)
        return True

    def _read(self) -> bytes | None:
        """What there is in clear; None if more has to come, nothing if nothing comes any more."""
        answered = self._outgoing.pending
        try:
            return self._tls.read(READ_SIZE)
        except SSLWantReadError:
            return None
        except SSLZeroReturnError:
            return b""
        except SSLError as error:
            self._break(_said(error))
            return None
        finally:
            if self._outgoing.pending > answered:
                self._count_answers(self._outgoing.pending - answered)

    def _count_answers(self, size: int) -> None:
        """TLS has said C{size} bytes by itself, which no limit of what is sent knows."""
        if not self.transport.behind:
            self._answers = 0
        self._answers += size

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self.transport.write(data)

    def _say_goodbye(self) -> None:
        if not self._wrote_all:
            self._wrote_all = True
            with suppress(SSLError):  # the client has not said it yet, which is no error
                self._tls.unwrap()
            self._flush()

    def _break(self, why: str) -> None:
        """What comes cannot be read any more."""
        if not self._open:
            self.refuse(why)
            return
        if self._read_all:
            return
        self._read_all = True
        if self._wrote_all:
            return  # it would have been thrown away
        self._wrote_all = True
        self._flush()
        self._above.session.stop(CloseReason.TLS)
        self._front.tell(CloseReason.TLS, self.client, why)
        self.transport.flush()
        self.transport.abortConnection()


def _said(error: SSLError) -> str:
    """What OpenSSL says, in its own words."""
    return (error.reason or type(error).__name__).lower().replace("_", " ")
