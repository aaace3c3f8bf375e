"""systemd's protocol: what the server tells, and the sockets that it is given."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.operator import Operator
from tests.functional.server import TWISTD, Client, ServerProcess, wait_until

AS_SYSTEMD = (
    "import os, sys\n"
    "os.environ['LISTEN_PID'] = str(os.getpid())\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
)
"""systemd sets LISTEN_PID in the process that becomes the service."""


class NotifiedServer(ServerProcess):
    """A server that tells us how it goes, and may be given a socket."""

    def __init__(self, given=None, **options):
        super().__init__(**options)
        self.given = given
        self.told = []
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(self.path("notify"))
        # all the time: few messages fit into the socket, and more are thrown away
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def environment(self):
        told = {"NOTIFY_SOCKET": self.path("notify"), "WATCHDOG_USEC": "1000000"}
        return told if self.given is None else {**told, "LISTEN_FDS": "1"}

    def command(self):
        if self.given is None:
            return TWISTD
        return (sys.executable, "-c", AS_SYSTEMD, *TWISTD[1:])

    def passed(self):
        if self.given is None:
            return {}
        fd = self.given.fileno()  # the first descriptor that systemd passes is number 3

        def place():
            if fd == 3:
                os.set_inheritable(3, True)
            else:
                os.dup2(fd, 3)

        return {"preexec_fn": place, "pass_fds": (3,)}

    def _listen(self):
        while message := self.manager.recv(4096):
            self.told.extend(message.decode().split("\n"))

    def hear(self, word):
        """Whether it has told C{word} by now."""
        return any(line.startswith(word) for line in self.told)

    def close(self):
        super().close()
        self.manager.shutdown(socket.SHUT_RD)
        self._listener.join()
        self.manager.close()


class NotifyTests(SynchronousTestCase):
    def serve(self, given=None, **options):
        server = NotifiedServer(given, workers=1, **options)
        self.addCleanup(server.close)
        server.start()
        return server

    def test_it_tells_of_its_start_its_reloads_its_health_and_its_end(self):
        server = self.serve()
        wait_until(lambda: server.hear("READY=1"), "READY")
        wait_until(
            lambda: server.hear("READY") and server.told.count("WATCHDOG=1") > 1, "its pulse"
        )
        server.told.clear()
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: server.hear("READY=1"), "READY again")
        self.assertIn("RELOADING=1", server.told)
        (since,) = [line for line in server.told if line.startswith("MONOTONIC_USEC=")]
        self.assertGreater(int(since.partition("=")[2]), 0)
        self.assertLess(server.told.index("RELOADING=1"), server.told.index("READY=1"))
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: server.hear("STOPPING=1"), "STOPPING")

    def test_an_upgrade_tells_the_new_main_process(self):
        server = self.serve()
        with server.connect() as client:
            client.ask(apps.PING)
            done = Operator(server).ask("upgrade")
            wait_until(lambda: server.hear(f"MAINPID={done['pid']}"), "MAINPID")
            client.ask(apps.PING)

    def test_it_serves_on_the_socket_that_it_is_given(self):
        given = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(given.close)
        port = given.getsockname()[1]
        with Client(port) as early:  # before it is started
            early.send((apps.REACTOR, b"early"))
            server = NotifiedServer(given, workers=2, Listen=f"127.0.0.1:{port}")
            server.port = port
            self.addCleanup(server.close)
            server.start()
            for _ in range(10):
                with server.connect() as client:
                    client.ask(apps.PING)
            Operator(server).reload()
            with server.connect() as client:
                client.ask(apps.PING)
            self.assertEqual(early.receive(), (apps.REACTOR, b"early"))
            early.ask(apps.PING)
        for pid in server.workers().values():
            with open(f"/proc/{pid}/environ", "rb") as file:
                self.assertNotIn(b"LISTEN_", file.read())
        self.assertNotIn("LISTEN_PID", os.environ)
