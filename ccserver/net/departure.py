"""A connection on its way out of the process: brought to rest, packed, and followed to its end.

::

    begin ─▶ held ─▶ ready ─▶ packed ─▶ arrived
               │       │        ├─────▶ unpacked (it did not leave)
               └───────┴─▶ stays        └─▶ lost (nobody knows)
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from twisted.logger import Logger

from ccserver.errors import NotCarried
from ccserver.net.dispatch import Consent
from ccserver.net.protocol import PacketProtocol

RECORD = struct.Struct(">4sIQ")
"""How a connection begins in the channel: L{MAGIC}, the bytes of its L{Carried}, and those that
are unsent; both follow in this order. The descriptor comes with the first byte."""

MAGIC = b"ccs2"
"""What a record begins with; another one where what follows is not compatible."""


class Departure:
    """One connection that is to move to another process.

    @ivar reason: why it stays, if it does.
    @ivar fd: its descriptor, for who sends it.
    """

    log = Logger()

    def __init__(self, connection: PacketProtocol, told: Callable[[Departure], None]) -> None:
        """@param told: called when the connection is ready to go, and when it is to stay."""
        self.reason: str | None = None
        self.fd = -1
        self._connection = connection
        self._told = told
        self._consent = Consent()
        self._waiting: list[tuple[int, bytes]] = []

    def begin(self) -> None:
        """Bring the connection to rest."""
        reason = self._connection.reason_to_stay
        if reason is not None:
            self._stay(reason)
            return
        lane = self._connection.lane
        codes = self._connection.factory.dispatch.handover
        lane.hold(self._held, [(code, self._consent) for code in codes])  # type: ignore[misc]

    def cancel(self, reason: str) -> None:
        """Let the connection go on here, if it has not left."""
        if self.reason is None:
            self._connection.lane.unhold()
            self._stay(reason)

    def pack(self) -> deque[memoryview] | None:
        """Take the connection out of this process; None if it has to stay after all.

        @return: its record. What follows is one of L{arrived}, L{unpack}, L{refuse} and L{lose}.
        """
        connection, session = self._connection, self._connection.session
        try:
            state = session.dump_state()
        except NotCarried as error:
            self._warn("state", f"not handed over: {error}")
            self.cancel("state")
            return None
        self._waiting, unsent = connection.detach()
        try:
            if connection.lane.ending:  # a thread has closed it in this moment
                self.unpack("closing")
                return None
            head = session.carry(self._waiting, state).dump()
        except NotCarried as error:
            self._warn("state", f"not handed over: {error}")
            self.unpack("state")
            return None
        self.fd = connection.transport.fileno()
        size = sum(map(len, unsent))
        record = [RECORD.pack(MAGIC, len(head), size) + head, *unsent]
        return deque([memoryview(chunk) for chunk in record])

    def unpack(self, reason: str) -> None:
        """It has certainly not arrived: go on with it here."""
        self._connection.reattach(self._waiting)
        self._stay(reason)

    def refuse(self, error: OSError) -> None:
        """The kernel takes nothing of it: go on with it here."""
        self._warn("channel", f"not handed over: {error}")
        self.unpack("channel")

    def arrived(self) -> None:
        """The other process has it."""
        self._connection.gone()
        self.log.debug("handed over", session=self._connection.session)

    def lose(self) -> None:
        """It may have arrived, and may be served there: it must not be served here."""
        self._warn("lost", "lost in the hand-over")
        self._connection.gone_astray()
        self._stay("lost")

    def _held(self, at_rest: bool) -> None:
        if not at_rest:
            self._stay("closing")
        elif self._consent.refused:
            self._connection.lane.unhold()
            self._stay("refused")
        else:
            self._told(self)

    def _stay(self, reason: str) -> None:
        self.reason = reason
        self._told(self)

    def _warn(self, reason: str, text: str) -> None:
        factory = self._connection.factory
        more = factory.connections.admit_line(f"hand-over {reason}")
        if more is not None:
            self.log.warn(
                "{text}{more}",
                text=text,
                more=more,
                session=self._connection.session,
            )
