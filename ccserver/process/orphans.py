"""Orphans: processes that lose their parent and become ours, as PID 1 of a container."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.process import reapProcessHandlers

from ccserver.process.pulse import Pulse

INTERVAL = 1.0
"""Seconds between two looks at which of them have ended."""

_PR_GET_CHILD_SUBREAPER = 37


def adopts_orphans() -> bool:
    """Whether the kernel makes orphans children of this process."""
    if os.getpid() == 1:
        return True
    answer = ctypes.c_int(0)
    asked = ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0)
    return asked == 0 and answer.value != 0


def spawned_here(pid: int) -> bool:
    """Whether Twisted has spawned the process, and waits for its end itself."""
    return pid in reapProcessHandlers


class Orphans:
    """Takes note of the ends of adopted processes, which would stay as zombies for ever.

    For a process in which nobody but Twisted starts processes: the end of one that somebody else
    waits for would be lost to him.
    """

    def __init__(self, reactor: Any, is_ours: Callable[[int], bool] = spawned_here) -> None:
        """@param is_ours: whether somebody here waits for the process himself."""
        self._is_ours = is_ours
        self._look = Pulse(reactor, "orphans", self.reap)

    def start(self) -> None:
        """Look from now on."""
        self._look.start(INTERVAL)

    def stop(self) -> None:
        """Look no more."""
        self._look.stop()

    def reap(self) -> None:
        """Take note of all orphans that have ended by now."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return  # no child at all
            if ended is None or self._is_ours(ended.si_pid):
                # the kernel shows one of ours first, which Twisted is about to take note of
                return
            os.waitpid(ended.si_pid, os.WNOHANG)
