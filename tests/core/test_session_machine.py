"""Sessions under limits, moved at any moment, against the rules applied packet by packet."""

from __future__ import annotations

from collections.abc import Hashable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.carried import Carried
from ccserver.core.framing import Packet, encode
from ccserver.core.limits import PING, FloodLimit, Heartbeat, SessionLimits
from ccserver.core.outbox import Overflow
from ccserver.core.session import CloseReason, Session
from tests.core.machines import GOOD, OF_BAD_LENGTH, SPOILED, run_machine
from tests.fuzz.model import Decoded, decode

LONGEST = 100
INTERVAL = 0.1
COUNT = 8


class Sent:
    """Where a session's packets go."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, frame: bytes, overflow: Overflow, key: Hashable) -> None:
        self.frames.append(frame)

    def close(self) -> None:
        raise AssertionError("nobody closes it")


class SessionMachine(RuleBasedStateMachine):
    """A session that is used as the network side uses it."""

    @initialize(close=st.booleans(), ping_only=st.booleans(), flood=st.booleans())
    def begin(self, close: bool, ping_only: bool, flood: bool) -> None:
        self.limits = SessionLimits(
            max_packet_length=LONGEST,
            close_on_bad_checksum=close,
            flood=FloodLimit(INTERVAL, COUNT) if flood else None,
            heartbeat=Heartbeat(5),
            ping_only=ping_only,
        )
        self.now = 1000.0
        self.session = Session(7, "192.0.2.1:5000", "0.0.0.0:5678", self.limits, self.now)
        self.outlet = Sent()
        self.session.attach(self.outlet)
        self.got: list[Packet] = []
        self.unsent = b""
        self.fed = b""
        # the model
        self.last: float | None = None
        self.quick = 0
        self.heard = self.now
        self.reason: str | None = None
        self.expected: list[Packet] = []
        self.frames: list[bytes] = []
        self.state: dict[str, int] = {}

    @rule(packets=st.lists(GOOD, min_size=1, max_size=6))
    def send(self, packets: list[bytes]) -> None:
        self.unsent += b"".join(packets)

    @rule(packet=SPOILED)
    def send_spoiled(self, packet: bytes) -> None:
        self.unsent += packet

    @precondition(lambda self: len(self.fed) > 300)
    @rule(data=OF_BAD_LENGTH)
    def send_what_has_a_bad_length(self, data: bytes) -> None:
        self.unsent += data

    @rule(seconds=st.sampled_from([0.0, INTERVAL / 2, INTERVAL, 1.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(size=st.sampled_from([1, 3, 8, 20, 60, 10000]))
    def arrive(self, size: int) -> None:
        """The next bytes of the stream come, all in one read."""
        self._read(size)

    @rule(sizes=st.lists(st.integers(1, 30), min_size=2, max_size=5))
    def arrive_in_pieces(self, sizes: list[int]) -> None:
        for size in sizes:
            self._read(size)

    @rule(count=st.integers(0, 3))
    def push(self, count: int) -> None:
        for number in range(count):
            self.session.send(number, b"push")
            self.frames.append(encode(number, b"push"))

    @rule(name=st.sampled_from(["a", "b"]), value=st.integers())
    def remember(self, name: str, value: int) -> None:
        self.session.state[name] = self.state[name] = value

    @rule(pending=st.booleans())
    def move(self, pending: bool) -> None:
        """Another process goes on, perhaps with packets that were not handled."""
        if self.session.close_reason is not None:
            return  # it would not be moved any more
        waiting = self.got[-2:] if pending else []
        before = self.session
        data = before.carry(waiting, before.dump_state()).dump()
        carried = Carried.load(data)
        assert carried.pending == waiting
        self.session = Session.adopt(carried, self.limits, self.now)
        assert self.session.take_refused() == []
        self.session.attach(self.outlet)
        before.attach(None)
        before.send(1, b"nobody gets this")

    @invariant()
    def it_has_let_through_what_the_rules_let_through(self) -> None:
        assert self.got == self.expected
        assert self.session.close_reason == self.reason

    @invariant()
    def it_knows_when_it_was_heard(self) -> None:
        if self.reason is None:
            assert self.session.heard == self.heard

    @invariant()
    def it_remembers(self) -> None:
        assert self.session.state == self.state
        assert self.outlet.frames == self.frames
        assert (self.session.id, self.session.started) == (7, 1000.0)
        assert self.session.bytes_in == len(self.fed)

    def _read(self, size: int) -> None:
        data, self.unsent = self.unsent[:size], self.unsent[size:]
        session = self.session
        packets = session.admit(session.decoder.feed(data), self.now)
        session.take_refused()
        self.got += packets
        if self.reason is None:
            self._judge(data)

    def _judge(self, data: bytes) -> None:
        """What the rules say of one read."""
        before = decode(self.fed, LONGEST, self.limits.close_on_bad_checksum)
        self.fed += data
        after = decode(self.fed, LONGEST, self.limits.close_on_bad_checksum)
        new = _in_order(after)[len(_in_order(before)) :]
        good = [packet for packet in new if packet is not None]
        if new and (not self.limits.ping_only or any(code == PING for code, _ in good)):
            self.heard = self.now
        for packet in new:
            soon = self.last is not None and self.now - self.last < INTERVAL
            self.quick = self.quick + 1 if soon else 0
            self.last = self.now
            if self.limits.flood is not None and self.quick >= COUNT:
                self.reason = CloseReason.FLOOD
                return
            if packet is not None:
                self.expected.append(packet)
        if after.closed:
            self.reason = CloseReason(after.refused[-1][0])


def _in_order(decoded: Decoded) -> list[Packet | None]:
    """The complete packets as they came; None for one that was refused."""
    packets: list[Packet | None] = list(decoded.packets)
    for _, _, position in decoded.refused:
        packets.insert(position, None)
    return packets


class SessionTests(SynchronousTestCase):
    def test_it_agrees_with_the_rules_at_every_step(self):
        run_machine(SessionMachine)
