"""The two ways that all goes: by the compiled part as far as it does it, or by Python alone."""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from typing import Any

from ccserver import core, net
from ccserver.core import framing
from ccserver.native import native
from ccserver.net import jobqueue, transport

REFERENCES = {
    "cut": framing.cut_in_python,
    "header": framing.header_in_python,
    "feed_from": transport.feed_from_in_python,
    "transmit": transport.transmit_in_python,
    "sleep": jobqueue.sleep_in_python,
}
"""What stands for a function of the compiled part where there is none; for the others None."""


def _uses() -> list[tuple[Any, str, Any]]:
    """Where the product has the compiled part or a function of it: module, name and what it is."""
    for package in (core, net):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)  # whoever is imported later would be forgotten
    return [
        (module, name, value)
        for key, module in sorted(sys.modules.items())
        if key.startswith("ccserver.") and key not in ("ccserver.native", "ccserver._native")
        for name, value in vars(module).items()
        if value is native or getattr(value, "__self__", None) is native
    ]


USES = _uses() if native is not None else []


def go(test: Any, compiled: bool) -> None:
    """Let all that C{test} makes from now on go that way; until its end."""
    for module, name, value in USES:
        setattr(module, name, value if compiled else REFERENCES.get(name))
    if not compiled:
        test.addCleanup(go, test, True)
