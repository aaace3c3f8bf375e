"""The worker: what it is told, and its life on a reactor that the test drives."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
from dataclasses import fields
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Config
from ccserver.process import link, worker
from ccserver.process.logs import LineObserver
from ccserver.process.worker import EXIT_APP, EXIT_START, Order, WorkerProcess
from tests.process.test_listening import free_port
from tests.support import FakeReactor, FakeTransport, folder, logged, texts

APP = """
from ccserver import App, Session

app = App()

@app.message(1)
async def echo(session: Session, request: bytes) -> bytes:
    return request
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
        )
    )
    @settings(deadline=None)
    def test_what_is_dumped_is_loaded(self, order: Order):
        self.assertEqual(Order.load(order.dump()), order)

    def test_the_configuration_comes_out_as_it_went_in(self):
        text = "\ufeff[Net]\r\nworker_connections = 7\r\n; caf\udce9\r\n"
        mine = Config.parse(text, "etc/a.conf", "/srv")
        order = Order(mine.text, mine.path, mine.base, 0, 0, False)
        sent = Order.load(order.dump())
        self.assertEqual(Config.parse(sent.text, sent.path, sent.base), mine)

    def test_an_order_is_made_of_plain_values_alone(self):
        self.assertEqual({field.type for field in fields(Order)}, {"str", "int", "bool"})


class MasterEnd(amp.AMP):
    """The master's end of the link, remembering what the worker says."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    @link.Ready.responder
    def ready(self) -> dict[str, Any]:
        self.heard.append("ready")
        return {}

    @link.Failed.responder
    def failed(self, status: int, reason: str) -> dict[str, Any]:
        self.heard.append((status, reason))
        return {}


class NoWatch:
    """Instead of the thread that ends a worker whose reactor is blocked."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def start(self) -> None:
        pass


class WorkerProcessTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = folder(self)
        self.reactor = FakeReactor()
        self.handlers: dict[int, Any] = {}
        self.titles: list[str] = []
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.patch(signal, "pthread_sigmask", lambda how, mask: None)
        self.patch(worker, "setproctitle", self.titles.append)
        self.patch(worker, "_Watch", NoWatch)
        self.master = MasterEnd()

    def begun(self, app: str = APP) -> WorkerProcess:
        """A worker process that has begun."""
        name = f"served_{id(self)}"
        with open(os.path.join(self.folder, f"{name}.py"), "w") as file:
            file.write(app)
        port = free_port()
        listening = socket.create_server(("127.0.0.1", port))
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(self.close, os.fstat(listening.fileno()).st_ino, listening.fileno())
        self.patch(worker, "SOCKETS_FD", listening.detach())
        self.patch(worker, "LINK_FD", theirs.detach())
        text = f"Listen = 127.0.0.1:{port}\nApp = {name}:app\nProcMsgRecvWorkThreadCount = 1\n"
        self.observer = LineObserver(os.path.join(self.folder, "error.log"), 8, False)
        self.observer.open()
        self.addCleanup(self.observer.close)
        order = Order(text, "a.conf", self.folder, 3, 7, False)
        config = Config.parse(order.text, order.path, order.base)
        process = WorkerProcess(self.reactor, order, config, self.observer)
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
            for source, target in ((self.link, self.master), (self.transport, self.link.protocol)):
                data = source.value()
                source.clear()
                if data:
                    target.dataReceived(data)

    def test_it_says_that_it_is_ready_when_it_accepts(self):
        self.begun()
        self.assertEqual(self.master.heard, ["ready"])
        self.assertTrue(self.reactor.readers)
        self.assertEqual(self.reactor.stops, 0)

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
        self.flushLoggedErrors()

    def test_a_start_hook_that_raises_is_told_too(self):
        process = self.begun(
            APP + "\n@app.on_worker_start\nasync def start(worker):\n    raise ValueError('no')\n"
        )
        ((status, reason),) = self.master.heard
        self.assertEqual(status, EXIT_START)
        self.assertIn("ValueError: no", reason)
        self.assertEqual((process.status, self.reactor.stops), (EXIT_START, 1))
        self.flushLoggedErrors()

    def test_a_reason_of_any_length_is_told(self):
        self.begun("raise ValueError('x' * 100_000)\n")
        ((_, reason),) = self.master.heard
        self.assertLessEqual(len(reason), link.REASON_LIMIT)
        self.flushLoggedErrors()

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

    def test_a_signal_stops_it(self):
        self.begun()
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual(self.reactor.stops, 0, "not in the signal handler")
        self.reactor.pump([0.1] * 5)
        self.assertEqual(self.reactor.stops, 1)

    def test_without_a_master_it_stops(self):
        events = logged(self)
        self.begun()
        self.link.abortConnection()
        self.reactor.pump([0.1] * 5)
        self.assertEqual(self.reactor.stops, 1)
        self.assertIn("the master process is gone: stopping", texts(events))

    def test_told_to_it_opens_its_log_anew(self):
        self.begun()
        path = os.path.join(self.folder, "error.log")
        os.rename(path, path + ".1")
        self.master.callRemote(link.Reopen)
        self.talk()
        self.assertTrue(os.path.exists(path))

    def test_a_log_that_cannot_be_opened_anew_is_no_reason_to_stop(self):
        self.begun()
        path = os.path.join(self.folder, "error.log")
        os.rename(path, path + ".1")
        os.mkdir(path)
        events = logged(self)
        told = self.master.callRemote(link.Reopen)
        self.talk()
        self.reactor.pump([0.1] * 5)
        self.assertEqual(self.successResultOf(told), {})
        self.assertFalse(self.link.closing)
        self.assertEqual(self.reactor.stops, 0)
        self.assertIn("Is a directory", texts(events)[-1])
