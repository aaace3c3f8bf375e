"""The peer: a lane's connection as the lane sees it, or nobody."""

from __future__ import annotations

from typing import Any, Protocol

from ccserver.core.session import CloseReason
from ccserver.errors import ProtocolError


class Peer(Protocol):
    """What a lane needs of its connection; called in the reactor's thread alone."""

    transport: Any

    def pause_reading(self) -> None:
        """Read no more until L{resume_reading}."""

    def resume_reading(self) -> None:
        """Read again."""

    def refuse(self, error: ProtocolError, code: int) -> None:
        """Count and log a packet that was not accepted."""

    def lane_done(self) -> None:
        """The lane was asked to finish, or to close, and has nothing left to do."""

    def lane_ending(self) -> None:
        """It was asked to, and waits for a handler, or for the client to read its replies."""

    def cut(self, reason: CloseReason, why: str) -> None:
        """The connection is to be closed at once; C{why} is for the log."""


class _Nobody:
    """The peer of a lane whose connection is gone."""

    def __init__(self) -> None:
        self.transport = self

    def write(self, data: bytes) -> None:
        pass

    def writeSequence(self, chunks: list[bytes]) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def refuse(self, error: ProtocolError, code: int) -> None:
        pass

    def lane_done(self) -> None:
        pass

    def lane_ending(self) -> None:
        pass

    def cut(self, reason: CloseReason, why: str) -> None:
        pass


NOBODY: Peer = _Nobody()
