"""Talking to a running server: its control socket is found, asked, and waited for."""

from __future__ import annotations

import functools
import json
import os
import select
import socket
import struct
from collections.abc import Callable
from time import monotonic, sleep
from types import TracebackType
from typing import Any

import click

from ccserver.config import ControlSettings
from ccserver.config.conffile import printable, read_text
from ccserver.config.reading import Reading
from ccserver.errors import CcserverError, OperationFailed

DEFAULT_CONFIG = "etc/ccserver.conf"

TIMEOUT = 10.0
"""Seconds for connecting, and for a first sign that the server has understood."""

END_TIMEOUT = 10.0
"""Seconds that the process may live on when the control connection has ended."""

LOOK_INTERVAL = 0.5
"""Seconds between two looks at a server that is stopping."""

ANSWER_LIMIT = 64 << 20
"""Bytes of an answer: ten times what 10,000 connections take."""

RETRY_INTERVAL = 0.05


class ServerGone(OperationFailed):
    """The server has closed the control connection."""

    reason = "gone"


def controlling(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of C{function}, whose first argument is the path of the control socket.

    Adds the options that say which server is meant; a refusal ends the command with one line.
    """

    @click.option(
        "--config",
        "-c",
        "file",
        default=DEFAULT_CONFIG,
        show_default=True,
        metavar="FILE",
        help="The configuration that the server was started with.",
    )
    @click.option(
        "--rundir",
        "-d",
        metavar="FOLDER",
        help="Where the server was started, if not in the current folder.",
    )
    @click.option(
        "--control", metavar="PATH", help="The server's control socket, instead of FILE's."
    )
    @functools.wraps(function)
    def command(
        *arguments: Any, file: str, rundir: str | None, control: str | None, **options: Any
    ) -> None:
        try:
            function(control or control_path(file, rundir), *arguments, **options)
        except CcserverError as error:
            raise click.ClickException(printable(str(error))) from error

    return command


def control_path(file: str, rundir: str | None) -> str:
    """The control socket that the configuration C{file} names.

    What is wrong elsewhere in the file does not matter: a server that runs can be asked.

    @raise ConfigError: the file cannot be read, or its C{Control} is wrong.
    """
    base = os.path.abspath(rundir or ".")
    reading = Reading(read_text(file), file, base)
    path = reading.part(ControlSettings).path
    for error in reading.errors:
        if error.key == "Control" or not reading.entries:
            raise error
    return path


class ControlClient:
    """A connection to the control socket at C{path}.

    Everything in it raises L{OperationFailed} with what a user can make sense of.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._received = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._process: int | None = None
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        self._process = self._descriptor_of_process()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave; what the server has begun for us it carries on."""
        self._socket.close()
        if self._process is not None:
            os.close(self._process)
            self._process = None

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The result of a command that takes no time."""
        deadline = monotonic() + TIMEOUT
        self._send(command, arguments)
        while True:
            answer = self._answer(deadline)
            if "result" in answer:
                return _result(answer)

    def begin(self, command: str, **arguments: Any) -> None:
        """Let the server begin a command that takes time; returns when it has accepted it."""
        self._send(command, arguments)
        self._answer(monotonic() + TIMEOUT)

    def carry_out(
        self, command: str, on_progress: Callable[[str], None], **arguments: Any
    ) -> dict[str, Any]:
        """The result of a command that takes time, at its end, however long that is."""
        self._send(command, arguments)
        answer = self._answer(monotonic() + TIMEOUT)
        while "result" not in answer:
            if "progress" in answer:
                on_progress(str(answer["progress"]))
            answer = self._answer(None)
        return _result(answer)

    def wait_for_end(self, on_progress: Callable[[str], None]) -> None:
        """Wait until the server, which is stopping, is gone."""
        try:
            while True:
                on_progress(_still_doing(self._look()))
                self._pause()
        except ServerGone:
            pass
        if self._process is not None and not select.select([self._process], [], [], END_TIMEOUT)[0]:
            raise OperationFailed(
                f"the server's process has not ended within {END_TIMEOUT:g} seconds"
            )

    def _look(self) -> dict[str, Any]:
        try:
            return self.ask("status")
        except ServerGone:
            raise
        except OperationFailed:
            return {}  # it has other things to do, but is there

    def _pause(self) -> None:
        """Let some time pass, or less if the server goes."""
        try:
            self._line(monotonic() + LOOK_INTERVAL)
        except TimeoutError:
            pass

    def _connect(self) -> None:
        deadline = monotonic() + TIMEOUT
        self._socket.settimeout(TIMEOUT)
        while True:
            try:
                self._socket.connect(self._path)
                return
            except BlockingIOError:
                if monotonic() >= deadline:
                    raise self._failed("the server does not answer") from None
                sleep(RETRY_INTERVAL)  # its queue is full
            except TimeoutError:
                raise self._failed("the server does not answer") from None
            except FileNotFoundError:
                raise self._failed("the server is not running") from None
            except ConnectionRefusedError:
                raise self._failed("the server is not running any more") from None
            except PermissionError:
                why = "permission denied: only the server's user and root may"
                raise self._failed(why) from None
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error)
                raise self._failed(f"cannot connect: {why}") from None

    def _descriptor_of_process(self) -> int | None:
        """By which the end of the server's process can be waited for; None where that is not so."""
        data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid: int = struct.unpack("iII", data)[0]
        if pid in (0, os.getpid()):
            return None  # of another pid namespace, or ourselves
        try:
            return os.pidfd_open(pid)
        except OSError:
            return None

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        given = {key: value for key, value in arguments.items() if value is not None}
        request = json.dumps({"command": command, **given}).encode() + b"\n"
        self._socket.settimeout(TIMEOUT)
        try:
            self._socket.sendall(request)
        except TimeoutError:
            raise self._failed("the server does not answer") from None
        except OSError:
            pass  # it has closed; why, it may have said before

    def _answer(self, deadline: float | None) -> dict[str, Any]:
        """The next line, unless it says that the command failed."""
        try:
            line = self._line(deadline)
        except TimeoutError:
            raise self._failed("the server does not answer") from None
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._failed("what answers there is not a server of ours")
        if "error" in answer:
            raise OperationFailed(str(answer["error"]))
        return answer

    def _line(self, deadline: float | None) -> bytes:
        """@raise TimeoutError: none came until C{deadline}."""
        looked = 0
        while True:
            end = self._received.find(b"\n", looked)
            if end >= 0:
                line = bytes(self._received[:end])
                del self._received[: end + 1]
                return line
            looked = len(self._received)
            if looked > ANSWER_LIMIT:
                raise self._failed("the answer is too long")
            self._received += self._read(deadline)

    def _read(self, deadline: float | None) -> bytes:
        left = None if deadline is None else deadline - monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError:
            data = b""
        if not data:
            raise ServerGone(f"the server has ended, or closed the connection: {self._where()}")
        return data

    def _failed(self, why: str) -> OperationFailed:
        return OperationFailed(f"{why}: {self._where()}")

    def _where(self) -> str:
        return f"control socket {self._path}"


def _result(answer: dict[str, Any]) -> dict[str, Any]:
    result = answer["result"]
    return result if isinstance(result, dict) else {}


def _still_doing(status: dict[str, Any]) -> str:
    """What a server that is stopping is doing, as far as it says."""
    return str(status.get("doing") or "")
