"""Where, when and with what was measured."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.runner import Cores, Plan
from benchmarks.servers import ROOT


def conditions(plan: Plan, cores: Cores, module: str) -> dict[str, Any]:
    """What a report begins with; C{module} is the command's."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} x {_cpu_model()}, {platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("twisted", "uvloop", "gevent", "ccserver")},
        "commit": _commit(),
        "cores": str(cores),
        "generator": "c" if len(plan.command) == 1 else "python",
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "warmup": plan.warmup,
        "bodies": list(plan.bodies),
        "servers": {server.name: server.note for server in plan.servers},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
