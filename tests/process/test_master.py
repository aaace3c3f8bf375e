"""The master: workers that live and die when the test says so, and no process of its own."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import socket
import stat
import sys
from typing import Any

from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Config
from ccserver.errors import StartError
from ccserver.process import link, master, service, worker
from ccserver.process.logs import LineObserver
from ccserver.process.master import KILL_GRACE, Master
from ccserver.process.service import ECHO
from ccserver.process.worker import EXIT_APP, EXIT_START, Order
from tests.process.test_listening import free_port
from tests.support import FakeProcess, FakeReactor, FakeTransport, folder, logged, texts


class WorkerEnd(amp.AMP):
    """The worker's end of the link, remembering what the master says."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    @link.Stop.responder
    def stop(self, graceful: bool, timeout: float) -> dict[str, Any]:
        self.told.append(("stop", graceful, timeout))
        return {}

    @link.Reopen.responder
    def reopen(self) -> dict[str, Any]:
        self.told.append("reopen")
        return {}


class FakeWorkerProcess:
    """A worker process as it sees its master."""

    def __init__(self, process: FakeProcess, adopted: Any) -> None:
        self.process = process
        self.adopted = adopted
        self.masters = adopted.transport
        self.end = WorkerEnd()
        self.transport = FakeTransport()
        self.transport.protocol = self.end
        self.end.makeConnection(self.transport)

    def talk(self) -> None:
        for _ in range(5):
            for source, target in (
                (self.transport, self.masters.protocol),
                (self.masters, self.end),
            ):
                data = source.value()
                source.clear()
                if data:
                    target.dataReceived(data)

    def ready(self) -> None:
        self.end.callRemote(link.Ready)
        self.talk()

    def failed(self, status: int, reason: str) -> None:
        self.end.callRemote(link.Failed, status=status, reason=reason)
        self.talk()

    @property
    def told(self) -> list[Any]:
        """What the master has said to it."""
        self.talk()
        return self.end.told

    @property
    def order(self) -> Order:
        return Order.load(os.pread(self.process.given[worker.ORDER_FD], 1 << 20, 0))

    def die(self, status: int | None = 1, signal: int | None = None) -> None:
        self.process.end(status, signal)


class MasterCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.handlers: dict[int, Any] = {}
        self.masks: list[int] = []
        self.exits: list[int] = []
        self.titles: list[str] = []
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.patch(signal, "pthread_sigmask", lambda how, mask: self.masks.append(how))
        self.patch(atexit, "register", lambda function, status: self.exits.append(status))
        self.patch(service, "setproctitle", self.titles.append)
        self.patch(service, "bridge_stdlib", lambda: None)
        self.folder = folder(self)
        self.path = os.path.join(self.folder, "error.log")
        self.ports = [free_port()]
        self.events = logged(self)
        self.addCleanup(self.close, self.reactor)

    def close(self, reactor: FakeReactor) -> None:
        for process in reactor.processes:
            process.close()
        for adopted in reactor.adopted:
            adopted.close()

    def made(self, workers: int = 2, more: str = "") -> Master:
        text = f"WorkerProcesses = {workers}\nShutdownTimeout = 9\n{more}"
        text += "Listen = " + ", ".join(f"127.0.0.1:{port}" for port in self.ports) + "\n"
        self.config = Config.parse(text, "a.conf", self.folder)
        observer = LineObserver(self.config.log.file, 8, False)
        self.addCleanup(observer.close)
        self.master = Master(self.reactor, self.config, observer, True, {"A": "B"})
        return self.master

    def started(self, workers: int = 2) -> list[FakeWorkerProcess]:
        """A master that has spawned its workers."""
        made = self.made(workers)
        made.privilegedStartService()
        self.addCleanup(made._listening.close)
        made.startService()
        self.reactor.advance(0)
        return self.workers()

    def serving(self, workers: int = 2) -> list[FakeWorkerProcess]:
        """A master whose workers are ready."""
        spawned = self.started(workers)
        for each in spawned:
            each.ready()
        return spawned

    def workers(self, since: int = 0) -> list[FakeWorkerProcess]:
        """The worker processes that were spawned."""
        pairs = zip(self.reactor.processes, self.reactor.adopted, strict=True)
        return [FakeWorkerProcess(*pair) for pair in list(pairs)[since:]]

    def send(self, number: int) -> None:
        """The process gets a signal."""
        self.handlers[number](number, None)
        self.reactor.advance(0)

    def said(self) -> str:
        return "\n".join(texts(self.events))


class StartTests(MasterCase):
    def test_making_it_opens_nothing(self):
        before = os.listdir("/proc/self/fd")
        self.made()
        self.assertEqual(len(os.listdir("/proc/self/fd")), len(before))
        self.assertFalse(os.path.exists(self.path))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_log_and_ports_are_opened_before_the_rights_are_given_up(self):
        made = self.made()
        made.privilegedStartService()
        self.addCleanup(made._listening.close)
        self.assertTrue(os.path.exists(self.path))
        with socket.create_connection(("127.0.0.1", self.ports[0]), 5):
            pass
        self.assertEqual(self.reactor.processes, [])

    def test_a_log_that_cannot_be_opened_is_told(self):
        os.mkdir(self.path)
        error = self.assertRaises(StartError, self.made().privilegedStartService)
        self.assertIn("cannot open the log file", str(error))

    def test_a_port_that_is_taken_is_told(self):
        with socket.create_server(("127.0.0.1", self.ports[0])):
            error = self.assertRaises(StartError, self.made().privilegedStartService)
        self.assertIn("Address already in use", str(error))

    def test_warnings_of_the_configuration_are_logged(self):
        made = self.made(more="LogLevel = 3\nLogLevel = 4\n")
        self.assertTrue(self.config.warnings)
        made.privilegedStartService()
        self.addCleanup(made._listening.close)
        self.assertIn(self.config.warnings[0], texts(self.events))

    def test_processes_are_spawned_when_the_reactor_runs(self):
        made = self.made()
        made.privilegedStartService()
        self.addCleanup(made._listening.close)
        made.startService()
        self.assertEqual(self.reactor.processes, [])
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.processes), 2)

    def test_its_title_names_the_configuration(self):
        self.started()
        self.assertEqual(self.titles, ["ccserver: master process a.conf"])

    def test_it_says_once_that_all_are_ready(self):
        first, second = self.started()
        first.ready()
        self.assertNotIn("ready:", self.said())
        second.ready()
        self.assertEqual(self.said().count("ready: 2 worker processes"), 1)
        self.assertIn(f"127.0.0.1:{self.ports[0]}", self.said())


class SpawnTests(MasterCase):
    def test_a_worker_is_python_without_the_current_folder_on_its_path(self):
        (each,) = self.started(1)
        self.assertEqual(each.process.args, (sys.executable, "-P", "-m", "ccserver.process.worker"))

    def test_it_has_the_environment_it_was_given(self):
        (each,) = self.started(1)
        self.assertEqual(each.process.env, {"A": "B"})

    def test_it_gets_just_the_descriptors_that_it_needs(self):
        self.ports.append(free_port())
        for each in self.started(2):
            self.assertEqual(sorted(each.process.given), [0, 1, 2, 3, 4, 5, 6])

    def test_its_input_is_nothing_and_its_output_the_masters(self):
        (each,) = self.started(1)
        self.assertEqual(os.fstat(each.process.given[0]).st_rdev, os.stat(os.devnull).st_rdev)
        for fd in (1, 2):
            self.assertEqual(os.fstat(each.process.given[fd])[:3], os.fstat(fd)[:3])

    def test_its_link_ends_at_the_master(self):
        (each,) = self.started(1)
        with socket.socket(fileno=os.dup(each.process.given[worker.LINK_FD])) as end:
            end.send(b"hello")
        self.assertEqual(each.adopted.socket.recv(10), b"hello")

    def test_its_sockets_are_those_of_its_slot_in_the_order_of_the_addresses(self):
        self.ports.append(free_port())
        inodes = set()
        for each in self.started(2):
            for place, port in enumerate(self.ports):
                fd = each.process.given[worker.SOCKETS_FD + place]
                with socket.socket(fileno=os.dup(fd)) as listening:
                    self.assertEqual(listening.getsockname(), ("127.0.0.1", port))
                inodes.add(os.fstat(fd).st_ino)
        self.assertEqual(len(inodes), 4)

    def test_its_order_says_who_it_is_and_what_holds(self):
        orders = [each.order for each in self.started(2)]
        config = self.config
        for number, order in enumerate(orders):
            self.assertEqual(
                order, Order(config.text, config.path, config.base, number, number, True)
            )

    def test_the_order_is_no_file_that_others_could_read(self):
        (each,) = self.started(1)
        found = os.fstat(each.process.given[worker.ORDER_FD])
        self.assertTrue(stat.S_ISREG(found.st_mode))
        self.assertEqual(found.st_nlink, 0)

    def test_signals_wait_until_the_worker_has_its_handlers(self):
        self.started(2)
        self.assertEqual(self.masks, [signal.SIG_BLOCK, signal.SIG_UNBLOCK] * 2)

    def test_the_master_keeps_no_end_of_the_workers(self):
        made = self.made(1)
        made.privilegedStartService()
        self.addCleanup(made._listening.close)
        made.startService()
        before = len(os.listdir("/proc/self/fd"))
        self.reactor.advance(0)
        (each,) = self.workers()
        copies = len(each.process.given) + 1  # of the fake child, and of the fake reactor
        self.assertEqual(len(os.listdir("/proc/self/fd")), before + copies)


class RespawnTests(MasterCase):
    def test_a_worker_that_dies_is_replaced_at_once(self):
        first, _ = self.serving()
        first.die(signal=signal.SIGKILL)
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.processes), 3)
        self.assertIn("worker process 0, pid 1000, was killed by signal 9 (SIGKILL)", self.said())

    def test_its_replacement_has_the_same_sockets_and_its_own_number(self):
        first, _ = self.serving()
        inode = os.fstat(first.process.given[worker.SOCKETS_FD]).st_ino
        first.die()
        self.reactor.advance(0)
        (replacement,) = self.workers(since=2)
        self.assertEqual(os.fstat(replacement.process.given[worker.SOCKETS_FD]).st_ino, inode)
        self.assertEqual((replacement.order.slot, replacement.order.process_number), (0, 2))

    def test_and_says_that_it_is_back(self):
        self.serving()[0].die()
        self.reactor.advance(0)
        self.workers(since=2)[0].ready()
        self.assertIn("worker process 0 is back, pid 1002", self.said())
        self.assertEqual(self.said().count("ready: 2 worker"), 1)

    def test_who_dies_quickly_is_replaced_ever_more_slowly(self):
        (each,) = self.serving(1)
        starts = []
        for _ in range(6):
            died, spawned = self.reactor.seconds(), len(self.reactor.processes)
            each.die()
            self.reactor.advance(0)
            while len(self.reactor.processes) == spawned:
                self.reactor.advance(0.05)
            starts.append(round(self.reactor.seconds() - died, 2))
            (each,) = self.workers(since=spawned)
            each.ready()
        expected = [0, 0.1, 0.2, 0.4, 0.8, 1.6]
        for start, delay in zip(starts, expected, strict=True):
            self.assertApproximates(start, delay, 0.06)

    def test_who_served_a_while_is_replaced_at_once_again(self):
        (each,) = self.serving(1)
        for _ in range(5):
            self.reactor.advance(3)
            spawned = len(self.reactor.processes)
            each.die()
            self.reactor.advance(0)
            (each,) = self.workers(since=spawned)
            each.ready()

    def test_a_replacement_that_cannot_start_does_not_end_the_server(self):
        first, _ = self.serving()
        first.die()
        self.reactor.advance(0)
        self.workers(since=2)[0].die(EXIT_APP)
        self.assertEqual((self.reactor.stops, self.exits), (0, []))
        self.reactor.advance(0.2)
        self.assertEqual(len(self.reactor.processes), 4)

    def test_a_replacement_that_cannot_be_spawned_is_tried_again(self):
        first, _ = self.serving()
        spawn = self.reactor.spawnProcess
        faults = [OSError(errno.EAGAIN, "no more processes")]

        def sometimes(*args: Any, **kwargs: Any) -> Any:
            if faults:
                raise faults.pop()
            return spawn(*args, **kwargs)

        self.reactor.spawnProcess = sometimes
        first.die()
        self.reactor.advance(0)
        self.reactor.advance(1)
        self.assertEqual(len(self.reactor.processes), 3)
        self.assertIn("no more processes", self.said())


class FirstStartTests(MasterCase):
    """A server that cannot start ends, with a status that says why (DESIGN 6)."""

    def test_an_application_that_cannot_be_loaded_is_status_4(self):
        (each,) = self.started(1)
        each.failed(EXIT_APP, "there is no module named x")
        each.die(EXIT_APP)
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_APP], 1))
        self.assertIn("cannot start: there is no module named x", self.said())

    def test_a_worker_that_cannot_start_is_status_3(self):
        (each,) = self.started(1)
        each.failed(EXIT_START, "start hook raised")
        each.die(EXIT_START)
        self.assertEqual(self.exits, [EXIT_START])
        self.assertIn("cannot start: start hook raised", self.said())

    def test_one_that_dies_without_a_word_is_status_3_and_told_how(self):
        for status, number, how in (
            (1, None, "exited with status 1"),
            (None, 11, "was killed by signal 11 (SIGSEGV)"),
        ):
            self.setUp()
            (each,) = self.started(1)
            each.die(status, number)
            self.assertEqual(self.exits, [EXIT_START])
            self.assertIn(f"cannot start: worker process 0 {how}", self.said())

    def test_nobody_is_replaced(self):
        (each,) = self.started(1)
        each.die()
        self.reactor.advance(60)
        self.assertEqual(len(self.reactor.processes), 1)

    def test_one_of_several_is_enough(self):
        first, second = self.started(2)
        first.ready()
        second.die(EXIT_APP)
        self.assertEqual((self.exits, self.reactor.stops), ([EXIT_APP], 1))

    def test_all_failing_at_once_stop_the_reactor_once(self):
        for each in self.started(3):
            each.failed(EXIT_APP, "no application")
            each.die(EXIT_APP)
        self.assertEqual(self.reactor.stops, 1)
        self.assertEqual(self.exits, [EXIT_APP])

    def test_the_workers_that_did_start_are_stopped_at_once(self):
        first, second = self.started(2)
        first.ready()
        second.die(EXIT_APP)
        stopped = self.master.stopService()
        self.assertEqual(first.told, [("stop", False, 0.0)])
        first.die(0)
        self.successResultOf(stopped)


class StopTests(MasterCase):
    def stopped(self, number: int = signal.SIGTERM) -> Any:
        """What twistd waits for, after a signal."""
        self.send(number)
        self.assertEqual(self.reactor.stops, 1)
        return self.master.stopService()

    def test_term_and_quit_stop_gracefully_within_the_timeout(self):
        for number in (signal.SIGTERM, signal.SIGQUIT):
            self.setUp()
            workers = self.serving()
            self.stopped(number)
            self.assertEqual([each.told for each in workers], [[("stop", True, 9.0)]] * 2)

    def test_int_stops_at_once(self):
        workers = self.serving()
        self.stopped(signal.SIGINT)
        self.assertEqual([each.told for each in workers], [[("stop", False, 0.0)]] * 2)

    def test_it_is_over_when_the_last_worker_has_gone(self):
        first, second = self.serving()
        stopped = self.stopped()
        first.die(0)
        self.assertNoResult(stopped)
        second.die(0)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.exits, [])

    def test_nobody_is_replaced_while_it_stops(self):
        first, _ = self.serving()
        self.stopped()
        first.die(1)
        self.reactor.advance(1)
        self.assertEqual(len(self.reactor.processes), 2)

    def test_who_was_to_be_replaced_is_not(self):
        first, second = self.serving()
        for _ in range(2):
            first.die()
            self.reactor.advance(0)
            first = self.workers()[-1]
        self.assertTrue(self.reactor.getDelayedCalls())
        stopped = self.stopped()
        self.reactor.advance(1)
        self.assertEqual(len(self.reactor.processes), 3)
        second.die(0)
        self.successResultOf(stopped)

    def test_the_ports_are_closed(self):
        self.serving()
        self.stopped()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for each in self.reactor.processes:
                each.close()
            probe.bind(("127.0.0.1", self.ports[0]))

    def test_who_does_not_stop_in_time_is_killed(self):
        first, second = self.serving()
        stopped = self.stopped()
        first.die(0)
        self.reactor.advance(9 + KILL_GRACE - 0.1)
        self.assertEqual(second.process.killed, [])
        self.reactor.advance(0.2)
        self.assertEqual((first.process.killed, second.process.killed), ([], ["KILL"]))
        self.assertIn("does not stop: killed", self.said())
        second.die(None, signal.SIGKILL)
        self.successResultOf(stopped)

    def test_a_second_signal_stops_at_once(self):
        (each,) = self.serving(1)
        self.stopped()
        self.reactor.advance(1)
        self.send(signal.SIGTERM)
        self.assertEqual(each.told, [("stop", True, 9.0), ("stop", False, 0.0)])
        self.reactor.advance(KILL_GRACE)
        self.assertEqual(each.process.killed, ["KILL"])

    def test_the_same_signal_twice_in_a_moment_is_one(self):
        (each,) = self.serving(1)
        self.stopped()
        self.reactor.advance(ECHO / 2)
        self.send(signal.SIGTERM)
        self.assertEqual(each.told, [("stop", True, 9.0)])

    def test_signals_that_keep_coming_do_not_put_the_end_off(self):
        (each,) = self.serving(1)
        self.stopped()
        for _ in range(10):
            self.reactor.advance(ECHO + 0.1)
            self.send(signal.SIGTERM)
        self.assertIn("KILL", each.process.killed)

    def test_a_worker_that_still_starts_is_stopped_too(self):
        (each,) = self.started(1)
        stopped = self.stopped()
        self.assertEqual(each.told, [("stop", True, 9.0)])
        each.die(0)
        self.successResultOf(stopped)

    def test_a_worker_whose_link_is_gone_is_waited_for(self):
        (each,) = self.serving(1)
        each.masters.abortConnection()
        stopped = self.stopped()
        self.assertNoResult(stopped)
        each.die(0)
        self.successResultOf(stopped)

    def test_without_workers_it_is_over_at_once(self):
        made = self.made()
        made.privilegedStartService()
        made.startService()
        self.successResultOf(made.stopService())

    def test_a_signal_before_the_first_worker_is_spawned_spawns_none(self):
        made = self.made()
        made.privilegedStartService()
        made.startService()
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.successResultOf(made.stopService())
        self.reactor.advance(0)
        self.assertEqual(self.reactor.processes, [])


class SignalTests(MasterCase):
    def test_no_signal_does_anything_in_its_handler(self):
        self.serving()
        for handler in set(self.handlers.values()):
            handler(signal.SIGTERM, None)
        self.assertEqual(self.reactor.stops, 0)

    def test_usr1_opens_the_logs_anew_the_workers_too(self):
        workers = self.serving()
        os.rename(self.path, self.path + ".1")
        self.send(signal.SIGUSR1)
        self.assertTrue(os.path.exists(self.path))
        self.assertEqual([each.told for each in workers], [["reopen"]] * 2)

    def test_a_log_that_cannot_be_opened_anew_is_no_fault(self):
        self.serving()
        os.rename(self.path, self.path + ".1")
        os.mkdir(self.path)
        self.send(signal.SIGUSR1)
        self.assertIn("reopen", self.said())
        self.assertEqual(self.reactor.stops, 0)

    def test_the_others_end_nothing(self):
        self.serving()
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH):
            self.send(number)
            self.assertIn(number.name, self.said())
        self.assertEqual((self.reactor.stops, len(self.reactor.processes)), (0, 2))


class WordsTests(SynchronousTestCase):
    def test_the_command_is_the_worker_module(self):
        self.assertEqual(master.COMMAND[-1], worker.__name__)
