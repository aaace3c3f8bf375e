"""One connection's requests, slow, failing and big ones, moved at any moment, against a list."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.framing import encode
from tests.core.machines import run_machine
from tests.net.moving import Machine, MovingClient

NOW, WAIT, PUSH, SILENT, RAISE, BIG, CLOSE, UNKNOWN = range(1, 9)
PLENTY = bytes(20000)
LANE_PACKETS = 3
BUFFER = 4096


class _FailedError(Exception):
    """What a handler waited for did not come."""


class LaneMachine(RuleBasedStateMachine):
    """A client, its connection in one of two workers, and what it has to be answered."""

    case: ClassVar[SynchronousTestCase]

    @initialize()
    def begin(self) -> None:
        self.machine = Machine(self.case)
        self.app = App()
        self.waits: list[tuple[int, Deferred[None]]] = []
        self._define()
        self.here, self.there = (
            self.machine.worker(self.app, lane_packets=LANE_PACKETS, slice_seconds=seconds)
            for seconds in (1e-9, 0.0)
        )
        self.client: MovingClient = self.here.connect(BUFFER)
        self.unsent = b""
        self.asked: list[tuple[int, int]] = []
        self.failed: dict[int, bool] = {}
        self.reports: list[Any] | None = None
        self.had: dict[Any, int] = {}  # bytes read by who had enough to do, at the last step

    def _define(self) -> None:
        def body(session: Any, request: bytes) -> bytes:
            count = session.state["count"] = session.state.get("count", 0) + 1
            return b"%d: %s" % (count, request)

        @self.app.message(NOW)
        async def now(session: Any, request: bytes) -> bytes:
            return body(session, request)

        @self.app.message(WAIT)
        async def wait(session: Any, request: bytes) -> bytes:
            result: Deferred[None] = Deferred()
            self.waits.append((int(request), result))
            await result
            return body(session, request)

        @self.app.message(PUSH)
        async def push(session: Any, request: bytes) -> bytes:
            session.send(PUSH, b"push")
            return body(session, request)

        @self.app.message(SILENT)
        async def silent(session: Any, request: bytes) -> None:
            body(session, request)

        @self.app.message(RAISE)
        async def fail(session: Any, request: bytes) -> None:
            raise _FailedError

        @self.app.message(BIG)
        async def big(session: Any, request: bytes) -> bytes:
            return body(session, request) + PLENTY

        @self.app.message(CLOSE)
        async def close(session: Any, request: bytes) -> bytes:
            session.close()
            return body(session, request)

    @rule(kinds=st.lists(st.sampled_from([NOW, WAIT, PUSH, SILENT, RAISE, BIG, UNKNOWN])))
    def ask(self, kinds: list[int]) -> None:
        for kind in kinds:
            number = len(self.asked)
            self.asked.append((kind, number))
            self.unsent += encode(kind, b"%d" % number)

    @precondition(lambda self: len(self.asked) > 20)
    @rule()
    def ask_to_close(self) -> None:
        self.ask([CLOSE])

    @rule(size=st.sampled_from([1, 5, 12, 40, 10000]))
    def send(self, size: int) -> None:
        if self.client.ended is None:
            data, self.unsent = self.unsent[:size], self.unsent[size:]
            try:
                self.client.send_bytes(data)
            except BrokenPipeError:
                assert self._closes()
        self.machine.turn()

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        self.machine.turn(turns)

    @rule(size=st.sampled_from([1, 100, 30000, 1 << 20]))
    def read(self, size: int) -> None:
        self.client.read(size)

    @precondition(lambda self: self.waits)
    @rule(fails=st.booleans())
    def answer(self, fails: bool) -> None:
        number, result = self.waits.pop(0)
        self.failed[number] = fails
        if fails:
            result.errback(_FailedError())
        else:
            result.callback(None)

    @rule(turns=st.integers(0, 4))
    def move(self, turns: int) -> None:
        """The connection begins to go to the other worker; it may arrive in this rule or later."""
        if self.reports != []:
            if len(self.there.connections):
                self.here, self.there = self.there, self.here
            self.reports = self.machine.give(self.here, self.there)
        self.machine.turn(turns)

    @invariant()
    def the_client_has_got_what_it_asked_for_so_far(self) -> None:
        expected = self._expected()
        assert expected.startswith(bytes(self.client.got)), (expected, self.client.got)

    @invariant()
    def it_is_in_one_place(self) -> None:
        assert len(self.here.connections) + len(self.there.connections) <= 1

    @invariant()
    def who_has_enough_to_do_reads_once_more_at_most(self) -> None:
        """The packets of one read may be more than enough; then no other one follows."""
        had, self.had = self.had, {}
        for worker in self.machine.workers:
            for connection in worker.connections:
                lane, read = connection.lane, connection.session.bytes_in
                if lane.waiting < LANE_PACKETS or lane.ending:
                    continue
                self.had[connection] = read
                assert lane.paused or had.get(connection, read) == read

    def teardown(self) -> None:
        """All is answered in the end, and nothing else."""
        try:
            while self.unsent and self.client.ended is None:
                self.send(4096)
                self._go_on()
            self._shut()
            self.machine.until(self._ended)
            assert bytes(self.client.got) == self._expected()
            assert self.client.ended == "end"
        finally:
            self.machine.stop()
            self.client.sock.close()
            self.case.flushLoggedErrors(_FailedError)

    def _expected(self) -> bytes:
        """The replies up to the first that waits for something."""
        replies = []
        count = 0
        for kind, number in self.asked:
            if kind == WAIT and number not in self.failed:
                break
            if kind in (RAISE, UNKNOWN) or (kind == WAIT and self.failed[number]):
                continue
            count += 1
            reply = b"%d: %d" % (count, number) + (PLENTY if kind == BIG else b"")
            if kind == PUSH:
                replies.append(encode(PUSH, b"push"))
            if kind != SILENT:
                replies.append(encode(kind, reply))
            if kind == CLOSE:
                break
        return b"".join(replies)

    def _closes(self) -> bool:
        return any(kind == CLOSE for kind, _ in self.asked)

    def _shut(self) -> None:
        try:
            self.client.sock.shutdown(1)
        except OSError:
            assert self._closes()

    def _ended(self) -> bool:
        self._go_on()
        return self.client.ended is not None

    def _go_on(self) -> None:
        while self.waits:
            self.answer(False)
        self.client.read()
        self.machine.turn()


class LaneTests(SynchronousTestCase):
    def test_every_request_is_answered_in_its_turn_wherever_it_is(self):
        LaneMachine.case = self
        run_machine(LaneMachine)
