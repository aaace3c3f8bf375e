"""The worker: what it is told, and its life on a reactor that the test drives."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, fields
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Config
from ccserver.core.session import CloseReason
from ccserver.errors import AppError, ConfigError, StartError
from ccserver.net.port import DirectPort
from ccserver.process import link, worker
from ccserver.process.board import Board
from ccserver.process.logs import LineObserver
from ccserver.process.worker import (
    ECHO,
    EXIT_APP,
    EXIT_CONFIG,
    EXIT_START,
    HASTE,
    HEARD_TIMEOUT,
    Order,
    WorkerProcess,
)
from tests.ports import free_port
from tests.support import (
    PATIENCE,
    FakeReactor,
    FakeTransport,
    folder,
    logged,
    open_descriptors,
    texts,
)

APP = """
from ccserver import App, Session

app = App()

@app.message(1)
async def echo(session: Session, request: bytes) -> bytes:
    return request
"""

WAITS = """
@app.on_worker_stop
async def stopped(worker):
    pass
"""


class OrderTests(SynchronousTestCase):
    @given(
        st.builds(
            Order,
            text=st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")),
            path=st.text(),
            base=st.text(),
            slot=st.integers(0, 256),
            process_number=st.integers(0, 1 << 24),
            stderr=st.booleans(),
            log_level=st.integers(0, 8),
        )
    )
    @settings(deadline=None)
    def test_what_is_written_is_read(self, order: Order):
        fd = link.memory_file("order", asdict(order))
        try:
            self.assertEqual(Order(**link.read_json(fd)), order)
        finally:
            os.close(fd)

    def test_the_configuration_comes_out_as_it_went_in(self):
        text = "\ufeff[Net]\r\nworker_connections = 7\r\n; caf\udce9\r\n"
        mine = Config.parse(text, "etc/a.conf", "/srv")
        fd = link.memory_file(
            "order", asdict(Order(mine.text, mine.path, mine.base, 0, 0, False, 6))
        )
        self.addCleanup(os.close, fd)
        sent = Order(**link.read_json(fd))
        self.assertEqual(Config.parse(sent.text, sent.path, sent.base), mine)

    def test_an_order_is_made_of_plain_values_alone(self):
        self.assertEqual({field.type for field in fields(Order)}, {"str", "int", "bool"})


class MasterEnd(link.Line):
    """The master's end of the link, remembering what the worker says.

    @ivar rooms: whether the worker was full, each time it said so.
    @ivar leaves: what it answers to L{link.Leave}.
    @ivar stops: what it answers to L{link.Stopping}.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []
        self.rooms: list[bool] = []
        self.leaves: Any = {"accepted": True}
        self.stops: Any = {}

    @link.Ready.responder
    def ready(self) -> dict[str, Any]:
        self.heard.append("ready")
        return {}

    @link.Failed.responder
    def failed(self, status: int, reason: str) -> dict[str, Any]:
        self.heard.append((status, reason))
        return {}

    @link.Leave.responder
    def leave(self) -> Any:
        self.heard.append("leave")
        return self.leaves

    @link.Stopping.responder
    def stopping(self) -> Any:
        self.heard.append("stopping")
        return self.stops

    @link.Room.responder
    def room(self, full: bool) -> dict[str, Any]:
        self.rooms.append(full)
        return {}


class NoWatch:
    """Instead of the thread that ends a worker whose reactor is blocked."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def start(self) -> None:
        pass


class WorkerProcessCase(SynchronousTestCase):
    """A worker process in this process, on a reactor and a link that the test drives."""

    def setUp(self) -> None:
        self.folder = folder(self)
        self.reactor = FakeReactor()
        self.handlers: dict[int, Any] = {}
        self.titles: list[str] = []
        self.looks = 0
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.patch(signal, "pthread_sigmask", lambda how, mask: None)
        self.patch(worker, "setproctitle", self.titles.append)
        self.patch(worker, "_Watch", NoWatch)
        self.master = MasterEnd()
        self.port = free_port()

    def begun(self, app: str = APP, more: str = "") -> WorkerProcess:
        """A worker process that has begun."""
        name = f"served_{id(self)}"
        with open(os.path.join(self.folder, f"{name}.py"), "w") as file:
            file.write(app)
        listening = socket.create_server(("127.0.0.1", self.port))
        listening.setblocking(False)
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(self.close, os.fstat(listening.fileno()).st_ino, listening.fileno())
        self.patch(worker, "SOCKETS_FD", listening.detach())
        self.patch(worker, "LINK_FD", theirs.detach())
        self.board = Board.made()
        self.addCleanup(self.board.close)
        self.patch(worker, "BOARD_FD", self.board.fileno())
        for descriptor in (worker.BOARD_FD, worker.SOCKETS_FD):
            os.set_inheritable(descriptor, True)  # as what a process was started with
        text = f"Listen = 127.0.0.1:{self.port}\nApp = {name}:app\n"
        text += f"ProcMsgRecvWorkThreadCount = 1\nShutdownTimeout = 2\n{more}"
        self.observer = LineObserver(os.path.join(self.folder, "error.log"), 8, False)
        self.observer.open()
        self.addCleanup(self.observer.close)
        order = Order(text, "a.conf", self.folder, 3, 7, False, 8)
        config = Config.parse(order.text, order.path, order.base)
        process = WorkerProcess(self.reactor, order, config, self.observer, look=self.look)
        process.begin()
        (adopted,) = self.reactor.adopted
        self.addCleanup(adopted.close)
        self.link = adopted.transport
        self.transport = FakeTransport()
        self.transport.protocol = self.master
        self.master.makeConnection(self.transport)
        self.addCleanup(self.ended, process)
        self.talk()
        return process

    def look(self) -> None:
        self.looks += 1

    def serving(self, app: str = APP, more: str = "") -> WorkerProcess:
        """A worker process that has been told to serve."""
        process = self.begun(app, more)
        self.ask(link.Serve)
        return process

    def close(self, inode: int, fd: int) -> None:
        """Close the listening socket, for a worker that could not start leaves that to its end."""
        objects = [it for it in gc.get_objects() if isinstance(it, socket.socket)]
        held = [it for it in objects if it.fileno() == fd]
        for it in held:
            it.close()
        with contextlib.suppress(OSError):
            if not held and os.fstat(fd).st_ino == inode:
                os.close(fd)

    def ended(self, process: WorkerProcess) -> None:
        process.stop(False, 0.0)
        self.reactor.pump([0.1] * 10)

    def talk(self) -> None:
        """Let both ends of the link hear what the other says."""
        for _ in range(10):
            if self.link.connected:
                self.link.deliver(self.master)
                self.transport.deliver(self.link.protocol)

    def ask(self, command: Any, **arguments: Any) -> Any:
        """What it answers to the master."""
        asked = self.master.callRemote(command, **arguments)
        self.talk()
        return self.successResultOf(asked)

    @property
    def accepts(self) -> bool:
        """Whether it takes connections from its sockets."""
        return any(isinstance(reader, DirectPort) for reader in self.reactor.readers)


class StartTests(WorkerProcessCase):
    def test_it_says_that_it_is_ready_and_accepts_nobody_yet(self):
        self.begun()
        self.assertEqual(self.master.heard, ["ready"])
        self.assertFalse(self.accepts)
        self.assertEqual(self.reactor.stops, 0)

    def test_told_to_serve_it_accepts(self):
        self.serving()
        self.assertTrue(self.accepts)

    def test_its_title_says_what_it_is(self):
        self.begun()
        self.reactor.advance(1)
        self.assertEqual(self.titles[-1], "ccserver: worker process 3 (0 connections)")

    def test_an_application_that_cannot_be_loaded_is_told_with_its_own_status(self):
        process = self.begun("app = 5\n")
        ((status, reason),) = self.master.heard
        self.assertEqual(status, EXIT_APP)
        self.assertIn("not an App", reason)
        self.assertEqual((process.status, self.reactor.stops), (EXIT_APP, 1))

    def test_a_start_hook_that_raises_is_told_too(self):
        process = self.begun(
            APP + "\n@app.on_worker_start\nasync def start(worker):\n    raise ValueError('no')\n"
        )
        ((status, reason),) = self.master.heard
        self.assertEqual(status, EXIT_START)
        self.assertIn("ValueError: no", reason)
        self.assertEqual((process.status, self.reactor.stops), (EXIT_START, 1))
        (raised,) = self.flushLoggedErrors(ValueError)
        self.assertIn("in start", raised.getTraceback())

    def test_a_hook_that_finds_the_configuration_wrong_has_its_own_status_and_words(self):
        hook = "\n@app.on_worker_start\nasync def start(worker):\n"
        hook += "    import ccserver\n    raise ccserver.ConfigError('DBInfo names nothing')\n"
        process = self.begun(APP + hook)
        self.assertEqual(self.master.heard, [(EXIT_CONFIG, "DBInfo names nothing")])
        self.assertEqual((process.status, self.reactor.stops), (EXIT_CONFIG, 1))

    def test_systemd_does_not_try_again_what_only_a_change_of_files_can_mend(self):
        docs = os.path.join(os.path.dirname(__file__), "..", "..", "docs")
        with open(os.path.join(docs, "ccserver.service"), encoding="utf-8") as file:
            self.assertIn(f"\nRestartPreventExitStatus={EXIT_CONFIG} {EXIT_APP}\n", file.read())

    def test_what_is_only_refused_is_logged_by_the_master_alone(self):
        events = logged(self)
        for refusal in (
            AppError("there is no module x"),
            ConfigError("AppPath: the folder x cannot be read"),
            StartError("worker_connections = 9 needs 74 file descriptors"),
        ):
            worker.exit_status(refusal)
        self.assertEqual(events, [])

    def test_what_the_application_raised_is_logged_where_it_was(self):
        self.begun("def fail():\n    return 1 / 0\n\nfail()\n")
        (raised,) = self.flushLoggedErrors(ZeroDivisionError)
        self.assertIn("in fail", raised.getTraceback())

    def test_a_reason_of_any_length_is_told(self):
        self.begun("raise ValueError('x' * 100_000)\n")
        ((_, reason),) = self.master.heard
        self.assertLessEqual(len(reason), link.REASON_LIMIT)
        self.flushLoggedErrors(ValueError)

    def test_from_when_it_is_ready_it_looks_once_a_second(self):
        hook = "from twisted.internet.defer import Deferred\nwaiting = Deferred()\n"
        hook += "@app.on_worker_start\nasync def start(worker):\n    await waiting\n"
        self.begun(APP + hook)
        self.reactor.pump([0.5] * 6)
        self.assertEqual(self.looks, 0)
        sys.modules[f"served_{id(self)}"].waiting.callback(None)
        self.reactor.pump([0.5] * 6)
        self.assertEqual(self.looks, 3)

    def test_it_beats_from_the_reactor_with_its_figures(self):
        self.begun()
        for _ in range(3):
            before = self.board.written
            self.reactor.pump([0.5] * 2)
            self.assertNotEqual(self.board.written, before)
        self.assertEqual(self.board.figures["connections"], 0)
        self.assertGreater(self.board.figures["memory"], 1 << 20)

    def test_a_short_timeout_has_quick_beats(self):
        self.begun(more="WorkerTimeout = 0.4\n")
        for _ in range(9):
            before = self.board.written
            self.reactor.advance(0.1)
            self.assertNotEqual(self.board.written, before)

    def test_before_it_says_that_it_is_ready_it_beats(self):
        hook = "from twisted.internet.defer import Deferred\nwaiting = Deferred()\n"
        hook += "@app.on_worker_start\nasync def start(worker):\n    await waiting\n"
        self.begun(APP + hook)
        self.reactor.advance(0.5)
        self.assertEqual((self.board.written, self.board.figures), (None, {}))
        sys.modules[f"served_{id(self)}"].waiting.callback(None)
        self.assertEqual(self.board.figures["connections"], 0)

    def test_figures_that_cannot_be_had_are_no_silence(self):
        process = self.serving()
        self.reactor.advance(1)

        def fail() -> None:
            raise ValueError

        self.patch(process._server, "figures", fail)
        before, figures = self.board.written, self.board.figures
        self.reactor.advance(1)
        self.assertGreater(self.board.written, before)
        self.assertEqual(self.board.figures, figures)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class RoomTests(WorkerProcessCase):
    """What the master is told at once: that others should accept for it, or need not any more."""

    def full(self, process: WorkerProcess, full: bool) -> None:
        """There are as many connections as may be, or not any more."""
        process._server.room.full = full
        process._server.room.on_change()

    def test_it_says_first_that_it_has_room_and_nothing_while_that_is_so(self):
        self.serving()
        self.reactor.pump([0.5] * 6)
        self.talk()
        self.assertEqual(self.master.rooms, [False])

    def test_that_it_is_full_is_said_at_once(self):
        process = self.serving()
        for full in (True, False):
            self.full(process, full)
            self.reactor.advance(HASTE)
            self.talk()
            self.assertEqual(self.master.rooms[-1], full)
        self.assertEqual(self.master.rooms, [False, True, False])

    def test_but_not_more_often_than_it_helps(self):
        process = self.serving()
        for _ in range(100):
            self.full(process, True)
            self.full(process, False)
            self.reactor.advance(HASTE / 50)
        self.full(process, True)
        self.reactor.advance(HASTE)
        self.talk()
        self.assertLessEqual(len(self.master.rooms), 6)
        self.assertIs(self.master.rooms[-1], True)

    def test_a_board_that_cannot_be_written_is_no_reason_to_stop(self):
        process = self.serving()

        def fail(figures: Any) -> None:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        self.patch(process._board, "write", fail)
        self.full(process, True)
        self.reactor.pump([0.5] * 4)
        self.talk()
        self.assertEqual((self.master.rooms, self.reactor.stops), ([False, True], 0))

    def test_without_a_master_it_says_nothing(self):
        process = self.serving()
        self.link.lose(ConnectionDone())
        process._server.room.full = True
        process._beat()
        self.assertEqual(self.master.rooms, [False])

    def test_what_it_starts_has_neither_its_board_nor_its_sockets(self):
        self.serving()
        ports = [each.socket for each in self.reactor.readers if isinstance(each, DirectPort)]
        self.assertTrue(ports)
        for descriptor in (self.board.fileno(), *(each.fileno() for each in ports)):
            self.assertFalse(os.get_inheritable(descriptor))

    def test_what_else_lets_it_accept_nobody_is_said_with_its_next_beat(self):
        process = self.serving()
        process._server._intake.close(CloseReason.OVERLOAD)
        self.reactor.advance(1)
        self.talk()
        self.assertEqual(self.master.rooms, [False, True])


class StopTests(WorkerProcessCase):
    def test_told_to_stop_it_stops(self):
        process = self.begun()
        self.master.callRemote(link.Stop, graceful=True, timeout=5.0)
        self.talk()
        self.reactor.pump([0.1] * 5)
        self.assertEqual((process.status, self.reactor.stops), (0, 1))
        self.assertIn("is shutting down", self.titles[-1])

    def test_told_twice_it_stops_once(self):
        self.begun()
        for graceful in (True, False):
            self.master.callRemote(link.Stop, graceful=graceful, timeout=5.0)
        self.talk()
        self.reactor.pump([0.1] * 5)
        self.assertEqual(self.reactor.stops, 1)

    def signalled(self, number: int = signal.SIGTERM) -> None:
        """A signal has come, and what follows from it has happened."""
        self.handlers[number](number, None)
        self.reactor.pump([0.1] * 5)
        self.talk()
        self.reactor.pump([0.1] * 5)

    def test_in_a_signal_handler_nothing_is_done(self):
        self.serving()
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.talk()
        self.assertEqual((self.master.heard, self.reactor.stops), (["ready"], 0))

    def test_at_a_signal_it_serves_on_until_the_master_has_replaced_it(self):
        events = logged(self)
        self.serving()
        self.signalled()
        self.assertEqual(self.master.heard, ["ready", "leave"])
        self.assertIn("SIGTERM received: asking to be replaced", texts(events))
        self.reactor.pump([1.0] * 60)
        self.assertTrue(self.accepts)
        self.ask(link.Stop, graceful=True, timeout=5.0)
        self.reactor.pump([0.1] * 5)
        self.assertEqual(self.reactor.stops, 1)

    def test_before_it_serves_a_signal_stops_it(self):
        hook = "from twisted.internet.defer import Deferred\n@app.on_worker_start\n"
        self.begun(APP + hook + "async def start(worker):\n    await Deferred()\n")
        self.signalled()
        self.assertEqual(self.reactor.stops, 1)
        self.assertEqual(
            self.master.heard, [(EXIT_START, "SIGTERM received before it could serve")]
        )

    def test_while_it_stops_a_signal_is_nothing_new(self):
        self.serving(APP + WAITS)
        self.master.callRemote(link.Stop, graceful=True, timeout=5.0)
        self.talk()
        self.signalled()
        self.assertNotIn("leave", self.master.heard)

    def test_a_signal_that_the_master_does_not_see_to_stops_it(self):
        events = logged(self)
        self.serving()
        self.master.leaves = {"accepted": False}
        self.signalled()
        self.assertEqual(self.reactor.stops, 1)
        self.assertIn("the master does not replace it: stopping", texts(events))

    def test_a_signal_stops_it_where_the_master_does_not_answer(self):
        self.serving()
        self.master.leaves = Deferred()
        self.signalled()
        self.reactor.pump([1.0] * 3)
        self.assertEqual(self.reactor.stops, 0)
        self.reactor.pump([1.0] * 3)
        self.assertEqual(self.reactor.stops, 1)

    def test_a_signal_stops_it_where_the_master_does_not_know_what_it_says(self):
        self.serving()
        known = MasterEnd._commandDispatch
        older = {name: responder for name, responder in known.items() if name != b"Leave"}
        self.patch(MasterEnd, "_commandDispatch", older)
        self.signalled()
        self.assertEqual(self.reactor.stops, 1)

    def test_a_second_signal_stops_it(self):
        events = logged(self)
        self.serving()
        self.signalled()
        self.signalled(signal.SIGQUIT)
        self.talk()
        self.assertEqual(self.master.heard, ["ready", "leave", "stopping"])
        self.assertEqual(self.reactor.stops, 1)
        self.assertIn("SIGQUIT again: stopping", texts(events))

    def test_between_telling_that_it_stops_and_being_heard_it_takes_nothing(self):
        self.serving()
        self.signalled()
        self.master.stops = Deferred()
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.reactor.advance(0)
        self.talk()
        ours, theirs = socket.socketpair()
        with ours:
            ours.settimeout(PATIENCE)
            with theirs:
                self.ask(link.Take, channel=theirs.fileno())
            self.assertEqual(ours.recv(1), b"", "the other side is told to keep what it has")
        self.reactor.advance(ECHO)
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.reactor.advance(0)
        self.talk()
        self.assertEqual(self.master.heard, ["ready", "leave", "stopping"])
        self.assertEqual(self.reactor.stops, 0)
        self.reactor.advance(HEARD_TIMEOUT - ECHO)
        self.reactor.pump([0.1] * 5)
        self.assertEqual(self.reactor.stops, 1)

    def test_a_signal_that_comes_twice_at_once_is_one(self):
        self.serving()
        for _ in range(2):
            self.handlers[signal.SIGTERM](signal.SIGTERM, None)
            self.reactor.pump([ECHO / 4] * 2)
        self.assertEqual(self.reactor.stops, 0)

    def test_told_to_stay_it_asks_again_at_the_next_signal(self):
        self.serving()
        self.signalled()
        self.ask(link.Stay)
        self.signalled()
        self.assertEqual(self.master.heard.count("leave"), 2)
        self.assertEqual(self.reactor.stops, 0)

    def test_without_a_master_it_stops(self):
        events = logged(self)
        self.serving()
        self.link.abortConnection()
        self.reactor.pump([0.1] * 5)
        self.assertEqual(self.reactor.stops, 1)
        self.assertIn("the master process is gone: stopping", texts(events))

    def test_without_a_master_a_long_stop_becomes_a_short_one(self):
        process = self.serving(APP + WAITS)
        self.patch(type(process._server.connections), "__len__", lambda connections: 1)
        self.master.callRemote(link.Stop, graceful=True, timeout=1000.0)
        self.talk()
        self.reactor.pump([0.1] * 20)
        self.assertEqual(self.reactor.stops, 0)
        self.link.abortConnection()
        self.reactor.pump([0.1] * 20)
        self.assertEqual(self.reactor.stops, 1)

    def test_told_to_serve_while_it_stops_it_does_not(self):
        self.begun()
        self.master.callRemote(link.Stop, graceful=True, timeout=5.0)
        self.master.callRemote(link.Serve)
        self.talk()
        self.assertFalse(self.accepts)


class CommandTests(WorkerProcessCase):
    def test_told_to_accept_no_more_it_says_how_many_it_has(self):
        self.serving()
        with socket.create_connection(("127.0.0.1", self.port), 5):
            self.assertEqual(self.ask(link.StopAccepting), {"connections": 1}, "who waited too")
            self.assertFalse(self.accepts)

    def test_a_channel_to_take_from_is_read_and_closed_at_its_end(self):
        self.serving()
        readers = len(self.reactor.readers)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.ask(link.Take, channel=theirs.fileno())
            self.assertEqual(len(self.reactor.readers), readers + 1)
        self.reactor.readers[-1].doRead()
        self.assertEqual(len(self.reactor.readers), readers)

    def test_one_that_stops_takes_nothing(self):
        process = self.serving()
        process._stopping = True
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.ask(link.Take, channel=theirs.fileno())
            self.assertEqual(ours.recv(1), b"")

    def test_one_without_connections_has_nothing_to_give(self):
        self.serving()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                answer = self.ask(link.Give, channel=theirs.fileno(), count=link.ALL)
            self.assertEqual((answer["moved"], json.loads(answer["left"])), (0, {}))
            self.assertEqual(ours.recv(1), b"")

    def test_one_that_has_not_started_gives_and_takes_nothing(self):
        process = self.begun("app = 5\n")
        self.assertIsNone(process._server)
        for begin in (process.take, lambda end: process.give(end, 1).send(None)):
            ours, theirs = socket.socketpair()
            with ours:
                with contextlib.suppress(StopIteration):
                    begin(theirs)
                self.assertEqual(ours.recv(1), b"")
        self.flushLoggedErrors()

    def test_a_stop_ends_a_hand_over(self):
        process = self.serving()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.ask(link.Take, channel=theirs.fileno())
            process.stop(False, 0.0)
            self.reactor.pump([0.1] * 10)
            self.assertEqual(ours.recv(1), b"")
        self.assertEqual((process.status, self.reactor.stops), (0, 1))

    def test_a_stop_ends_any_number_of_them(self):
        process = self.serving()
        pairs = [socket.socketpair() for _ in range(3)]
        for _, theirs in pairs:
            with theirs:
                self.ask(link.Take, channel=theirs.fileno())
        process.stop(True, 1.0)
        self.reactor.pump([0.1] * 15)
        for ours, _ in pairs:
            with ours:
                self.assertEqual(ours.recv(1), b"")
        self.assertEqual((process.status, self.reactor.stops), (0, 1))

    def test_a_lent_socket_is_accepted_from_until_it_goes_back(self):
        self.begun()
        with socket.create_server(("127.0.0.1", 0)) as lent:
            lent.setblocking(False)
            address = f"127.0.0.1:{self.port}"
            self.ask(link.Lend, slot=5, address=address, listening=lent.fileno())
            self.assertTrue(self.accepts)
            self.ask(link.Return, slot=4)
            self.assertTrue(self.accepts)
            self.ask(link.Return, slot=5)
            self.assertFalse(self.accepts)

    def test_it_lists_its_connections_into_a_file(self):
        self.serving()
        fd = link.memory_file("connections")
        self.addCleanup(os.close, fd)
        before = open_descriptors()
        self.ask(link.List, file=fd)
        self.assertEqual(link.read_json(fd), [])
        self.assertLessEqual(open_descriptors(), before)

    def test_without_a_descriptor_for_what_it_is_sent_it_serves_on_and_accepts_nobody(self):
        process = self.serving()
        self.patch(self.link.protocol, "fileDescriptorReceived", os.close)
        with socket.socket() as lent:
            asked = self.master.callRemote(
                link.Lend, slot=5, address="", listening=lent.fileno()
            ).addErrback(lambda failure: failure.type)
            self.talk()
        self.assertIs(self.successResultOf(asked), link.NoDescriptor)
        self.assertTrue(process._server.full)
        self.assertEqual(self.reactor.stops, 0)

    def test_a_file_that_cannot_be_written_is_no_reason_to_stop(self):
        self.serving()
        fd = os.open(os.devnull, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        asked = self.master.callRemote(link.List, file=fd)
        self.talk()
        asked.addErrback(lambda failure: None)
        self.reactor.pump([0.1] * 5)
        self.flushLoggedErrors()
        self.assertFalse(self.link.closing)
        self.assertEqual(self.reactor.stops, 0)

    def test_a_connection_that_is_not_there_cannot_be_kicked(self):
        self.serving()
        self.assertEqual(self.ask(link.Kick, id=5), {"found": False})

    def test_it_logs_as_far_as_it_is_told(self):
        self.serving()
        self.ask(link.SetLogLevel, level=3)
        self.assertEqual(self.observer.level, 3)

    def test_told_to_it_opens_its_log_anew(self):
        self.begun()
        path = os.path.join(self.folder, "error.log")
        os.rename(path, path + ".1")
        self.ask(link.Reopen)
        self.assertTrue(os.path.exists(path))

    def test_a_log_that_cannot_be_opened_anew_is_no_reason_to_stop(self):
        self.begun()
        path = os.path.join(self.folder, "error.log")
        os.rename(path, path + ".1")
        os.mkdir(path)
        events = logged(self)
        self.assertIn("Is a directory", self.ask(link.Reopen)["error"])
        self.reactor.pump([0.1] * 5)
        self.assertFalse(self.link.closing)
        self.assertEqual(self.reactor.stops, 0)
        self.assertIn("Is a directory", texts(events)[-1])
