"""C{python -m benchmarks.logins}: what a login costs, and whether its time tells known names."""

import argparse
import dataclasses
import os
import random
import statistics
import tempfile
import time

from ccserver.accounts.dbinfo import database_url
from ccserver.accounts.passwords import Passwords
from ccserver.accounts.registrar import Registrar
from ccserver.accounts.store import Store
from ccserver.config import DatabaseSettings


def seconds(registrar: Registrar, name: str) -> float:
    """How long one login with a wrong password takes."""
    began = time.perf_counter()
    if registrar.login(name, "wrong"):
        raise AssertionError(f"{name} is logged in")
    return time.perf_counter() - began


def share_of_slower(some: list[float], others: list[float]) -> float:
    """Of all pairs of one of C{some} and one of C{others}, the part in which the first is slower.

    0.5: they cannot be told apart.
    """
    slower = sum(mine > theirs for mine in some for theirs in others)
    return slower / (len(some) * len(others))


def main() -> None:
    """Measure in this process, on a database of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logins", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="logins of each kind (%(default)s)")
    parser.add_argument("--database", default="", help="a DBInfo; SQLite by default")
    arguments = parser.parse_args()
    settings = dataclasses.replace(DatabaseSettings(), hash_threads=1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(database_url(arguments.database, os.path.join(folder, "log")), 2)
        registrar = Registrar(store, Passwords(settings))
        known = f"known {os.getpid()} {random.randrange(1 << 30)}"
        registrar.register(known, "right")
        times: dict[str, list[float]] = {known: [], "nobody": []}
        for _ in range(arguments.count):
            for name in random.sample([*times], 2):
                times[name].append(seconds(registrar, name))
        registrar.close()
    for what, taken in zip(("known name", "unknown name"), times.values(), strict=True):
        median, spread = statistics.median(taken), statistics.pstdev(taken)
        print(f"{what}, wrong password: median {median * 1e3:.2f} ms, deviation {spread * 1e3:.2f}")
    share = share_of_slower(*times.values())
    print(f"the known name is the slower one in {share:.3f} of the pairs; allowed: 0.3 to 0.7")
    raise SystemExit(not 0.3 <= share <= 0.7)


if __name__ == "__main__":
    main()
