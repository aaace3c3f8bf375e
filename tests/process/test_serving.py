"""Serving: accepting, stopping and handing over, on a reactor that the test drives."""

from __future__ import annotations

import socket
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.config import Config
from ccserver.errors import ConfigError, StartError
from ccserver.net.giver import Report
from ccserver.net.jobs import PoolThread
from ccserver.net.port import DirectPort
from ccserver.process import serving
from ccserver.process.serving import (
    ABORT_GRACE,
    HASTY_HOOK_TIMEOUT,
    HOOK_TIMEOUT,
    STEP,
    Server,
    session_limits,
)
from tests.ports import free_port
from tests.support import FakeReactor, logged, texts


class ServerCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.app = App()
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.events = logged(self)
        self.patch(serving, "allow_descriptors", lambda config: None)

    def made(self, more: str = "") -> Server:
        text = f"Listen = {self.address}\nProcMsgRecvWorkThreadCount = 1\n{more}"
        config = Config.parse(text)
        self.listening = socket.create_server(("127.0.0.1", self.port))
        self.listening.setblocking(False)
        self.addCleanup(self.listening.close)
        sockets = [(config.listen.addresses[0], self.listening)]
        server = self.server = Server(self.reactor, config, self.app, sockets)
        self.addCleanup(self.finish)
        return server

    def prepared(self, more: str = "") -> Server:
        """A server whose start hooks have run."""
        server = self.made(more)
        self.successResultOf(Deferred.fromCoroutine(server.prepare()))
        return server

    def serving(self, more: str = "") -> Server:
        server = self.prepared(more)
        server.serve()
        return server

    def stopped(self, graceful: bool = True, timeout: float = 5.0) -> Deferred[None]:
        return Deferred.fromCoroutine(self.server.stop(graceful, timeout))

    def finish(self) -> None:
        self.stopped(False, 0.0)
        self.pass_time(ABORT_GRACE + HASTY_HOOK_TIMEOUT + HOOK_TIMEOUT)

    def pass_time(self, seconds: float) -> None:
        self.reactor.pump([STEP] * round(seconds / STEP + 2))

    @property
    def ports(self) -> list[Any]:
        return [each for each in self.reactor.readers if isinstance(each, DirectPort)]

    def busy(self, busy: bool = True) -> None:
        """There is, or is no, connection that does not end."""
        count = int(busy)
        self.patch(type(self.server.connections), "__len__", lambda connections: count)


class StartTests(ServerCase):
    def test_prepared_it_does_not_accept_yet(self):
        self.prepared()
        self.assertEqual(self.ports, [])

    def test_told_to_serve_it_does(self):
        self.serving()
        (port,) = self.ports
        self.assertEqual(port.fileno(), self.listening.fileno())

    def test_start_hooks_run_in_their_order(self):
        ran: list[str] = []

        @self.app.on_worker_start
        async def first(worker: Any) -> None:
            ran.append(f"first in {worker.slot}")

        @self.app.on_worker_start
        async def second(worker: Any) -> None:
            ran.append("second")

        self.prepared()
        self.assertEqual(ran, ["first in 0", "second"])

    def test_threads_that_cannot_be_started_are_a_refusal(self):
        def start(thread: Any) -> None:
            raise RuntimeError("can't start new thread")

        self.patch(PoolThread, "start", start)
        prepared = Deferred.fromCoroutine(self.made().prepare())
        error = self.failureResultOf(prepared, StartError).value
        self.assertEqual(str(error), "no more than 0 of 1 threads: can't start new thread")

    def test_a_start_hook_that_raises_is_a_refusal(self):
        @self.app.on_worker_start
        async def broken(worker: Any) -> None:
            raise ValueError("no database")

        prepared = Deferred.fromCoroutine(self.made().prepare())
        error = self.failureResultOf(prepared, StartError).value
        self.assertEqual(str(error), "start hook broken raised ValueError: no database")
        self.assertIsInstance(error.__cause__, ValueError)

    def test_a_start_hook_may_refuse_the_configuration_in_its_own_words(self):
        @self.app.on_worker_start
        async def refuse(worker: Any) -> None:
            raise ConfigError("DBInfo names no database")

        prepared = Deferred.fromCoroutine(self.made().prepare())
        error = self.failureResultOf(prepared, ConfigError).value
        self.assertEqual(str(error), "DBInfo names no database")

    def test_sockets_that_were_never_served_are_closed_at_the_end(self):
        self.prepared()
        self.stopped()
        self.assertEqual(self.listening.fileno(), -1)

    def test_a_server_that_stops_serves_no_more(self):
        server = self.prepared()
        self.stopped()
        server.serve()
        self.assertEqual(self.ports, [])


class ListenTests(ServerCase):
    def lent(self) -> socket.socket:
        lent = socket.create_server(("127.0.0.1", 0))
        lent.setblocking(False)
        self.addCleanup(lent.close)
        return lent

    def test_it_accepts_from_the_sockets_of_another_slot_until_they_go_back(self):
        server, lent = self.serving(), self.lent()
        server.listen(3, self.address, lent)
        self.assertEqual(len(self.ports), 2)
        server.listen_no_more(2)
        self.assertEqual(len(self.ports), 2)
        server.listen_no_more(3)
        self.reactor.advance(0)
        self.assertEqual([each.fileno() for each in self.ports], [self.listening.fileno()])
        self.assertEqual(lent.fileno(), -1)

    def test_a_socket_of_an_address_that_it_does_not_know_is_closed(self):
        server, lent = self.serving(), self.lent()
        server.listen(3, "10.0.0.1:99", lent)
        self.assertEqual((len(self.ports), lent.fileno()), (1, -1))

    def test_told_to_accept_no_more_it_closes_the_lent_ones_too(self):
        server, lent = self.serving(), self.lent()
        server.listen(3, self.address, lent)
        self.assertEqual(server.stop_accepting(), 0)
        self.reactor.advance(0)
        self.assertEqual((self.ports, lent.fileno()), ([], -1))

    def test_who_waits_to_be_accepted_then_is(self):
        server = self.serving()
        clients = [socket.create_connection(("127.0.0.1", self.port), 5) for _ in range(20)]
        self.assertEqual(server.stop_accepting(), 20)
        for each in clients:
            each.close()

    def test_one_that_is_prepared_and_leaves_closes_its_sockets(self):
        server = self.prepared()
        self.assertEqual(server.stop_accepting(), 0)
        self.assertEqual(self.listening.fileno(), -1)

    def test_the_connections_to_an_address_are_made_by_one(self):
        server = self.serving()
        self.assertIs(server.factory("10.0.0.1:99"), server.factory("10.0.0.1:99"))
        self.assertIsNot(server.factory("10.0.0.1:99"), server.factory(self.address))

    def test_the_level_of_the_log_holds_for_those_that_are_and_come(self):
        server = self.serving("LogLevel = 6\n")
        self.assertFalse(server.factory(self.address).log_ends)
        server.set_log_level(7)
        self.assertTrue(server.factory(self.address).log_ends)
        self.assertTrue(server.factory("10.0.0.1:99").log_ends)


class StopTests(ServerCase):
    def test_without_connections_it_is_over_at_once(self):
        self.serving()
        self.successResultOf(self.stopped())
        self.reactor.advance(0)
        self.assertEqual((self.ports, self.reactor.getDelayedCalls()), ([], []))

    def test_gracefully_it_waits_for_connections_up_to_the_timeout(self):
        self.serving()
        self.busy()
        stopped = self.stopped(True, 5.0)
        self.pass_time(4.8)
        self.assertNoResult(stopped)
        self.pass_time(0.4 + ABORT_GRACE)
        self.successResultOf(stopped)

    def test_it_waits_for_what_is_left_of_those_that_have_gone(self):
        connections: Any = self.serving().connections
        connections.leave_behind("its packets")
        stopped = self.stopped()
        self.pass_time(1.0)
        self.assertNoResult(stopped)
        connections.settle("its packets")
        self.pass_time(STEP)
        self.successResultOf(stopped)

    def test_it_is_over_as_soon_as_they_have_gone(self):
        self.serving()
        self.busy()
        stopped = self.stopped(True, 5.0)
        self.pass_time(1)
        self.busy(False)
        self.pass_time(STEP)
        self.successResultOf(stopped)

    def test_a_second_one_at_once_cuts_the_first_short_and_both_are_told(self):
        self.serving()
        self.busy()
        first = self.stopped(True, 500.0)
        self.pass_time(1)
        second = self.stopped(False, 0.0)
        self.assertNoResult(first)
        self.pass_time(ABORT_GRACE)
        self.successResultOf(first)
        self.successResultOf(second)

    def test_a_second_graceful_one_can_bring_the_end_forward_but_not_put_it_off(self):
        self.serving()
        self.busy()
        first = self.stopped(True, 5.0)
        self.stopped(True, 500.0)
        self.stopped(True, 1.0)
        self.pass_time(1.1 + ABORT_GRACE)
        self.successResultOf(first)

    def test_stop_hooks_run_when_the_connections_have_gone_whatever_the_others_do(self):
        ran: list[str] = []

        @self.app.on_worker_stop
        async def broken(worker: Any) -> None:
            raise ValueError("no")

        @self.app.on_worker_stop
        async def second(worker: Any) -> None:
            ran.append("second")

        self.serving()
        self.busy()
        stopped = self.stopped(True, 1.0)
        self.pass_time(0.5)
        self.assertEqual(ran, [])
        self.pass_time(0.6 + ABORT_GRACE)
        self.successResultOf(stopped)
        self.assertEqual(ran, ["second"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_stop_hooks_that_hang_end_it_together_within_their_time(self):
        for graceful, patience in ((True, HOOK_TIMEOUT), (False, HASTY_HOOK_TIMEOUT)):
            self.app = App()
            self.port = free_port()
            self.address = f"127.0.0.1:{self.port}"
            for _ in range(3):

                @self.app.on_worker_stop
                async def hanging(worker: Any) -> None:
                    await Deferred()

            self.serving()
            stopped = self.stopped(graceful, 1.0)
            self.pass_time(patience - 0.2)
            self.assertNoResult(stopped)
            self.pass_time(0.4)
            self.successResultOf(stopped)
            self.flushLoggedErrors()

    def test_hand_overs_under_way_end_with_it_however_many(self):
        server = self.serving()
        pairs = [socket.socketpair() for _ in range(6)]
        taken = [Deferred.fromCoroutine(server.take(theirs)) for _, theirs in pairs[:3]]
        self.patch(serving, "Giver", FakeGiver)
        self.patch(FakeGiver, "made", [])
        given = [Deferred.fromCoroutine(server.give(theirs, None)) for _, theirs in pairs[3:]]
        self.assertEqual((len(server._takers), len(server._givers)), (3, 3))
        self.successResultOf(self.stopped())
        self.assertEqual([self.successResultOf(each) for each in taken], [0, 0, 0])
        self.assertEqual([self.successResultOf(each).moved for each in given], [0, 0, 0])
        for ours, theirs in pairs:
            ours.close()
            theirs.close()


class FakeGiver:
    """Gives what, and when, the test says."""

    made: ClassVar[list[FakeGiver]] = []

    def __init__(self, reactor: Any, channel: socket.socket, timeout: float) -> None:
        self.channel = channel
        self.timeout = timeout
        self.given: list[Any] = []
        self.done: Deferred[Report] = Deferred()
        FakeGiver.made.append(self)

    def give(self, connections: Any) -> Deferred[Report]:
        self.given = list(connections)
        return self.done

    def stop(self) -> None:
        self.channel.close()
        self.done.callback(Report(0, {}))


class FakeConnection:
    """A connection as a server sees it that hands it over."""

    def __init__(self, id: int, reason_to_stay: str | None = None) -> None:
        self.session = self
        self.id = id
        self.reason_to_stay = reason_to_stay


class FakeConnections(dict[int, FakeConnection]):
    """A table of connections, which is gone through by value as the real one is."""

    openings = 0

    def __iter__(self) -> Any:
        return iter(self.values())

    def hasten_openings(self) -> int:
        return 0

    def abort(self) -> None:
        pass

    finish_due = abort

    def finish(self, spread: float) -> None:
        self.clear()


class GiveTests(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(serving, "Giver", FakeGiver)
        self.patch(FakeGiver, "made", [])
        self.ends: list[socket.socket] = []

    def with_connections(self, *connections: FakeConnection) -> Server:
        server: Any = self.serving("HandoverTimeout = 7\n")
        server.connections = FakeConnections({each.id: each for each in connections})
        return server

    def give(self, count: int | None, report: Report) -> list[int]:
        """Which connections are given when C{count} are to be."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            done = Deferred.fromCoroutine(self.server.give(theirs, count))
            giver = FakeGiver.made[-1]
            self.assertEqual(giver.timeout, 7)
            giver.done.callback(report)
            self.assertEqual(self.successResultOf(done), report)
        return [each.id for each in giver.given]

    def test_all_or_as_many_as_are_asked_for(self):
        self.with_connections(*(FakeConnection(id) for id in range(5)))
        self.assertEqual(self.give(3, Report(3, {})), [0, 1, 2])
        self.assertEqual(self.give(None, Report(5, {})), [0, 1, 2, 3, 4])

    def test_those_that_a_target_has_no_room_for_are_given_to_the_next(self):
        self.with_connections(FakeConnection(0, "tls"), FakeConnection(1), FakeConnection(2))
        self.assertEqual(self.give(None, Report(0, {"tls": 1, "target": 2})), [0, 1, 2])
        self.assertEqual(self.give(None, Report(2, {})), [0, 1, 2])
        self.server.stop_accepting()
        self.assertEqual(self.give(None, Report(0, {"tls": 1, "target": 2})), [0, 1, 2])
        self.assertEqual(self.give(None, Report(0, {"state": 2})), [1, 2])
        self.assertEqual(self.give(None, Report(0, {})), [])

    def test_where_nobody_has_to_go_those_that_cannot_are_not_asked(self):
        self.with_connections(FakeConnection(0, "tls"), FakeConnection(1), FakeConnection(2))
        self.assertEqual(self.give(2, Report(2, {})), [1, 2])
        self.assertEqual(self.give(None, Report(2, {})), [0, 1, 2])

    def test_one_that_leaves_does_not_try_again_what_could_not_go(self):
        server = self.with_connections(FakeConnection(0), FakeConnection(1))
        server.stop_accepting()
        self.assertEqual(self.give(None, Report(0, {"state": 2})), [0, 1])
        self.assertEqual(self.give(None, Report(0, {})), [])

    def test_but_it_does_when_the_target_was_to_blame(self):
        server = self.with_connections(FakeConnection(0), FakeConnection(1))
        server.stop_accepting()
        self.give(None, Report(0, {"channel": 2}))
        self.assertEqual(self.give(None, Report(2, {})), [0, 1])

    def test_one_that_stays_may_be_asked_again(self):
        self.with_connections(FakeConnection(0))
        self.give(1, Report(0, {"handler": 1}))
        self.assertEqual(self.give(1, Report(1, {})), [0])


class RestTests(ServerCase):
    def test_who_is_not_there_cannot_be_kicked(self):
        self.assertFalse(self.serving().kick(5))

    def test_its_figures_are_plain(self):
        figures = self.serving().figures()
        self.assertEqual(figures["connections"], 0)
        self.assertGreater(figures["memory"], 0)
        self.assertEqual(self.server.connection_rows(), [])

    def test_a_fault_in_the_check_of_each_second_does_not_end_it(self):
        server = self.serving()

        def fail() -> None:
            raise ZeroDivisionError

        self.patch(server.connections, "check_heartbeats", fail)
        self.reactor.pump([1.0] * 3)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)

    def test_limits_are_those_of_the_configuration(self):
        limits = session_limits(Config.parse("Sock_FloodAttackKickEnable = 0\n"))
        self.assertIsNone(limits.flood)


class OverloadTests(ServerCase):
    """A worker with too many jobs, for some seconds, sheds new connections first."""

    def overloaded(self, more: str = "") -> Server:
        server = self.serving(more)
        self.crowd(True)
        self.reactor.pump([1.0] * 4)
        return server

    def crowd(self, crowded: bool) -> None:
        self.server._pool.limit = -1 if crowded else 100

    def knock(self) -> socket.socket:
        """A client that has connected, and a turn of the ports."""
        client = socket.create_connection(("127.0.0.1", self.port), 5)
        self.addCleanup(client.close)
        for port in self.ports:
            port.doRead()
        return client

    def test_it_says_so(self):
        self.assertTrue(self.overloaded().figures()["overloaded"])
        self.assertIn("overloaded: 0 ms late, 0 jobs wait", "\n".join(texts(self.events)))

    def test_new_connections_wait_until_it_is_over(self):
        server = self.overloaded()
        self.knock()
        self.assertEqual((len(server.connections), self.ports), (0, []))
        self.crowd(False)
        self.reactor.pump([1.0] * 4)
        self.assertFalse(server.figures()["overloaded"])
        self.knock()
        self.assertEqual(len(server.connections), 2)

    def test_or_are_closed_and_counted(self):
        server = self.overloaded("OverloadAction = close\n")
        self.assertEqual(self.knock().recv(1), b"")
        self.assertEqual(server.figures()["closed"], {"overload": 1})

    def test_a_drain_accepts_what_waits_all_the_same(self):
        server = self.overloaded()
        self.knock()
        self.assertEqual(server.stop_accepting(), 1)

    def test_lag_is_told(self):
        server = self.serving()
        self.reactor.advance(1.25)
        self.assertEqual(server.figures()["lag_ms"], 250)
