"""A configuration of the family, as it is, and what its keys promise."""

import fcntl
import os
import tempfile
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.server import ROOT, Client, ServerCase, ServerProcess, measured
from tests.functional.stopwatch import Stopwatch

FAMILY = os.path.join(ROOT, "tests", "data", "family.conf")
PORTS = (15678, 15679)
QUICK = 10


class FamilyConfigurationTests(SynchronousTestCase):
    def serve(self):
        """A server with the family's file, whose ports one test of the machine can have."""
        path = os.path.join(tempfile.gettempdir(), "ccserver-test-family.lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.addCleanup(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(FAMILY, "rb") as file:
            server = ServerProcess(text=file.read())
        self.addCleanup(server.close)
        server.start()
        return server

    def test_it_loads_unchanged_and_both_ports_answer_a_ping(self):
        server = self.serve()
        for port in PORTS:
            with Client(port) as client:
                self.assertEqual(client.ask(apps.PING), b"")
        self.assertEqual(sorted(server.workers()), [0, 1])

    def test_the_packet_that_makes_it_a_flood_closes(self):
        self.serve()
        for port in PORTS:
            with Client(port) as client:
                client.send(*[(apps.PING, b"")] * (QUICK + 5))
                self.assertEqual(client.rest(), [(apps.PING, b"")] * QUICK)


class HeartbeatTests(ServerCase):
    options: ClassVar = {
        "Sock_WaitTimeEnable": 1,
        "Sock_MaxWaitTime": 5,
        "Sock_TimeOutKick": 1,
    }

    def test_with_a_kick_a_connection_is_closed_at_its_first_check(self):
        client = self.connect()
        with Stopwatch(self.server) as watch:
            client.ask(apps.PING)
            self.assertEqual(client.rest(), [])
        measured("kicked at the first heartbeat check of 5 s, after seconds", watch.elapsed)
        self.assertGreaterEqual(watch.elapsed, 4.9)
        self.assertLess(watch.seconds, 7.2)
