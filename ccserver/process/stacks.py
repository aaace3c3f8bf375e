"""Stacks: what the threads of a process do, told even where it can run no Python code."""

from __future__ import annotations

import faulthandler
import signal

STACKS_SIGNAL = signal.SIGRTMIN
"""Has a process write down the stacks of all its threads. Nothing else uses it."""


def report_stacks_on_signal(fd: int) -> None:
    """Write the stacks of all threads to C{fd} at each L{STACKS_SIGNAL}, and at a crash.

    It is done within the signal handler, in C, so that it works where a reactor is blocked or the
    interpreter's lock is held. C{fd} has to stay the log's descriptor: L{LineObserver} keeps its
    number when it opens the file anew.
    """
    faulthandler.register(STACKS_SIGNAL, file=fd, all_threads=True, chain=False)
    faulthandler.enable(file=fd, all_threads=True)
