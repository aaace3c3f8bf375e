"""Whatever is said, and whenever the connection moves: the client gets what it gets without."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.framing import encode
from ccserver.core.limits import FloodLimit, SessionLimits
from tests.net.moving import Machine, MovingClient, MovingWorker

NOW, WAIT, THREAD, BIG, HOOKED, UNKNOWN = range(1, 7)
SPOILED = encode(NOW, b"spoiled")[:-1] + b"?"

REQUESTS = st.sampled_from([NOW, WAIT, THREAD, BIG, HOOKED, UNKNOWN, 0])
"""Codes; 0 is a packet with a wrong checksum."""

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 40)),
        st.tuples(st.just("read"), st.integers(1, 20000)),
        st.tuples(st.just("turn"), st.integers(1, 3)),
        st.tuples(st.just("answer"), st.just(0)),
        st.tuples(st.just("move"), st.integers(0, 3)),
        st.tuples(st.just("move"), st.integers(0, 3)),
    ),
    max_size=60,
)


class Conversation:
    """An application that counts what it is asked in the session's state, and its client."""

    def __init__(self, machine: Machine, slice_seconds: float) -> None:
        self.machine = machine
        self.app = App()
        self.waits: list[Deferred[None]] = []
        self._define()
        limits = SessionLimits(flood=FloodLimit(1e-9, 1000))
        options = {"threads": 1, "lane_packets": 3, "slice_seconds": slice_seconds}
        self.here: MovingWorker = machine.worker(self.app, limits, **options)
        self.there: MovingWorker = machine.worker(self.app, limits, **options)
        self.client: MovingClient = self.here.connect()
        self.reports: list[Any] = []
        self.moving = False

    def _define(self) -> None:
        def reply(session: Any, request: bytes) -> bytes:
            state = session.state
            state["count"] = state.get("count", 0) + 1
            seen = state.setdefault("seen", [])
            seen.append((state["count"], request))
            del seen[:-3]
            return repr((state["count"], seen)).encode()

        @self.app.message(NOW)
        async def now(session: Any, request: bytes) -> bytes:
            return reply(session, request)

        @self.app.message(WAIT)
        async def wait(session: Any, request: bytes) -> bytes:
            result: Deferred[None] = Deferred()
            self.waits.append(result)
            await result
            return reply(session, request)

        @self.app.message(THREAD)
        def thread(session: Any, request: bytes) -> bytes:
            session.send(THREAD, b"by hand")
            return reply(session, request)

        @self.app.message(BIG)
        async def big(session: Any, request: bytes) -> bytes:
            session.send(BIG, request * 5000)
            return reply(session, request) + bytes(30000)

        @self.app.message(HOOKED)
        async def hooked(session: Any, request: bytes) -> None:
            session.state["hooked"] = True

        @self.app.on_handover
        def remember(session: Any) -> None:
            session.state.setdefault("moves", 0)

    def step(self, name: str, number: int, rest: bytearray) -> None:
        if name == "send":
            sent = bytes(rest[:number])
            del rest[:number]
            self.client.send_bytes(sent)
        elif name == "read":
            self.client.read(number)
        elif name == "turn":
            self.machine.turn(number)
        elif name == "answer":
            self._answer()
        else:
            self._move(number)

    def finish(self, rest: bytearray) -> bytes:
        """Send C{rest}, and end; all that the client has got."""
        while rest:
            self.step("send", 4096, rest)
            self._go_on()
        self.client.sock.shutdown(1)
        self.machine.until(self._ended)
        return bytes(self.client.got)

    def _ended(self) -> bool:
        self._go_on()
        return self.client.ended is not None

    def _go_on(self) -> None:
        self._answer()
        self.client.read()
        self.machine.turn()

    def _answer(self) -> None:
        if self.waits:
            self.waits.pop(0).callback(None)

    def _move(self, turns: int) -> None:
        if self.moving and not self.reports:
            return  # the one before is not done
        if len(self.there.connections):
            self.here, self.there = self.there, self.here
        self.moving = True
        self.reports = self.machine.give(self.here, self.there)
        self.machine.turn(turns)


class ConversationTests(SynchronousTestCase):
    def run_it(
        self, requests: list[int], steps: list[tuple[str, int]], slice_seconds: float = 0.0
    ) -> tuple[bytes, Any]:
        machine = Machine(self)
        try:
            conversation = Conversation(machine, slice_seconds)
            stream = bytearray()
            for number, code in enumerate(requests):
                stream += encode(code, b"%d" % number) if code else SPOILED
            for name, number in steps:
                conversation.step(name, number, stream)
            got = conversation.finish(stream)
            return got, [worker.counts for worker in machine.workers]
        finally:
            machine.stop()

    @given(st.lists(REQUESTS, max_size=40), STEPS, st.sampled_from([0.0, 1e-9]))
    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def test_a_connection_that_moves_gets_what_one_that_stays_gets(
        self, requests, steps, slice_seconds
    ):
        moved, counts = self.run_it(requests, steps, slice_seconds)
        stayed, _ = self.run_it(requests, [step for step in steps if step[0] != "move"])
        self.assertEqual(moved, stayed)
        refused = sum(sum(each.refused.values()) for each in counts)
        self.assertEqual(refused, requests.count(UNKNOWN) + requests.count(0))
