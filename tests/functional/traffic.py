"""Traffic: many connections, in a process of their own, where every reply is checked."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Self

from tests.functional import traffic_process
from tests.functional.server import ROOT
from tests.functional.traffic_process import LONGEST_PAUSE, RATE, Counts

__all__ = ["LONGEST_PAUSE", "Traffic"]


class Traffic:
    """The process of the traffic; as a context manager it is under way in the block."""

    def __init__(
        self,
        port: int,
        connections: int,
        *,
        seed: int = 1,
        rate: float = RATE,
        reconnect: bool = False,
        patience: float = 15.0,
    ) -> None:
        """
        @param rate: packets per second, about, over all connections.
        @param reconnect: whoever is closed comes back, as a new conversation.
        @param patience: seconds in which, at the end, all that is owed has to come.
        """
        self._arguments = [port, connections, f"--seed={seed}", f"--rate={rate}"]
        self._arguments += [f"--patience={patience}", *(["--reconnect"] if reconnect else [])]
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = b""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", traffic_process.__name__, *map(str, self._arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ROOT},
            start_new_session=True,
        )
        try:
            self._answer(30.0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        process = self._process
        if process is not None:
            process.kill()
            process.communicate()
            self._process = None

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def counts(self) -> Counts:
        """What it has seen so far."""
        return self._ask("counts")

    def mark(self) -> Counts:
        """What it has seen so far; the longest pause is counted from here."""
        return self._ask("mark")

    def settled(self, connections: int) -> bool:
        """Whether so many are connected, all ends that there were having been heard of."""
        # the first answer may be from the midst of what had happened by then
        return self.counts().open == self.counts().open == connections

    def stop(self) -> Counts:
        """Send no more, wait for all that is owed and the end of every stream; what was seen."""
        return self._ask("stop", self._patience + 10.0)

    def _ask(self, command: str, timeout: float = 30.0) -> Counts:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        return self._answer(timeout)

    def _answer(self, timeout: float) -> Counts:
        assert self._process is not None
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._answers:
            ready, _, _ = select.select([self._process.stdout], [], [], end - time.monotonic())
            data = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            assert data, "the traffic says nothing"
            self._answers += data
        line, _, self._answers = self._answers.partition(b"\n")
        return Counts(**json.loads(line))
