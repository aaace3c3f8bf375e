"""The pid file: it can step aside for a new master, and a stale one does not stop a start."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Any

from twisted.scripts._twistd_unix import UnixApplicationRunner
from twisted.trial.unittest import SynchronousTestCase

from ccserver.errors import OperationFailed, StartError
from ccserver.process.pidfile import PidFile, check, remove_stale
from tests.support import folder


class PidFileCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.join(folder(self), "twistd.pid")
        self.options: dict[str, Any] = {"pidfile": self.path}
        self.file = PidFile(self.options)
        self.write(os.getpid())

    def write(self, pid: object, end: str = "") -> None:
        with open(self.path + end, "w") as file:
            file.write(str(pid))

    def names(self) -> list[str]:
        return sorted(os.listdir(os.path.dirname(self.path)))

    def process(self, *arguments: str) -> int:
        """The pid of a process that runs until the end of the test."""
        command = [sys.executable, "-c", "print(flush=True); input()", *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(process.communicate, b"\n")
        assert process.stdout is not None
        process.stdout.readline()  # its command line is there a moment after Popen returns
        return process.pid


class UpgradeTests(PidFileCase):
    def test_it_steps_aside_and_comes_back(self):
        self.file.step_aside()
        self.assertEqual(self.names(), ["twistd.pid.oldbin"])
        self.assertEqual(self.file.path, self.path + ".oldbin")
        self.write(4711)
        self.file.come_back()
        self.assertEqual(self.names(), ["twistd.pid"])
        self.assertEqual(self.file.path, self.path)
        with open(self.path) as file:
            self.assertEqual(file.read(), str(os.getpid()))

    def test_twistd_removes_the_name_it_has_at_the_end(self):
        self.file.step_aside()
        self.write(4711)
        UnixApplicationRunner.removePID(None, self.options["pidfile"])
        self.assertEqual(self.names(), ["twistd.pid"])

    def test_twistd_reads_the_option_at_its_end(self):
        """What the class relies on: postApplication looks the name up after the reactor."""
        removed = []
        step_aside = self.file.step_aside

        class Runner(UnixApplicationRunner):
            def startApplication(self, application: object) -> None:
                pass

            def startReactor(self, *arguments: object) -> None:
                step_aside()

            def removePID(self, pidfile: str) -> None:
                removed.append(pidfile)

        runner = Runner(self.options)
        runner.application = runner.oldstdout = runner.oldstderr = None
        runner.postApplication()
        self.assertEqual(removed, [self.path + ".oldbin"])

    def test_what_cannot_be_renamed_says_so_and_changes_nothing(self):
        os.remove(self.path)
        error = self.assertRaises(OperationFailed, self.file.step_aside)
        self.assertIn(f"cannot rename {self.path} to {self.path}.oldbin: No such file", str(error))
        self.assertEqual(self.file.path, self.path)

    def test_a_master_before_this_one_has_to_end_first(self):
        pid = self.process("ccserver")
        self.write(pid, ".oldbin")
        error = self.assertRaises(OperationFailed, self.file.step_aside)
        self.assertIn(f"process {pid}", str(error))
        self.assertEqual(self.names(), ["twistd.pid", "twistd.pid.oldbin"])

    def test_aside_it_stays_there_for_the_next_new_master(self):
        self.file.step_aside()
        self.write(2**22 + 1)  # one that failed, when the file could not come back
        self.file.step_aside()
        self.assertEqual(self.file.path, self.path + ".oldbin")
        self.assertEqual(self.names(), ["twistd.pid", "twistd.pid.oldbin"])

    def test_a_master_that_has_its_name_by_now_is_not_overwritten(self):
        self.file.step_aside()
        pid = self.process("ccserver")
        self.write(pid)
        error = self.assertRaises(OperationFailed, self.file.step_aside)
        self.assertIn(f"process {pid}", str(error))

    def test_a_file_that_it_left_behind_is_in_nobodys_way(self):
        self.write(self.process(), ".oldbin")
        self.file.step_aside()
        self.assertEqual(self.names(), ["twistd.pid.oldbin"])

    def test_without_a_pid_file_nothing_happens(self):
        for options in (None, {}, {"pidfile": ""}):
            file = PidFile(options)
            file.step_aside()
            file.come_back()
            self.assertIsNone(file.path)

    def test_coming_back_from_nowhere_is_no_fault(self):
        self.file.come_back()
        self.assertEqual(self.names(), ["twistd.pid"])


class CheckTests(PidFileCase):
    def test_one_that_can_be_written_is_not_there_afterwards(self):
        os.remove(self.path)
        check(self.path)
        self.assertEqual(self.names(), [])

    def test_one_that_is_there_is_left_to_twistd(self):
        self.write(4711)
        check(self.path)
        with open(self.path) as file:
            self.assertEqual(file.read(), "4711")

    def test_none_is_no_fault(self):
        check(None)
        check("")

    def test_one_that_cannot_be_made_is_told_of(self):
        path = os.path.join(self.path, "a.pid")
        error = self.assertRaises(StartError, check, path)
        self.assertEqual(str(error), f"cannot write the pid file {path}: Not a directory")

    def test_on_a_full_disk_nothing_is_left(self):
        os.remove(self.path)

        def full(*arguments: Any) -> Any:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(os, "getpid", full)  # between the open and the write
        error = self.assertRaises(StartError, check, self.path)
        self.assertIn(os.strerror(errno.ENOSPC), str(error))
        self.assertEqual(self.names(), [])


class StaleTests(PidFileCase):
    def left(self, pid: object) -> bool:
        self.write(pid)
        remove_stale(self.path)
        return os.path.exists(self.path)

    def test_that_of_a_server_stays(self):
        self.assertTrue(self.left(self.process("twistd", "ccserver")))
        self.assertTrue(self.left(self.process("/usr/bin/twistd", "web")))

    def test_that_of_another_program_or_of_none_goes(self):
        self.assertFalse(self.left(self.process()))
        self.assertFalse(self.left(2**22 + 1))

    def test_our_own_goes_in_a_container_all_are_1(self):
        self.assertFalse(self.left(os.getpid()))

    def test_what_is_no_number_is_left_to_twistd(self):
        self.assertTrue(self.left("who knows"))
        self.assertTrue(self.left(""))

    def test_none_is_no_fault(self):
        remove_stale(None)
        remove_stale("/nowhere/at/all")
