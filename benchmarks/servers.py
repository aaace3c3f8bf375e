"""The servers that are compared, and how one is started, found ready and ended."""

import importlib.util
import os
import shutil
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

from benchmarks.building import BuildError, build
from benchmarks.generator import compiler
from benchmarks.processes import server_processes
from ccserver.native import native

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
HOST = "127.0.0.1"
START_DEADLINE = 20.0
END_DEADLINE = 5.0
POLL = 0.02
LAST_LINES = 5

CONFIGURATION = """\
[Net]
Listen = {host}:{port}
worker_connections = 20000
OnFewDescriptors = warn

[Proc]
WorkerProcesses = {workers}
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
    """One way to serve the echo protocol.

    @ivar command: what starts it, by its port and its folder; may build it first.
    @ivar needs: says why it cannot run here, or None.
    @ivar configuration: of ccserver: the text of ccserver.conf in its folder, in which {host},
        {port}, {root} and {workers} are replaced.
    @ivar environment: variables that it gets besides.
    """

    name: str
    note: str
    command: Callable[[int, Path], list[str]]
    code: int = 1
    ordered: bool = True
    needs: Callable[[], str | None] = lambda: None
    configuration: str | None = None
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def missing(self) -> str | None:
        """Why it cannot run here; None where it can."""
        return self.needs()

    @property
    def available(self) -> bool:
        """Whether it can run here."""
        return self.missing is None


def ccserver_command(port: int, folder: Path) -> list[str]:
    """The command of a L{Server} with a configuration."""
    return [*twistd(), "ccserver", "--config", str(folder / "ccserver.conf")]


def twistd() -> list[str]:
    """The beginning of a command that runs a plugin of twistd in the foreground."""
    script = Path(sysconfig.get_path("scripts")) / "twistd"
    return [sys.executable, str(script), "-n", "--pidfile="]


def _peer(name: str, *options: str) -> Callable[[int, Path], list[str]]:
    start = [sys.executable, "-m", f"benchmarks.peers.{name}"]
    return lambda port, folder: [*start, str(port), *options]


def _node(port: int, folder: Path) -> list[str]:
    return ["node", str(PEERS / "node_server.js"), str(port)]


def _go(port: int, folder: Path) -> list[str]:
    source = PEERS / "go_server.go"
    program = build(source, "go_server", ["go", "build", "-o", "OUT", "SOURCE"])
    return [str(program), str(port)]


def c_command(port: int, folder: Path) -> list[str]:
    """The command of the server in C; how many processes may follow."""
    cc = [compiler() or "cc", "-O2", "-Wall", "-o", "OUT", "SOURCE"]
    source = PEERS / "epoll_server.c"
    program = build(source, "epoll_server", [*cc, "-DUSE_ZLIB", "-lz"], cc)
    return [str(program), str(port)]


def _needs_module(name: str) -> Callable[[], str | None]:
    reason = f"{name} is not installed"
    return lambda: None if importlib.util.find_spec(name) else reason


def _needs_program(name: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"there is no program {name}"


def _needs_compiler() -> str | None:
    return None if compiler() else "there is no C compiler"


def _needs_native() -> str | None:
    return None if native else "ccserver has no compiled part here that could be off"


_COMPILED = "" if native else "; without its compiled part"

_ccserver = partial(Server, command=ccserver_command, configuration=CONFIGURATION)

SERVERS = (
    _ccserver("ccserver", f"async def handler, on the reactor{_COMPILED}"),
    _ccserver("ccserver-thread", f"def handler, in the pool of 4 threads{_COMPILED}", code=2),
    _ccserver("ccserver-python", "as ccserver, with the compiled part off", needs=_needs_native,
              environment=(("CCSERVER_NATIVE", "0"),)),
    Server("uvloop", "Protocol, a read's replies joined", _peer("asyncio_protocol", "--uvloop"),
           needs=_needs_module("uvloop")),
    Server("asyncio", "Protocol, a read's replies joined", _peer("asyncio_protocol")),
    Server("gevent", "a greenlet for each connection, a read's replies joined",
           _peer("gevent_server"), needs=_needs_module("gevent")),
    Server("twisted", "stock reactor, a write for each reply", _peer("twisted_stock")),
    Server("twisted-thread", "deferToThread for each packet, 4 threads; replies in any order",
           _peer("twisted_defer_to_thread"), ordered=False),
    Server("node", "Node.js, net, a read's replies joined", _node, needs=_needs_program("node")),
    Server("go", "a goroutine for each connection, a read's replies joined", _go,
           needs=_needs_program("go")),
    Server("c", "epoll, one thread, a read's replies joined: the limit", c_command,
           needs=_needs_compiler),
)  # fmt: skip


class RunningServer:
    """A server in a process session and a folder of its own; both are gone afterwards."""

    def __init__(
        self,
        server: Server,
        core: int | None,
        workers: int = 1,
        start_deadline: float = START_DEADLINE,
    ) -> None:
        """
        @param workers: how many workers ccserver starts; the others are one process.
        @param start_deadline: seconds within which it answers.
        """
        if workers != 1 and server.configuration is None:
            raise ServerError(f"{server.name} cannot have {workers} workers")
        self.server = server
        self._core = core
        self._workers = workers
        self._start_deadline = start_deadline
        self.port = _free_port()

    def __enter__(self) -> "RunningServer":
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark-")
        try:
            self._start()
        except BaseException:
            self._folder.cleanup()
            raise
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

    def _start(self) -> None:
        try:
            command = self.server.command(self.port, self.folder)
        except BuildError as error:
            raise StartError(str(error)) from error
        if self.server.configuration is not None:
            text = self.server.configuration.format(
                host=HOST, port=self.port, root=ROOT, workers=self._workers
            )
            (self.folder / "ccserver.conf").write_text(text)
        pin = None if self._core is None else partial(os.sched_setaffinity, 0, {self._core})
        self._output = self.folder / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **dict(self.server.environment)},
                start_new_session=True,
                preexec_fn=pin,
            )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self._start_deadline
        while not self._answers():
            if self._process.poll() is not None:
                raise StartError(f"ended with status {self._process.returncode}{self._tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"no answer within {self._start_deadline:.0f} s{self._tail()}")
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
