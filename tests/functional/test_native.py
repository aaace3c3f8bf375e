"""The compiled part where something is wrong: it fails as its reference does, and cleanly."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import ccserver
from ccserver.native import native
from ccserver.net.transport import READ_SIZE, transmit_in_python
from tests.support import folder

ROOT = Path(ccserver.__file__).parent.parent

LOAD = """
import importlib.machinery, importlib.util, sys
spec = importlib.util.spec_from_loader("ccserver._native",
    importlib.machinery.ExtensionFileLoader("ccserver._native", {path!r}))
_native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_native)
"""
"""Of the file C{path}, whatever else has been built."""

FAILING_CHECKSUM = """
import ccserver.core.checksum
def fail(data):
    raise MemoryError
ccserver.core.checksum.crc32 = fail  # what the compiled part takes for itself, for long bodies
{load}
short = bytes([0, 8, 0, 1, 0, 0, 0, 0])
long = bytes([4, 0, 0, 1, 0, 0, 0, 0]) + bytes(1016)
wrong = bytes([0, 8, 0, 1, 0, 0, 0, 1])
packets, refused = ["from before"], ["this, too"]
try:
    _native.cut(short * 20 + wrong + long, 0, 65535, packets, refused)
except MemoryError:
    print(packets, refused)
"""

CHECKSUMS = """
import os, zlib
{load}
bodies = [os.urandom(length) for length in (*range(600), 1023, 1024, 5000, 65527)]
def is_right(body):
    return _native.header(1, body)[4:] == zlib.crc32(body).to_bytes(4)
print(_native.carryless, [len(body) for body in bodies if not is_right(body)])
"""


class CompiledFailureTests(SynchronousTestCase):
    if native is None:
        skip = "the compiled part has not been built"

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


class PortableTests(SynchronousTestCase):
    """The compiled part as it is for processors whose instructions it does not know."""

    compiler = shutil.which("cc")
    if native is None or compiler is None:
        skip = "the compiled part has not been built, or there is no compiler"

    def test_it_does_the_same(self):
        path = str(Path(folder(self)) / "portable.so")
        include = f"-I{sysconfig.get_path('include')}"
        options = ["-shared", "-fPIC", "-O1", "-DPORTABLE", include, "-o", path]
        sources = sorted(map(str, (ROOT / "compiled").glob("*.c")))
        subprocess.run([self.compiler, *options, *sources], check=True, timeout=60)
        self.load = LOAD.format(path=path)
        self.assertEqual(self.printed(CHECKSUMS), "False []")
        # a cut that fails leaves no packets behind
        self.assertEqual(self.printed(FAILING_CHECKSUM), "['from before'] ['this, too']")

    def printed(self, program: str) -> str:
        """What a Python of its own prints for C{program}."""
        return subprocess.run(
            [sys.executable, "-c", program.format(load=self.load)],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        ).stdout.strip()
