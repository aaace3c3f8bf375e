"""What waits in a lane for its handlers, and the bound from which on its client is not read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ccserver.core.framing import HEADER_LENGTH, Packet
from ccserver.core.session import Session
from ccserver.net.peer import Peer
from ccserver.net.sending import Sender

if TYPE_CHECKING:
    from ccserver.net.dispatch import Dispatch


class Waiting(Sender):
    """The packets of one connection that wait, in order; as many, or their bytes, as may.

    With more, reading is paused, until they are half gone.
    """

    __slots__ = ("_past", "_paused", "_pending")

    def __init__(self, session: Session, peer: Peer, dispatch: Dispatch) -> None:
        Sender.__init__(self, session, peer, dispatch)
        self._pending: deque[Packet] | None = None
        self._past = 0  # how far the stream waits no more, in bytes; where anything waits
        self._paused = False  # reading is paused

    @property
    def waiting(self) -> int:
        """How many packets wait for their handler."""
        return len(self._pending) if self._pending is not None else 0

    @property
    def paused(self) -> bool:
        """Whether reading is paused because too many packets wait."""
        return self._paused

    def put_back(self, packets: Iterable[Packet]) -> None:
        """Let C{packets} wait before all others that wait."""
        back = list(packets)
        if self._pending is None:
            self._put(back)
        else:
            self._pending.extendleft(reversed(back))
        self._past -= size_of(back)

    def _put(self, packets: Iterable[Packet]) -> None:
        if self._pending is None:
            self._pending = deque(packets) or None
            self._past = self.session.decoder.bytes
        else:
            self._pending.extend(packets)

    def _pop(self, most: int) -> list[Packet]:
        """The first of those that wait, which there are, C{most} of them at most."""
        waiting = self._pending or deque()
        popped = [waiting.popleft() for _ in range(min(len(waiting), most))]
        if waiting:
            self._past += size_of(popped)
        else:
            self._pending = None
        return popped

    def _drop_waiting(self) -> None:
        """Let no packet wait any more; hooks go on waiting."""
        hooks = [packet for packet in self._pending or () if packet[0] < 0]
        self._pending = deque(hooks) or None

    def _pause(self) -> None:
        """Read no more, until L{Lane._advance} finds that there is room."""
        if not self._paused:
            self._paused = True
            self._peer.pause_reading()

    def _pause_if_full(self) -> None:
        """Read no more while as much waits as may."""
        pending, dispatch = self._pending, self._dispatch
        if self._paused or not pending:
            return
        if len(pending) >= dispatch.lane_packets or self._waiting_bytes >= dispatch.lane_bytes:
            self._pause()

    @property
    def _waiting_bytes(self) -> int:
        """The bytes of what waits, if anything does: what was read since the first of it came.

        An incomplete packet counts, and what came in the same read as the first one does not: to
        add up what there is would cost every packet.
        """
        return self.session.decoder.bytes - self._past

    @property
    def _half_empty(self) -> bool:
        """Whether no more waits than half of what may."""
        pending, dispatch = self._pending, self._dispatch
        return not pending or (
            len(pending) <= dispatch.lane_packets // 2
            and self._waiting_bytes <= dispatch.lane_bytes // 2
        )


def size_of(packets: Iterable[Packet]) -> int:
    """The bytes of C{packets}, as they came; hooks have none."""
    return sum([HEADER_LENGTH + len(body) for code, body in packets if code >= 0])


def waiting_packets(lanes: Iterable[Waiting]) -> int:
    """How many packets wait for their handler in C{lanes}."""
    return sum([len(lane._pending) for lane in lanes if lane._pending is not None])
