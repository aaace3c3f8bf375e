"""Checksum: the CRC-32 of zlib, by the quickest implementation that is installed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import import_module

_QUICKER = (("isal", "isal.isal_zlib"), ("zlib-ng", "zlib_ng.zlib_ng"))


def _chosen() -> tuple[str, Callable[[bytes], int]]:
    for name, module in _QUICKER:
        try:
            return name, import_module(module).crc32
        except ImportError:
            pass
    return "zlib", zlib.crc32


NAME, crc32 = _chosen()
