"""Logs: events as lines in the family's format, from several processes into one file."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    eventAsText,
    globalLogBeginner,
)
from twisted.python.reflect import safe_repr, safe_str
from zope.interface import implementer

from ccserver.core.counts import LineLimit
from ccserver.process.logfile import LogFile, is_writable

LEVELS = ("stderr", "emerg", "alert", "crit", "error", "warn", "notice", "info", "debug")
"""The family's levels; their places are the numbers of C{LogLevel} (PROTOCOL.md 6)."""

NOTICE = LEVELS.index("notice")
INFO = LEVELS.index("info")

_SEVERITIES = {
    LogLevel.critical: LEVELS.index("crit"),
    LogLevel.error: LEVELS.index("error"),
    LogLevel.warn: LEVELS.index("warn"),
    LogLevel.info: INFO,
    LogLevel.debug: LEVELS.index("debug"),
}

_STDLIB_LEVELS = (
    (logging.CRITICAL, LogLevel.critical),
    (logging.ERROR, LogLevel.error),
    (logging.WARNING, LogLevel.warn),
    (logging.INFO, LogLevel.info),
    (logging.NOTSET, LogLevel.debug),
)

_ESCAPES = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) != "\t"
} | {0x2028: "\\u2028", 0x2029: "\\u2029"}


UNCAUGHT_LENGTH = 200
"""Characters of the text of what an exception was in that cannot be raised."""


class ProcessLogger(Logger):
    """A L{Logger} with the family's further levels, for what concerns the whole server."""

    def __get__(self, instance: object, owner: Any = None) -> ProcessLogger:
        logger = super().__get__(instance, owner)
        assert isinstance(logger, ProcessLogger)
        return logger

    def notice(self, format: str, **fields: Any) -> None:
        """Something normal that an operator wants to read, such as a start."""
        self.emit(LogLevel.info, format, severity=NOTICE, **fields)

    def alert(self, format: str, **fields: Any) -> None:
        """Something that calls for action at once, such as a worker that crashed."""
        self.emit(LogLevel.critical, format, severity=LEVELS.index("alert"), **fields)

    def emerg(self, format: str, **fields: Any) -> None:
        """The server cannot go on."""
        self.emit(LogLevel.critical, format, severity=LEVELS.index("emerg"), **fields)


@implementer(ILogObserver)
class LineObserver:
    """Writes events as lines of the family's format, to a file and, if asked, to stderr.

    C{2026/11/23 03:26:52 [error] 4370: *17 text (104: Connection reset by peer), client:
    127.0.0.1:5000, server: 0.0.0.0:5678}, and behind it, indented by a tab, the traceback of a
    failure, or the lines of C{stack}. The text's control characters are escaped. A line is one
    C{write} to a descriptor opened with C{O_APPEND}, so the lines of several processes do not tear
    each other. May be called from any thread. What cannot be written is dropped, and
    counted.

    @ivar file: where the lines go.
    """

    def __init__(self, path: str, level: int, stderr: bool) -> None:
        """
        @param path: of the file.
        @param level: 0 to 8; events above it are dropped.
        @param stderr: write to stderr as well.
        """
        self.file = LogFile(path, _warning)
        self.level = level
        self._stderr = stderr

    @property
    def path(self) -> str:
        """Of the file."""
        return self.file.path

    def open(self) -> None:
        """Open the file, before the first event.

        @raise OSError: it can't be opened for writing.
        """
        self.file.open()

    def reopen(self) -> None:
        """Go on in the file that has the path now; in the old one, if there is none to be had."""
        self.file.reopen()

    def fileno(self) -> int:
        """The descriptor of the file, which stays the same; of stderr, if there is none."""
        fd = self.file.fileno()
        return 2 if fd is None else fd

    def check(self, path: str) -> None:
        """See whether C{path} could be the file.

        @raise OSError: it can't be opened for writing.
        """
        self.file.check(path)

    def change(self, path: str, level: int) -> None:
        """Go on in the file C{path}, or in the one there is, if that can't be, with C{level}."""
        self.level = level
        if path != self.path:
            old, self.file.path = self.path, path
            try:
                self.reopen()
            except OSError:
                self.file.path = old
                raise

    def close(self) -> None:
        """Write no more to the file."""
        self.file.close()

    def __call__(self, event: LogEvent) -> None:
        severity = severity_of(event)
        if severity > self.level:
            return
        line = as_line(event, severity).encode("utf-8", "backslashreplace")
        self.file.write(line)
        if self._stderr and is_writable(2):
            try:
                os.write(2, line)
            except OSError:
                pass


def _warning(text: str) -> bytes:
    """The line of what is wrong with the log itself."""
    event = {"log_format": "{text}", "text": text, "log_time": time.time()}
    return as_line(event, LEVELS.index("warn")).encode("utf-8", "backslashreplace")


def severity_of(event: Mapping[str, Any]) -> int:
    """The family's level of an event, 0 to 8."""
    severity = event.get("severity")
    if isinstance(severity, int):
        return severity
    return _SEVERITIES.get(event.get("log_level", LogLevel.info), INFO)


def as_line(event: LogEvent, severity: int) -> str:
    """The event as one line, with its newline, and the lines of its traceback."""
    when = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(event.get("log_time")))
    text = eventAsText(event, includeTraceback=False, includeTimestamp=False, includeSystem=False)
    session = event.get("session")
    failure = event.get("log_failure")
    line = f"{when} [{LEVELS[severity]}] {os.getpid()}: "
    if session is not None:
        line += f"*{session.id} "
    line += escaped(text)
    error = getattr(failure, "value", None)
    if isinstance(error, OSError) and error.errno is not None:
        line += f" ({error.errno}: {os.strerror(error.errno)})"
    if session is not None:
        line += f", client: {session.peer}, server: {session.server}"
    line += "\n"
    lines = failure.getTraceback().rstrip().splitlines() if failure is not None else ()
    for part in event.get("stack", lines):
        line += f"\t{escaped(part)}\n"
    return line


def escaped(text: str) -> str:
    """C{text} with its control characters made visible: nobody can forge a line."""
    return text.translate(_ESCAPES)


class StdlibBridge(logging.Handler):
    """Brings what libraries log with the standard library's C{logging} into the same file."""

    log = Logger()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = next(ours for theirs, ours in _STDLIB_LEVELS if record.levelno >= theirs)
            text = f"{record.name}: {record.getMessage()}"
            if record.exc_info:
                text += " | " + logging.Formatter().formatException(record.exc_info)
        except Exception:  # a wrong call in some library must not raise there
            self.log.failure("a line of {name} cannot be written", name=record.name)
            return
        self.log.emit(level, "{text}", text=text)


class Uncaught:
    """Logs exceptions that the interpreter cannot raise, such as those of callbacks from C.

    It would write to stderr, which may be a pipe that nobody empties; and a client can cause some,
    by a host name in a TLS handshake that is none.
    """

    log = Logger()

    def __init__(self) -> None:
        self._lines = LineLimit(per_second=1)

    def __call__(self, uncaught: Any) -> None:
        """@param uncaught: as of C{sys.unraisablehook}."""
        kind, error = uncaught.exc_type, uncaught.exc_value
        more = self._lines.admit(kind.__name__, time.monotonic())
        if more is None:
            return
        self.log.warn(
            "an exception that cannot be raised, {kind}: {error}, in {where}{more}",
            kind=kind.__name__,
            error=safe_str(error)[:UNCAUGHT_LENGTH],
            where=(uncaught.err_msg or safe_repr(uncaught.object))[:UNCAUGHT_LENGTH],
            more=more,
            stack="".join(traceback.format_tb(uncaught.exc_traceback)).splitlines(),
        )


def begin(observer: LineObserver) -> None:
    """Send everything that this process logs to C{observer}, and nothing anywhere else.

    For a process that twistd does not start.
    """
    globalLogBeginner.beginLoggingTo([observer], discardBuffer=True, redirectStandardIO=False)
    bridge_stdlib()


def bridge_stdlib() -> None:
    """Let C{logging}, and what the interpreter has to tell by itself, end in Twisted's log."""
    sys.unraisablehook = Uncaught()
    root = logging.getLogger()
    if not any(isinstance(handler, StdlibBridge) for handler in root.handlers):
        root.addHandler(StdlibBridge())
        root.setLevel(logging.INFO)


def last_words(text: str) -> None:
    """Say C{text} on stderr: for a process that has no log yet."""
    sys.stderr.write(f"ccserver: {text}\n")
    sys.stderr.flush()
