import os
import signal
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.server import ServerProcess, descriptors, measured, wait_until


class DaemonTests(SynchronousTestCase):
    def setUp(self):
        self.server = ServerProcess(workers=2, background=True)
        self.addCleanup(self.server.close)
        self.server.start()

    def test_it_serves_with_its_standard_descriptors_on_dev_null(self):
        self.assertEqual(self.server.wait(), 0)
        with self.server.connect() as client:
            self.assertEqual(client.ask(apps.THREAD, b"body"), b"body")
        for pid in [self.server.master, *self.server.workers().values()]:
            opened = descriptors(pid)
            self.assertEqual([opened.get(number) for number in range(3)], ["/dev/null"] * 3, pid)

    def test_it_has_a_session_of_its_own(self):
        self.assertNotEqual(os.getsid(self.server.master), os.getsid(0))
        self.assertEqual(self.server.stderr + self.server.read("stdout"), "")

    def test_term_to_the_pid_of_its_pid_file_stops_it(self):
        master = self.server.master
        self.assertEqual(sorted(self.server.workers()), [0, 1])
        start = time.monotonic()
        os.kill(master, signal.SIGTERM)
        wait_until(self.server.is_gone, "the daemon to be gone")
        measured("stop of a daemon, seconds", time.monotonic() - start)
        self.assertFalse(os.path.exists(self.server.path("twistd.pid")))
        self.assertNotIn("Traceback", self.server.log)

    def test_a_second_one_is_refused_and_leaves_the_first_alone(self):
        master = self.server.master
        self.server.launch()
        self.assertEqual(self.server.wait(), 1)
        self.assertIn("Another twistd server is running", self.server.stderr)
        self.assertEqual(self.server.master, master)
        with self.server.connect() as client:
            client.ask(apps.PING)


class DaemonFailureTests(SynchronousTestCase):
    def test_an_application_that_is_not_there_ends_it_with_the_reason_in_the_log(self):
        server = ServerProcess("nowhere:app", workers=2, background=True)
        self.addCleanup(server.close)
        server.launch()
        wait_until(lambda: "there is no module nowhere" in server.log, "the reason")
        wait_until(server.is_gone, "the daemon to be gone")
        self.assertFalse(os.path.exists(server.path("twistd.pid")))
