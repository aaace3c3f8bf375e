"""The compiled part where something is wrong: it fails as its reference does, and cleanly."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import ccserver
from ccserver.native import native
from ccserver.net.transport import READ_SIZE, transmit_in_python

ROOT = Path(ccserver.__file__).parent.parent

FAILING_CHECKSUM = """
import sys, zlib
def fail(data):
    raise MemoryError
sys.modules["isal"] = sys.modules["zlib_ng"] = None
zlib.crc32 = fail  # what the compiled part takes for itself, for long bodies
from ccserver import _native
short = bytes([0, 8, 0, 1, 0, 0, 0, 0])
long = bytes([4, 0, 0, 1, 0, 0, 0, 0]) + bytes(1016)
packets = ["from before"]
try:
    _native.cut(short * 20 + long, 0, 65535, packets)
except MemoryError:
    print(packets)
"""


class CompiledFailureTests(SynchronousTestCase):
    if native is None:
        skip = "the compiled part has not been built"

    def test_a_cut_that_fails_leaves_no_packets_behind(self):
        self.assertEqual(self.printed(FAILING_CHECKSUM), "['from before']")

    def test_what_is_no_bytes_is_sent_or_refused_as_the_reference_does(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        for transmit in (native.transmit, transmit_in_python):
            for ahead in ([], [bytes(READ_SIZE)]):
                self.assertEqual(transmit(ours, [*ahead, bytearray(b"a"), memoryview(b"b")]), b"")
                sent = len(b"".join(ahead)) + 2
                self.assertEqual(theirs.recv(sent, socket.MSG_WAITALL)[-2:], b"ab")
                self.assertRaises(TypeError, transmit, ours, [*ahead, "text"])
        theirs.setblocking(False)
        self.assertRaises(BlockingIOError, theirs.recv, 1)

    def printed(self, program: str) -> str:
        """What a Python of its own prints for C{program}."""
        return subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        ).stdout.strip()
