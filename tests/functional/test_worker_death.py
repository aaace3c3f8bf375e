import os
import selectors
import signal
import threading
import time
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.server import (
    Client,
    ServerCase,
    ServerProcess,
    children,
    descriptors,
    listening_sockets,
    measured,
    title,
    wait_until,
)
from tests.functional.stopwatch import Stopwatch

BACK_WITHIN = 1.0
SOCKETS = 3
"""Of a worker without connections: the link, twice, for its end is watched; and it listens."""


class Caller(threading.Thread):
    """Asks on one connection, one request after the other, and checks every answer.

    @ivar answered: how many answers were right.
    @ivar fault: what ended it before it was stopped; None if nothing did.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(daemon=True)
        self.answered = 0
        self.fault: BaseException | None = None
        self.client = client
        self._stopped = False

    def run(self) -> None:
        try:
            while not self._stopped:
                code = apps.ECHOES[self.answered % len(apps.ECHOES)]
                body = b"%d:" % self.answered * 10
                answer = self.client.ask(code, body)
                assert answer == body, (answer, body)
                self.answered += 1
        except (OSError, AssertionError) as error:
            self.fault = error

    def stop(self) -> None:
        self._stopped = True
        self.join()


def answers(clients: list[Client]) -> list[tuple[Client, bytes]]:
    """The next answer of each client, in the order they come."""
    found = []
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        while len(found) < len(clients):
            ready = selector.select(30)
            assert ready, f"{len(clients) - len(found)} connections got no answer"
            for key, _ in ready:
                packet = key.data.receive()
                assert packet is not None, "closed instead of answered"
                found.append((key.data, packet[1]))
                selector.unregister(key.fileobj)
    return found


class KilledWorkerTests(ServerCase):
    options: ClassVar = {"workers": 3}

    def setUp(self):
        super().setUp()
        self.server.settle()

    def callers(self, per_worker):
        """Running callers, by the pid of the worker that serves them."""
        callers = {pid: [] for pid in self.server.workers().values()}
        while any(len(found) < per_worker for found in callers.values()):
            client = self.connect()
            found = callers[int(client.ask(apps.PID))]
            if len(found) < per_worker:
                found.append(Caller(client))
                self.addCleanup(found[-1].stop)
            else:
                client.close()
        for found in callers.values():
            for caller in found:
                caller.start()
        return callers

    def test_the_connections_of_the_other_workers_notice_nothing(self):
        before = self.server.workers()
        victim = before[1]
        callers = self.callers(4)
        everyone = [caller for found in callers.values() for caller in found]
        wait_until(lambda: all(caller.answered > 20 for caller in everyone), "some load")
        os.kill(victim, signal.SIGKILL)
        others = [caller for pid, found in callers.items() if pid != victim for caller in found]
        wait_until(lambda: self.server.workers().get(1, victim) != victim, "a new worker")
        marks = {caller: caller.answered + 20 for caller in others}
        wait_until(
            lambda: all(caller.answered > marks[caller] or caller.fault for caller in others),
            "more answers of the others",
        )
        for caller in others:
            caller.stop()
        self.assertEqual([caller.fault for caller in others], [None] * len(others))
        after = self.server.workers()
        self.assertEqual((after[0], after[2]), (before[0], before[2]))

    def test_the_slot_serves_again_within_a_second_and_no_connection_is_refused(self):
        before = self.server.workers()
        with Stopwatch(self.server) as watch:
            os.kill(before[0], signal.SIGKILL)
            start = time.monotonic()
            clients = [self.connect() for _ in range(40)]
            for client in clients:
                client.send((apps.PID, b""))
            replaced = None
            for _, pid in answers(clients):
                if replaced is None and int(pid) not in before.values():
                    replaced = time.monotonic()
        self.assertIsNotNone(replaced, "no connection came to the replacement")
        what = "from kill -9 of a worker to its replacement's first answer, seconds"
        measured(what, replaced - start)
        self.assertLess(watch.own(start, replaced), BACK_WITHIN)

    def test_connections_that_wait_in_its_queue_are_served_by_its_replacement(self):
        # a machine that is full of others may leave so much time that others accept for it first
        wait_until(self.queue_is_inherited, "all in the queue to be served by the replacement")

    def queue_is_inherited(self):
        """Kill a stopped worker: all are answered; whether those in its queue are by the next."""
        self.server.settle()
        victim = self.server.workers()[2]
        port = self.server.port
        held = set(descriptors(victim).values())
        (queue,) = held & set(listening_sockets(port))
        os.kill(victim, signal.SIGSTOP)
        waiting = [self.connect() for _ in range(60)]
        for client in waiting:
            client.send((apps.PID, b""))
        in_queue = listening_sockets(port)[queue]
        os.kill(victim, signal.SIGKILL)
        pids = [int(pid) for _, pid in answers(waiting)]
        self.server.settle()
        new = self.server.workers()[2]
        self.assertNotEqual(new, victim)
        return in_queue >= 10 and pids.count(new) == in_queue

    def test_all_workers_at_once_are_replaced(self):
        before = self.server.workers()
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        clients = [self.connect() for _ in range(20)]
        for client in clients:
            client.send((apps.PID, b""))
        pids = {int(pid) for _, pid in answers(clients)}
        self.assertEqual(pids & set(before.values()), set())
        wait_until(lambda: len(self.server.workers()) == 3, "all workers")

    def test_its_death_is_an_alert_in_the_log(self):
        pid = self.server.workers()[0]
        os.kill(pid, signal.SIGKILL)
        line = f"worker process 0, pid {pid}, was killed by signal 9 (SIGKILL)"
        wait_until(lambda: line in self.server.log, "a line about it")
        self.assertRegex(self.server.log, rf"\[alert\] [0-9]+: {line[:40]}")


THREADS = 20
"""Threads of a worker, if the configuration does not say."""


BOARD = "/memfd:board (deleted)"


class DescriptorTests(ServerCase):
    options: ClassVar = {"workers": 2}

    def setUp(self):
        super().setUp()
        self.server.settle()
        wait_until(
            lambda: all(
                len(self.sockets(pid)) == SOCKETS for pid in self.server.workers().values()
            ),
            "the connections of other tests to end",
        )

    def sockets(self, pid):
        return [what for what in descriptors(pid).values() if what.startswith("socket")]

    def kill_and_wait(self, slot):
        """Kill the worker of a slot; the pid of the next one, when it serves."""
        old = self.server.workers()[slot]
        os.kill(old, signal.SIGKILL)
        line = f"worker process {slot}, pid "

        def new():
            pid = self.server.workers().get(slot)
            return pid if f"{line}{pid}, serves\n" in self.server.log else None

        return wait_until(new, "the next worker")

    def foreign(self, pid):
        """Descriptors that a worker should not have."""
        mine = descriptors(pid)
        listening = listening_sockets(self.server.port)
        others = {
            what
            for other in [self.server.master, *self.server.workers().values()]
            if other != pid
            for what in descriptors(other).values()
        }
        shared = {n: what for n, what in mine.items() if what in others}
        own = [n for n, what in shared.items() if what in listening]
        self.assertEqual(len(own), 1, "one listening socket")
        allowed = {"/dev/null", self.server.path("error.log"), "anon_inode:[eventpoll]"}
        allowed |= {"anon_inode:[eventfd]", self.server.path("stdout"), self.server.path("stderr")}
        allowed |= {BOARD}  # the master's end of its own; there is but one
        return {n: what for n, what in shared.items() if what not in allowed and n not in own}

    def test_a_worker_shares_only_its_listening_socket_and_the_logs(self):
        for pid in self.server.workers().values():
            self.assertEqual(self.foreign(pid), {})

    def test_the_workers_share_no_listening_socket(self):
        listening = set(listening_sockets(self.server.port))
        first, second = (
            set(descriptors(pid).values()) & listening for pid in self.server.workers().values()
        )
        self.assertEqual(len(first | second), 2)

    def test_a_worker_has_no_more_than_it_needs(self):
        for pid in self.server.workers().values():
            kinds = sorted(
                what.partition(":[")[0] if what.startswith(("socket", "pipe")) else what
                for what in descriptors(pid).values()
            )
            path = self.server.path
            self.assertEqual(
                kinds,
                sorted(
                    # the reactor's spare descriptor, and standard input
                    ["/dev/null"] * 2
                    + [path("error.log"), path("stdout"), path("stderr")]
                    # how it is, for the master, and what the kernel tells it of its memory
                    + [BOARD, f"/proc/{pid}/statm"]
                    # the reactor's ways to wake up: from threads, and from signals
                    + ["pipe"] * 4
                    + ["anon_inode:[eventfd]", "anon_inode:[eventpoll]"]
                    # one for each thread to wake up
                    + ["anon_inode:[eventfd]"] * THREADS
                    + ["socket"] * SOCKETS
                ),
            )

    def test_a_replacement_inherits_no_connection(self):
        clients = [self.connect() for _ in range(20)]
        for client in clients:
            client.ask(apps.PING)
        new = self.kill_and_wait(0)
        self.assertEqual(self.foreign(new), {})
        self.assertEqual(len(self.sockets(new)), SOCKETS)

    def test_after_ten_replacements_the_master_has_the_descriptors_it_had(self):
        with ServerProcess(workers=2) as server:
            before = len(descriptors(server.master))
            for _ in range(5):
                backs = server.log.count(", serves\n") + 2
                for pid in server.workers().values():
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda n=backs: server.log.count(", serves\n") == n, "the next workers")
            self.assertEqual(len(descriptors(server.master)), before)
            self.assertEqual(len(children(server.master)), 2)


class TitleTests(ServerCase):
    options: ClassVar = {"workers": 2}

    def test_the_master_is_called_after_its_configuration(self):
        self.assertEqual(
            title(self.server.master),
            "ccserver: master process ccserver.conf",
        )

    def test_a_worker_tells_its_slot_and_its_connections(self):
        def titles():
            return [title(pid) for _, pid in sorted(self.server.workers().items())]

        wait_until(lambda: all("(0 connections)" in found for found in titles()), "idle workers")
        clients = [self.connect() for _ in range(8)]
        pids = [int(client.ask(apps.PID)) for client in clients]
        expected = [
            f"ccserver: worker process {slot} ({pids.count(pid)} connections)"
            for slot, pid in sorted(self.server.workers().items())
        ]
        wait_until(lambda: titles() == expected, f"titles like {expected}")


class CrashLoopTests(SynchronousTestCase):
    app = b"""
import os, time
from ccserver import App
if os.path.exists("broken"):
    with open("deaths", "a") as file:
        print(time.monotonic(), file=file)
    raise RuntimeError("a bad day")
app = App()
@app.message(0)
async def ping(session, request: None) -> bytes:
    return b""
"""

    def test_a_worker_that_keeps_dying_is_started_slower_each_time_until_it_lives(self):
        server = ServerProcess("fragile:app", workers=2)
        self.addCleanup(server.close)
        server.write("fragile.py", self.app)
        server.start()
        master, workers = server.master, server.workers()
        server.write("broken")
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: server.log.count("exited with status 4") >= 5, "some deaths")
        deaths = list(map(float, server.read("deaths").split()))
        measured(
            "from the fourth to the fifth death of a crash loop, seconds", deaths[4] - deaths[3]
        )
        self.assertGreater(deaths[4] - deaths[3], 0.5)
        self.assertIn("RuntimeError: a bad day", server.log)
        self.assertEqual((server.master, server.workers()[1]), (master, workers[1]))
        os.remove(server.path("broken"))
        wait_until(lambda: ", serves\n" in server.log, "the worker to be back")
