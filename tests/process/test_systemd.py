"""systemd's protocols, spoken with a real datagram socket and real descriptors."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time

from twisted.trial.unittest import SynchronousTestCase

from ccserver.process.systemd import FIRST_FD, Systemd
from tests.support import folder

PASSED = """
import json, os
from ccserver.process.systemd import Systemd
os.environ["LISTEN_PID"] = {pid}
systemd = Systemd(os.environ)
told = [(name, s.getsockname(), s.get_inheritable()) for name, s in systemd.sockets()]
left = [name for name in os.environ if name.startswith("LISTEN_")]
print(json.dumps([told, left, len(systemd.sockets())]))
"""


class NotifyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.service = self.receiver(os.path.join(folder(self), "notify"))
        self.systemd = Systemd({"NOTIFY_SOCKET": str(self.service.getsockname())})

    def receiver(self, address: str) -> socket.socket:
        service = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(service.close)
        service.bind(address)
        return service

    def told(self) -> list[str]:
        return self.service.recv(4096).decode().split("\n")

    def test_ready(self):
        self.systemd.ready()
        self.assertEqual(self.told(), ["READY=1"])

    def test_reloading_says_since_when(self):
        before = time.monotonic_ns() // 1000
        self.systemd.reloading()
        reloading, since = self.told()
        self.assertEqual(reloading, "RELOADING=1")
        name, _, value = since.partition("=")
        self.assertEqual(name, "MONOTONIC_USEC")
        self.assertTrue(before <= int(value) <= time.monotonic_ns() // 1000)

    def test_stopping_main_process_and_watchdog(self):
        self.systemd.stopping()
        self.systemd.main_pid(4711)
        self.systemd.watchdog()
        self.assertEqual(self.told(), ["STOPPING=1"])
        self.assertEqual(self.told(), ["MAINPID=4711"])
        self.assertEqual(self.told(), ["WATCHDOG=1"])

    def test_an_abstract_address_begins_with_an_at(self):
        name = f"ccserver-test-{os.getpid()}-{id(self)}"
        self.service = self.receiver("\0" + name)
        Systemd({"NOTIFY_SOCKET": "@" + name}).ready()
        self.assertEqual(self.told(), ["READY=1"])

    def test_a_reader_that_does_not_read_holds_nobody_up(self):
        for _ in range(10_000):  # more than any queue of datagrams takes
            self.systemd.watchdog()
        self.assertEqual(self.told(), ["WATCHDOG=1"])

    def test_nobody_there_is_no_fault(self):
        self.service.close()
        self.systemd.ready()
        Systemd({"NOTIFY_SOCKET": "/nowhere/at/all"}).ready()
        Systemd({"NOTIFY_SOCKET": "vsock:2:1234"}).ready()
        Systemd({"NOTIFY_SOCKET": "/" + "long" * 100}).ready()
        Systemd({}).ready()

    def test_it_leaves_the_environment_and_can_be_passed_on(self):
        environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "20000000", "A": "B"}
        systemd = Systemd(environ)
        self.assertEqual(environ, {"A": "B"})
        self.assertEqual(
            systemd.environment(), {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "20000000"}
        )
        self.assertEqual(Systemd({}).environment(), {})


class WatchdogTests(SynchronousTestCase):
    def interval(self, **environ: str) -> float | None:
        return Systemd({"NOTIFY_SOCKET": "/run/notify", **environ}).watchdog_interval

    def test_twice_in_the_time_it_waits(self):
        self.assertEqual(self.interval(WATCHDOG_USEC="20000000"), 10.0)
        mine = str(os.getpid())
        self.assertEqual(self.interval(WATCHDOG_USEC="3000000", WATCHDOG_PID=mine), 1.5)

    def test_none_without_one_or_with_one_for_another_process(self):
        self.assertIsNone(self.interval())
        self.assertIsNone(self.interval(WATCHDOG_USEC="20000000", WATCHDOG_PID="1"))
        self.assertIsNone(self.interval(WATCHDOG_USEC="0"))
        self.assertIsNone(self.interval(WATCHDOG_USEC="soon"))
        self.assertIsNone(Systemd({"WATCHDOG_USEC": "20000000"}).watchdog_interval)


class ActivationTests(SynchronousTestCase):
    def passed(self, pid: str, names: str | None, count: int) -> list[object]:
        """What a process says that was given two sockets and a file as systemd gives them."""
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        with sockets[0], sockets[1], open(os.devnull, "rb") as file:
            self.names = [list(s.getsockname()) for s in sockets]
            fds = [sockets[0].fileno(), file.fileno(), sockets[1].fileno()]

            def place() -> None:
                # first out of the way of each other, to numbers that nobody has
                high = [fcntl.fcntl(fd, fcntl.F_DUPFD, FIRST_FD + len(fds)) for fd in fds]
                for number, fd in enumerate(high):
                    os.dup2(fd, FIRST_FD + number)

            environ = {
                **os.environ,
                "LISTEN_FDS": str(count),
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            if names is not None:
                environ["LISTEN_FDNAMES"] = names
            output = subprocess.run(
                [sys.executable, "-c", PASSED.format(pid=pid)],
                env=environ,
                preexec_fn=place,
                close_fds=False,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        told: list[object] = json.loads(output)
        return told

    def test_sockets_are_taken_with_their_names_and_what_is_none_is_left_alone(self):
        told, left, again = self.passed("str(os.getpid())", "game.socket:log:more.socket", 3)
        first, second = self.names
        self.assertEqual(told, [["game.socket", first, False], ["more.socket", second, False]])
        self.assertEqual((left, again), ([], 0))

    def test_without_names_they_are_unknown(self):
        told, _, _ = self.passed("str(os.getpid())", None, 1)
        self.assertEqual(told, [["", self.names[0], False]])

    def test_those_of_another_process_are_not_ours(self):
        self.assertEqual(self.passed("str(os.getppid())", None, 3), [[], [], 0])

    def test_nonsense_is_no_fault(self):
        mine = str(os.getpid())
        for count in ("", "-1", "many", "9" * 40):
            self.assertEqual(Systemd({"LISTEN_FDS": count, "LISTEN_PID": mine}).sockets(), [])
