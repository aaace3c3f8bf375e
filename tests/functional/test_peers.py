"""The servers that the benchmarks compare: each that can run here answers as the protocol says."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import building
from benchmarks.building import BuildError
from benchmarks.generator import (
    Cell,
    Load,
    compiled_generator,
    compiler,
    generate,
    python_generator,
)
from benchmarks.processes import leaves
from benchmarks.servers import HOST, SERVERS, RunningServer, Server, ServerError, StartError
from ccserver.core.framing import FrameDecoder, encode
from tests.support import folder

TIMEOUT = 10.0
MAX_PACKET = 29000


def nothing() -> None:
    pass


class PeerTests:
    """What holds for every server that is compared; one test, as it is started for each."""

    server: Server

    def test_it_answers_as_the_protocol_says(self) -> None:
        with RunningServer(self.server, None) as running:
            self.check_pieces_and_what_is_wrong(running.port)
            self.check_that_each_packet_gets_the_reply_due(running.port)

    def check_that_each_packet_gets_the_reply_due(self, port: int) -> None:
        command = compiled_generator() if compiler() else python_generator()
        for cell, body in ((Cell(5, 16), 32), (Cell(2, 4), 16384), (Cell(3, 2), 28992)):
            load = Load(cell, body=body, code=self.server.code, packets=400, warmup=0.01,
                        ordered=self.server.ordered)  # fmt: skip
            result = generate(command, load, HOST, port, None, nothing, nothing)
            self.assertEqual(result.packets, 400)

    def check_pieces_and_what_is_wrong(self, port: int) -> None:
        good = [encode(self.server.code, body) for body in (b"", b"first", b"x" * 2000)]
        wrong = bytearray(encode(self.server.code, b"altered on its way"))
        wrong[-1] ^= 1
        sent = good[0] + good[1] + wrong + good[2]
        with socket.create_connection((HOST, port), timeout=TIMEOUT) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in (sent[:3], sent[3:30], sent[30:90], sent[90:]):
                connection.sendall(piece)
            due = sum(map(len, good))
            replies = FrameDecoder(MAX_PACKET).feed(connection.makefile("rb").read(due))
            expected = FrameDecoder(MAX_PACKET).feed(b"".join(good))
            if not self.server.ordered:
                replies.sort()
                expected.sort()
            self.assertEqual(replies, expected)
            connection.sendall(bytes([0, 7]) + bytes(6))  # a length that cannot be
            try:
                self.assertEqual(connection.recv(1), b"")
            except ConnectionResetError:
                pass  # ended all the same


for each in SERVERS:
    if each.missing:
        continue  # nobody needs all of them
    title = "".join(word.capitalize() for word in each.name.split("-")) + "Tests"
    attributes = {"server": each, "__module__": __name__}
    globals()[title] = type(title, (PeerTests, SynchronousTestCase), attributes)


def configured(name: str) -> Server:
    (found,) = [server for server in SERVERS if server.name == name]
    return found


class RunningServerTests(SynchronousTestCase):
    """How a server is started."""

    def test_ccserver_has_as_many_workers_as_are_asked_for(self) -> None:
        with RunningServer(configured("ccserver"), None, workers=2) as running:
            self.assertEqual(len(leaves(running.processes())), 2)

    def test_a_peer_has_no_workers(self) -> None:
        with self.assertRaisesRegex(ServerError, "asyncio cannot have 2 workers"):
            RunningServer(configured("asyncio"), None, workers=2)

    def test_the_server_without_the_compiled_part_is_one_whose_environment_says_so(self) -> None:
        server = configured("ccserver-python")
        if server.missing:
            self.assertIn("no compiled part", server.missing)
            return
        with RunningServer(server, None) as running:
            for pid in running.processes():
                mapped = Path(f"/proc/{pid}/maps").read_text()
                self.assertNotIn("ccserver/_native", mapped)

    def test_a_server_whose_program_is_missing_says_which(self) -> None:
        self.patch(os, "environ", {"PATH": "/nowhere"})
        self.assertEqual(configured("go").missing, "there is no program go")
        self.assertFalse(configured("go").available)

    def test_a_server_that_does_not_compile_cannot_be_started(self) -> None:
        def command(port: int, folder: Path) -> list[str]:
            raise BuildError("source.c does not compile")

        with self.assertRaisesRegex(StartError, "does not compile"):
            RunningServer(Server("broken", "", command), None).__enter__()


class BuildTests(SynchronousTestCase):
    """Programs are built once, by the first way that works."""

    def setUp(self) -> None:
        self.folder = Path(folder(self))
        self.source = self.folder / "source"
        self.source.write_text("the source")
        self.patch(building, "BUILD", self.folder / "built")

    def test_the_first_way_that_works_is_taken(self) -> None:
        program = building.build(self.source, "made", ["false"], ["cp", "SOURCE", "OUT"])
        self.assertEqual(program.read_text(), "the source")
        self.assertEqual([*program.parent.iterdir()], [program])

    def test_what_is_newer_than_its_source_is_not_built_again(self) -> None:
        program = building.build(self.source, "made", ["cp", "SOURCE", "OUT"])
        now = self.source.stat().st_mtime
        os.utime(program, (now + 1, now + 1))
        self.assertEqual(building.build(self.source, "made", ["false"]), program)
        os.utime(program, (now - 1, now - 1))
        self.assertRaises(BuildError, building.build, self.source, "made", ["false"])

    def test_what_the_last_way_said_is_told(self) -> None:
        with self.assertRaisesRegex(BuildError, "source does not compile:\n.*no such file"):
            building.build(self.source, "made", ["false"], ["cp", "no such file", "OUT"])
