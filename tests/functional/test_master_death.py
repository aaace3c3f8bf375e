import os
import signal

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.server import ServerProcess, measured, wait_until
from tests.functional.stopwatch import Stopwatch

GONE_WITHIN = 1.0


class KilledMasterTests(SynchronousTestCase):
    def kill_master(self, server, what):
        """Kill the master: its workers go by themselves, in time, and the port is free."""
        with Stopwatch(server) as watch:
            os.kill(server.master, signal.SIGKILL)
            server.wait()
            wait_until(server.is_gone, "the workers to be gone")
        what = f"from kill -9 of the master to the end of its {what} workers, seconds"
        measured(what, watch.elapsed)
        self.assertLess(watch.seconds, GONE_WITHIN)

    def test_its_workers_are_gone_within_a_second(self):
        with ServerProcess(workers=2) as server:
            clients = [server.connect() for _ in range(20)]
            for client in clients:
                client.ask(apps.PING)
            self.kill_master(server, "idle")
            for client in clients:
                self.assertEqual(client.rest(), [])

    def test_what_they_have_in_hand_is_answered(self):
        with ServerProcess(workers=2) as server:
            clients = [server.connect() for _ in range(20)]
            for client in clients:
                client.send((apps.SLEEP, b"100"))
            self.kill_master(server, "busy")
            for client in clients:
                self.assertEqual(client.rest(), [(apps.SLEEP, b"100")])

    def test_also_with_a_handler_that_blocks_its_thread_for_long(self):
        with ServerProcess(workers=1) as server:
            client = server.connect()
            client.send((apps.SLEEP, b"60000"), (apps.REACTOR, b"never"))
            server.connect().ask(apps.PING)
            self.kill_master(server, "sleeping")

    def test_also_with_a_handler_that_blocks_the_reactor(self):
        with ServerProcess(workers=1) as server:
            client = server.connect()
            client.ask(apps.PING)
            client.send((apps.BLOCK, b"60000"))
            self.kill_master(server, "blocked")

    def test_a_server_starts_over_the_pid_file_that_is_left(self):
        with ServerProcess(workers=1) as server:
            os.kill(server.master, signal.SIGKILL)
            server.wait()
            wait_until(server.is_gone, "the workers to be gone")
            self.assertNotEqual(server.read("twistd.pid"), "")
            server.launch()
            wait_until(lambda: server.log.count(" ready: ") == 2, "the new server")
            with server.connect() as client:
                client.ask(apps.PING)
