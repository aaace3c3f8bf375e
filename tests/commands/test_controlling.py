"""How commands find the server, and what they say when it cannot be talked to."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ccserver.commands import controlling
from tests.commands.servers import CLOSE, CommandCase

OK = [{"result": {"pid": 17}}]


class FindingTests(CommandCase):
    def written(self, text: str, name: str = "a.conf") -> str:
        path = os.path.join(self.folder, name)
        Path(path).write_text(text)
        return path

    def test_the_configuration_names_the_socket(self):
        server = self.serve(OK)
        file = self.written(f"Control = {self.path}\n")
        self.assertEqual(self.run_command("reopen", "--config", file).exit_code, 0)
        self.assertEqual(server.requests, [{"command": "reopen"}])

    def test_a_relative_path_begins_at_the_current_folder(self):
        self.serve(OK)
        file = self.written("Control = c.sock\n")
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(self.folder)
        self.assertEqual(self.run_command("reopen", "-c", file).exit_code, 0)

    def test_or_at_the_folder_that_the_server_was_started_in(self):
        self.serve(OK)
        file = self.written("Control = c.sock\n")
        self.assertEqual(self.run_command("reopen", "-c", file, "-d", self.folder).exit_code, 0)

    def test_without_a_key_it_is_the_default(self):
        self.path = os.path.join(self.folder, "ccserver.sock")
        self.serve(OK)
        result = self.run_command("reopen", "-c", self.written(""), "--rundir", self.folder)
        self.assertEqual(result.exit_code, 0)

    def test_a_file_with_errors_elsewhere_does(self):
        self.serve(OK)
        file = self.written(f"Backlog = many\nControl = {self.path}\nNonsense = 1\n[broken\nx\n")
        self.assertEqual(self.run_command("reopen", "-c", file).exit_code, 0)

    def test_an_error_in_the_key_is_told(self):
        file = self.written("\nControl =\n")
        told = self.complaint_of(self.run_command("reopen", "-c", file))
        self.assertIn("a.conf:2: Control", told)

    def test_a_file_that_is_no_configuration_is_told(self):
        told = self.complaint_of(self.run_command("reopen", "-c", self.written("a\0b")))
        self.assertIn("NUL", told)

    def test_a_file_that_is_not_there_is_told(self):
        path = os.path.join(self.folder, "none.conf")
        told = self.complaint_of(self.run_command("reopen", "-c", path))
        self.assertEqual(told, f"{path}: cannot read the configuration: No such file or directory")

    def test_a_control_socket_given_needs_no_configuration(self):
        self.serve(OK)
        self.assertEqual(self.output("reopen", "--config", "/nowhere"), "")


class FailureTests(CommandCase):
    def where(self) -> str:
        return f": control socket {self.path}"

    def test_no_server(self):
        self.assertEqual(self.complaint("status"), "the server is not running" + self.where())

    def test_a_server_that_died(self):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(self.path)
        told = "the server is not running any more" + self.where()
        self.assertEqual(self.complaint("status"), told)

    def test_another_users_server(self):
        def connect(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        class Socket(socket.socket):
            def connect(self, address: object) -> None:
                connect()

        self.patch(socket, "socket", Socket)
        told = "permission denied: only the server's user and root may" + self.where()
        self.assertEqual(self.complaint("status"), told)

    def test_a_path_that_is_too_long(self):
        self.path = "/" + "x" * 200
        self.assertIn("cannot connect: AF_UNIX path too long", self.complaint("status"))

    def test_a_server_that_does_not_accept(self):
        self.patch(controlling, "TIMEOUT", 0.1)
        with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as waiting:
            full.bind(self.path)
            full.listen(0)
            waiting.connect(self.path)
            told = "the server does not answer" + self.where()
            self.assertEqual(self.complaint("status"), told)

    def test_a_server_that_does_not_answer(self):
        self.patch(controlling, "TIMEOUT", 0.1)
        told = "the server does not answer" + self.where()
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(self.path)
            silent.listen()
            for command in (["status"], ["reload"], ["upgrade"], ["quit"]):
                self.assertEqual(self.complaint(*command), told)

    def test_a_server_that_goes_on_with_something_else_but_the_answer(self):
        self.patch(controlling, "TIMEOUT", 0.1)
        self.serve([{"accepted": True}])
        told = "the server does not answer" + self.where()
        self.assertEqual(self.complaint("status"), told)

    def test_a_server_that_ends_before_it_answers(self):
        self.serve([CLOSE])
        told = "the server has ended, or closed the connection" + self.where()
        self.assertEqual(self.complaint("status"), told)

    def test_what_refuses_and_closes_before_it_is_asked_is_heard(self):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.path)
            listening.listen()
            real = controlling.ControlClient._connect

            def connect(client: controlling.ControlClient) -> None:
                real(client)
                accepted, _ = listening.accept()
                accepted.send(b'{"error":"permission denied"}\n')
                accepted.close()

            self.patch(controlling.ControlClient, "_connect", connect)
            self.assertEqual(self.complaint("status"), "permission denied")

    def test_what_is_no_server_of_ours(self):
        for said in (b"HTTP/1.1 400 Bad Request\n", b"[1]\n", b"\xff\n", b"[" * 100_000 + b"\n"):
            self.path += "x"
            self.serve([said])
            told = "what answers there is not a server of ours" + self.where()
            self.assertEqual(self.complaint("status"), told)

    def test_an_answer_without_end(self):
        self.patch(controlling, "ANSWER_LIMIT", 1000)
        self.serve([b"x" * 3000])
        self.assertEqual(self.complaint("status"), "the answer is too long" + self.where())

    def test_an_error_of_the_server_is_one_printable_line(self):
        self.serve([{"error": "port taken\n\x1b[2Jby \u202e somebody\udc80"}])
        self.assertEqual(self.complaint("reopen"), "port taken\\n\\x1b[2Jby \\u202e somebody\\x80")

    def test_an_answer_in_pieces_is_put_together(self):
        self.serve([b'{"resu', b'lt": {"pid": ', b"17}}\n"])
        self.assertIn("pid 17", self.output("status"))
