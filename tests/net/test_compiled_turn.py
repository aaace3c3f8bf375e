"""A turn in the compiled part: what it does for transports is what the Python beside it does."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.python.log import addObserver, removeObserver
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.core.counts import Counts
from ccserver.core.framing import FrameDecoder, Packet, encode
from ccserver.core.limits import FloodLimit, Heartbeat, RateAction, SessionLimits
from ccserver.core.rates import Rate
from ccserver.core.session import Session
from ccserver.errors import BadBody
from ccserver.message import Message, field
from ccserver.native import native
from ccserver.net.connections import Connections
from ccserver.net.dispatch import Dispatch
from ccserver.net.factory import PacketFactory
from ccserver.net.lane import Lane
from ccserver.net.pool import Pool
from ccserver.net.reactor import PART, DirectReactor
from ccserver.net.slices import Slices
from ccserver.net.transport import LONG_READ, READ_SIZE, DirectServer
from tests.net import ways
from tests.support import PATIENCE

ECHO, SILENT, FAULT, REFUSAL, LATER, CLOSE, PUSH, LARGE, KIND, UNKNOWN, BURST = range(1, 12)
MIDDLE, STOP, EXIT, DECODE, ENCODE, LATE_STOP = range(12, 18)
CODES = (*range(ECHO, BURST), *range(MIDDLE, LATE_STOP + 1))
TURNS = 12
"""More than it takes until nothing happens any more."""


class FaultError(Exception):
    """A handler of the tests has raised it."""


class Stubborn(Message):
    """Is decoded and encoded by what raises an exception that has a meaning for generators."""

    number: int = field.u8()

    @classmethod
    def decode(cls, body: bytes) -> Stubborn:
        raise StopIteration(b"no reply")

    def encode(self) -> bytes:
        raise StopIteration(b"no reply")


def application(reactor: Any) -> App:
    """Handlers of every kind that runs on the reactor."""
    app = App()

    @app.message(ECHO)
    async def echo(session: Session, request: bytes) -> bytes:
        return request

    @app.message(SILENT)
    async def silent(session: Session, request: bytes) -> None:
        session.state["silent"] = request

    @app.message(FAULT)
    async def fault(session: Session, request: bytes) -> bytes:
        raise FaultError

    @app.message(REFUSAL)
    async def refusal(session: Session, request: bytes) -> bytes:
        raise BadBody("as the test wants it")

    @app.message(LATER)
    async def later(session: Session, request: bytes) -> bytes:
        awaited: Deferred[None] = Deferred()
        reactor.callLater(0, awaited.callback, None)
        await awaited
        return b"later " + request

    @app.message(CLOSE)
    async def close(session: Session, request: bytes) -> bytes:
        session.close()
        return b"the last"

    @app.message(PUSH)
    async def push(session: Session, request: bytes) -> bytes:
        session.send(PUSH, b"pushed")
        return request

    @app.message(LARGE)
    async def large(session: Session, request: bytes) -> bytes:
        return request + bytes(20_000)

    @app.message(BURST)
    async def burst(session: Session, request: bytes) -> bytes:
        for _ in range(40):
            session.send(BURST, bytes(60_000))
        return b"behind it"

    @app.message(MIDDLE)
    async def middle(session: Session, request: bytes) -> bytes:
        return request * 3000

    @app.message(STOP)
    async def stop(session: Session, request: bytes) -> bytes:
        raise StopIteration(b"no reply")

    @app.message(EXIT)
    async def leave(session: Session, request: bytes) -> bytes:
        raise GeneratorExit

    @app.message(DECODE)
    async def decode(session: Session, request: Stubborn) -> bytes:
        return b"never called"

    @app.message(ENCODE)
    async def encode_reply(session: Session, request: bytes) -> Stubborn:
        return Stubborn(number=1)

    @app.message(LATE_STOP)
    async def late_stop(session: Session, request: bytes) -> Stubborn:
        awaited: Deferred[None] = Deferred()
        reactor.callLater(0, awaited.callback, None)
        await awaited
        return Stubborn(number=1)

    @app.message(KIND)
    async def kind(session: Session, request: bytes) -> bytearray:
        return bytearray(request)

    return app


class Outcome(NamedTuple):
    """What one connection has come to."""

    received: bytes
    ended: bool
    reason: str | None
    counted: tuple[int, int, int, int]
    refused: dict[str, int]
    errors: tuple[int, set[type]]
    state: dict[str, Any]


class Worker:
    """The net side of a worker on a real reactor, whose clients are socket pairs."""

    def __init__(
        self, test: Any, compiled: bool, limits: SessionLimits, slice_seconds: float = 0.0
    ) -> None:
        ways.go(test, compiled)
        self.reactor = DirectReactor()
        self.counts = Counts()
        self.table = Connections(100, 0, self.counts, self.reactor.seconds, limits.heartbeat)
        self.pool = Pool(self.reactor, 0)
        self.pool.start(threads=False)
        slices = Slices(self.reactor, slice_seconds)
        app = application(self.reactor)
        dispatch = Dispatch(app, self.pool, 1000, self.counts, slices=slices)
        self.factory = PacketFactory("127.0.0.1:1", limits, self.table, dispatch, self.reactor)
        test.addCleanup(self.close)

    def connect(self) -> tuple[socket.socket, Any]:
        """A client's end, and the transport."""
        client, server = socket.socketpair()
        client.setblocking(False)
        server.setblocking(False)
        protocol = self.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 20000))
        transport = DirectServer(server, protocol, ("127.0.0.1", 20000), None, 0, self.reactor)
        assert protocol is not None
        protocol.makeConnection(transport)
        return client, transport

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.reactor.runUntilCurrent()
            self.reactor.doIteration(0)

    def close(self) -> None:
        self.table.abort()
        self.turn(3)
        for reader in (*self.reactor.removeAll(), *self.reactor._internalReaders):
            if reader is not self.pool:
                reader.connectionLost(None)


def received(client: socket.socket) -> tuple[bytes, bool]:
    """All that is there, and whether that is the end."""
    data = b""
    while True:
        try:
            more = client.recv(1 << 20)
        except BlockingIOError:
            return data, False
        except ConnectionError:
            return data, True
        if not more:
            return data, True
        data += more


packets = st.tuples(st.sampled_from(CODES), st.sampled_from([b"", b"a", b"body of some bytes"]))
good = packets.map(lambda packet: encode(*packet))
lasting = packets.filter(lambda packet: packet[0] != CLOSE).map(lambda packet: encode(*packet))
bad = st.sampled_from(
    [
        struct.pack(">HHI", 9, ECHO, 1) + b"x",  # a wrong checksum
        struct.pack(">HHI", 7, ECHO, 0),  # a length that cannot be
    ]
)
steps = st.lists(st.one_of(good, good, good, good, bad), min_size=1, max_size=12)
all_limits = st.sampled_from(
    [
        SessionLimits(),
        SessionLimits(heartbeat=Heartbeat(interval=20, kick=False)),
        SessionLimits(flood=FloodLimit(1e6, 4)),
        SessionLimits(rate=Rate(0.001, 5)),
        SessionLimits(rate=Rate(0.001, 5), rate_action=RateAction.DROP),
        SessionLimits(rate=Rate(0.001, 5), rate_action=RateAction.KICK),
        SessionLimits(close_on_bad_checksum=True),
    ]
)


class SameTests(SynchronousTestCase):
    """Whatever comes, the same goes out and the same is known."""

    def outcome(
        self,
        compiled: bool,
        limits: SessionLimits,
        pieces: list[bytes],
        ends: bool,
        slice_seconds: float = 0.0,
    ) -> Outcome:
        worker = Worker(self, compiled, limits, slice_seconds)
        try:
            client, transport = worker.connect()
            session = transport.protocol.session
            data = b""
            for piece in pieces:
                try:
                    client.send(piece)
                except ConnectionError:
                    break  # it has been closed
                worker.turn(2)
                data += received(client)[0]
            if ends:
                client.shutdown(socket.SHUT_WR)
            for _ in range(TURNS):
                worker.turn()
                more, ended = received(client)
                data += more
            client.close()
            worker.turn(TURNS)
            counted = (
                *(session.packets_in, session.bytes_in),
                *(session.packets_out, session.bytes_out),
            )
            raised = {failure.type for failure in self.flushLoggedErrors()}
            errors = (worker.counts.handler_errors, raised)  # of many, not all are logged
            refused = {str(reason): count for reason, count in worker.counts.refused.items()}
            return Outcome(
                data, ended, session.close_reason, counted, refused, errors, session.state
            )
        finally:
            worker.close()

    @settings(max_examples=150, deadline=None)
    @given(limits=all_limits, stream=steps, cuts=st.lists(st.integers(1, 60)), ends=st.booleans())
    def test_as_python_does(
        self, limits: SessionLimits, stream: list[bytes], cuts: list[int], ends: bool
    ) -> None:
        data, pieces = b"".join(stream), []
        for cut in cuts:
            pieces.append(data[:cut])
            data = data[cut:]
        pieces = [piece for piece in (*pieces, data) if piece]
        outcomes = [self.outcome(compiled, limits, pieces, ends) for compiled in (False, True)]
        self.assertEqual(*outcomes)

    @settings(max_examples=100, deadline=None)
    @given(
        limits=all_limits,
        stream=st.lists(st.one_of(lasting, lasting, lasting, bad), min_size=20),
        ends=st.booleans(),
    )
    def test_slices_change_nothing_but_when(
        self, limits: SessionLimits, stream: list[bytes], ends: bool
    ) -> None:
        outcomes = [
            self.outcome(compiled, limits, [b"".join(stream)], ends, slice_seconds)
            for compiled in (False, True)
            for slice_seconds in (0.0, 1e-9)
        ]
        for outcome in outcomes:
            self.assertEqual(outcome, outcomes[0])

    def test_who_has_had_a_slice_goes_on_behind_the_others(self):
        for compiled in (False, True):
            worker = Worker(self, compiled, SessionLimits(), 1e-9)
            (client, _), (other, _) = worker.connect(), worker.connect()
            self.addCleanup(client.close)
            self.addCleanup(other.close)
            stream = b"".join(encode(ECHO, b"%d" % n) for n in range(200))
            client.send(stream)
            worker.turn()
            data = received(client)[0]
            self.assertLess(len(data), len(stream) / 5)
            for _ in range(5):
                other.send(encode(ECHO, b"quick"))
                worker.turn()
                self.assertEqual(received(other)[0], encode(ECHO, b"quick"))
                data += received(client)[0]
            self.assertLess(len(data), len(stream))
            for _ in range(200):  # a slice each
                worker.turn()
                data += received(client)[0]
            self.assertEqual(data, stream)

    def test_a_client_that_reads_late_gets_all_in_order(self):
        outcomes = []
        for compiled in (False, True):
            worker = Worker(self, compiled, SessionLimits())
            client, transport = worker.connect()
            self.addCleanup(client.close)
            asked = [(LARGE if n % 3 else PUSH, b"%d" % n) for n in range(300)]
            for code, body in asked:
                client.send(encode(code, body))
                worker.turn()
            self.assertTrue(transport.protocol.lane.blocked)
            data = b""
            for _ in range(200):
                data += received(client)[0]
                worker.turn()
            decoder = FrameDecoder(29000)
            bodies = [body[:3] for code, body in decoder.feed(data) if body != b"pushed"]
            self.assertEqual(len(bodies), len(asked))
            outcomes.append((data, transport.protocol.session.packets_out))
        self.assertEqual(*outcomes)

    def test_a_reply_behind_pushes_that_the_kernel_did_not_take_comes_behind_them(self):
        for compiled in (False, True):
            worker = Worker(self, compiled, SessionLimits())
            client, _ = worker.connect()
            self.addCleanup(client.close)
            client.send(encode(BURST) + encode(ECHO, b"next"))
            data = b""
            for _ in range(100):
                worker.turn()
                data += received(client)[0]
            bodies = [body for _, body in FrameDecoder(65535).feed(data)]
            self.assertEqual(bodies, [bytes(60_000)] * 40 + [b"behind it", b"next"])


class Other:
    """A descriptor that is none of ours."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.eventfd = os.eventfd(1, os.EFD_NONBLOCK)
        self.action = action
        self.reasons: list[Any] = []

    def fileno(self) -> int:
        return self.eventfd

    def logPrefix(self) -> str:
        return "other"

    def doRead(self) -> Any:
        os.eventfd_read(self.eventfd)
        return self.action()

    def connectionLost(self, reason: Any) -> None:
        self.reasons.append(reason)


class LoopTests(SynchronousTestCase):
    """The main loop, of which the compiled part does many turns at a time: nothing else waits."""

    ROUNDS = 50
    NO_MORE = object()
    TAKES = 100

    def run_loop(self, act: Callable[[Any, int], object], limit: int = 100_000) -> Worker:
        """Run a reactor whose client asks for ever; C{act} is called in the handler.

        @param act: called with the reactor and how often it was called before; if it returns
            L{NO_MORE}, the client does not ask again.
        @return: behind the end of the loop, which C{act} is to see to.
        """
        worker = Worker(self, self.compiled, SessionLimits())
        client, _ = worker.connect()
        self.addCleanup(client.close)
        self.client, self.another = client, worker.connect()[0]
        self.addCleanup(self.another.close)
        handlers = worker.factory.dispatch.handlers
        calls: list[None] = []
        got: list[bytes] = []

        async def ask_again(session: Session, request: bytes) -> bytes:
            got.append(received(client)[0])
            calls.append(None)
            try:
                if act(worker.reactor, len(calls) - 1) is not self.NO_MORE:
                    client.send(encode(ECHO, request))
            except Exception:
                worker.reactor.crash()
                raise
            if len(calls) == limit:
                worker.reactor.crash()
            return request

        handlers[ECHO] = replace(handlers[ECHO], function=ask_again)
        client.send(encode(ECHO, b"a"))
        worker.reactor.run(installSignalHandlers=False)
        self.calls, self.replies = len(calls), b"".join(got)
        return worker

    compiled = False

    def test_a_handler_can_end_the_loop(self):
        self.run_loop(lambda reactor, n: n == 5 and reactor.crash())
        self.assertLessEqual(self.calls - 6, 2)
        self.assertEqual(self.replies, encode(ECHO, b"a") * (self.calls - 1))

    def test_a_handler_can_stop_the_reactor(self):
        self.run_loop(lambda reactor, n: n == 5 and reactor.stop())
        self.assertLessEqual(self.calls - 6, 2)

    def test_a_call_for_later_that_a_handler_makes_comes_next(self):
        seen: list[int] = []

        def act(reactor: Any, n: int) -> None:
            if n == 5:
                reactor.callLater(0, lambda: (seen.append(n), reactor.crash()))

        self.run_loop(act)
        self.assertEqual((seen, self.calls - 6 <= 2), ([5], True))

    def test_a_timed_call_that_a_handler_puts_forward_comes_at_once(self):
        made: list[Any] = []

        def act(reactor: Any, n: int) -> None:
            if n == 5:
                made.append(reactor.callLater(1000, reactor.crash))
            if n == 10:
                made[0].reset(0)

        self.run_loop(act)
        self.assertLessEqual(self.calls - 11, 2)

    def test_a_timed_call_that_is_due_meanwhile_comes(self):
        due: list[float] = []

        def act(reactor: Any, n: int) -> None:
            if n == 5:
                due.append(reactor.callLater(0.002, reactor.crash).getTime())
            elif n > 5 and reactor.seconds() > due[0]:
                due.append(reactor.seconds())

        self.run_loop(act)
        self.assertLessEqual(len(due), 4)

    def test_a_call_from_a_thread_comes(self):
        def act(reactor: Any, n: int) -> None:
            if n == 5:
                reactor.callFromThread(reactor.crash)

        self.run_loop(act)
        self.assertLessEqual(self.calls - 6, 2)

    def test_what_waits_for_the_end_of_a_turn_is_flushed_behind_it(self):
        read: list[None] = []

        def act(reactor: Any, n: int) -> None:
            if n == 5:
                reactor.flush_later(Flushed(read))
            if read:
                reactor.crash()

        self.run_loop(act)
        self.assertLessEqual(self.calls - 6, 2)

    def test_another_descriptor_is_read(self):
        other = Other(lambda: None)
        self.addCleanup(os.close, other.eventfd)

        def act(reactor: Any, n: int) -> None:
            if n == 5:
                other.action = reactor.crash
                reactor.addReader(other)

        self.run_loop(act)
        self.assertLessEqual(self.calls - 6, 2)

    def test_a_signal_that_comes_with_the_last_reply_is_handled_before_the_sleep(self):
        too_late: list[Any] = []

        def act(reactor: Any, n: int) -> Any:
            if n == 1:
                too_late.append(reactor.callLater(PATIENCE, reactor.crash))
            if n < 5:
                return None
            before = signal.signal(
                signal.SIGIO, lambda number, frame: reactor.callFromThread(reactor.crash)
            )
            self.addCleanup(signal.signal, signal.SIGIO, before)
            fcntl.fcntl(self.client, fcntl.F_SETOWN, os.getpid())
            flags = fcntl.fcntl(self.client, fcntl.F_GETFL)
            fcntl.fcntl(self.client, fcntl.F_SETFL, flags | os.O_ASYNC)
            return self.NO_MORE

        worker = self.run_loop(act)
        self.assertLess(worker.reactor.seconds(), too_late[0].getTime())

    def test_who_reads_late_gets_the_rest_while_nobody_else_asks(self):
        packets: list[Packet] = []
        too_late: list[Any] = []

        def read(reactor: Any) -> None:
            decoder = FrameDecoder(65535)
            self.another.settimeout(PATIENCE)
            while len(packets) < 20:
                packets.extend(decoder.feed(self.another.recv(1 << 20)))
            reactor.callFromThread(reactor.crash)

        def act(reactor: Any, n: int) -> Any:
            if n == 1:
                too_late.append(reactor.callLater(PATIENCE, reactor.crash))
            if 5 <= n < 25:
                self.another.send(encode(LARGE))
            if n < 30:
                return None
            thread = threading.Thread(target=read, args=[reactor])
            thread.start()
            self.addCleanup(thread.join)
            return self.NO_MORE

        worker = self.run_loop(act)
        self.assertLess(worker.reactor.seconds(), too_late[0].getTime())
        self.assertEqual(len(packets), 20)

    def test_a_call_from_a_thread_whose_event_a_handler_has_had_read_comes(self):
        def act(reactor: Any, n: int) -> None:
            if n == 5:
                thread = threading.Thread(target=reactor.callFromThread, args=[reactor.crash])
                thread.start()
                thread.join()
                reactor.doIteration(0)

        self.run_loop(act)
        self.assertLessEqual(self.calls - 6, 3)

    def test_a_thread_is_not_kept_from_the_interpreter_by_packets_without_end(self):
        # in a process of its own, for whoever sends here gives up the interpreter meanwhile
        flood = "import sys; p = sys.stdin.buffer.read()\nwhile True: sys.stdout.buffer.write(p)"

        def begin(client: socket.socket) -> None:
            client.setblocking(True)
            flooding = subprocess.Popen(
                [sys.executable, "-c", flood], stdin=subprocess.PIPE, stdout=client
            )
            self.addCleanup(flooding.wait)
            self.addCleanup(flooding.kill)
            assert flooding.stdin is not None
            with flooding.stdin as stdin:
                stdin.write(encode(SILENT, b"a") * 5000)

        self.compete(begin, lambda client: None, self.TAKES)

    def compete(
        self,
        begin: Callable[[socket.socket], object],
        go_on: Callable[[socket.socket], object],
        times: int,
        limit: float = PATIENCE,
    ) -> None:
        """Have a thread give the interpreter up so many times beside packets without end.

        @param begin: sends them as the client.
        @param go_on: is called in the handler of each 500th.
        @param limit: seconds, several times what it takes.
        """
        worker = Worker(self, self.compiled, SessionLimits())
        client, _ = worker.connect()
        self.addCleanup(client.close)
        reactor = worker.reactor

        def take_turns() -> None:
            for _ in range(times):
                time.sleep(0)  # gives the interpreter up, and waits for it again
            reactor.callFromThread(reactor.crash)

        thread = threading.Thread(target=take_turns)
        handlers = worker.factory.dispatch.handlers
        packets = count(1)

        async def handle(session: Session, request: bytes) -> None:
            number = next(packets)
            if number == 1000:
                thread.start()
                self.addCleanup(thread.join)
            if number % 500 == 0:
                go_on(client)

        handlers[SILENT] = replace(handlers[SILENT], function=handle)
        begin(client)
        too_late = reactor.callLater(limit, reactor.crash)
        reactor.run(installSignalHandlers=False)
        self.assertLess(reactor.seconds(), too_late.getTime())

    def test_several_other_descriptors_of_a_turn_are_read(self):
        worker = Worker(self, self.compiled, SessionLimits())
        seen: list[int] = []
        others = [Other(lambda n=n: seen.append(n)) for n in range(3)]
        for other in others:
            worker.reactor.addReader(other)
            self.addCleanup(os.close, other.eventfd)
            self.addCleanup(worker.reactor.removeReader, other)
        worker.turn()
        self.assertEqual(sorted(seen), [0, 1, 2])

    def test_a_reply_does_not_wait_for_what_has_none(self):
        worker = Worker(self, self.compiled, SessionLimits())
        clients = [worker.connect()[0] for _ in range(2 * PART)]
        handlers = worker.factory.dispatch.handlers
        seen: list[bool] = []

        async def look(session: Session, request: bytes) -> None:
            seen.append(readable(clients[0]))

        handlers[SILENT] = replace(handlers[SILENT], function=look)
        for client in clients:
            self.addCleanup(client.close)
            client.send(encode(ECHO if client is clients[0] else SILENT, b"a"))
        worker.turn()
        self.assertEqual(seen, [False] * (PART - 1) + [True] * PART)

    def test_pushes_of_several_handlers_to_one_client_are_sent_together(self):
        pair = socket.socketpair
        packets = lambda: pair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # noqa: E731
        self.patch(socket, "socketpair", packets)  # where each send is one
        worker = Worker(self, self.compiled, SessionLimits())
        made = [worker.connect() for _ in range(3 * PART)]
        sessions = [transport.protocol.session for _, transport in made]
        handlers = worker.factory.dispatch.handlers

        async def say(session: Session, request: bytes) -> None:
            for other in sessions:
                other.send(ECHO, request)

        handlers[ECHO] = replace(handlers[ECHO], function=say)
        for client, _ in made:
            self.addCleanup(client.close)
            client.send(encode(ECHO, b"a"))
        worker.turn(2)
        sends = []
        for client, _ in made:
            data, sends_to_it = client.recv(1 << 20), 1
            while readable(client):
                data, sends_to_it = data + client.recv(1 << 20), sends_to_it + 1
            self.assertEqual(data, encode(ECHO, b"a") * len(made))
            sends.append(sends_to_it)
        # the first one was answered before the others had anything to say
        self.assertEqual(sends, [2] + [1] * (len(made) - 1))

    def reads(
        self, worker: Worker, packet: bytes, turns: int, takes_replies: bool = True
    ) -> list[int]:
        """How many bytes are read in each turn from a client that always has some to be read.

        C{behind} says of each turn whether replies waited for it by then.
        """
        client, transport = worker.connect()
        for end in (client, transport.socket):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LONG_READ)
        self.addCleanup(client.close)
        self.protocol = transport.protocol
        session, lane = self.protocol.session, self.protocol.lane
        found, self.behind = [0], []
        rest = b""
        for _ in range(turns):
            with contextlib.suppress(BlockingIOError):
                while True:
                    rest = rest or packet * 8
                    rest = rest[client.send(rest) :]
            self.client, self.rest = client, rest
            self.behind.append(lane.outbox is not None)
            worker.turn()
            if takes_replies:
                received(client)
            found.append(session.bytes_in)
        return [after - before for before, after in itertools.pairwise(found)]

    def test_long_packets_are_read_in_long_reads_two_at_once(self):
        worker = Worker(self, self.compiled, SessionLimits())
        first, second = self.reads(worker, encode(ECHO, bytes(4096)), 2)
        self.assertEqual(first, READ_SIZE)
        self.assertEqual(second, 2 * LONG_READ)

    def test_but_one_where_a_handler_has_closed_or_a_rate_delays_some_of_it(self):
        def close(session: Session) -> None:
            if session.packets_in > 30:
                session.close()

        for limits, act in ((SessionLimits(), close), (SessionLimits(rate=Rate(0.001, 40)), id)):
            worker = Worker(self, self.compiled, limits)
            handlers = worker.factory.dispatch.handlers

            async def answer(session: Session, request: bytes, act: Any = act) -> bytes:
                act(session)
                return request

            handlers[ECHO] = replace(handlers[ECHO], function=answer)
            found = self.reads(worker, encode(ECHO, bytes(4096)), 2)
            self.assertEqual(found, [READ_SIZE, LONG_READ])

    def test_nor_those_of_a_client_that_is_behind(self):
        worker = Worker(self, self.compiled, SessionLimits())
        found = self.reads(worker, encode(ECHO, bytes(4096)), 12, takes_replies=False)
        self.assertGreater(max(found), READ_SIZE, "before it was behind")
        once_behind = [read for read, behind in zip(found, self.behind, strict=True) if behind]
        self.assertIn(READ_SIZE, once_behind)
        self.assertLessEqual(max(once_behind), READ_SIZE)

    def test_nor_those_that_a_rate_delays(self):
        worker = Worker(self, self.compiled, SessionLimits(rate=Rate(0.001, 5)))
        found = self.reads(worker, encode(ECHO, bytes(4096)), 4)
        self.assertEqual(found, [READ_SIZE, 0, 0, 0])
        self.protocol.transport.doRead()
        self.assertEqual(self.protocol.session.bytes_in, 2 * READ_SIZE)

    def test_what_comes_behind_a_long_read_is_looked_at_as_often_as_ever(self):
        worker = Worker(self, self.compiled, SessionLimits())
        self.assertEqual(self.reads(worker, encode(ECHO, bytes(20_000)), 2)[-1], 2 * LONG_READ)
        for _ in range(TURNS):
            worker.turn()
            received(self.client)
        self.client.send(self.rest)
        worker.turn()
        flushes: list[int] = []
        flush = Lane.flush
        self.patch(Lane, "flush", lambda lane: flushes.append(1) or flush(lane))
        self.client.send(encode(LARGE) * 10)
        worker.turn()
        self.assertEqual(len(flushes), 2, "behind each 64 KiB of replies")

    def test_an_end_takes_one_turns_more_where_packets_are_long(self):
        worker = Worker(self, self.compiled, SessionLimits())
        before = sum(self.reads(worker, encode(ECHO, bytes(4096)), 1))
        self.protocol.finish()
        self.assertEqual(self.protocol.session.bytes_in - before, 2 * LONG_READ)

    def test_short_ones_are_not(self):
        worker = Worker(self, self.compiled, SessionLimits())
        # as many as a worker shall handle in one go
        found = self.reads(worker, encode(ECHO, bytes(40)), 3)
        self.assertEqual(found, [READ_SIZE] * 3)

    def test_nor_those_of_whom_some_wait(self):
        worker = Worker(self, self.compiled, SessionLimits())
        handlers = worker.factory.dispatch.handlers

        async def wait(session: Session, request: bytes) -> None:
            await Deferred()

        handlers[ECHO] = replace(handlers[ECHO], function=wait)
        worker.factory.dispatch.lane_packets = 10_000
        worker.factory.dispatch.lane_bytes = 3 * READ_SIZE
        found = self.reads(worker, encode(ECHO, bytes(4096)), 6)
        self.assertEqual(found, [READ_SIZE] * 5 + [0])

    def test_long_packets_are_echoed_with_no_look_in_between(self):
        worker = Worker(self, self.compiled, SessionLimits())
        flushes: list[int] = []
        flush = Lane.flush
        self.patch(Lane, "flush", lambda lane: flushes.append(1) or flush(lane))
        self.reads(worker, encode(ECHO, bytes(20_000)), 1)
        self.assertEqual(flushes, [], "one read of 64 KiB is echoed in as much")
        found = self.reads(worker, encode(ECHO, bytes(20_000)), 2)
        self.assertGreater(found[-1], 3 * READ_SIZE)
        self.assertEqual(flushes, [])

    def test_the_first_replies_of_a_turn_are_sent_while_the_others_are_worked_out(self):
        worker = Worker(self, self.compiled, SessionLimits())
        clients = [worker.connect()[0] for _ in range(2 * PART)]
        handlers = worker.factory.dispatch.handlers
        seen: list[int] = []

        async def look(session: Session, request: bytes) -> bytes:
            seen.append(len([client for client in clients if readable(client)]))
            return request

        handlers[ECHO] = replace(handlers[ECHO], function=look)
        for client in clients:
            self.addCleanup(client.close)
            client.send(encode(ECHO, b"a"))
        worker.turn()
        self.assertEqual(seen, [0] * PART + [PART] * PART)
        worker.turn()
        for client in clients:
            self.assertEqual(received(client)[0], encode(ECHO, b"a"))


def readable(client: socket.socket) -> bool:
    """Whether something has come for it."""
    return bool(select.select([client], [], [], 0)[0])


if native is not None:

    class CompiledLoopTests(LoopTests):
        """The same."""

        compiled = True
        TAKES = 400  # more than PATIENCE where each has to wait for its chance

        def test_nor_is_it_where_handlers_give_the_interpreter_up_for_a_moment(self):
            def send(client: socket.socket) -> None:
                client.send(encode(SILENT, b"a") * 500)

            self.compete(send, send, 1000, limit=35.0)

        def test_packets_alone_do_not_leave_the_compiled_part(self):
            turns: list[None] = []
            turn = DirectReactor._turn

            def counted(reactor: Any, timeout: float | None, more: bool) -> None:
                turns.append(None)
                turn(reactor, timeout, more)

            self.patch(DirectReactor, "_turn", counted)
            worker = self.run_loop(lambda reactor, n: None, limit=self.ROUNDS)
            self.assertFalse(worker.reactor.running)
            self.assertLessEqual(len(turns), 4)  # run, turn() and close() have some

    class ServeTests(SynchronousTestCase):
        def setUp(self) -> None:
            self.worker = Worker(self, True, SessionLimits())
            self.client, self.transport = self.worker.connect()
            self.addCleanup(self.client.close)
            self.worker.turn()

        def receive(self, *packets: Packet) -> None:
            self.client.send(b"".join(encode(code, body) for code, body in packets))
            self.worker.turn(2)

        def test_packets_go_no_way_but_the_compiled_one(self):
            for name in ("doRead", "flush"):
                setattr(self.transport, name, lambda: self.fail("this is Python"))
            self.transport.protocol.receive = self.transport.doRead
            self.receive((ECHO, b"a"), (ECHO, b"b"))
            self.assertEqual(received(self.client)[0], encode(ECHO, b"a") + encode(ECHO, b"b"))
            del self.transport.flush, self.transport.doRead

        def test_an_event_of_others_is_left_to_them(self):
            read: list[None] = []
            other = Other(lambda: read.append(None))
            self.worker.reactor.addReader(other)
            self.receive((ECHO, b"a"))
            self.assertEqual(len(read), 1)
            self.assertEqual(received(self.client)[0], encode(ECHO, b"a"))

        def test_one_that_is_gone_in_the_turn_is_not_served(self):
            another, transport = self.worker.connect()
            self.addCleanup(another.close)
            self.transport.protocol.receive = lambda packets: transport.abortConnection() or []
            self.transport._lane = None
            another.send(encode(ECHO, b"too late"))
            self.receive((ECHO, b"a"))
            self.assertEqual(received(another), (b"", True))

        def test_a_fault_is_logged_and_costs_its_own_connection(self):
            def fail(packets: list[Packet]) -> list[bytes]:
                raise FaultError

            another, _ = self.worker.connect()
            self.addCleanup(another.close)
            self.transport._lane = None
            self.transport.protocol.receive = fail
            another.send(encode(ECHO, b"good"))
            self.receive((ECHO, b"a"))
            (error,) = self.flushLoggedErrors(FaultError)
            self.assertIn("in fail", error.getTraceback())
            self.assertEqual(received(self.client), (b"", True))
            self.assertEqual(received(another)[0], encode(ECHO, b"good"))

        def test_a_reset_is_told_as_one(self):
            protocol = self.transport.protocol
            self.client.send(encode(ECHO, b"a"))
            self.worker.turn(2)
            self.client.close()  # with something unread
            self.worker.turn(2)
            self.assertEqual(protocol.session.close_reason, "client_reset")

        def test_what_a_handler_had_that_has_raised_is_let_go(self):
            class Thing:
                pass

            things: list[weakref.ref[Thing]] = []

            async def fail(session: Session, request: bytes) -> bytes:
                thing = Thing()
                things.append(weakref.ref(thing))
                raise FaultError

            handlers = self.worker.factory.dispatch.handlers
            handlers[ECHO] = replace(handlers[ECHO], function=fail)
            self.receive((ECHO, b"a"))
            self.assertEqual(len(self.flushLoggedErrors(FaultError)), 1)
            gc.collect()
            self.assertIsNone(things[0]())

        def test_the_lane_is_at_leisure_behind_a_fault_of_ours(self):
            lane, handlers = self.transport.protocol.lane, self.worker.factory.dispatch.handlers
            handlers[ECHO] = object()  # no handler at all
            self.receive((ECHO, b"a"))
            self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)
            self.assertFalse(lane.running)
            self.assertEqual(lane.out, [])

        def test_counts_that_the_application_has_set_below_zero_are_counted_on(self):
            async def owe(session: Session, request: bytes) -> bytes:
                session.packets_out, session.bytes_out = -10, -100
                return request

            handlers = self.worker.factory.dispatch.handlers
            handlers[ECHO] = replace(handlers[ECHO], function=owe)
            self.receive((ECHO, b"a"))
            self.assertEqual(received(self.client)[0], encode(ECHO, b"a"))
            session = self.transport.protocol.session
            self.assertEqual((session.packets_out, session.bytes_out), (-9, -91))

        def test_a_reply_is_sent_with_what_was_pushed_before_it(self):
            client, transport = self.worker.connect()
            self.addCleanup(client.close)

            async def push_to_both(session: Session, request: bytes) -> bytes:
                self.transport.write(b"pushed")
                transport.write(b"pushed")
                return request

            handlers = self.worker.factory.dispatch.handlers
            handlers[ECHO] = replace(handlers[ECHO], function=push_to_both)
            for end in (self.client, client):
                end.send(encode(ECHO, b"a"))
            self.worker.reactor.doIteration(0)
            self.assertEqual([received(end)[0] for end in (self.client, client)], [b"", b""])
            self.worker.reactor.doIteration(0)
            reply = encode(ECHO, b"a")
            self.assertEqual(received(self.client)[0], b"pushed" + reply + b"pushed")
            self.assertEqual(received(client)[0], b"pushedpushed" + reply)

        def test_wrong_arguments_are_a_type_error(self):
            reactor = self.worker.reactor
            for arguments in (
                (),
                (reactor, DirectServer, 0.0, -1),
                (reactor, None, 0.0, -1, False),
                (reactor, DirectServer, "0", -1, False),
                (reactor, DirectServer, 0.0, None, False),
            ):
                self.assertRaises(TypeError, native.turn, *arguments)
            for arguments in ((), ([],), ((), DirectServer), ([], None)):
                self.assertRaises(TypeError, native.flush, *arguments)

    class FlushTests(SynchronousTestCase):
        def setUp(self) -> None:
            self.worker = Worker(self, True, SessionLimits())
            self.client, self.transport = self.worker.connect()
            self.addCleanup(self.client.close)
            self.worker.turn()

        def flush(self) -> list[Any]:
            """What the compiled part leaves of it."""
            flushables = [self.transport]
            native.flush(flushables, DirectServer)
            return flushables

        def test_what_is_all_sent_is_done(self):
            self.transport.write(b"a")
            self.assertEqual(self.flush(), [])
            self.assertEqual((received(self.client)[0], self.transport.unsent), (b"a", 0))

        def test_what_the_kernel_does_not_take_is_left(self):
            self.transport._corked = [bytes(3_000_000), b"the end"]
            self.assertEqual(self.flush(), [self.transport])
            self.transport.flush()
            self.assertTrue(self.transport.behind)
            data = b""
            while not data.endswith(b"the end"):
                data += received(self.client)[0]
                self.worker.turn()
            self.assertEqual(data, bytes(3_000_000) + b"the end")

        def test_what_is_held_back_is_left_where_it_is(self):
            self.transport.write(b"kept")
            self.transport._held_back = True
            self.assertEqual(self.flush(), [self.transport])
            self.transport.flush()
            self.assertEqual((received(self.client)[0], self.transport.unsent), (b"", 4))
            self.transport._held_back = False
            self.assertEqual(self.flush(), [])
            self.assertEqual(received(self.client)[0], b"kept")

        def test_what_is_behind_is_left(self):
            self.transport._tempDataBuffer, self.transport._tempDataLen = [b"first"], 5
            self.transport.write(b" second")
            self.assertEqual(self.flush(), [self.transport])
            self.transport.flush()
            self.worker.turn(2)
            self.assertEqual(received(self.client)[0], b"first second")

        def test_a_pull_producer_is_left(self):
            self.transport.unregisterProducer()
            self.transport.producer, self.transport.streamingProducer = object(), False
            self.transport.write(b"a")
            self.assertEqual(self.flush(), [self.transport])
            self.transport.producer = None

        def test_one_that_fails_is_cut_and_the_others_are_flushed(self):
            another, transport = self.worker.connect()
            self.addCleanup(another.close)
            self.worker.turn()
            self.transport._corked = [None]
            self.worker.reactor.flush_later(self.transport)
            transport.write(b"good")
            self.worker.turn(2)
            self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
            self.assertEqual(received(another)[0], b"good")
            self.assertEqual(received(self.client), (b"", True))

        def test_who_hears_of_a_failure_may_let_the_reactor_go_on(self):
            others = [self.worker.connect() for _ in range(20)]
            self.worker.turn()
            heard: list[Any] = []

            def hear(event: Any) -> None:
                heard.append(event)
                self.worker.reactor.doIteration(0)

            self.transport._corked = [None]
            self.worker.reactor.flush_later(self.transport)
            for client, transport in others:
                self.addCleanup(client.close)
                transport.write(b"good")
            addObserver(hear)
            self.addCleanup(removeObserver, hear)
            self.worker.turn(2)
            self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
            self.assertEqual(len(heard), 1)
            self.assertEqual([received(client)[0] for client, _ in others], [b"good"] * 20)

        def test_what_garbage_sends_meanwhile_is_not_lost(self):
            class Garbage:
                def __init__(self, transport: Any) -> None:
                    self.transport, self.itself = transport, self

                def __del__(self) -> None:
                    self.transport.write(b"the last")

            self.addCleanup(gc.set_threshold, *gc.get_threshold())
            much = bytes(2_000_000)
            self.transport.write(much[:1000])
            self.transport.write(much[1000:])
            gc.collect()
            gc.set_threshold(0)
            Garbage(self.transport)
            gc.set_threshold(1)
            native.flush(self.worker.reactor._unflushed, DirectServer)
            gc.set_threshold(0)
            gc.collect()
            data = b""
            for _ in range(100):
                self.worker.turn()
                data += received(self.client)[0]
            self.assertEqual((len(data), data[-8:]), (len(much) + 8, b"the last"))

        def test_any_number_of_chunks_of_any_size_is_sent_in_order(self):
            for count, size in ((1, 1), (2, 5000), (128, 100), (129, 70), (5, 9000), (300, 3)):
                chunks = [bytes([n % 256]) * size for n in range(count)]
                self.transport._corked = chunks
                self.assertEqual(self.flush(), [])
                self.assertEqual(received(self.client)[0], b"".join(chunks))


class MemoryTests(SynchronousTestCase):
    def test_a_reply_is_sent_whole_or_not_at_all(self):
        try:
            import _testcapi
        except ImportError:
            self.skipTest("this Python cannot be without memory")
        for start in range(30):
            worker = Worker(self, True, SessionLimits())
            client, _ = worker.connect()
            self.addCleanup(client.close)
            for packet in ((ECHO, b"a"), (MIDDLE, b"b"), (MIDDLE, b"c"), (ECHO, b"d")):
                client.send(encode(*packet))
            _testcapi.set_nomemory(start, start + 1)
            try:
                worker.reactor.doIteration(0)
            except MemoryError:
                pass
            finally:
                _testcapi.remove_mem_hooks()
            worker.turn(3)
            client.setblocking(False)
            decoder = FrameDecoder(65535)
            decoder.feed(received(client)[0])
            self.assertEqual((decoder.refused, decoder.buffered), ((), 0), f"allocation {start}")
            self.flushLoggedErrors(MemoryError)

    def test_who_is_to_be_woken_is_woken_also_where_nothing_can_be_polled(self):
        waking = os.eventfd(0, os.EFD_NONBLOCK)
        self.addCleanup(os.close, waking)
        for compiled in (False, True):
            worker = Worker(self, compiled, SessionLimits())
            poller, worker.reactor._poller = worker.reactor._poller, object()
            worker.reactor.nap, worker.reactor.waking = 0.0, waking
            self.assertRaises((TypeError, AttributeError), worker.reactor.doIteration, 0)
            worker.reactor._poller = poller
            self.assertEqual(os.eventfd_read(waking), 1)

    def test_what_is_to_be_flushed_is_not_lost_where_there_is_no_memory(self):
        try:
            import _testcapi
        except ImportError:
            self.skipTest("this Python cannot be without memory")
        for compiled in (False, True):
            for start in range(1, 12):
                worker = Worker(self, compiled, SessionLimits())
                read: list[None] = []
                worker.reactor.flush_later(Flushed(read))
                _testcapi.set_nomemory(start, start + 1)
                try:
                    worker.reactor._flush(worker.reactor._unflushed)
                except MemoryError:
                    pass
                finally:
                    _testcapi.remove_mem_hooks()
                self.flushLoggedErrors(MemoryError)
                worker.turn()
                self.assertTrue(read, f"lost at allocation {start}")


class Flushed:
    """Something that is to be flushed, and tells of it."""

    def __init__(self, told: list[None]) -> None:
        self.told = told

    def flush(self) -> None:
        self.told.append(None)

    def flush_failed(self) -> None:
        self.told.append(None)


class DecoderTests(SynchronousTestCase):
    def test_a_transport_on_another_reactor_has_none(self):
        class Reactor:
            def addReader(self, reader: Any) -> None: ...

        client, server = socket.socketpair()
        self.addCleanup(client.close)
        self.addCleanup(server.close)
        transport = DirectServer(server, object(), ("", 0), None, 0, Reactor())
        transport.attend(FrameDecoder(100), None, False)
        self.assertIsNone(transport._decoder)
