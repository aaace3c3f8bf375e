"""Builds the servers that are not in Python, once and whenever their source is newer."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

BUILD = Path(__file__).resolve().parent / ".build"
DEADLINE = 300.0


class BuildError(Exception):
    """A source does not compile."""


def build(source: Path, name: str, *ways: Sequence[str]) -> Path:
    """The program C{name} of C{source}, by the first of C{ways} that works.

    @param ways: compilers with their options, where C{OUT} and C{SOURCE} stand for the files.
    @raise BuildError: none of them does; with what the last one said.
    """
    program = BUILD / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    BUILD.mkdir(exist_ok=True)
    fresh = BUILD / f"{name}.{os.getpid()}"
    places = {"OUT": str(fresh), "SOURCE": str(source)}
    said = ""
    for way in ways:
        command = [places.get(part, part) for part in way]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=DEADLINE
        )
        if done.returncode == 0:
            fresh.replace(program)  # two runs at once never see half a file
            return program
        said = done.stderr.strip()
    raise BuildError(f"{source.name} does not compile:\n{said}")
