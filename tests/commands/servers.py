"""Control sockets for tests of the commands: one that says what the test wants, and ours."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from typing import Any
from unittest import TestCase

from click.testing import CliRunner, Result
from twisted.internet.epollreactor import EPollReactor
from twisted.trial.unittest import SynchronousTestCase

from ccserver.commands import main
from ccserver.process.control import ControlSocket
from tests.process.operators import FakeOperations
from tests.support import PATIENCE, folder

CLOSE = object()
"""In place of an answer: the connection is closed."""


class ScriptedServer:
    """Answers the requests it gets, over all connections, with what it was given for each.

    @ivar requests: what it was asked.
    """

    def __init__(self, test: TestCase, path: str, *script: list[Any]) -> None:
        """@param script: for each request its answers: objects, raw bytes, L{CLOSE}, or a call."""
        self.requests: list[dict[str, Any]] = []
        self._script = iter(script)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        test.addCleanup(self._stop)

    def _stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as file:
                try:
                    self._talk(file)
                except (OSError, StopIteration):
                    pass

    def _talk(self, file: Any) -> None:
        for line in file:
            self.requests.append(json.loads(line))
            for answer in next(self._script):
                if answer is CLOSE:
                    return
                if callable(answer):
                    answer()
                    continue
                raw = isinstance(answer, bytes)
                file.write(answer if raw else json.dumps(answer).encode() + b"\n")
                file.flush()


class RealServer:
    """The real control socket, on a reactor in a thread, with operations that do nothing."""

    def __init__(self, test: TestCase, path: str) -> None:
        self.operations = FakeOperations()
        self.reactor: Any = EPollReactor()
        self.control = ControlSocket(self.reactor, path, self.operations)
        self.control.open()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        test.addCleanup(self._stop)

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call C{function} in the reactor."""
        self.reactor.callFromThread(function, *arguments)

    def close(self) -> None:
        """The server ends. To be called in the reactor."""
        if not self._closed:
            self._closed = True
            self.control.close().addCallback(lambda _: self.reactor.stop())

    def _run(self) -> None:
        self.reactor.run(installSignalHandlers=False)

    def _stop(self) -> None:
        if self._thread.is_alive():
            self.call(self.close)
        self._thread.join(PATIENCE)
        for reader in self.reactor.removeAll():
            reader.connectionLost(None)
        self.reactor._poller.close()


class CommandCase(SynchronousTestCase):
    """Runs commands against the control socket C{path}."""

    def setUp(self) -> None:
        self.folder = folder(self)
        self.path = os.path.join(self.folder, "c.sock")

    def serve(self, *script: list[Any]) -> ScriptedServer:
        return ScriptedServer(self, self.path, *script)

    def run_command(self, *arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(main, arguments, prog_name="ccserver", **options)

    def run_here(self, *arguments: str) -> Result:
        return self.run_command(*arguments, "--control", self.path)

    def output(self, *arguments: str) -> str:
        """What the command prints; it must succeed, and say nothing else."""
        result = self.run_here(*arguments)
        self.assertEqual((result.exit_code, result.stderr), (0, ""), result.exception)
        return result.stdout

    def complaint(self, *arguments: str) -> str:
        """The one line that the command fails with."""
        return self.complaint_of(self.run_here(*arguments))

    def complaint_of(self, result: Result) -> str:
        self.assertEqual((result.exit_code, result.stdout), (1, ""), result.exception)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("Error: "), result.stderr)
        return result.stderr.removeprefix("Error: ").removesuffix("\n")
