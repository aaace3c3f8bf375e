"""The compiled part, where it has been built; else its reference in Python is used.

C{CCSERVER_NATIVE=0} in the environment leaves it out.
"""

from __future__ import annotations

import os
from types import ModuleType


def _load() -> ModuleType | None:
    if os.environ.get("CCSERVER_NATIVE") == "0":
        return None
    try:
        from ccserver import _native
    except ImportError:
        return None
    return _native


native = _load()
