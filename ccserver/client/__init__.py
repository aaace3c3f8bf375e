"""The client library: L{Client} blocks; L{ccserver.client.deferred} is for Twisted programs.

Kept apart, so that a blocking program does not import Twisted.
"""

from ccserver.client.blocking import Client
from ccserver.errors import (
    ConnectionClosed,
    ProtocolError,
    ReceiveTimeout,
    RequestFailed,
    RequestTimeout,
    TooMuchWaiting,
)

__all__ = [
    "Client",
    "ConnectionClosed",
    "ProtocolError",
    "ReceiveTimeout",
    "RequestFailed",
    "RequestTimeout",
    "TooMuchWaiting",
]
