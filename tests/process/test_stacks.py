"""Stacks of a process that can run no Python code, in its log."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

from twisted.trial.unittest import SynchronousTestCase

from ccserver.process.stacks import STACKS_SIGNAL
from tests.support import PATIENCE, folder

START = """
import itertools, os, sys, threading, time
from ccserver.process.logs import LineObserver
from ccserver.process.stacks import report_stacks_on_signal

log = LineObserver(sys.argv[1], 8, False)
log.open()
report_stacks_on_signal(log.fileno())

def ready():
    os.write(1, b"ready")

def sleeping_in_a_thread():
    time.sleep(600)

threading.Thread(target=sleeping_in_a_thread, daemon=True).start()
"""

IN_SLEEP = """
def blocked():
    ready()
    time.sleep(600)
"""

WITH_THE_LOCK = """
def blocked():
    ready()
    # one call of C that gives the interpreter's lock to nobody
    sum(itertools.repeat(1, 10 ** 12))
"""

IN_ANOTHER_FILE = """
def blocked():
    os.rename(sys.argv[1], sys.argv[1] + ".1")
    log.reopen()
    ready()
    time.sleep(600)
"""


class StacksTests(SynchronousTestCase):
    def blocked(self, code: str) -> subprocess.Popen[bytes]:
        """A process that does no more than hang in C{code}."""
        self.log = os.path.join(folder(self), "error.log")
        process = subprocess.Popen(
            [sys.executable, "-c", START + code + "\nblocked()\n", self.log],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        self.assertTrue(ready, "it does not start")
        self.assertEqual(os.read(process.stdout.fileno(), 5), b"ready")
        return process

    def logged(self, *parts: str) -> str:
        """The log, once all C{parts} are in it."""
        deadline = time.monotonic() + PATIENCE
        text = ""
        while not all(part in text for part in parts):
            self.assertLess(time.monotonic(), deadline, text)
            select.select([], [], [], 0.01)
            with open(self.log) as file:
                text = file.read()
        return text

    def test_of_all_threads_where_the_main_one_sleeps(self):
        process = self.blocked(IN_SLEEP)
        process.send_signal(STACKS_SIGNAL)
        self.logged("in blocked", "in sleeping_in_a_thread")
        self.assertIsNone(process.poll(), "it lives on, to be killed by who has asked")

    def test_where_no_thread_can_have_the_interpreters_lock(self):
        process = self.blocked(WITH_THE_LOCK)
        process.send_signal(STACKS_SIGNAL)
        self.logged("in blocked", "in sleeping_in_a_thread")

    def test_in_the_file_that_is_the_log_now(self):
        process = self.blocked(IN_ANOTHER_FILE)
        process.send_signal(STACKS_SIGNAL)
        self.logged("in blocked", "in sleeping_in_a_thread")

    def test_each_time_it_is_asked(self):
        process = self.blocked(IN_SLEEP)
        process.send_signal(STACKS_SIGNAL)
        self.logged("in blocked")
        os.truncate(self.log, 0)
        process.send_signal(STACKS_SIGNAL)
        self.logged("in blocked")

    def test_at_a_crash_too(self):
        process = self.blocked(IN_SLEEP)
        process.send_signal(signal.SIGSEGV)
        self.assertEqual(process.wait(PATIENCE), -signal.SIGSEGV)
        self.logged("Segmentation fault", "in blocked")
