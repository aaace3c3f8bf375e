"""The control socket's file, and who is admitted; its connections are in test_requests."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.errors import StartError
from ccserver.process import control
from ccserver.process.control import MAX_CONNECTIONS, PATH_LIMIT, RETRY, ControlSocket
from ccserver.process.requests import Credentials
from tests.process.operators import FakeOperations
from tests.support import PATIENCE, FakeReactor, folder, logged, texts

ME = os.geteuid()


class ControlCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = folder(self)
        self.path = os.path.join(self.folder, "control.sock")
        self.reactor = FakeReactor()
        self.peer = Credentials(77, ME, ME)

    def tearDown(self) -> None:
        for connection in self.reactor.adopted:
            connection.close()

    def server(self, path: str | None = None) -> ControlSocket:
        server = ControlSocket(
            self.reactor, path or self.path, FakeOperations(), lambda _: self.peer
        )
        self.addCleanup(server.close)
        return server

    def opened(self, **options: Any) -> ControlSocket:
        server = self.server()
        server.open(**options)
        return server

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.settimeout(PATIENCE)
        client.connect(self.path)
        return client

    def answers(self, client: socket.socket) -> list[dict[str, Any]]:
        """What the server says of its own accord, before it closes."""
        with client.makefile("rb") as file:
            return [json.loads(line) for line in file]

    def leave_behind(self) -> None:
        """A socket file as a server that was killed leaves it."""
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(self.path)
        dead.listen()
        dead.close()

    def failure(self, server: ControlSocket | None = None) -> str:
        return str(self.assertRaises(StartError, (server or self.server()).open))

    def files(self) -> list[str]:
        return sorted(os.listdir(self.folder))


class FileTests(ControlCase):
    def test_only_its_owner_may_connect_from_the_first_moment(self):
        modes = []
        real = os.link

        def link(old: str, new: str) -> None:
            modes.append(stat.S_IMODE(os.stat(old).st_mode))
            real(old, new)

        self.patch(os, "link", link)
        mask = os.umask(0)
        self.addCleanup(os.umask, mask)
        self.opened()
        modes.append(stat.S_IMODE(os.stat(self.path).st_mode))
        self.assertEqual(modes, [0o600, 0o600])

    def test_what_has_come_in_its_place_is_not(self):
        other = self.path + ".other"
        Path(other).touch()
        real = socket.socket.bind

        for put in (os.symlink, os.link):

            def bind(bound: socket.socket, path: str, put: Any = put) -> None:
                real(bound, path)
                os.unlink(path)
                put(other, path)

            given: list[Any] = []
            self.patch(socket.socket, "bind", bind)
            self.patch(os, "chown", lambda *arguments, given=given: given.append(arguments))
            error = self.assertRaises(StartError, self.server().open, True, (1, 1))
            self.assertIn("Operation not permitted", str(error))
            self.assertEqual(given, [])
        self.assertEqual(self.files(), ["control.sock.other"])

    def test_the_umask_is_as_before(self):
        mask = os.umask(0o027)
        self.addCleanup(os.umask, mask)
        self.opened()
        self.assertEqual(os.umask(0o027), 0o027)

    def test_nothing_but_the_socket_is_left_in_the_folder(self):
        self.opened()
        self.assertEqual(self.files(), ["control.sock"])

    def test_close_removes_it(self):
        self.successResultOf(self.opened().close())
        self.assertEqual((self.files(), self.reactor.readers), ([], []))

    def test_a_dead_servers_socket_is_replaced(self):
        self.leave_behind()
        self.opened()
        self.client()
        self.assertEqual(self.files(), ["control.sock"])

    def test_a_live_servers_socket_is_not(self):
        first = self.opened()
        self.assertEqual(
            self.failure(),
            f"another server is running: it has the control socket {self.path}",
        )
        self.client()
        self.assertEqual(self.files(), ["control.sock"])
        self.assertEqual(self.reactor.readers, [first])

    def test_a_server_too_busy_to_accept_lives(self):
        busy = socket.socket(socket.AF_UNIX)
        self.addCleanup(busy.close)
        busy.bind(self.path)
        busy.listen(0)
        waiting = self.client()
        self.assertTrue(waiting)
        self.assertIn("another server is running", self.failure())

    def test_one_that_comes_between_keeps_its_socket(self):
        self.leave_behind()
        real = os.link
        others = []

        def link(old: str, new: str) -> None:
            if not others and not os.path.exists(new):
                other = socket.socket(socket.AF_UNIX)
                self.addCleanup(other.close)
                others.append(other)
                other.bind(new)
                other.listen()
            real(old, new)

        self.patch(os, "link", link)
        self.assertIn("another server is running", self.failure())
        self.client()

    def test_what_is_no_socket_is_left_alone(self):
        Path(self.path).write_text("precious")
        self.assertIn("no socket", self.failure())
        self.assertEqual(Path(self.path).read_text(), "precious")
        self.assertEqual(self.files(), ["control.sock"])

    def test_a_symbolic_link_is_left_alone(self):
        target = os.path.join(self.folder, "elsewhere")
        os.symlink(target, self.path)
        self.assertIn("no socket", self.failure())
        self.assertTrue(os.path.islink(self.path))

    def test_a_folder_that_is_not_there_is_told(self):
        path = os.path.join(self.folder, "none", "a.sock")
        self.assertEqual(
            self.failure(self.server(path)),
            f"cannot open the control socket {path}: No such file or directory",
        )

    def test_the_longest_path_works_and_one_more_is_told(self):
        name = "x" * (PATH_LIMIT - len(self.folder) - 1)
        self.patch(os, "getpid", lambda: 4194303)
        self.server(os.path.join(self.folder, name)).open()
        self.assertEqual(self.files(), [name])
        text = self.failure(self.server(os.path.join(self.folder, name + "x")))
        self.assertIn("too long", text)
        self.assertIn(f"at most {PATH_LIMIT} bytes", text)

    def test_an_owner_is_given_before_it_is_found(self):
        steps = []
        self.patch(os, "chown", lambda path, *owner: steps.append((os.readlink(path), owner)))
        real = os.link
        self.patch(os, "link", lambda *names: (steps.append("link"), real(*names)))
        self.opened(owner=(12, 34))
        self.assertEqual(steps, [(f"{self.path}.{os.getpid()}", (12, 34)), "link"])

    def test_an_owner_that_cannot_be_given_leaves_nothing(self):
        def chown(*_: object) -> None:
            raise PermissionError(1, "no")

        self.patch(os, "chown", chown)
        error = self.assertRaises(StartError, self.server().open, owner=(12, 34))
        self.assertIn("Operation not permitted", str(error))
        self.assertEqual((self.files(), self.reactor.readers), ([], []))


class TakeOverTests(ControlCase):
    def test_the_path_is_never_without_a_server(self):
        self.opened()
        real = os.rename
        found = []

        def rename(old: str, new: str) -> None:
            found.append(os.path.exists(new))
            real(old, new)

        self.patch(os, "rename", rename)
        new = self.opened(take_over=True)
        self.assertEqual(found, [True])
        self.client()
        self.assertEqual(_readable([new]), [new])
        self.assertEqual(self.files(), ["control.sock"])

    def test_the_old_server_leaves_the_path_to_the_new_one(self):
        old = self.opened()
        self.opened(take_over=True)
        old.close()
        self.client()

    def test_the_old_server_has_it_back_when_it_opens_again(self):
        old = self.opened()
        self.opened(take_over=True)
        old.open(take_over=True)
        self.client()
        self.assertEqual(_readable([old]), [old])
        self.assertEqual(self.reactor.readers.count(old), 1)
        old.close()
        self.assertEqual(self.files(), [])

    def test_it_needs_no_one_to_take_over_from(self):
        self.opened(take_over=True)
        self.client()


class AdmissionTests(ControlCase):
    def setUp(self) -> None:
        super().setUp()
        self.control = self.opened()

    def connected(self, uid: int = ME) -> socket.socket:
        self.peer = Credentials(77, uid, 0)
        client = self.client()
        self.control.doRead()
        return client

    def test_the_kernel_tells_who_it_is(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.assertEqual(control.credentials(ours), (os.getpid(), os.getuid(), os.getgid()))

    def test_the_servers_user_and_root_are_admitted(self):
        for user in (ME, 0):
            self.connected(user)
        self.assertEqual(self.control.open_connections, 2)

    def test_the_user_that_the_server_has_become_is_admitted(self):
        self.patch(os, "geteuid", lambda: 4711)
        self.connected(4711)
        self.assertEqual(self.control.open_connections, 1)

    def test_any_other_user_is_told_so_and_closed_and_logged(self):
        events = logged(self)
        client = self.connected(ME + 1)
        told = "permission denied: only the server's user and root may"
        self.assertEqual(self.answers(client), [{"error": told}])
        self.assertEqual(self.control.open_connections, 0)
        self.assertEqual(
            texts(events), [f"control connection of uid {ME + 1}, pid 77, refused: {told}"]
        )

    def test_refusals_do_not_flood_the_log(self):
        events = logged(self)
        for _ in range(5):
            self.connected(ME + 1)
        self.assertEqual(len(events), 1)

    def test_too_many_are_told_so_and_closed(self):
        clients = [self.connected() for _ in range(MAX_CONNECTIONS + 1)]
        self.assertEqual(
            self.answers(clients[-1]),
            [{"error": f"{MAX_CONNECTIONS} clients are connected already"}],
        )
        self.assertEqual(self.control.open_connections, MAX_CONNECTIONS)

    def test_one_that_goes_makes_room(self):
        for _ in range(MAX_CONNECTIONS):
            self.connected()
        self.reactor.adopted[3].transport.abortConnection()
        self.connected()
        self.assertEqual(self.control.open_connections, MAX_CONNECTIONS)
        self.assertEqual(len(self.reactor.adopted), MAX_CONNECTIONS + 1)

    def test_several_that_wait_are_taken_in_one_turn(self):
        for _ in range(3):
            self.client()
        self.control.doRead()
        self.assertEqual(self.control.open_connections, 3)

    def test_without_descriptors_it_pauses_and_tries_again(self):
        events = logged(self)
        full = _Full(self.control._listening)
        self.control._listening, real = full, self.control._listening
        self.control.doRead()
        self.assertEqual(self.reactor.readers, [])
        self.assertIn("Too many open files", texts(events)[0])
        self.control._listening = real
        self.client()
        self.reactor.advance(RETRY)
        self.assertEqual(self.reactor.readers, [self.control])
        self.control.doRead()
        self.assertEqual(self.control.open_connections, 1)

    def test_close_waits_until_the_answers_are_sent(self):
        self.connected()
        closed = self.control.close()
        self.assertNoResult(closed)
        self.reactor.adopted[0].transport.turn()
        self.successResultOf(closed)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_close_does_not_wait_for_long(self):
        self.connected()
        closed = self.control.close()
        self.reactor.advance(control.CLOSE_PATIENCE)
        self.successResultOf(closed)
        self.assertTrue(self.reactor.adopted[0].transport.aborted)


class _Full:
    """A listening socket of a process that has no descriptor left."""

    def __init__(self, real: socket.socket) -> None:
        self.fileno = real.fileno

    def accept(self) -> Any:
        raise OSError(24, "Too many open files")


def _readable(servers: list[ControlSocket]) -> list[ControlSocket]:
    """Those at which a connection waits."""
    return select.select(servers, [], [], 0)[0]
