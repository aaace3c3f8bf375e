"""Logs: one line an event, which nobody can forge or tear, whatever becomes of the file."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.limits import SessionLimits
from ccserver.core.session import Session
from ccserver.process import logs
from ccserver.process.logs import (
    LineObserver,
    ProcessLogger,
    StdlibBridge,
    Uncaught,
    as_line,
    severity_of,
)
from tests.support import folder, logged, open_descriptors, texts

NOON = 1613678231.0  # 2021/02/18 19:57:11 UTC


def failure(error: BaseException) -> Failure:
    try:
        raise error
    except BaseException:
        return Failure()


class LogsCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.join(folder(self), "error.log")
        self.set_zone("UTC")

    def set_zone(self, zone: str) -> None:
        before = os.environ.get("TZ")

        def restore() -> None:
            os.environ.pop("TZ", None)
            if before is not None:
                os.environ["TZ"] = before
            time.tzset()

        os.environ["TZ"] = zone
        time.tzset()
        self.addCleanup(restore)

    def opened(self, level: int = 8, stderr: bool = False) -> LineObserver:
        observer = LineObserver(self.path, level, stderr)
        observer.open()
        self.addCleanup(observer.close)
        return observer

    def event(self, text: str = "hello", **fields: Any) -> dict[str, Any]:
        return {"log_format": text, "log_time": NOON, "log_level": LogLevel.info, **fields}

    def written(self, path: str | None = None) -> str:
        with open(path or self.path, encoding="utf-8") as file:
            return file.read()

    def line(self, text: str = "hello", **fields: Any) -> str:
        """The line of an event, without the date and the process id."""
        event = self.event(text, **fields)
        line = as_line(event, severity_of(event))
        prefix = re.compile(r"2021/02/18 19:57:11 \[[a-z]+\] [0-9]+: ")
        match = prefix.match(line)
        assert match, line
        return line[match.end() :]


class LineTests(LogsCase):
    def test_a_line_is_in_the_familys_format(self):
        event = self.event("listening on {port}", port=5678)
        self.assertEqual(
            as_line(event, 7), f"2021/02/18 19:57:11 [info] {os.getpid()}: listening on 5678\n"
        )

    def test_times_are_local(self):
        self.set_zone("Europe/Berlin")
        self.assertTrue(as_line(self.event(), 7).startswith("2021/02/18 20:57:11 "))

    def test_an_event_without_a_time_has_the_time_it_is_written(self):
        event = self.event()
        del event["log_time"]
        self.assertRegex(as_line(event, 7), r"^2[0-9]{3}/[0-9]{2}/[0-9]{2} ")

    def test_each_level_has_its_name(self):
        for level, name in (
            (LogLevel.critical, "crit"),
            (LogLevel.error, "error"),
            (LogLevel.warn, "warn"),
            (LogLevel.info, "info"),
            (LogLevel.debug, "debug"),
        ):
            event = self.event(log_level=level)
            self.assertIn(f"[{name}]", as_line(event, severity_of(event)))

    def test_the_servers_own_events_have_the_familys_further_levels(self):
        events = logged(self)
        log = ProcessLogger()
        log.notice("a")
        log.alert("b")
        log.emerg("c")
        names = [logs.LEVELS[severity_of(event)] for event in events]
        self.assertEqual(names, ["notice", "alert", "emerg"])

    def test_an_event_without_a_level_is_an_info(self):
        self.assertEqual(severity_of({}), logs.INFO)

    def test_a_session_is_told_by_its_number_and_addresses(self):
        session = Session(17, "127.0.0.1:5000", "0.0.0.0:5678", SessionLimits(), 0.0)
        self.assertEqual(
            self.line("refused", session=session),
            "*17 refused, client: 127.0.0.1:5000, server: 0.0.0.0:5678\n",
        )

    def test_an_error_of_the_system_is_told_by_number_and_text(self):
        reset = failure(ConnectionResetError(errno.ECONNRESET, "whatever"))
        line = self.line("cannot read", log_failure=reset).splitlines()[0]
        self.assertEqual(line, "cannot read (104: Connection reset by peer)")

    def test_it_comes_before_the_session(self):
        session = Session(17, "1.2.3.4:5", "0.0.0.0:5678", SessionLimits(), 0.0)
        line = self.line("x", session=session, log_failure=failure(OSError(2, "no"))).split("\n")[0]
        self.assertEqual(
            line, "*17 x (2: No such file or directory), client: 1.2.3.4:5, server: 0.0.0.0:5678"
        )

    def test_an_error_without_a_number_has_no_suffix(self):
        line = self.line("x", log_failure=failure(OSError("no number"))).splitlines()[0]
        self.assertEqual(line, "x")

    def test_a_traceback_stands_behind_it_indented(self):
        first, *rest = self.line("raised", log_failure=failure(ValueError("bad"))).splitlines()
        self.assertEqual(first, "raised")
        self.assertTrue(all(line.startswith("\t") for line in rest))
        self.assertIn("ValueError: bad", rest[-1])

    def test_an_event_that_cannot_be_formatted_is_still_a_line(self):
        line = self.line("{missing.attribute}")
        self.assertTrue(line.endswith("\n"))
        self.assertEqual(line.count("\n"), 1)

    def test_a_value_whose_text_raises_is_still_a_line(self):
        class Bad:
            def __str__(self) -> str:
                raise ValueError("no text")

            __repr__ = __str__

        self.assertEqual(self.line("{bad}", bad=Bad()).count("\n"), 1)


class EscapeTests(LogsCase):
    """Nobody forges a line or sends a terminal commands."""

    def test_newlines_are_escaped(self):
        self.assertEqual(self.line("{x}", x="a\nb\r\nc"), "a\\x0ab\\x0d\\x0ac\n")

    def test_control_characters_are_escaped_all_but_the_tab(self):
        for code in (*range(32), *range(127, 160)):
            line = self.line("{x}", x=chr(code))
            self.assertEqual(line, "\t\n" if code == 9 else f"\\x{code:02x}\n")

    def test_other_separators_of_lines_are_escaped(self):
        self.assertEqual(self.line("{x}", x="a\u2028b\u2029c"), "a\\u2028b\\u2029c\n")

    def test_a_traceback_is_escaped_too(self):
        lines = self.line("x", log_failure=failure(ValueError("a\x1b[31m\rforged"))).splitlines()
        self.assertIn("a\\x1b[31m", "\n".join(lines))
        self.assertTrue(all(line.startswith("\t") for line in lines[1:]))

    def test_no_line_of_a_traceback_looks_like_an_event(self):
        text = "x\n2021/02/18 19:57:11 [emerg] 1: forged"
        lines = self.line("x", log_failure=failure(ValueError(text))).splitlines()
        self.assertFalse(any(re.match(r"20[0-9]{2}/", line) for line in lines))

    def test_text_of_other_languages_is_left_as_it_is(self):
        self.assertEqual(self.line("{x}", x="Grüße 你好"), "Grüße 你好\n")

    def test_what_is_no_utf_8_is_written_all_the_same(self):
        self.opened()(self.event("{x}", x="a\udcffb"))
        self.assertIn("a\\udcffb\n", self.written())


class FileTests(LogsCase):
    def test_events_above_the_level_are_dropped(self):
        observer = self.opened(level=5)
        observer(self.event("an info"))
        observer(self.event("a warning", log_level=LogLevel.warn))
        text = self.written()
        self.assertIn("a warning", text)
        self.assertNotIn("an info", text)

    def test_lines_are_appended_to_those_there_are(self):
        with open(self.path, "w") as file:
            file.write("before\n")
        self.opened()(self.event())
        self.assertTrue(self.written().startswith("before\n"))
        self.assertEqual(self.written().count("\n"), 2)

    def test_the_file_is_not_for_everybody(self):
        os.umask(before := os.umask(0))
        self.opened()
        self.assertEqual(os.stat(self.path).st_mode & 0o777 & ~before, 0o640 & ~before)

    def test_no_child_gets_its_descriptor(self):
        self.opened()
        mine = [
            int(fd)
            for fd in os.listdir("/proc/self/fd")
            if os.path.realpath(f"/proc/self/fd/{fd}") == self.path
        ]
        self.assertEqual([os.get_inheritable(fd) for fd in mine], [False])

    def test_opening_what_cannot_be_opened_is_an_os_error(self):
        self.path += "/in/a/file"
        self.assertRaises(OSError, LineObserver(self.path, 8, False).open)

    def test_to_stderr_as_well_where_that_is_asked_for(self):
        read, write = os.pipe()
        saved = os.dup(2)
        observer = self.opened(stderr=True)
        os.dup2(write, 2)
        try:
            observer(self.event())
        finally:
            os.dup2(saved, 2)
            for fd in (saved, write):
                os.close(fd)
        with open(read) as file:
            self.assertEqual(file.read(), self.written())

    def test_before_it_is_opened_and_after_it_is_closed_events_are_dropped(self):
        observer = LineObserver(self.path, 8, False)
        observer(self.event())
        observer.open()
        observer.close()
        observer(self.event())
        observer.close()
        self.assertEqual(self.written(), "")

    def test_lines_of_several_threads_are_whole(self):
        observer = self.opened()

        def write(number: int) -> None:
            for _ in range(200):
                observer(self.event("{x}", x=str(number) * 300))

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = self.written().splitlines()
        self.assertEqual(len(lines), 800)
        self.assertTrue(all(re.search(r": (.)\1{299}$", line) for line in lines))


class FaultTests(LogsCase):
    """The service goes on, whatever becomes of its log."""

    def test_a_full_disk_is_no_fault_of_who_logs(self):
        observer = LineObserver("/dev/full", 8, False)
        observer.open()
        self.addCleanup(observer.close)
        observer(self.event())
        observer(self.event(log_failure=failure(ValueError("x"))))

    def test_a_descriptor_that_somebody_closed_is_none_either(self):
        observer = LineObserver(self.path, 8, False)
        observer.open()
        (fd,) = [
            int(fd)
            for fd in os.listdir("/proc/self/fd")
            if os.path.realpath(f"/proc/self/fd/{fd}") == self.path
        ]
        os.close(fd)
        observer(self.event())


class ReopenTests(LogsCase):
    def test_after_a_rename_lines_go_into_a_new_file(self):
        observer = self.opened()
        observer(self.event("before"))
        os.rename(self.path, self.path + ".1")
        observer(self.event("between"))
        observer.reopen()
        observer(self.event("after"))
        old = self.written(self.path + ".1")
        self.assertIn("before", old)
        self.assertIn("between", old)
        self.assertNotIn("after", old)
        self.assertIn("after", self.written())

    def test_no_descriptor_is_lost(self):
        observer = self.opened()
        before = open_descriptors()
        for _ in range(10):
            observer.reopen()
        self.assertLessEqual(open_descriptors(), before)

    def test_no_child_gets_the_new_descriptor(self):
        observer = self.opened()
        observer.reopen()
        for fd in os.listdir("/proc/self/fd"):
            if os.path.realpath(f"/proc/self/fd/{fd}") == self.path:
                self.assertFalse(os.get_inheritable(int(fd)))

    def test_where_that_fails_the_old_file_is_written_on(self):
        observer = self.opened()
        old = self.path + ".1"
        os.rename(self.path, old)
        os.mkdir(self.path)
        self.assertRaises(OSError, observer.reopen)
        observer(self.event("still"))
        self.assertIn("still", self.written(old))


class UncaughtTests(LogsCase):
    """What the interpreter tells of exceptions that it cannot raise is in the same log."""

    def test_it_is_a_line_with_a_traceback_and_many_are_one(self):
        class Fragile:
            def __del__(self) -> None:
                raise ValueError("broken\n")

        events = logged(self)
        self.patch(sys, "unraisablehook", Uncaught())
        self.patch(time, "monotonic", lambda: 1000.0)
        for _ in range(3):
            Fragile()
        self.patch(time, "monotonic", lambda: 1001.0)
        Fragile()
        first, second = (as_line(event, severity_of(event)) for event in events)
        self.assertIn("[warn]", first)
        self.assertIn("cannot be raised, ValueError: broken\\x0a, in <function ", first)
        self.assertIn("in __del__", first)
        self.assertIn("(2 more such lines suppressed)", second)

    def test_where_it_was_is_what_the_interpreter_says_if_it_does(self):
        events = logged(self)
        told = {"exc_type": ValueError, "exc_value": ValueError("x" * 1000), "exc_traceback": None}
        Uncaught()(SimpleNamespace(**told, err_msg="Exception ignored in a callback", object=None))
        (text,) = texts(events)
        self.assertIn("xx, in Exception ignored in a callback", text)
        self.assertLess(len(text), 500)

    def test_a_process_with_a_log_has_it(self):
        self.patch(sys, "unraisablehook", None)
        root = logging.Logger("root")
        self.patch(logging, "getLogger", lambda: root)
        logs.bridge_stdlib()
        self.assertIsInstance(sys.unraisablehook, Uncaught)


class StdlibTests(LogsCase):
    """What libraries log with the standard library is in the same log."""

    def log(self, level: int, text: str, *args: Any, **fields: Any) -> list[dict[str, Any]]:
        events = logged(self)
        logger = logging.Logger("library")
        logger.addHandler(StdlibBridge())
        logger.log(level, text, *args, **fields)
        return events

    def test_it_is_told_with_the_librarys_name(self):
        self.assertEqual(texts(self.log(logging.INFO, "a %s", "b")), ["library: a b"])

    def test_levels_are_the_nearest(self):
        for theirs, ours in (
            (logging.CRITICAL, LogLevel.critical),
            (logging.ERROR, LogLevel.error),
            (logging.WARNING, LogLevel.warn),
            (logging.INFO, LogLevel.info),
            (logging.DEBUG, LogLevel.debug),
            (35, LogLevel.warn),
        ):
            self.assertEqual(self.log(theirs, "x")[-1]["log_level"], ours)

    def test_braces_and_percents_in_it_are_text(self):
        self.assertEqual(texts(self.log(logging.INFO, "{x} 100%")), ["library: {x} 100%"])

    def test_a_traceback_is_in_it(self):
        try:
            raise ValueError("bad")
        except ValueError:
            events = self.log(logging.ERROR, "failed", exc_info=True)
        self.assertIn("ValueError: bad", texts(events)[0])

    def test_the_bridge_is_put_in_once(self):
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level

        def restore() -> None:
            root.handlers[:] = handlers
            root.setLevel(level)

        self.addCleanup(restore)
        self.patch(sys, "unraisablehook", sys.unraisablehook)
        logs.bridge_stdlib()
        logs.bridge_stdlib()
        bridges = [handler for handler in root.handlers if isinstance(handler, StdlibBridge)]
        self.assertEqual(len(bridges), 1)


class LastWordsTests(SynchronousTestCase):
    def test_they_are_a_line_on_stderr(self):
        self.patch(sys, "stderr", stream := io.StringIO())
        logs.last_words("no")
        self.assertEqual(stream.getvalue(), "ccserver: no\n")


class LoggerTests(SynchronousTestCase):
    def test_a_class_has_its_own_logger(self):
        class Thing:
            log = ProcessLogger()

        events = logged(self)
        thing = Thing()
        thing.log.notice("hello")
        self.assertIs(events[0]["log_source"], thing)
        self.assertIn("Thing", events[0]["log_namespace"])
        self.assertIsInstance(thing.log, Logger)
