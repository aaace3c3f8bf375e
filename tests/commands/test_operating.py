"""Commands that change a running server: requests, progress, outcomes and exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from time import monotonic

from ccserver.commands import controlling, operating
from ccserver.process.logs import LEVELS
from tests.commands.servers import CLOSE, CommandCase, RealServer

ACCEPTED = {"accepted": True}


class RequestTests(CommandCase):
    def test_each_command_asks_for_its_operation(self):
        for arguments, request in [
            (["reopen"], {"command": "reopen"}),
            (["stop", "--no-wait"], {"command": "stop", "graceful": False}),
            (["quit", "--no-wait"], {"command": "stop", "graceful": True}),
            (["log", "level", "debug"], {"command": "log_level", "level": 8}),
            (["log", "level", "WARN"], {"command": "log_level", "level": 5}),
            (["log", "level", "0"], {"command": "log_level", "level": 0}),
            (["kick", "7"], {"command": "kick", "id": 7}),
        ]:
            self.path += "x"
            server = self.serve([{"result": {"kicked": True}}])
            self.assertEqual(self.output(*arguments), "")
            self.assertEqual(server.requests, [request])

    def test_certificates_are_shown_a_line_each(self):
        server = self.serve([{"result": {"certificates": ["a until 2027", "b\x1b until 2028"]}}])
        self.assertEqual(self.output("certificates"), "a until 2027\nb\\x1b until 2028\n")
        self.assertEqual(server.requests, [{"command": "certificates"}])

    def test_levels_are_those_of_the_log(self):
        self.assertEqual(operating.LEVELS, LEVELS)

    def test_a_level_that_is_none_is_a_wrong_usage(self):
        for word in ("loud", "9", "-1", "٣"):
            result = self.run_here("log", "level", "--", word)
            self.assertEqual(result.exit_code, 1)
        self.assertIn("8 debug", result.stderr)

    def test_a_number_of_workers_is_needed(self):
        for arguments in ([], ["0"], ["257"], ["many"]):
            self.assertEqual(self.run_here("workers", *arguments).exit_code, 1)

    def test_what_is_not_waited_for_is_over_when_it_is_accepted(self):
        for arguments, request in [
            (["reload"], {"command": "reload"}),
            (["upgrade", "--no-wait"], {"command": "upgrade"}),
            (["workers", "3", "--no-wait"], {"command": "workers", "count": 3}),
            (["rebalance", "--no-wait"], {"command": "rebalance"}),
        ]:
            self.path += "x"
            server = self.serve([ACCEPTED])
            self.assertEqual(self.output(*arguments), f"{arguments[0]}: accepted\n")
            self.assertEqual(server.requests, [request])

    def test_what_fails_at_once_is_told_though_it_is_not_waited_for(self):
        self.serve([{"error": "the server is stopping"}])
        self.assertEqual(self.complaint("reload"), "the server is stopping")


class WaitingTests(CommandCase):
    def test_the_outcome_is_one_line(self):
        result = {
            "generation": 4,
            "workers": 2,
            "handed_over": 2000,
            "left": {"tls": 2, "handler": 1},
            "seconds": 1.234,
            "of_the_future": [1],
        }
        self.serve([ACCEPTED, {"result": result}])
        self.assertEqual(
            self.output("reload", "--wait"),
            "reloaded: generation 4, 2 workers, 2000 connections handed over, "
            "3 left to drain (tls 2, handler 1), 1.2 s\n",
        )

    def test_each_command_waits_and_says_what_it_did(self):
        for arguments, told in [
            (["upgrade"], "upgraded\n"),
            (["workers", "3"], "done\n"),
            (["rebalance"], "rebalanced\n"),
            (["reload", "--wait"], "reloaded\n"),
        ]:
            self.path += "x"
            self.serve([ACCEPTED, {"result": {}}])
            self.assertEqual(self.output(*arguments), told)

    def test_a_result_that_is_wrong_in_every_way_breaks_nothing(self):
        result = {"left": {"a\x1b": "b"}, "seconds": "x", "pid": [1], "warnings": 7}
        self.serve([ACCEPTED, {"result": result}])
        self.assertEqual(self.output("upgrade"), "upgraded: pid [1], 0 left to drain (a\\x1b b)\n")

    def test_progress_comes_on_stderr(self):
        self.patch(operating, "PROGRESS_INTERVAL", 0)
        texts = ["starting", "handing over: 1 of 2", "handing over: 1 of 2", "\x1b[2J", ""]
        self.serve([ACCEPTED, *({"progress": text} for text in texts), {"result": {}}])
        result = self.run_here("upgrade")
        self.assertEqual(result.stdout, "upgraded\n")
        self.assertEqual(result.stderr, "starting\nhanding over: 1 of 2\n\\x1b[2J\n")

    def test_progress_does_not_flood_where_no_terminal_shows_it(self):
        many = [{"progress": f"{number} of 1000"} for number in range(1000)]
        self.serve([*many, {"result": {}}])
        result = self.run_here("upgrade")
        self.assertEqual(result.stderr.splitlines()[0], "0 of 1000")
        self.assertLess(len(result.stderr.splitlines()), 100)

    def test_warnings_come_on_stderr(self):
        self.serve([{"result": {"warnings": ["Daemon: a change needs a restart", "b\n"]}}])
        result = self.run_here("reload", "--wait")
        self.assertEqual((result.exit_code, result.stdout), (0, "reloaded\n"))
        self.assertEqual(
            result.stderr, "warning: Daemon: a change needs a restart\nwarning: b\\n\n"
        )

    def test_a_failure_is_one_line_and_the_status_1(self):
        self.serve([ACCEPTED, {"error": "cannot listen on 0.0.0.0:80: Address already in use"}])
        self.assertEqual(
            self.complaint("reload", "--wait"),
            "cannot listen on 0.0.0.0:80: Address already in use",
        )

    def test_a_server_that_dies_meanwhile_is_told(self):
        self.serve([ACCEPTED, {"progress": ""}, CLOSE])
        self.assertIn("the server has ended", self.complaint("reload", "--wait"))

    def test_an_answer_may_take_longer_than_the_first_sign_of_it(self):
        self.patch(controlling, "TIMEOUT", 0.05)
        server = RealServer(self, self.path)
        self.patch(
            server.operations,
            "reload",
            lambda progress: later(server, 0.3, {"generation": 2}),
        )
        self.assertEqual(self.output("reload", "--wait"), "reloaded: generation 2\n")


class StopTests(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(controlling, "LOOK_INTERVAL", 0.01)
        self.patch(operating, "PROGRESS_INTERVAL", 0)

    def test_it_ends_when_the_server_does_and_shows_what_is_left(self):
        server = self.serve(
            [{"result": {}}],
            [{"result": {"state": "stopping", "doing": "17 connections left"}}],
            [{"result": {"state": "stopping", "doing": "2 connections left"}}],
            [CLOSE],
        )
        result = self.run_here("quit")
        self.assertEqual((result.exit_code, result.stdout), (0, ""))
        self.assertEqual(result.stderr, "17 connections left\n2 connections left\n")
        self.assertEqual([r["command"] for r in server.requests], ["stop", *["status"] * 3])

    def test_it_does_not_ask_all_the_time(self):
        self.patch(controlling, "LOOK_INTERVAL", 0.1)
        self.serve([{"result": {}}], [{"result": {}}], [{"result": {}}], [CLOSE])
        began = monotonic()
        self.output("quit")
        self.assertGreaterEqual(monotonic() - began, 0.2)

    def test_a_server_that_is_gone_at_once_has_stopped(self):
        self.serve([{"result": {}}, CLOSE])
        self.assertEqual(self.output("stop"), "")

    def test_a_server_that_cannot_tell_its_status_is_waited_for(self):
        self.serve([{"result": {}}], [{"error": "stopping"}], [{"result": {}}], [CLOSE])
        self.assertEqual(self.output("quit"), "")

    def test_a_refusal_is_told(self):
        self.serve([{"error": "not now"}])
        self.assertEqual(self.complaint("quit"), "not now")

    def test_it_waits_for_the_end_of_the_process_too(self):
        process = self.server_process("sys.stdin.readline()")
        real = controlling.select.select

        def select(*arguments: object) -> object:
            process.stdin.close()  # only now may it end
            return real(*arguments)

        self.patch(controlling.select, "select", select)
        self.assertEqual(self.output("quit"), "")
        self.assertIsNotNone(process.poll())

    def test_a_process_that_does_not_end_is_told(self):
        self.patch(controlling, "END_TIMEOUT", 0.05)
        self.server_process("sys.stdin.readline()")
        self.assertIn("has not ended", self.complaint("quit"))

    def server_process(self, after: str) -> subprocess.Popen:
        """A server in another process, which has closed its socket, and then does C{after}."""
        program = f"""
import socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind({self.path!r})
listening.listen()
print("listens", flush=True)
connection, _ = listening.accept()
connection.recv(1000)
connection.send(b'{{"result":{{}}}}\\n')
connection.close()
{after}
"""
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

        def end() -> None:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
            process.stdout.close()

        self.addCleanup(end)
        process.stdout.readline()
        return process


class RealServerTests(CommandCase):
    """The commands and the control socket as they are."""

    def test_each_command_is_understood(self):
        server = RealServer(self, self.path)
        for arguments in (
            ["status"],
            ["connections", "--peer", "10.0.0.0/8", "--worker", "1", "--sort", "age"],
            ["kick", "7"],
            ["certificates"],
            ["reopen"],
            ["log", "level", "debug"],
            ["reload"],
            ["upgrade", "--no-wait"],
            ["workers", "3", "--no-wait"],
            ["rebalance", "--no-wait"],
            ["stop", "--no-wait"],
        ):
            self.output(*arguments)
        names = [asked[0] for asked in server.operations.asked]
        self.assertEqual(
            names,
            [
                *("status", "connections", "kick", "certificates", "reopen", "log_level"),
                *("reload", "upgrade", "workers", "rebalance", "stop"),
            ],
        )

    def test_quit_returns_when_the_control_socket_closes(self):
        server = RealServer(self, self.path)
        server.operations.state = {"doing": "1 connection left"}
        self.patch(controlling, "LOOK_INTERVAL", 0.01)
        real = server.operations.status

        def status() -> object:
            if len(server.operations.asked) == 3:
                server.reactor.callLater(0, server.close)
            return real()

        server.operations.status = status
        result = self.run_here("quit")
        self.assertEqual((result.exit_code, result.stderr), (0, "1 connection left\n"))
        self.assertFalse(os.path.exists(self.path))


def later(server: RealServer, seconds: float, result: object) -> object:
    from twisted.internet.task import deferLater

    return deferLater(server.reactor, seconds, lambda: result)
