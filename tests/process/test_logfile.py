"""The log file: lines that are lost are counted and told, and it comes back by itself."""

from __future__ import annotations

import errno
import os
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ccserver.process import logfile
from ccserver.process.logfile import CHECK_INTERVAL, TELL_INTERVAL, LogFile
from tests.support import folder


def told(text: str) -> bytes:
    return f"! {text}\n".encode()


class LogFileCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.folder = folder(self)
        self.path = os.path.join(self.folder, "error.log")
        self.fault: OSError | int | None = None
        self.stderr: list[bytes] = []
        self.write = os.write
        self.patch(logfile.os, "write", self.kernel)
        self.patch(logfile, "is_writable", lambda fd: True)

    def kernel(self, fd: int, data: bytes) -> int:
        if fd == 2:
            self.stderr.append(data)
            return len(data)
        if isinstance(self.fault, OSError):
            raise self.fault
        return self.write(fd, data if self.fault is None else data[: self.fault])

    def opened(self, **attributes: Any) -> LogFile:
        file = LogFile(self.path, told, self.clock.seconds)
        for name, value in attributes.items():
            setattr(file, name, value)
        file.open()
        self.addCleanup(file.close)
        return file

    def written(self, path: str | None = None) -> str:
        with open(path or self.path) as file:
            return file.read()


class FullDiskTests(LogFileCase):
    full = OSError(errno.ENOSPC, "No space left on device")

    def test_lines_that_are_lost_are_told_before_the_next_one(self):
        file = self.opened()
        file.write(b"one\n")
        self.fault = self.full
        for _ in range(3):
            file.write(b"lost\n")
        self.fault = None
        file.write(b"two\n")
        file.write(b"three\n")
        gap = "! 3 lines of the log were lost: No space left on device\n"
        self.assertEqual(self.written(), f"one\n{gap}two\nthree\n")

    def test_on_stderr_once_in_an_interval(self):
        file = self.opened()
        self.fault = self.full
        for _ in range(25):
            file.write(b"lost\n")
            self.clock.advance(TELL_INTERVAL / 10)
        self.assertEqual(len(self.stderr), 3)
        self.assertIn(b"cannot write to the log file", self.stderr[0])
        self.assertIn(self.path.encode(), self.stderr[0])
        self.assertIn(b"No space left on device", self.stderr[0])

    def test_a_line_that_is_cut_short_does_not_spoil_the_next(self):
        file = self.opened()
        self.fault = 2
        file.write(b"first\n")
        self.fault = None
        file.write(b"second\n")
        gap = "! 1 lines of the log were lost: No space left on device\n"
        self.assertEqual(self.written(), f"fi\n{gap}second\n")

    def test_a_line_that_another_process_was_cut_in_does_not_spoil_ours(self):
        first, second = self.opened(), self.opened()
        self.fault = self.full
        second.write(b"lost\n")
        self.fault = 2
        first.write(b"first\n")
        self.fault = None
        second.write(b"second\n")
        first.write(b"third\n")
        gap = "! 1 lines of the log were lost: No space left on device\n"
        self.assertEqual(self.written(), f"fi\n{gap}second\n{gap}third\n")

    def test_nor_does_one_that_was_there_before_us(self):
        for left, expected in (("", ""), ("whole\n", "whole\n"), ("half", "half\n")):
            with open(self.path, "w") as file:
                file.write(left)
            self.opened().write(b"ours\n")
            self.assertEqual(self.written(), f"{expected}ours\n")

    def test_opened_anew_it_goes_on_in_a_line_of_its_own(self):
        file = self.opened()
        os.rename(self.path, self.path + ".1")
        with open(self.path, "w") as other:
            other.write("half")
        file.reopen()
        file.write(b"ours\n")
        self.assertEqual(self.written(), "half\nours\n")

    def test_a_line_that_another_process_is_just_writing_is_none(self):
        with open(self.path, "w") as other:
            other.write("written")
            other.flush()

            def sleep(seconds: float) -> None:
                other.write(" in two\n")
                other.flush()

            self.patch(logfile.time, "sleep", sleep)
            self.opened().write(b"ours\n")
        self.assertEqual(self.written(), "written in two\nours\n")

    def test_a_disk_that_does_not_even_say_how_long_the_file_is_is_no_fault_of_who_logs(self):
        file = self.opened()
        self.fault = self.full
        file.write(b"lost\n")

        def fail(fd: int) -> Any:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        self.patch(logfile.os, "fstat", fail)
        file.write(b"lost\n")
        self.fault = None
        file.write(b"second\n")
        self.assertIn("! 2 lines of the log were lost", self.written())

    def test_where_the_file_cannot_be_read_it_goes_by_what_it_has_written(self):
        file = self.opened()
        self.patch(logfile, "is_torn", lambda fd: None)
        self.fault = 2
        file.write(b"first\n")
        self.fault = None
        file.write(b"second\n")
        gap = "! 1 lines of the log were lost: No space left on device\n"
        self.assertEqual(self.written(), f"fi\n{gap}second\n")

    def test_any_number_of_cuts_and_then_it_is_well_again(self):
        file = self.opened()
        for cut in (2, 0, 5, 40):
            self.fault = cut
            file.write(b"first\n")
        self.fault = None
        file.write(b"second\n")
        file.write(b"third\n")
        lines = self.written().splitlines()
        self.assertEqual(lines[-2:], ["second", "third"])
        self.assertIn("lines of the log were lost", lines[-3])

    def test_dev_full_is_no_fault_of_who_logs(self):
        self.path = "/dev/full"
        file = self.opened()
        file.write(b"x\n")
        file.write(b"y\n")
        self.assertEqual(len(self.stderr), 1)

    def test_a_pipe_that_nobody_empties_does_not_stop_the_reactor(self):
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        file = self.opened()
        for _ in range(100):
            file.write(b"x" * 4000 + b"\n")
        os.read(reader, 1 << 20)
        file.write(b"again\n")
        rest = os.read(reader, 65536)
        self.assertIn(b"lines of the log were lost", rest)
        self.assertTrue(rest.endswith(b"again\n"))


class RemovedTests(LogFileCase):
    def test_it_is_made_anew(self):
        file = self.opened()
        file.write(b"one\n")
        os.remove(self.path)
        self.clock.advance(CHECK_INTERVAL)
        file.write(b"two\n")
        expected = "! the log file was removed: it goes on in this one\ntwo\n"
        self.assertEqual(self.written(), expected)

    def test_with_its_folder_it_is_told_and_comes_back_with_it(self):
        file = self.opened()
        os.remove(self.path)
        os.rmdir(self.folder)
        for _ in range(5):
            self.clock.advance(CHECK_INTERVAL)
            file.write(b"lost\n")
        self.assertEqual(len(self.stderr), 1)
        self.assertIn(b"cannot make the log file", self.stderr[0])
        os.mkdir(self.folder)
        self.clock.advance(CHECK_INTERVAL)
        file.write(b"back\n")
        self.assertTrue(self.written().endswith("back\n"))

    def test_one_that_was_renamed_is_written_on_until_it_is_opened_anew(self):
        file = self.opened()
        os.rename(self.path, self.path + ".1")
        self.clock.advance(CHECK_INTERVAL)
        file.write(b"still\n")
        self.assertEqual(self.written(self.path + ".1"), "still\n")
        self.assertFalse(os.path.exists(self.path))

    def test_its_descriptor_stays_the_same(self):
        file = self.opened()
        before = file.fileno()
        os.remove(self.path)
        self.clock.advance(CHECK_INTERVAL)
        file.write(b"two\n")
        self.assertEqual(file.fileno(), before)
        self.assertFalse(os.get_inheritable(before or 0))

    def test_one_that_has_no_name_at_all_is_looked_at_once(self):
        fd = os.memfd_create("log")
        self.addCleanup(os.close, fd)
        self.path = f"/proc/self/fd/{fd}"
        file = self.opened()
        for _ in range(3):
            self.clock.advance(CHECK_INTERVAL)
            file.write(b"x\n")
        self.assertEqual(os.pread(fd, 100, 0), b"x\n" * 3)


class ExposedTests(LogFileCase):
    """Root opens it in a folder that others may write."""

    def setUp(self) -> None:
        super().setUp()
        self.secret = os.path.join(self.folder, "secret")
        with open(self.secret, "w") as file:
            file.write("secret\n")
        os.chmod(self.folder, 0o777)

    def test_a_regular_file_is_opened(self):
        self.opened(is_exposed=True).write(b"x\n")
        self.assertEqual(self.written(), "x\n")

    def test_what_a_link_leads_to_is_not(self):
        os.symlink(self.secret, self.path)
        self.assertRaises(OSError, self.opened, is_exposed=True)

    def test_a_file_with_another_name_is_not(self):
        os.link(self.secret, self.path)
        self.assertRaises(OSError, self.opened, is_exposed=True)
        self.assertEqual(self.written(), "secret\n")

    def test_where_only_root_may_write_a_link_is_his_own(self):
        if os.getuid():
            return  # the folder is not root's
        os.chmod(self.folder, 0o755)
        os.symlink(self.secret, self.path)
        self.opened(is_exposed=True).write(b"x\n")
        self.assertEqual(self.written(), "secret\nx\n")

    def test_who_does_not_become_another_follows_links(self):
        os.symlink(self.secret, self.path)
        self.opened().write(b"x\n")
        self.assertEqual(self.written(), "secret\nx\n")
