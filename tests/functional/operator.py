"""Operators: what they ask of a server, by its control socket or the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from tests.functional.server import (
    PLAIN,
    ROOT,
    ServerProcess,
    descriptors,
    listening_sockets,
    wait_until,
)


class Refused(Exception):
    """The server says that it cannot."""


class Operator:
    """Someone at the control socket of a server."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.path = server.path("ccserver.sock")

    def ask(self, command: str, timeout: float = 60.0, **arguments: object) -> dict[str, Any]:
        """The result of a command.

        @raise Refused: the server's reason.
        """
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(timeout)
            line.connect(self.path)
            line.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with line.makefile("rb") as answers:
                for answer in map(json.loads, answers):
                    if "error" in answer:
                        raise Refused(answer["error"])
                    if "result" in answer:
                        result: dict[str, Any] = answer["result"]
                        return result
        raise AssertionError(f"{command}: the control socket ended without an answer")

    def status(self) -> dict[str, Any]:
        return self.ask("status")

    def reload(self) -> dict[str, Any]:
        return self.ask("reload")

    def serving(self) -> list[dict[str, Any]]:
        """The rows of the workers that serve."""
        return [row for row in self.status()["workers"] if row["state"] == "ready"]

    def wait_for_rest(self) -> None:
        """Wait until nothing is going on and no worker is on its way out."""

        def at_rest() -> bool:
            told = self.status()
            return told["state"] == "serving" and {row["state"] for row in told["workers"]} <= {
                "ready"
            }

        # a look keeps the master at work
        wait_until(at_rest, "nothing to be going on", pause=0.05)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run C{ccserver} with C{arguments} for this server."""
        return subprocess.run(
            [sys.executable, "-m", "ccserver", *arguments, "--control", self.path],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": f"{PLAIN}:{ROOT}"},
        )

    def signal_and_wait(self, number: int, line: str, failure: str = " failed: ") -> None:
        """Send the master a signal, and wait until the log has one more C{line}."""
        log = self.server.log
        before, failed = log.count(line), log.count(failure)
        self.server.send_signal(number)
        wait_until(
            lambda: self.server.log.count(line) > before or self.server.log.count(failure) > failed,
            line,
        )
        if self.server.log.count(line) == before:
            raise AssertionError(f"{signal.Signals(number).name}: {self.server.log[-1000:]}")


def resources(server: ServerProcess) -> dict[str, int]:
    """What leaks would show in: processes, their descriptors, listening sockets."""
    return {
        "processes": len(server.processes()),
        "descriptors of the master": _open(server.master),
        "descriptors of the workers": sum(map(_open, server.workers().values())),
        "listening sockets": len(listening_sockets(server.port)),
    }


def _open(pid: int) -> int:
    try:
        return len(descriptors(pid))
    except FileNotFoundError:  # it has just ended
        return 0


def settle_resources(server: ServerProcess, expected: dict[str, int]) -> None:
    """Wait until what is held is no more than C{expected}."""
    wait_until(
        lambda: all(resources(server)[key] <= value for key, value in expected.items()),
        f"{expected}, there are {resources(server)}",
        10,
    )


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
