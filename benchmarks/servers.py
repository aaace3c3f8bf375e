"""The servers that are compared, and how one is started, found ready and ended."""

import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from benchmarks.processes import server_processes

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
START_DEADLINE = 20.0
END_DEADLINE = 5.0
POLL = 0.02
LAST_LINES = 5

_CONFIGURATION = """\
[Net]
Listen = {host}:{port}
worker_connections = 20000
OnFewDescriptors = warn

[Proc]
WorkerProcesses = 1
ProcMsgRecvWorkThreadCount = 4

[App]
App = benchmarks.echo:app
AppPath = {root}
"""


class ServerError(Exception):
    """A server cannot be measured."""


class StartError(ServerError):
    """It does not start, or does not answer."""


@dataclass(frozen=True)
class Server:
    """One way to serve the echo protocol."""

    name: str
    note: str
    command: Callable[[int, Path], list[str]]
    code: int = 1
    ordered: bool = True
    module: str = "twisted"

    @property
    def available(self) -> bool:
        """Whether the library it stands on is installed."""
        return importlib.util.find_spec(self.module) is not None


def _peer(name: str, *options: str) -> Callable[[int, Path], list[str]]:
    start = [sys.executable, "-m", f"benchmarks.peers.{name}"]
    return lambda port, folder: [*start, str(port), *options]


def _ccserver(port: int, folder: Path) -> list[str]:
    configuration = folder / "ccserver.conf"
    configuration.write_text(_CONFIGURATION.format(host=HOST, port=port, root=ROOT))
    return [*twistd(), "ccserver", "--config", str(configuration)]


def twistd() -> list[str]:
    """The beginning of a command that runs a plugin of twistd in the foreground."""
    script = Path(sysconfig.get_path("scripts")) / "twistd"
    return [sys.executable, str(script), "-n", "--pidfile="]


SERVERS = (
    Server("ccserver", "async def handler, on the reactor", _ccserver),
    Server("ccserver-thread", "def handler, in the pool of 4 threads", _ccserver, code=2),
    Server("uvloop", "Protocol, a read's replies joined", _peer("asyncio_protocol", "--uvloop"),
           module="uvloop"),
    Server("asyncio", "Protocol, a read's replies joined", _peer("asyncio_protocol"),
           module="asyncio"),
    Server("twisted", "stock reactor, a write for each reply", _peer("twisted_stock")),
    Server("twisted-thread", "deferToThread for each packet, 4 threads; replies in any order",
           _peer("twisted_defer_to_thread"), ordered=False),
)  # fmt: skip


class RunningServer:
    """A server in a process session and a folder of its own; both are gone afterwards."""

    def __init__(self, server: Server, core: int | None) -> None:
        self.server = server
        self._core = core
        self.port = _free_port()

    def __enter__(self) -> "RunningServer":
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark-")
        folder = Path(self._folder.name)
        self._output = folder / "output"
        pin = None if self._core is None else partial(os.sched_setaffinity, 0, {self._core})
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                self.server.command(self.port, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
                preexec_fn=pin,
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def leader(self) -> int:
        """The process that was started: the master."""
        return self._process.pid

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return Path(self._folder.name)

    def processes(self) -> frozenset[int]:
        """Master, workers and whatever else it started."""
        return server_processes(self._process.pid)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while not self._answers():
            if self._process.poll() is not None:
                raise StartError(f"ended with status {self._process.returncode}{self._tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"no answer within {START_DEADLINE:.0f} s{self._tail()}")
            time.sleep(POLL)

    def _answers(self) -> bool:
        body = b"are you there?"
        packet = struct.pack(">HHI", 8 + len(body), self.server.code, zlib.crc32(body)) + body
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(packet)
                return connection.recv(len(packet), socket.MSG_WAITALL) == packet
        except OSError:
            return False

    def _tail(self) -> str:
        lines = self._output.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        return "".join(f"\n    | {line}" for line in lines)

    def _end(self) -> None:
        members = self.processes()
        for kill, target in [(os.killpg, self._process.pid), *((os.kill, pid) for pid in members)]:
            try:
                kill(target, signal.SIGKILL)
            except ProcessLookupError:
                pass  # killing the group has ended it already
        self._process.wait()
        deadline = time.monotonic() + END_DEADLINE
        while self.processes() and time.monotonic() < deadline:
            time.sleep(POLL)  # what is still dying would take time from the next server
        self._folder.cleanup()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
