from __future__ import annotations

import importlib
import sys
import zlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core import checksum


class ChecksumTests(SynchronousTestCase):
    def installed(self, **crc32: object) -> None:
        """Choose anew, where only these modules are installed beside zlib."""
        self.addCleanup(importlib.reload, checksum)  # behind all patches
        for package, module in (("isal", "isal_zlib"), ("zlib_ng", "zlib_ng")):
            found = type("Module", (), {"crc32": crc32[package]}) if package in crc32 else None
            self.patch_module(package, found)
            self.patch_module(f"{package}.{module}", found)
        importlib.reload(checksum)

    def patch_module(self, name: str, module: object) -> None:
        before = sys.modules.get(name)
        self.addCleanup(
            lambda: sys.modules.pop(name) if before is None else sys.modules.update({name: before})
        )
        sys.modules[name] = module  # type: ignore[assignment]

    def test_isal_is_taken_before_zlib_ng(self):
        self.installed(isal=len, zlib_ng=max)
        self.assertEqual((checksum.NAME, checksum.crc32), ("isal", len))

    def test_zlib_ng_is_taken_before_zlib(self):
        self.installed(zlib_ng=max)
        self.assertEqual((checksum.NAME, checksum.crc32), ("zlib-ng", max))

    def test_without_either_it_is_python_s_own(self):
        self.installed()
        self.assertEqual((checksum.NAME, checksum.crc32), ("zlib", zlib.crc32))

    @given(st.binary(max_size=1000), st.integers(0, 20))
    def test_whoever_computes_it_it_is_that_of_zlib(self, data: bytes, start: int):
        view = memoryview(data)[start:]
        self.assertEqual(checksum.crc32(view), zlib.crc32(view))
        self.assertEqual(checksum.crc32(bytearray(view)), zlib.crc32(view))
