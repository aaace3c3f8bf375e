"""The decoder, fed with anything in any pieces, moved and stopped at any time, against a model."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core import framing
from ccserver.core.framing import FrameDecoder, Packet, cut_in_python
from ccserver.native import native
from tests.core.machines import GOOD, OF_BAD_LENGTH, SPOILED, run_machine
from tests.fuzz.model import decode

LONGEST = 100


class DecoderMachine(RuleBasedStateMachine):
    """A stream on its way into a decoder, and what the decoder has made of it."""

    @initialize(close=st.booleans())
    def begin(self, close: bool) -> None:
        self.close = close
        self.decoder = FrameDecoder(LONGEST, close)
        self.unsent = b""
        self.fed = b""
        self.stopped = False
        self.packets: list[Packet] = []
        self.refused: list[tuple[str, int, int]] = []
        self.complete = 0

    @rule(packets=st.lists(GOOD, min_size=1, max_size=4))
    def send(self, packets: list[bytes]) -> None:
        self.unsent += b"".join(packets)

    @rule(packet=SPOILED)
    def send_spoiled(self, packet: bytes) -> None:
        self.unsent += packet

    @rule(data=st.one_of(OF_BAD_LENGTH, st.binary(max_size=12)))
    def send_anything(self, data: bytes) -> None:
        self.unsent += data

    @rule(size=st.integers(1, 120))
    def arrive(self, size: int) -> None:
        """The next bytes of the stream come."""
        data, self.unsent = self.unsent[:size], self.unsent[size:]
        self._feed(data)

    @rule(size=st.integers(1, 30))
    def arrive_one_by_one(self, size: int) -> None:
        for _ in range(min(size, len(self.unsent))):
            self.arrive(1)

    @precondition(lambda self: not self.decoder.closed)
    @rule()
    def move(self) -> None:
        """Another decoder goes on."""
        before = self.decoder
        self.decoder = FrameDecoder(LONGEST, self.close)
        self.decoder.restore(before.incomplete, before.bytes, before.packets)
        assert not self.decoder.refused

    @precondition(lambda self: len(self.fed) > 200)
    @rule()
    def stop(self) -> None:
        if not self.decoder.closed:
            self.stopped = True
        self.decoder.stop()

    @invariant()
    def it_has_what_the_model_has(self) -> None:
        expected = decode(self.fed, LONGEST, self.close)
        assert self.packets == expected.packets
        assert self.refused == expected.refused
        assert self.decoder.closed == (expected.closed or self.stopped)
        assert self.decoder.packets == self.complete
        assert self.decoder.bytes == len(self.fed)
        if not self.decoder.closed:
            assert self.decoder.incomplete == expected.rest

    @invariant()
    def it_holds_less_than_a_packet(self) -> None:
        assert self.decoder.buffered < LONGEST
        if self.decoder.closed:
            assert self.decoder.buffered == 0

    def _feed(self, data: bytes) -> None:
        if not self.decoder.closed:
            self.fed += data
        packets = self.decoder.feed(data)
        self.packets += packets
        refused, self.decoder.refused = self.decoder.refused, []
        for each in refused:
            self.refused.append((each.error.reason, each.code, self.complete + each.position))
        self.complete += len(packets) + len(refused)


class DecoderTests(SynchronousTestCase):
    def test_it_agrees_with_the_model_at_every_step(self):
        self.patch(framing, "cut", cut_in_python)
        run_machine(DecoderMachine)


class CompiledDecoderTests(SynchronousTestCase):
    if native is None:
        skip = "the compiled part has not been built"

    def test_it_agrees_with_the_model_at_every_step(self):
        self.patch(framing, "cut", native.cut)
        run_machine(DecoderMachine)
