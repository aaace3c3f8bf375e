"""No descriptors left: clients wait, nothing spins, and all is served when some are free again."""

from __future__ import annotations

import os
import resource
import select
import socket
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.framing import encode
from ccserver.net.intake import PAUSE
from tests.functional import codes
from tests.functional.operator import Operator
from tests.functional.server import ServerProcess, descriptors, measured, wait_until
from tests.functional.stopwatch import Stopwatch

LIMIT = 64
CLIENTS = 200
WATCHED = 2.0
"""Seconds over which the processor's time is looked at."""


class LimitedServer(ServerProcess):
    """A server that was started by C{ulimit -n 64}."""

    def passed(self) -> dict[str, Any]:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))

        return {"preexec_fn": limit}


class DescriptorTests(SynchronousTestCase):
    def crowd(self, port: int) -> list[socket.socket]:
        """Clients that have connected, and asked."""
        clients = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(CLIENTS)]
        for client in clients:
            self.addCleanup(client.close)
            client.sendall(encode(codes.REACTOR, b"here"))
        return clients

    def test_200_clients_with_64_descriptors(self):
        with LimitedServer(OnFewDescriptors="warn") as server:
            ((_, worker),) = server.workers().items()
            clients = self.crowd(server.port)
            wait_until(lambda: "cannot accept connections" in server.log, "it to be full")
            before, start = processor_seconds(worker), time.monotonic()
            size = len(server.log)
            wait_until(lambda: time.monotonic() > start + WATCHED, "some time to go by")
            share = (processor_seconds(worker) - before) / (time.monotonic() - start)
            measured(f"{CLIENTS} clients, {LIMIT} descriptors: share of a processor", share)
            self.assertLess(share, 0.2)
            self.assertLess(len(server.log) - size, 2048)
            self.assertLessEqual(len(descriptors(worker)), LIMIT - 8 + 1)
            served = readable(clients)
            self.assertGreater(len(served), 20)
            with Stopwatch(server) as watch:
                for client in clients:
                    client.close()
                news = self.crowd(server.port)[:20]
                wait_until(lambda: len(readable(news)) == len(news), "new clients to be served")
            measured("seconds from their leaving to the replies of new clients", watch.elapsed)
            # those who have left before they were accepted go first, some twenty in each pause
            self.assertLess(watch.seconds, 2 * PAUSE * CLIENTS / 20)
            self.assertEqual(list(server.workers().values()), [worker])
            self.assertNotIn("Traceback", server.log)

    def test_those_who_wait_are_served_when_others_leave(self):
        with LimitedServer(OnFewDescriptors="warn") as server:
            clients = self.crowd(server.port)
            wait_until(lambda: "cannot accept connections" in server.log, "it to be full")
            waiting = set(clients)

            def answered() -> list[socket.socket]:
                return readable(waiting)

            while waiting:
                served = wait_until(answered, "a reply")
                for client in served:
                    self.assertEqual(client.recv(100), encode(codes.REACTOR, b"here"))
                    client.close()
                waiting.difference_update(served)

    def test_a_limit_that_is_too_low_is_a_refusal_in_one_line(self):
        server = LimitedServer()
        self.addCleanup(server.close)
        server.launch()
        self.assertEqual(server.wait(), 3)
        refusals = [line for line in server.log.splitlines() if "[emerg]" in line]
        self.assertEqual(len(refusals), 1)
        self.assertIn("worker_connections = 2048 needs 2153 file descriptors", refusals[0])
        self.assertIn("the hard limit is 64: raise that", refusals[0])


class StarvedWorkerTests(SynchronousTestCase):
    """A worker that can open nothing: its application has taken all descriptors, say."""

    def test_it_lives_and_serves_whom_it_has_and_others_have_the_rest(self):
        with ServerProcess(workers=2, WorkerTimeout=3, RebalanceInterval=0) as server:
            operator = Operator(server)
            clients = [server.connect() for _ in range(20)]
            for client in clients:
                self.addCleanup(client.close)
                client.ask(codes.REACTOR, b"here")
            starved, other = server.workers().values()
            limits = resource.prlimit(starved, resource.RLIMIT_NOFILE)
            resource.prlimit(starved, resource.RLIMIT_NOFILE, (3, limits[1]))

            def is_full() -> bool:
                return operator.ask("connections")["total"] < len(clients)

            wait_until(is_full, "its connections not to be told")
            start = time.monotonic()
            wait_until(lambda: time.monotonic() > start + 3 + WATCHED, "some time to go by")
            memory = {row["pid"]: row["memory"] for row in operator.status()["workers"]}
            self.assertGreater(memory[starved], 1 << 20)
            for _ in range(10):
                with server.connect() as client:
                    client.ask(codes.REACTOR, b"new")
            operator.ask("rebalance")
            for client in clients:
                client.ask(codes.REACTOR, b"still")
            self.assertEqual(set(server.workers().values()), {starved, other})
            self.assertNotIn("Traceback", server.log)
            resource.prlimit(starved, resource.RLIMIT_NOFILE, limits)
            self.assertEqual(operator.ask("connections")["total"], len(clients))


def readable(clients: Any) -> list[socket.socket]:
    """Those who have got something."""
    poll = select.poll()
    by_fd = {client.fileno(): client for client in clients}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    return [by_fd[fd] for fd, _ in poll.poll(0)]


def processor_seconds(pid: int) -> float:
    """The processor's time that a process has had."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
