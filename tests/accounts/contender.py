"""A worker process that registers as fast as it can, against others that want the same names.

Run as C{python -m tests.accounts.contender FOLDER DBINFO THREADS NAMES}: opens the accounts at a
line on its standard input, and prints how often each result was given for each name.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

from ccserver.accounts import handlers
from ccserver.accounts.messages import Register, Result
from tests.accounts.support import in_threads, session, worker


def main(folder: str, info: str, threads: str, names: str) -> None:
    """Open the accounts and register all names in each thread."""
    print("ready", flush=True)
    sys.stdin.readline()
    started = worker(folder, info)
    handlers.open_accounts(started)

    def register_all(thread: int) -> list[tuple[str, str]]:
        given = []
        for number in range(int(names)):
            request = Register(username=f"user{number}", password="secret")
            reply = handlers.register(session(), request)
            given.append((request.username, Result(reply.result).name))
        return given

    counts: Counter[tuple[str, str]] = Counter()
    for given in in_threads(int(threads), register_all):
        if isinstance(given, Exception):
            raise given
        counts.update(given)
    handlers.close_accounts(started)
    print(json.dumps([[*key, count] for key, count in counts.items()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
