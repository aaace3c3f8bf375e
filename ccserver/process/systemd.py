"""systemd: what it passes to a service, and what a service tells it (sd_notify, sd_listen_fds)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

FIRST_FD = 3
"""Where the descriptors that are passed begin (C{SD_LISTEN_FDS_START})."""

_NOTIFY = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_LISTEN = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES")


class Systemd:
    """The service manager that started this process; without one, everything does nothing.

    Made while the process still is the one that was started: L{makeService} runs before twistd
    forks. Its variables leave the environment, so that no other process takes them for its own.

    @ivar watchdog_interval: seconds between two calls of L{watchdog}; C{None}: none is expected.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """@param environ: loses the variables that are for this process alone."""
        told = {name: environ.pop(name, "") for name in (*_NOTIFY, *_LISTEN)}
        mine = str(os.getpid())
        self._address = told["NOTIFY_SOCKET"]
        self._timeout = _number(told["WATCHDOG_USEC"])  # microseconds
        if told["WATCHDOG_PID"] not in ("", mine) or not self._address:
            self._timeout = 0
        self.watchdog_interval = self._timeout / 2e6 if self._timeout else None
        self._passed = _number(told["LISTEN_FDS"]) if told["LISTEN_PID"] == mine else 0
        self._names = told["LISTEN_FDNAMES"].split(":")

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """The sockets that were passed, each with its name; the caller's from now on.

        What is passed and is no socket is left alone.
        """
        found = []
        for fd in range(FIRST_FD, FIRST_FD + self._passed):
            place = fd - FIRST_FD
            name = self._names[place] if place < len(self._names) else "unknown"
            try:
                os.set_inheritable(fd, False)
                found.append((name, socket.socket(fileno=fd)))
            except OSError:
                continue
        self._passed = 0
        return found

    def environment(self) -> dict[str, str]:
        """The variables that another main process of this service needs to tell as we do."""
        if not self._address:
            return {}
        timeout = {"WATCHDOG_USEC": str(self._timeout)} if self._timeout else {}
        return {"NOTIFY_SOCKET": self._address, **timeout}

    def ready(self) -> None:
        """The service serves: after its start, and after each reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """A reload has begun; L{ready} ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service has begun to stop."""
        self._tell("STOPPING=1")

    def main_pid(self, pid: int) -> None:
        """From now on C{pid} is the service's main process."""
        self._tell(f"MAINPID={pid}")

    def watchdog(self) -> None:
        """The service is well: at least each L{watchdog_interval} seconds."""
        self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if self._address[:1] not in ("/", "@"):
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]  # in the abstract namespace
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
                out.sendto("\n".join(lines).encode("utf-8", "replace"), address)
        except OSError:
            pass  # it is gone, or does not read: nothing that we could do, or wait for


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
