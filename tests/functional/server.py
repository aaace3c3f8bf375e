"""Real servers: started by twistd in a folder of their own, and gone whole at the end."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self, TypeVar

from twisted.trial.unittest import SynchronousTestCase

import ccserver
from ccserver.core.framing import FrameDecoder, Packet, encode
from tests.ports import bind, free_port

T = TypeVar("T")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(ccserver.__file__)))
PLAIN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "plain")
"""Has whoever finds it in his path do without pyOpenSSL."""

ECHO = "tests.functional.apps:echo"
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
FIGURES = "CCSERVER_TEST_FIGURES"
TIMEOUT = 60.0
"""Seconds that a test waits before it fails: a machine that is full of others takes its time."""

PAUSE = 0.01


def wait_until(
    condition: Callable[[], T], what: str, timeout: float = TIMEOUT, pause: float = PAUSE
) -> T:
    """What C{condition} returns as soon as it is true.

    @param pause: seconds between two looks.
    @raise AssertionError: it is not within C{timeout} seconds.
    """
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout} seconds for {what}")
        time.sleep(pause)
    return value


def measured(what: str, value: float) -> None:
    """Note a figure in the file that the environment variable C{CCSERVER_TEST_FIGURES} names."""
    if os.environ.get(FIGURES):
        with open(os.environ[FIGURES], "a") as file:
            file.write(f"{what}: {value:.3f}\n")


class Client:
    """A connection that sends what it is told, byte for byte, and expects nothing but packets."""

    def __init__(self, port: int, timeout: float = TIMEOUT) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = "{}:{}".format(*self.socket.getsockname())
        self._decoder = FrameDecoder(0xFFFF)
        self._packets: deque[Packet] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def send(self, *packets: Packet) -> None:
        """Send packets in one piece."""
        self.socket.sendall(b"".join(encode(code, body) for code, body in packets))

    def receive(self) -> Packet | None:
        """The next packet; None at the end of the stream.

        @raise AssertionError: what came is no packet.
        @raise OSError: reset, or nothing came in time.
        """
        while not self._packets:
            data = self.socket.recv(65536)
            if not data:
                assert self._decoder.end() is None, "the stream ends inside a packet"
                return None
            self._packets.extend(self._decoder.feed(data))
            assert not self._decoder.refused, self._decoder.refused
        return self._packets.popleft()

    def ask(self, code: int, body: bytes = b"") -> bytes:
        """The body of the reply to a request."""
        self.send((code, body))
        reply = self.receive()
        assert reply is not None, "closed instead of answered"
        assert reply[0] == code, reply
        return reply[1]

    def rest(self) -> list[Packet]:
        """All packets until the end of the stream."""
        return list(iter(self.receive, None))

    def read(self, size: int) -> bytes:
        """So many raw bytes, or those until the end of the stream."""
        data = b""
        while len(data) < size and (more := self.socket.recv(size - len(data))):
            data += more
        return data

    def end(self) -> None:
        """Send no more."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class ServerProcess:
    """C{twistd ccserver} in a process session and a folder of its own.

    As a context manager it is there, ready, in the block, and gone, with all its processes and
    files, behind it.

    @ivar folder: where it runs, with its configuration C{ccserver.conf} and log C{error.log}.
    @ivar port: where it listens, on 127.0.0.1.
    @ivar launched: when it was started, monotonic.
    @ivar pid_file: the path of its pid file, from there.
    """

    def __init__(
        self,
        app: str = ECHO,
        *,
        workers: int = 1,
        text: bytes | None = None,
        background: bool = False,
        **settings: object,
    ) -> None:
        """
        @param text: the whole configuration, instead of what the other arguments make of it.
        @param background: as a daemon.
        @param settings: further keys of the configuration.
        """
        self.folder = os.path.realpath(tempfile.mkdtemp(prefix="ccserver-test-"))
        self.port = free_port()
        self.launched = 0.0
        self.pid_file = "twistd.pid"
        self._background = background
        self._count = workers
        self._process: subprocess.Popen[bytes] | None = None
        keys = {
            "Listen": f"127.0.0.1:{self.port}",
            "WorkerProcesses": workers,
            "App": app,
            "AppPath": f"{ROOT}:.",
            "LogLevel": 7,
            **settings,
        }
        lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
        self.write("ccserver.conf", lines.encode() if text is None else text)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def path(self, name: str) -> str:
        """The path of a file of the server's folder."""
        return os.path.join(self.folder, name)

    def write(self, name: str, data: bytes = b"") -> None:
        """Write a file into the server's folder."""
        with open(self.path(name), "wb") as file:
            file.write(data)

    def read(self, name: str) -> str:
        """What is in a file of the server's folder; nothing, if there is none."""
        try:
            with open(self.path(name), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    @property
    def log(self) -> str:
        return self.read("error.log")

    @property
    def stderr(self) -> str:
        return self.read("stderr")

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        background = [] if self._background else ["-n"]
        arguments = [*self.command(), *background, f"--pidfile={self.pid_file}"]
        with open(self.path("stdout"), "ab") as stdout, open(self.path("stderr"), "ab") as stderr:
            self.launched = time.monotonic()
            self._process = subprocess.Popen(
                [*arguments, "ccserver", "--config", "ccserver.conf"],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": f"{PLAIN}:{ROOT}", **self.environment()},
                start_new_session=True,
                **self.passed(),
            )

    def command(self) -> Sequence[str]:
        """What runs twistd."""
        return TWISTD

    def environment(self) -> dict[str, str]:
        """What its environment has more than ours."""
        return {}

    def passed(self) -> dict[str, Any]:
        """What else the process is started with."""
        return {}

    def start(self) -> None:
        """Start it, and wait until all its workers serve."""
        self.launch()
        wait_until(lambda: " ready: " in self.log or self._has_failed(), "the server to be ready")
        assert not self._has_failed(), f"not started: {self.stderr}\n{self.log}"

    def _has_failed(self) -> bool:
        assert self._process is not None
        status = self._process.poll()
        return status is not None and (status != 0 or not self._background)

    @property
    def master(self) -> int:
        """The process that twistd has become."""
        if self._background:
            return int(self.read("twistd.pid"))
        assert self._process is not None
        return self._process.pid

    def workers(self) -> dict[int, int]:
        """The pids of the workers by slot."""
        found = {}
        for pid in children(self.master):
            match = re.match(r"ccserver: worker process ([0-9]+) ", title(pid))
            if match:
                found[int(match[1])] = pid
        return found

    def settle(self) -> None:
        """Wait until every worker that died has a replacement that serves."""

        def settled() -> bool:
            log = self.log
            died = len(re.findall(r" \[alert\] [0-9]+: worker process [0-9]+, pid ", log))
            replaced = len(re.findall(r" worker process [0-9]+, pid [0-9]+, serves", log))
            return replaced == died and len(self.workers()) == self._count

        wait_until(settled, "all workers to serve")

    def processes(self) -> list[int]:
        """The pids of all that runs in the folder, whose child it is by now does not matter."""
        return [pid for pid in pids() if _link_of(f"/proc/{pid}/cwd") == self.folder]

    def is_alive(self) -> bool:
        """Whether the process that was started runs."""
        return self._process is not None and self._process.poll() is None

    def send_signal(self, number: int) -> None:
        """Send the master a signal."""
        os.kill(self.master, number)

    def send_signal_to_all(self, number: int) -> None:
        """Send a signal to the whole process group, as a terminal does."""
        os.killpg(self.master, number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """The exit status of the process that was started; minus the signal that ended it."""
        assert self._process is not None
        return self._process.wait(timeout)

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Send the master a signal; the seconds until it is gone."""
        start = time.monotonic()
        self.send_signal(number)
        self.wait()
        return time.monotonic() - start

    def is_port_free(self) -> bool:
        try:
            bind(self.port).close()
        except OSError:
            return False
        return True

    def is_gone(self) -> bool:
        """Whether no process is left, and no socket.

        Processes that are not ours to wait for leave their folder before the kernel closes their
        sockets: neither alone shows the end.
        """
        return not self.processes() and self.is_port_free()

    def connect(self, **options: Any) -> Client:
        return Client(self.port, **options)

    def close(self) -> None:
        """Kill all of it, and remove its folder."""
        if self._process is not None:
            if self.is_alive():
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            wait_until(self._kill_rest, "the server's processes to be gone")
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill_rest(self) -> bool:
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left


class ServerCase(SynchronousTestCase):
    """Tests that share a server, started for the first of them.

    (trial never calls C{setUpClass}.) It lives until a test of another class needs one.

    @cvar options: of the L{ServerProcess}.
    """

    options: ClassVar[dict[str, Any]] = {}

    _owner: ClassVar[type | None] = None
    _running: ClassVar[ServerProcess | None] = None

    server: ServerProcess

    def setUp(self) -> None:
        running = ServerCase._running
        if ServerCase._owner is not type(self) or running is None or not running.is_alive():
            _stop_shared()
            ServerCase._running = ServerProcess(**self.options)
            ServerCase._owner = type(self)
            ServerCase._running.__enter__()
        assert ServerCase._running is not None
        self.server = ServerCase._running

    def connect(self) -> Client:
        """A connection that is closed at the end of the test."""
        client = self.server.connect()
        self.addCleanup(client.close)
        return client


@atexit.register
def _stop_shared() -> None:
    running, ServerCase._running = ServerCase._running, None
    if running is not None:
        running.close()


def pids() -> Iterator[int]:
    """All processes of the machine."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def children(pid: int) -> list[int]:
    """The children of a process, zombies too."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return list(map(int, file.read().split()))


def title(pid: int) -> str:
    """What C{ps} shows of a process; nothing of one that has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").strip().decode()
    except OSError:
        return ""


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors of a process and what they are, such as C{socket:[4711]}."""
    folder = f"/proc/{pid}/fd"
    found = {int(name): _link_of(f"{folder}/{name}") for name in os.listdir(folder)}
    return {number: what for number, what in found.items() if what}


def listening_sockets(port: int) -> dict[str, int]:
    """The sockets that listen on C{port}, and how many connections wait in each to be accepted.

    They are called as in L{descriptors}.
    """
    found = {}
    with open("/proc/net/tcp") as file:
        for line in file.readlines()[1:]:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
                found[f"socket:[{fields[9]}]"] = int(fields[4].rpartition(":")[2], 16)
    return found


def _link_of(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
