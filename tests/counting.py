"""Counts of what Python does, between C{begin} and C{end}, but for what is called C{apart}."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")

Figures = dict[str, float]


class Bytecodes:
    """Counts the interpreter's instructions, but for those of the tests themselves.

    @ivar part: whose they are.
    """

    part = "reactor"

    def __init__(self) -> None:
        self._begun = False
        self._counts = {"reactor": 0, "thread": 0}

    def begin(self) -> None:
        """To be called apart: it counts when that is over."""
        self._begun = True
        self._counts = dict.fromkeys(self._counts, 0)
        self._follow_callers(self._trace)

    def end(self, case: str, packets: int) -> Figures:
        self._begun = False
        sys.settrace(None)
        self._follow_callers(None)
        counts = self._counts.items()
        return {f"{case}, {part}": count / packets for part, count in counts if count}

    def apart(self, function: Callable[[], None]) -> None:
        """Call what is not to be counted."""
        sys.settrace(None)
        function()
        if self._begun:
            sys.settrace(self._trace)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            self._counts[self.part] += 1
        elif frame.f_code.co_filename.startswith(TESTS):
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._trace

    def _follow_callers(self, trace: Any) -> None:
        """Trace those who have called this, too, or no more."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if not frame.f_code.co_filename.startswith(TESTS):
                frame.f_trace = trace
                frame.f_trace_lines = False
                frame.f_trace_opcodes = True
            frame = frame.f_back


class Bytes:
    """Counts the bytes that are allocated and not freed again, but for those of the tests."""

    part = ""

    def begin(self) -> None:
        gc.collect()
        tracemalloc.start()

    def end(self, case: str, packets: int) -> Figures:
        gc.collect()
        filters = [tracemalloc.Filter(False, f"{TESTS}*"), tracemalloc.Filter(False, __file__)]
        held = tracemalloc.take_snapshot().filter_traces(filters).traces
        tracemalloc.stop()
        return {case: sum(trace.size for trace in held) / packets}

    def apart(self, function: Callable[[], None]) -> None:
        """Call what is not to be counted."""
        function()


class Calls:
    """Counts allocations and system calls; being apart takes two or three allocations itself."""

    part = ""

    def __init__(self) -> None:
        self._library = ctypes.PyDLL(None)
        self.begin = self._library.begin
        self.apart = self._library.apart
        self.apart.argtypes = [ctypes.py_object]
        self.apart.restype = ctypes.py_object

    def end(self, case: str, packets: int) -> Figures:
        self._library.end(case.encode())
        counted = ("allocations", "system_calls")
        return {f"{case}, {what}": self._count(what) / packets for what in counted}

    def _count(self, what: str) -> int:
        return ctypes.c_long.in_dll(self._library, what).value


class Instructions(Calls):
    """Has callgrind write a file for each case, named in it."""

    def end(self, case: str, packets: int) -> Figures:
        self._library.end(case.encode())
        return {case: packets}
