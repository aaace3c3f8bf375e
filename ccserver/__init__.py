"""ccserver: the nginx of binary TCP protocols. What is listed here is public."""

from ccserver.app import App, Worker
from ccserver.config import Config
from ccserver.core.session import CloseReason, Session
from ccserver.errors import (
    AppError,
    BadBody,
    CcserverError,
    ConfigError,
    PacketTooLong,
    ProtocolError,
    SendTimeout,
    SessionClosed,
)
from ccserver.message import Message, field

__all__ = [
    "App",
    "AppError",
    "BadBody",
    "CcserverError",
    "CloseReason",
    "Config",
    "ConfigError",
    "Message",
    "PacketTooLong",
    "ProtocolError",
    "SendTimeout",
    "Session",
    "SessionClosed",
    "Worker",
    "field",
]
