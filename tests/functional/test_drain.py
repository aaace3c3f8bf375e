"""Draining: idle connections end one after the other, busy ones when they have been answered."""

from __future__ import annotations

import select
import signal
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.operator import Operator
from tests.functional.server import TIMEOUT, ServerProcess, children, title, wait_until
from tests.functional.stopwatch import Stopwatch

IDLE = 40
SPREAD = 2.0


class DrainTests(SynchronousTestCase):
    def test_idle_ones_end_spread_and_it_is_shown_how_many_are_left(self):
        server = ServerProcess(workers=1, DrainSpread=SPREAD, ShutdownTimeout=20)
        self.addCleanup(server.close)
        server.start()
        operator = Operator(server)
        clients = [server.connect() for _ in range(IDLE)]
        for client in clients:
            self.addCleanup(client.close)
            client.ask(apps.PING)
        busy = server.connect()
        self.addCleanup(busy.close)
        busy.send((apps.SLEEP, b"500"))
        ends = []
        with Stopwatch(server) as watch:
            operator.ask("stop", graceful=True)
            began = time.monotonic()
            wait_until(lambda: "connections left" in operator.status()["doing"], "the figure")
            (pid,) = children(server.master)
            wait_until(lambda: "is shutting down (" in title(pid), "the title")
            last = clients[-1]
            last.ask(apps.REACTOR, b"its turn has not come")
            poll = select.poll()
            waiting = {client.socket.fileno(): client for client in clients}
            for fd in waiting:
                poll.register(fd, select.POLLIN)
            while waiting and time.monotonic() - began < TIMEOUT:
                for fd, _ in poll.poll(1000):
                    client = waiting.pop(fd)
                    poll.unregister(fd)
                    self.assertEqual(client.rest(), [])
                    client.close()
                    ends.append(time.monotonic())
        self.assertEqual(len(ends), IDLE)
        self.assertGreater(max(ends) - began, SPREAD / 2)
        # others can make them late, and not early
        self.assertLess(IDLE / 5, sum(watch.own(began, end) < SPREAD / 2 for end in ends), ends)
        self.assertLess(sum(end - began < SPREAD / 2 for end in ends), IDLE * 4 / 5, ends)
        self.assertEqual(busy.rest(), [(apps.SLEEP, b"500")])
        busy.close()
        self.assertEqual(server.wait(), 0)
        self.assertEqual(server.log.count("closed: drain"), IDLE + 1)

    def test_what_is_left_at_the_shutdown_timeout_is_cut(self):
        server = ServerProcess(workers=1, DrainSpread=60, ShutdownTimeout=1)
        self.addCleanup(server.close)
        server.start()
        clients = [server.connect() for _ in range(10)]
        for client in clients:
            self.addCleanup(client.close)
            client.ask(apps.PING)
        with Stopwatch(server) as watch:
            server.stop(signal.SIGQUIT)
        self.assertEqual(server.wait(), 0)
        self.assertGreater(watch.elapsed, 0.9)
        self.assertLess(watch.seconds, 4.0)
        self.assertIn("closed: shutdown", server.log)
