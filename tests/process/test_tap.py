"""The twistd plugin's other half: options that are right or end it, and a service that waits."""

from __future__ import annotations

import grp
import io
import json
import os
import pwd
import signal
import sys
import threading
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet import reactor
from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.trial.unittest import SynchronousTestCase

from ccserver import tap
from ccserver.errors import StartError
from ccserver.owner import Owner
from ccserver.process.listening import SOCKETS_VARIABLE
from ccserver.process.logs import LineObserver
from ccserver.process.master import Master
from ccserver.process.single import SingleProcess
from ccserver.process.systemd import Systemd
from ccserver.process.upgrade import VARIABLE
from ccserver.tap import Options, makeService, worker_environment
from tests.support import folder, open_descriptors


class TapCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = folder(self)
        self.stderr = io.StringIO()
        self.patch(sys, "stderr", self.stderr)
        self.patch(sys, "excepthook", sys.excepthook)

    def written(self, *lines: str) -> str:
        path = os.path.join(self.folder, "a.conf")
        with open(path, "w") as file:
            file.write("\n".join(lines))
        return path

    def options(self, *lines: str, **twistd: object) -> Options:
        options = Options()
        options.parent = {"rundir": self.folder, "nodaemon": False, **twistd}
        options.parseOptions(["--config", self.written(*lines)])
        return options


class OptionsTests(TapCase):
    def test_the_configuration_is_read(self):
        self.assertEqual(self.options("LogLevel = 3").settings.log.level, 3)

    def test_relative_paths_begin_at_twistds_run_directory(self):
        settings = self.options("Log = my.log").settings
        self.assertEqual(settings.log.file, os.path.join(self.folder, "my.log"))

    def test_the_short_option_does_as_well(self):
        options = Options()
        options.parseOptions(["-c", self.written("LogLevel = 3")])
        self.assertEqual(options.settings.log.level, 3)

    def test_without_the_option_it_is_the_usual_file(self):
        self.assertEqual(Options()["config"], "etc/ccserver.conf")

    def test_every_error_is_a_line_and_the_status_is_1(self):
        error = self.assertRaises(
            SystemExit, self.options, "LogLevel = loud", "WrokerProcesses = 2"
        )
        self.assertEqual(error.code, 1)
        lines = self.stderr.getvalue().splitlines()
        self.assertEqual(len(lines), 2)
        self.assertTrue(all(line.startswith("ccserver: ") for line in lines))
        self.assertIn("a.conf:1: LogLevel", lines[0])
        self.assertIn("WorkerProcesses", lines[1])

    def test_a_file_that_is_not_there_is_a_line_and_the_status_is_1(self):
        options = Options()
        path = os.path.join(self.folder, "none.conf")
        error = self.assertRaises(SystemExit, options.parseOptions, ["--config", path])
        self.assertEqual(error.code, 1)
        self.assertEqual(self.stderr.getvalue().count("\n"), 1)
        self.assertIn("none.conf", self.stderr.getvalue())

    def test_twistd_says_whether_it_stays_in_the_foreground(self):
        self.assertFalse(self.options().foreground)
        self.assertTrue(self.options(nodaemon=True).foreground)
        self.assertFalse(Options().foreground)

    def test_a_pid_file_that_is_not_a_servers_does_not_stop_twistd(self):
        path = os.path.join(self.folder, "twistd.pid")
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        self.options(pidfile=path)
        self.assertFalse(os.path.exists(path))


class OwnerTests(TapCase):
    """Whom the process becomes. Root's number is only looked at."""

    NOBODY = pwd.getpwnam("nobody")

    def setUp(self) -> None:
        super().setUp()
        self.as_user(0)

    def as_user(self, uid: int) -> None:
        self.patch(os, "geteuid", lambda: uid)

    def twistd(self, options: Options) -> tuple[object, object]:
        assert options.parent is not None
        return options.parent.get("uid"), options.parent.get("gid")

    def refusal(self, *lines: str) -> str:
        error = self.assertRaises(SystemExit, self.options, *lines)
        self.assertEqual(error.code, 1)
        return self.stderr.getvalue()

    def test_without_a_user_it_stays_who_it_is(self):
        options = self.options()
        self.assertEqual(self.twistd(options), (None, None))
        self.assertIsNone(options.owner)

    def test_twistd_is_told_of_the_user_and_his_group(self):
        options = self.options("User = nobody")
        ids = (self.NOBODY.pw_uid, self.NOBODY.pw_gid)
        self.assertEqual(self.twistd(options), ids)
        self.assertEqual(options.owner, Owner(*ids))
        self.assertEqual(options.settings.warnings, ())

    def test_or_of_another_group(self):
        group = grp.getgrnam("daemon").gr_gid
        options = self.options("User = nobody", "Group = daemon")
        self.assertEqual(self.twistd(options), (self.NOBODY.pw_uid, group))
        self.assertEqual(options.owner, Owner(self.NOBODY.pw_uid, group))

    def test_what_twistd_is_told_on_its_command_line_comes_first(self):
        daemon = pwd.getpwnam("daemon")
        options = self.options("User = nobody", "Group = nogroup", uid=daemon.pw_uid, gid=None)
        self.assertEqual(self.twistd(options), (daemon.pw_uid, None))
        self.assertEqual(options.owner, Owner(daemon.pw_uid, daemon.pw_gid))

    def test_root_may_be_named(self):
        options = self.options("User = root")
        self.assertEqual(self.twistd(options), (None, None))
        self.assertIsNone(options.owner)

    def test_who_is_not_root_stays_who_he_is_with_a_warning(self):
        self.as_user(12345)
        options = self.options("User = nobody")
        self.assertEqual(self.twistd(options), (None, None))
        (warning,) = options.settings.warnings
        self.assertEqual(warning, "User nobody has no effect: only root can become another user")

    def test_who_is_the_user_already_needs_no_warning(self):
        self.as_user(self.NOBODY.pw_uid)
        options = self.options("User = nobody")
        self.assertEqual(self.twistd(options), (None, None))
        self.assertEqual(options.settings.warnings, ())

    def test_a_user_that_is_not_there_is_a_line_and_the_status_is_1(self):
        self.assertEqual(
            self.refusal("User = no-such-user"), 'ccserver: User: there is no user "no-such-user"\n'
        )


class ServiceTests(TapCase):
    def made(self, *lines: str) -> IService:
        return makeService(self.options(*lines))

    def test_it_is_a_master_with_workers(self):
        service = self.made("WorkerProcesses = 2")
        self.assertIsInstance(service, Master)
        self.assertTrue(IService.providedBy(service))

    def test_without_workers_it_is_a_single_process(self):
        self.assertIsInstance(self.made("WorkerProcesses = 0"), SingleProcess)

    def test_a_new_master_without_workers_is_one_still_to_say_that_it_cannot(self):
        told = {"spawned": 7, "generation": 2, "control": "/a"}
        self.patch(os, "environ", {VARIABLE: json.dumps(told)})
        self.assertIsInstance(self.made("WorkerProcesses = 0"), Master)
        self.assertNotIn(VARIABLE, os.environ)

    def test_making_it_opens_nothing(self):
        for workers in (0, 2):
            options = self.options(f"WorkerProcesses = {workers}", "Log = my.log")
            before = open_descriptors()
            threads, calls = set(threading.enumerate()), reactor.getDelayedCalls()
            makeService(options)
            self.assertLessEqual(open_descriptors(), before)
            self.assertEqual(set(threading.enumerate()) - threads, set())
            self.assertEqual(reactor.getDelayedCalls(), calls)
            self.assertEqual(os.listdir(self.folder), ["a.conf"])

    def application(self) -> Any:
        """What twistd makes the service a part of."""

        class Application(MultiService, Componentized):
            def __init__(self) -> None:
                MultiService.__init__(self)
                Componentized.__init__(self)

        self.handlers: dict[int, Any] = {}
        self.patch(signal, "signal", self.handlers.__setitem__)
        return Application()

    def test_signals_are_heard_before_there_is_a_pid_file(self):
        self.made().setServiceParent(self.application())
        self.assertLessEqual({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}, set(self.handlers))

    def test_the_application_logs_where_the_configuration_says(self):
        application = self.application()
        self.made("Log = my.log", "LogLevel = 4").setServiceParent(application)
        observer = application.getComponent(ILogObserver)
        self.assertIsInstance(observer, LineObserver)
        self.assertEqual(observer.path, os.path.join(self.folder, "my.log"))
        self.assertEqual(observer.level, 4)

    def test_a_refusal_to_start_is_a_line_and_no_traceback(self):
        self.made()
        error = StartError("cannot listen on 0.0.0.0:80: Permission denied")
        sys.excepthook(StartError, error, None)
        self.assertEqual(self.stderr.getvalue(), f"ccserver: {error}\n")

    def test_any_other_exception_is_a_traceback(self):
        self.made()
        try:
            raise ValueError("a bug")
        except ValueError as error:
            sys.excepthook(ValueError, error, error.__traceback__)
        self.assertIn("Traceback", self.stderr.getvalue())
        self.assertIn("ValueError: a bug", self.stderr.getvalue())


class EnvironmentTests(SynchronousTestCase):
    def test_what_is_for_the_master_alone_is_not_there(self):
        environ = {"A": "B", "NOTIFY_SOCKET": "@x", "LISTEN_FDS": "1", "LISTEN_PID": "1"}
        self.patch(os, "environ", {**environ, SOCKETS_VARIABLE: "{}"})
        Systemd(os.environ)
        self.assertEqual(set(worker_environment()), {"A", "PYTHONPATH"})

    def test_workers_find_what_we_find_wherever_they_run(self):
        place = folder(self)
        self.patch(sys, "path", ["", "relative", place, "/nowhere/at/all"])
        paths = worker_environment()["PYTHONPATH"].split(os.pathsep)
        self.assertIn(place, paths)
        self.assertNotIn("/nowhere/at/all", paths)
        self.assertTrue(all(os.path.isabs(path) for path in paths))

    def test_the_rest_is_ours(self):
        self.patch(os, "environ", {"A": "B", "PYTHONPATH": "old"})
        environment = worker_environment()
        self.assertEqual(environment["A"], "B")
        self.assertNotIn("old", environment["PYTHONPATH"].split(os.pathsep))

    def test_the_plugin_names_this_module(self):
        self.assertEqual(tap.__name__, "ccserver.tap")
