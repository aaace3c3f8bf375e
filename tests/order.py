"""In which order several processes take the tests: the long ones first.

A process takes a class at a time. One that takes long and comes last is waited for by all others.
"""

from __future__ import annotations

FUNCTIONAL = "tests/functional/"

LONGEST = (
    "test_handover_crashes.py::KillTests",
    "test_reload.py::TrafficTests",
    "test_reload_failures.py::FailureTests",
    "test_encryption.py::RenewalTests",
)
"""Classes of L{FUNCTIONAL}, those that take longest, the longest first."""

_PLACES = {FUNCTIONAL + name: place for place, name in enumerate(LONGEST)}


def place(test: str) -> int:
    """What a test, by its path, class and name, is sorted by: below that of those to come later."""
    first = _PLACES.get(test.rpartition("::")[0])
    if first is not None:
        return first
    return len(LONGEST) + (not test.startswith(FUNCTIONAL))
