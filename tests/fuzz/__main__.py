"""Runs the fuzz targets: C{python -m tests.fuzz [SECONDS]}."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random, SystemRandom

from twisted.logger import globalLogBeginner

from tests.fuzz import mutation
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
ROOT = CORPUS.parent.parent.parent
FOREVER = 1 << 62
GRACE = 60.0
"""Seconds that a run may take longer than it was given."""


def main(arguments: list[str] | None = None) -> int:
    """Runs what the command line asks for; the exit status."""
    options = _options(arguments)
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    names = options.target or list(TARGETS)
    if options.input:
        for name in names:
            TARGETS[name](options.input.read_bytes())
        return 0
    engine = options.engine or ("atheris" if importlib.util.find_spec("atheris") else "mutation")
    findings = Path(options.findings or tempfile.mkdtemp(prefix="ccserver-fuzz-"))
    total, failed = 0, False
    for name in names:
        run = _covered if engine == "atheris" else _mutated
        began = time.monotonic()
        count, finding = run(name, options.seconds / len(names), options, findings)
        rate = count / max(time.monotonic() - began, 0.001)
        total += count
        failed = failed or finding
        outcome = "FINDING" if finding else "nothing found"
        print(f"{name:10} {count:12,} executions {rate:10,.0f} a second  {outcome}", flush=True)
    print(f"{'total':10} {total:12,} executions, {engine}, seed {options.seed}")
    if not failed and not any(findings.iterdir()) and not options.findings:
        findings.rmdir()
    return 1 if failed else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60.0, help="for all targets")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this one")
    parser.add_argument("--executions", type=int, default=FOREVER, help="of each, at most")
    parser.add_argument("--engine", choices=("atheris", "mutation"))
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1, 1 << 31))
    parser.add_argument("--findings", type=Path, help="folder for the inputs that fail")
    parser.add_argument("--grow", type=Path, help="folder for the inputs that reach new code")
    parser.add_argument("--input", type=Path, help="run the targets on this file alone")
    return parser.parse_args(arguments)


def _mutated(
    name: str, seconds: float, options: argparse.Namespace, findings: Path
) -> tuple[int, bool]:
    """How many executions there were, and whether something was found."""
    corpus = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    found: list[bytes] = []
    try:
        limit = options.executions
        random = Random(options.seed)
        return mutation.run(TARGETS[name], corpus, random, seconds, limit, found.append), False
    except BaseException as error:
        if not found:
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        path = findings / f"{name}-{hash(found[0]) & 0xFFFFFFFF:08x}"
        path.write_bytes(found[0])
        _tell(name, path)
        return 0, True


def _covered(
    name: str, seconds: float, options: argparse.Namespace, findings: Path
) -> tuple[int, bool]:
    """How many executions there were, and whether something was found."""
    with tempfile.TemporaryDirectory(prefix="ccserver-fuzz-") as temporary:
        grown = temporary if options.grow is None else options.grow / name
        Path(grown).mkdir(parents=True, exist_ok=True)
        limit = [f"-runs={options.executions}"] if options.executions < FOREVER else []
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.covering", name, *limit),
                *(f"-max_total_time={max(1, round(seconds))}", f"-seed={options.seed}"),
                *("-print_final_stats=1", "-verbosity=0", "-rss_limit_mb=1024", "-timeout=20"),
                *(f"-artifact_prefix={findings}/{name}-", grown, str(CORPUS / name)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + GRACE,
            check=False,
        )
    output = done.stdout + done.stderr
    count = re.search(r"stat::number_of_executed_units: *([0-9]+)", output)
    if done.returncode or count is None:
        print(output, file=sys.stderr)
        for path in findings.glob(f"{name}-*"):
            _tell(name, path)
        return int(count[1]) if count else 0, True
    return int(count[1]), False


def _tell(name: str, path: Path) -> None:
    print(f"again: python -m tests.fuzz --target {name} --input {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
