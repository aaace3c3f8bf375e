"""Every refusal as a type with a stable C{reason}: the same word in log, metric and test."""

from __future__ import annotations

from typing import ClassVar


class CcserverError(Exception):
    """The root of all that ccserver raises on purpose."""

    reason: ClassVar[str] = "error"


class ConfigError(CcserverError):
    """The configuration cannot be used; the text names file, line, key and what is allowed.

    @ivar path: the file as its user named it, or C{None} when no file is to blame.
    @ivar line: the line in it, counted from 1, or C{None} when it is about no single line.
    @ivar key: the key it is about, or C{None}.
    """

    reason = "config"

    def __init__(
        self,
        text: str,
        path: str | None = None,
        line: int | None = None,
        key: str | None = None,
    ) -> None:
        where = [] if path is None else [path] if line is None else [path, str(line)]
        super().__init__(":".join([*where, f" {text}" if where else text]))
        self.path = path
        self.line = line
        self.key = key


class AppError(CcserverError):
    """The application cannot be loaded or contradicts itself (two handlers for one code)."""

    reason = "app"


class StartError(CcserverError):
    """A process cannot start serving: a port is taken, a worker dies before it is ready."""

    reason = "start"


class UnknownOwner(StartError):
    """There is no such user, or group.

    @ivar key: the key that names it.
    """

    def __init__(self, key: str, name: str) -> None:
        super().__init__(f'{key}: there is no {key.lower()} "{name}"')
        self.key = key


class OperationFailed(CcserverError):
    """An operator's command was not carried out, or not to its end: the text says why."""

    reason = "operation_failed"


class NotCarried(CcserverError):
    """A value cannot travel to another process: only plain values can."""

    reason = "state"


class ProtocolError(CcserverError):
    """A peer's fault: counted and logged under its C{reason}, never a traceback.

    @cvar fatal: the byte stream can't be followed any further, so the connection is closed.
    """

    fatal: ClassVar[bool] = False


class BadLength(ProtocolError):
    """pkgLen is below the header's size or above the maximum (PROTOCOL.md 2)."""

    reason = "bad_length"
    fatal = True


class Truncated(ProtocolError):
    """The stream ended inside a packet (PROTOCOL.md 2)."""

    reason = "truncated"
    fatal = True


class BadChecksum(ProtocolError):
    """The CRC-32 is not the body's, or not 0 without a body (PROTOCOL.md 2)."""

    reason = "bad_crc"


class UnknownCode(ProtocolError):
    """No handler is registered for the message code (PROTOCOL.md 2)."""

    reason = "unknown_code"


class BadBody(ProtocolError):
    """The body is not one of the message's: wrong size, or text that is not UTF-8."""

    reason = "bad_body"


class BadProxyHeader(ProtocolError):
    """What comes first is not the header of a proxy, or not one that can be believed."""

    reason = "proxy"
    fatal = True


class PacketTooLong(CcserverError):
    """A body to be sent does not fit into a packet: the sender's fault, not the peer's."""

    reason = "packet_too_long"


class SessionClosed(CcserverError):
    """The connection has ended before what was to be sent on it could be."""

    reason = "session_closed"


class SendTimeout(CcserverError):
    """There was no room for a packet in time: the client does not read. It stays connected."""

    reason = "send_timeout"


class RequestFailed(CcserverError):
    """A client's request got no usable answer."""

    reason = "request_failed"


class RequestTimeout(RequestFailed):
    """No answer came in time; the connection is closed, for a late one could be mistaken."""

    reason = "timeout"


class ConnectionClosed(RequestFailed):
    """The connection ended, or was never made, while an answer was expected."""

    reason = "closed"


class TooMuchWaiting(RequestFailed):
    """A client has as many requests without an answer, or bytes unsent, as it may: not sent."""

    reason = "too_much_waiting"


class ReceiveTimeout(CcserverError):
    """The server sent nothing of its own accord in time; the connection stays open."""

    reason = "receive_timeout"
