"""The worker's transport: sends are joined, no epoll_ctl a packet."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from twisted.internet import abstract, main, tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python import log
from twisted.python.failure import Failure

from ccserver.core.framing import FULL, FrameDecoder, Packet
from ccserver.native import native
from ccserver.net.intake import Endpoint, address_text

if TYPE_CHECKING:
    from ccserver.net.lane import Lane

READ_SIZE = FULL
"""Bytes that are read at once, and above which writes are not held back."""

LONG_READ = 4 * READ_SIZE
"""Bytes of long packets that are read at once, while none of them waits."""


def feed_from_in_python(
    sock: socket.socket, decoder: FrameDecoder, size: int
) -> list[Packet] | None:
    """Feed the decoder what there is to be read, at most C{size} bytes, up to L{LONG_READ}.

    Behind L{READ_SIZE} bytes it goes on only where their packets are long: of short ones, each of
    which takes its time, there are never more in a read.

    @return: the packets that it completes; None at the end of the stream.
    @raise OSError: nothing is there (C{BlockingIOError}), or the connection is broken.
    """
    data = _read_long(sock, decoder, size) if size > READ_SIZE else sock.recv(size)
    return decoder.feed(data) if data else None


def _read_long(sock: socket.socket, decoder: FrameDecoder, size: int) -> bytes:
    """What there is, at most C{size} bytes, while its packets are long."""
    stream = bytearray(decoder.incomplete)
    known = len(stream)
    start: int | None = 0
    while start is not None and len(stream) - known < size:
        try:
            part = sock.recv(min(READ_SIZE, size - len(stream) + known))
        except OSError:
            if len(stream) == known:
                raise
            break  # the end is there the next time, too
        stream += part
        if len(part) < READ_SIZE:
            break
        start = decoder.behind_long(stream, start, len(part))
    return bytes(memoryview(stream)[known:])


def transmit_in_python(sock: socket.socket, chunks: list[bytes]) -> bytes:
    """Send C{chunks} as one, and return what the kernel did not take, all after an error."""
    data = b"".join(chunks)
    try:
        sent = sock.send(data)
    except OSError:
        return data
    return data[sent:]


feed_from: Callable[[Any, FrameDecoder, int], list[Packet] | None] = (
    native.feed_from if native else feed_from_in_python
)
transmit: Callable[[Any, list[bytes]], bytes] = native.transmit if native else transmit_in_python

NOTHING: list[bytes] = []
"""The buffer of a connection that has never been behind: shared, so never appended to."""

LARGE = 4096
"""Bytes of a reply that is sent at once, not with the others: it would not be in the
processor's cache any more."""


class DirectServer(tcp.Server):
    """A L{tcp.Server} that sends without waiting to be told that it can.

    On a L{DirectReactor} what is written in one turn goes out in one send at its end, or with
    the reply to what was read in it, a little before; on any other reactor each write is sent
    at once. Only what the kernel does not take is buffered, as inherited. An error of such a
    send is met again, and reported, by C{doWrite}, so C{write} never calls the protocol back.
    Producers, half close, abort and closing after the flush are inherited; TLS takes the stock
    path.
    """

    # what packets and flushes look at, here and in the compiled part; and what each instance has
    __slots__ = (
        "TLS",
        "_client",
        "_corked",
        "_decoder",
        "_fd",
        "_flush_later",
        "_held_back",
        "_lane",
        "_limited",
        "_tempDataBuffer",
        "_tempDataLen",
        "_writeDisconnected",
        "_written",
        "connected",
        "dataBuffer",
        "disconnected",
        "disconnecting",
        "offset",
        "producer",
        "producerPaused",
        "protocol",
        "reactor",
        "socket",
        "streamingProducer",
    )

    protocol: Any
    producer: Any
    reactor: Any
    socket: Any
    _at_end = False
    _fd: int
    _decoder: FrameDecoder | None
    _lane: Lane | None
    _tempDataBuffer: list[bytes]
    startWriting: Any
    stopWriting: Any
    stopReading: Any
    _maybePauseProducer: Any
    _closeSocket: Any

    def __init__(
        self,
        sock: Any,
        protocol: Any,
        client: tuple[str, int],
        server: object,
        number: object,
        reactor: Any,
    ) -> None:
        """As Twisted's, which is not called: it makes names for logs, which are hardly ever asked.

        @param sock: must not block.
        @param client: the client's host and port.
        """
        self.prepare(reactor)
        self.open(sock, protocol, client)

    def prepare(self, reactor: Any) -> None:
        """Be ready to open on C{reactor}, or to be the pattern of some that are."""
        self.TLS = self._writeDisconnected = self._limited = False
        self.connected = self.disconnected = self.disconnecting = 0
        self.producer: Any = None
        self.producerPaused = self.streamingProducer = False
        self.dataBuffer = b""
        self.offset = 0
        self._corked: list[bytes] | None = None
        self._written = 0  # bytes since something was corked, about
        self._held_back = False  # nothing that is written is sent
        self._decoder = self._lane = None
        self._tempDataBuffer, self._tempDataLen = NOTHING, 0
        self.reactor = reactor
        self._flush_later: Any = getattr(reactor, "flush_later", None)

    def open(self, sock: Any, protocol: Any, client: tuple[str, int]) -> None:
        """Begin, see L{__init__}."""
        self._client: str = getattr(protocol, "peer", None) or address_text(Endpoint(*client))
        self._fd = fd = sock.fileno()
        self.socket, self.protocol = sock, protocol
        if self._flush_later is not None:
            self.reactor.begin(self, fd)
        else:
            self.reactor.addReader(self)
        self.connected = 1

    def attend(self, decoder: FrameDecoder, lane: Lane, limited: bool) -> None:
        """From now on feed what is read to C{decoder}, and its packets to C{protocol.receive}.

        C{lane} is its producer, too.

        What that returns is sent soon, see L{DirectReactor}. On another reactor than ours the
        protocol is told of data, as any is. The compiled part does itself what C{receive} does
        with packets that are all good while C{lane} is at leisure.

        @param limited: the session is to admit the packets, see L{Session.admit}.
        """
        self.producer, self.streamingProducer = lane, True
        if self._flush_later is not None:
            self._decoder, self._lane, self._limited = decoder, lane, limited

    def fileno(self) -> int:
        return self._fd

    def getPeer(self) -> IPv4Address | IPv6Address:
        host, _, port = self._client.rpartition(":")
        if host.startswith("["):
            return IPv6Address("TCP", host[1:-1], int(port))
        return IPv4Address("TCP", host, int(port))

    def getHost(self) -> IPv4Address | IPv6Address:
        address = self.socket.getsockname()
        return (IPv4Address if len(address) == 2 else IPv6Address)("TCP", *address)

    def logPrefix(self) -> str:
        protocol = getattr(self, "protocol", None)  # there is none once it is closed
        return f"{type(protocol).__name__},{self._client}"

    def __repr__(self) -> str:
        return f"<{self.logPrefix()}>"

    def doRead(self, again: bool = False) -> Any:
        """@param again: at once behind a full long read, while what the client sends upon the
        replies to that is in the processor's cache."""
        decoder = self._decoder
        if decoder is None:
            return self._read_data()
        try:
            many = decoder.long and self._lane is not None and self._lane.at_leisure
            packets = feed_from(self.socket, decoder, LONG_READ if many else READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if packets is None:
            return main.CONNECTION_DONE
        out = self.protocol.receive(packets)
        if out:
            if self._corked is None:
                self._corked = out
                if len(out[-1]) > LARGE:
                    self.flush()
                else:
                    self.reactor.reply_later(self)
            else:
                self._corked.extend(out)
        if decoder.fed == LONG_READ and many and not again and self._goes_on(decoder):
            return self.doRead(True)
        return None

    def _goes_on(self, decoder: FrameDecoder) -> bool:
        """Whether what comes now is handled at once, as it was before."""
        lane = self._lane
        return self._decoder is decoder and lane is not None and lane.at_leisure

    def _read_data(self) -> Any:
        try:
            data = self.socket.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    def doWrite(self) -> Any:
        if self._corked is not None:
            self.flush()  # what was written before is not left behind by a close
        return tcp.Server.doWrite(self)

    def write(self, data: bytes) -> None:
        if self.TLS:
            tcp.Server.write(self, data)
            return
        if data.__class__ is not bytes:
            abstract._dataMustBeBytes(data)
        if not data or not self.connected or self._writeDisconnected:
            return
        if self._corked is not None:
            self._corked.append(data)
            self._written += len(data)
        else:
            self._corked = [data]
            self._written = len(data)
            if self._flush_later is not None:
                self._flush_later(self)
        if self._flush_later is None or self._written > READ_SIZE:
            self._written = 0
            self.flush()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def flush(self) -> None:
        """Send what was written, or buffer what the kernel does not take of it."""
        if self._held_back:
            return
        corked, self._corked = self._corked, None
        if corked is None or not self.connected:
            return
        if self._tempDataLen or self.dataBuffer:
            data = b"".join(corked)
        else:
            data = transmit(self.socket, corked)
            if not data:
                if self.producer is not None and not self.streamingProducer:
                    self.startWriting()  # doWrite asks a pull producer for more
                return
        if self._tempDataLen:
            self._tempDataBuffer.append(data)
        else:
            self._tempDataBuffer = [data]
        self._tempDataLen += len(data)
        tell = getattr(self.producer, "fall_behind", None)
        if tell is not None and not self.TLS:
            tell()
        self._maybePauseProducer()
        self.startWriting()

    def flush_failed(self) -> None:
        """What was flushed is lost, so the stream is: it cannot be gone on with."""
        self.abortConnection()

    @property
    def behind(self) -> bool:
        """Whether the kernel has not taken all that was flushed."""
        return (self._tempDataLen > 0 or self.dataBuffer != b"") and not self.TLS

    @property
    def unsent(self) -> int:
        """The bytes that the kernel has not taken."""
        buffered = len(self.dataBuffer) - self.offset + self._tempDataLen
        return buffered + sum(map(len, self._corked or ()))

    def tell_when_sent(self) -> None:
        """Resume the producer when the kernel has taken all, also if it was not paused.

        To be called while the transport is behind.
        """
        self.producerPaused = True

    def pass_on(self, protocol: Any) -> None:
        """Let C{protocol} have the connection from now on."""
        self.protocol = protocol
        protocol.makeConnection(self)

    def detach(self) -> list[bytes]:
        """Leave the reactor with the socket open, and keep back what is written from now on.

        @return: what is not sent; it stays here too, for L{reattach}.
        """
        self.flush()
        self.stopReading()
        self.stopWriting()
        self._held_back = True
        unsent = [self.dataBuffer[self.offset :], b"".join(self._tempDataBuffer)]
        return [data for data in unsent if data]

    def reattach(self) -> None:
        """Write again, first what was not sent; reading is resumed by C{resumeProducing}."""
        self._held_back = False
        self.flush()
        if self._tempDataLen or self.dataBuffer:
            self.startWriting()

    def release(self) -> None:
        """Let go of the socket of a detached transport: it is closed here, and only here."""
        self.connected, self.disconnected = 0, 1
        self.producer = self._decoder = self._lane = self._corked = None
        self._fd = -1
        self.socket.close()  # without a shutdown, which would end it for all who have it
        del self.protocol, self.socket

    def readConnectionLost(self, reason: Failure) -> None:
        """The client sends no more: the connection that the protocol ends now ends at once.

        Where there is nothing left to send, that takes no further turn.
        """
        if not IHalfCloseableProtocol.providedBy(self.protocol):
            self.connectionLost(reason)
            return
        self._at_end = True
        try:
            self.protocol.readConnectionLost()
        except BaseException:
            log.err()
            self.connectionLost(Failure())
        finally:
            self._at_end = False
        if self.disconnecting and self.connected:
            if self._corked is not None:
                self.flush()
            if self.producer is None and not (self._tempDataLen or self.dataBuffer):
                self.connectionLost(reason)
            else:
                self.startWriting()

    @property
    def ends_at_once(self) -> bool:
        """Whether the connection is gone as soon as the protocol returns, if it ends it now."""
        if not self._at_end or self._writeDisconnected:
            return False
        return not (self._corked or self._tempDataLen or self.dataBuffer)

    def end(self) -> None:
        """Close when the protocol returns: it has found that the connection L{ends_at_once}."""
        self.producer = None
        self.disconnecting = self.connected

    def loseConnection(self) -> None:
        if self._at_end and not self._writeDisconnected:
            self.disconnecting = self.connected
        else:
            tcp.Server.loseConnection(self)

    def startTLS(self, *arguments: Any) -> None:
        self.flush()
        self._flush_later = self._decoder = self._lane = None
        # what Twisted writes below TLS it appends to this: it must be our own
        self._tempDataBuffer = [*self._tempDataBuffer]
        tcp.Server.startTLS(self, *arguments)

    def connectionLost(self, reason: Failure) -> None:
        """As Twisted's, which is not called: it asks the reason for its type by name."""
        if self.disconnected:
            return  # it is gone already
        self._decoder = self._lane = self._corked = None  # the protocol is not ours any more
        self.connected, self.disconnected = 0, 1
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        if self._flush_later is not None:
            self.reactor.forget(self._fd)
        else:
            self.stopReading()
            self.stopWriting()
        self._closeSocket(not isinstance(reason.value, ConnectionAborted))
        protocol = self.protocol
        del self.protocol, self.socket
        self._fd = -1
        protocol.connectionLost(reason)

    def abortConnection(self) -> None:
        tcp.Server.abortConnection(self)
        self._corked = self._decoder = self._lane = None
        self._held_back = True
