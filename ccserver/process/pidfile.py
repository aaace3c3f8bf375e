"""The pid file: twistd writes and removes it; an upgrade needs its name for the new master."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import suppress
from tempfile import NamedTemporaryFile
from typing import Any

from ccserver.errors import OperationFailed, StartError

OLD = ".oldbin"
"""What nginx appends to the pid file's name of a master that is being replaced."""


class PidFile:
    """twistd's pid file, under the name that it has at the moment.

    twistd removes, at its end, what its option C{pidfile} names then: the option follows the file.
    """

    def __init__(self, options: MutableMapping[str, Any] | None) -> None:
        """@param options: twistd's; C{None}: there is no pid file."""
        self._options: MutableMapping[str, Any] = {} if options is None else options
        self._aside: str | None = None  # its own name, while it has another
        self._owned: str | None = None  # its name, while twistd shall not know it

    @property
    def path(self) -> str | None:
        """Where it is now; C{None}: there is none."""
        return self._options.get("pidfile") or None

    def step_aside(self) -> None:
        """Leave the name to a new master.

        @raise OperationFailed: the file cannot be renamed, or another master has one of its names;
            nothing has changed.
        """
        path = self._aside or self.path
        if path is None:
            return
        for name in (path, path + OLD):
            other = _pid_in(name)
            if other is not None and other != os.getpid() and _is_server(other):
                raise OperationFailed(f"{name} is that of process {other}, which has not ended yet")
        if self._aside is None:  # else it could not come back
            self._rename(path, path + OLD)
            self._aside = path

    def come_back(self) -> None:
        """Take the name back: the new master has failed.

        @raise OperationFailed: the file cannot be renamed; it keeps the other name.
        """
        if self._aside is not None and self.path is not None:
            self._rename(self.path, self._aside)
            self._aside = None

    def disown(self) -> None:
        """Leave the file there at our end: it is the old master's, until we have taken over."""
        self._owned = self.path
        self._options["pidfile"] = ""

    def own(self) -> None:
        """It is ours again: twistd shall remove it at our end."""
        if self._owned is not None:
            self._options["pidfile"], self._owned = self._owned, None

    def _rename(self, old: str, new: str) -> None:
        try:
            os.rename(old, new)
        except OSError as error:
            raise OperationFailed(f"cannot rename {old} to {new}: {error.strerror}") from None
        self._options["pidfile"] = new


def remove_stale(path: str | None) -> None:
    """Remove the pid file of a process that is no server any more, which stops twistd.

    twistd only looks whether there is such a process. In a restarted container it is often
    this one; after a restart of the machine, another program.
    """
    pid = _pid_in(path) if path else None
    if path and pid is not None and (pid == os.getpid() or not _is_server(pid)):
        with suppress(OSError):
            os.remove(path)


def check(path: str | None) -> None:
    """See whether twistd can write its pid file, which it does when all else has begun.

    @raise StartError: it cannot.
    """
    if not path or os.path.lexists(path):
        return  # twistd says whose it is
    try:
        with NamedTemporaryFile(dir=os.path.dirname(path) or ".", prefix=".pid-") as file:
            file.write(b"%d" % os.getpid())
            file.flush()
    except OSError as error:
        raise StartError(f"cannot write the pid file {path}: {error.strerror}") from None


def _pid_in(path: str) -> int | None:
    try:
        with open(path, "rb") as file:
            text = file.read(32).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _is_server(pid: int) -> bool:
    """Whether it may be one of ours, or of twistd's; C{True} too if we may not know."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read()
    except FileNotFoundError:
        return not os.path.exists("/proc/self/cmdline")  # without /proc nobody knows
    except OSError:
        return True
    return b"ccserver" in command or b"twistd" in command
