"""The log file: what cannot be written is counted and told, and nobody who logs notices."""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from threading import RLock

FILE_MODE = 0o640
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""A pipe that nobody empties is a fault of the log; it must not stop the reactor."""

CHECK_INTERVAL = 1.0
"""Seconds between two looks at whether the file was removed."""

TELL_INTERVAL = 60.0
"""Seconds between two lines on stderr that say that lines are lost."""

WRITING = 0.002
"""Seconds after which a line that another process is writing is there in whole."""

Tell = Callable[[str], bytes]
"""Makes a line of the log of a text."""


class LogFile:
    """A file that lines are appended to, and that comes back by itself.

    Lines that a full disk, or whatever else, does not take are lost; the first that it takes
    again stands behind one that says how many. Half a line, whoever has left it, is ended before
    another one begins. A file that was removed is made anew.
    May be called from any thread.

    @ivar path: of the file.
    @ivar is_exposed: root opens it in a folder that others may write: no link, and no other name
        of a file of the system, is followed.
    """

    def __init__(self, path: str, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        """@param tell: makes the lines that tell of the faults."""
        self.path = path
        self.is_exposed = False
        self._tell = tell
        self._clock = clock
        self._fd: int | None = None
        self._lock = RLock()  # a signal may come, or something be collected, that logs
        self._lost = 0
        self._why = ""
        self._torn = False  # the last line has no end
        self._told = -TELL_INTERVAL
        self._next_check = 0.0

    def fileno(self) -> int | None:
        """Its descriptor, which stays the same; None while it is not open."""
        return self._fd

    def open(self) -> None:
        """Open the file.

        @raise OSError: it can't be opened for writing.
        """
        self._fd = self._opened(self.path)
        self._next_check = self._clock() + CHECK_INTERVAL
        end_line(self._fd)

    def reopen(self) -> None:
        """Go on in the file that has the path now; in the old one, if there is none to be had.

        @raise OSError: there is none.
        """
        with self._lock:
            self._reopen()

    def check(self, path: str) -> None:
        """See whether C{path} could be the file.

        @raise OSError: it can't be opened for writing.
        """
        os.close(self._opened(path))

    def close(self) -> None:
        """Write no more."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def write(self, line: bytes) -> None:
        """Append C{line}, if that is possible."""
        if self._fd is None:
            return
        now = self._clock()
        if now < self._next_check and not self._lost:
            try:
                written = os.write(self._fd, line)
            except OSError as error:
                with self._lock:
                    self._lose(error, now)
                return
            if written != len(line):
                with self._lock:
                    self._torn = True
                    self._lose(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), now)
            return
        with self._lock:
            if now >= self._next_check:
                self._next_check = now + CHECK_INTERVAL
                self._look(now)
            self._try(line, now)

    def _try(self, line: bytes, now: float) -> None:
        """Append C{line}, and before it what is to be told of those that were lost."""
        if self._fd is None:
            return
        before = b""
        if self._lost:
            before = self._tell(f"{self._lost} lines of the log were lost: {self._why}")
            torn = is_torn(self._fd)  # by others, too, and they may have ended it
            self._torn = self._torn if torn is None else torn
        try:
            written = os.write(self._fd, (b"\n" if self._torn else b"") + before + line)
        except OSError as error:
            self._lose(error, now)
            return
        whole = len(before) + len(line) + self._torn
        self._torn = written not in (0, whole) or (self._torn and not written)
        if written == whole:
            self._lost = 0
        else:
            self._lose(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), now)

    def _lose(self, error: OSError, now: float) -> None:
        self._lost += 1
        self._why = os.strerror(error.errno) if error.errno else str(error)
        self._complain(f"cannot write to the log file {self.path}: {self._why}", now)

    def _look(self, now: float) -> None:
        """Make the file anew, if it was removed."""
        try:
            if self._fd is None or os.fstat(self._fd).st_nlink:
                return
            self._reopen()
            if os.fstat(self._fd).st_nlink:
                os.write(self._fd, self._tell("the log file was removed: it goes on in this one"))
            else:
                self._next_check = float("inf")  # one that never has a name
        except OSError as error:
            self._complain(f"cannot make the log file {self.path} anew: {error.strerror}", now)

    def _reopen(self) -> None:
        new = self._opened(self.path)
        end_line(new)
        if self._fd is None:
            self._fd = new
            return
        os.dup2(new, self._fd, inheritable=False)
        os.close(new)

    def _complain(self, text: str, now: float) -> None:
        if now - self._told >= TELL_INTERVAL and is_writable(2):
            self._told = now
            try:
                os.write(2, self._tell(text))
            except OSError:
                pass  # there is nobody left to tell

    def _opened(self, path: str) -> int:
        if not self.is_exposed or _is_closed(os.path.dirname(os.path.abspath(path))):
            return os.open(path, FLAGS, FILE_MODE)
        fd = os.open(path, FLAGS | os.O_NOFOLLOW, FILE_MODE)
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            os.close(fd)
            raise OSError(errno.EPERM, "others may write the folder, and it has two names", path)
        return fd


def end_line(fd: int) -> None:
    """End the line that the file C{fd} ends in, if it is half a one."""
    if is_torn(fd):
        with suppress(OSError):  # it is full still
            os.write(fd, b"\n")


def is_torn(fd: int) -> bool | None:
    """Whether the file that C{fd} appends to ends in half a line; None: that cannot be seen."""
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            return None
        reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        torn = os.pread(reading, 1, max(0, about.st_size - 1)) not in (b"", b"\n")
        if torn:  # or another process is just writing it
            time.sleep(WRITING)
            torn = os.fstat(fd).st_size == about.st_size
        return torn
    except OSError:
        return None
    finally:
        os.close(reading)


def is_writable(fd: int) -> bool:
    """Whether a write would not have to wait: nobody may read what is at the other end."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in poll.poll(0))


def _is_closed(folder: str) -> bool:
    """Whether nobody but root may put anything into C{folder}."""
    about = os.stat(folder)
    return about.st_uid == 0 and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
