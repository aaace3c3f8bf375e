"""The fuzzer that follows the branches of the code, in a process of its own: atheris.

C{python -m tests.fuzz.covering TARGET OPTION ...}, with libFuzzer's options and folders.
"""

from __future__ import annotations

import sys

import atheris
from twisted.logger import globalLogBeginner

with atheris.instrument_imports(include=["ccserver"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    program, name, *options = sys.argv
    atheris.Setup([program, *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
