"""Becoming another user: ports, log and control socket first, and everything his behind that."""

from __future__ import annotations

import os
import pwd
import signal

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.operator import Operator
from tests.functional.server import ServerProcess, wait_until

NOBODY = pwd.getpwnam("nobody")


def owner(pid: int) -> int:
    """The user that a process is."""
    return os.stat(f"/proc/{pid}").st_uid


class UserTests(SynchronousTestCase):
    def launched(self, user: str) -> ServerProcess:
        server = ServerProcess(workers=1, User=user, LogLevel=6)
        self.addCleanup(server.close)
        os.chmod(server.folder, 0o777)
        server.launch()
        wait_until(lambda: " ready: " in server.log or not server.is_alive(), "it to serve, or end")
        return server

    def test_ones_own_name_changes_nothing(self):
        server = self.launched(pwd.getpwuid(os.geteuid()).pw_name)
        for pid in (server.master, *server.workers().values()):
            self.assertEqual(owner(pid), os.geteuid())
        with server.connect() as client:
            client.ask(apps.PING)

    def test_another_one_is_served_as_or_it_is_said_why_not(self):
        server = self.launched("nobody")
        if os.geteuid() != 0:
            self.assertIn("User nobody has no effect", server.log)
        elif not server.is_alive():  # this interpreter is not for everybody
            self.assertEqual(server.wait(), 3)
            self.assertIn("Permission denied", server.log)
            self.assertTrue(server.is_gone())
        else:
            for pid in (server.master, *server.workers().values()):
                self.assertEqual(owner(pid), NOBODY.pw_uid)
            for name in ("error.log", "ccserver.sock"):
                self.assertEqual(os.stat(server.path(name)).st_uid, NOBODY.pw_uid)
            with server.connect() as client:
                client.ask(apps.PING)
                Operator(server).reload()
                client.ask(apps.PING)
            server.stop(signal.SIGTERM)

    def test_one_that_there_is_not_is_refused(self):
        server = self.launched("nobody-by-that-name")
        self.assertEqual(server.wait(), 1)
        self.assertIn("nobody-by-that-name", server.stderr)
