"""C{ccserver status}: how the server and its workers are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from time import sleep
from typing import Any

import click

from ccserver.commands.controlling import ControlClient, controlling
from ccserver.commands.tables import (
    MISSING,
    Column,
    Table,
    duration,
    is_terminal,
    number,
    plain,
    reasons,
    rendered,
    show,
    size,
    tabled,
    terminal,
    text,
)

SUMMED = ("connections", "packets_per_second", "lane_packets", "pool_queue", "memory", "restarts")
INTERVAL = 2.0


def _pool(worker: Mapping[str, Any]) -> str:
    queue, threads = text(worker.get("pool_queue")), worker.get("pool_threads")
    return queue if threads is None else f"{queue}/{text(threads)}"


WORKER_COLUMNS = (
    Column("worker", lambda worker: text(worker.get("slot"))),
    Column("pid", lambda worker: text(worker.get("pid"))),
    Column("state", lambda worker: text(worker.get("state")), left=True),
    Column("generation", lambda worker: text(worker.get("generation"))),
    Column("connections", lambda worker: text(worker.get("connections"))),
    Column("packets/s", lambda worker: text(worker.get("packets_per_second"))),
    Column("lanes", lambda worker: text(worker.get("lane_packets"))),
    Column("pool", _pool),
    Column("memory", lambda worker: size(worker.get("memory"))),
    Column("restarts", lambda worker: text(worker.get("restarts"))),
    Column("age", lambda worker: duration(worker.get("age"))),
)

CERTIFICATE_COLUMNS = (
    Column("certificate", lambda certificate: text(certificate.get("path")), left=True),
    Column("listening", lambda certificate: _addresses(certificate.get("listening")), left=True),
    Column("not after", lambda certificate: text(certificate.get("not_after")), left=True),
    Column("days left", lambda certificate: _days(certificate.get("days_left"))),
)


def _addresses(listening: Any) -> str:
    words = [str(address) for address in listening] if isinstance(listening, list) else []
    return text(", ".join(words))


def _days(left: Any) -> str:
    if not isinstance(left, int | float) or isinstance(left, bool):
        return MISSING
    return "expired" if left < 0 else f"{left:.1f}"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option(
    "--watch",
    is_flag=False,
    flag_value=INTERVAL,
    type=click.FloatRange(min=0.1, max=3600),
    metavar="[SECONDS]",
    help=f"Look again every so many seconds, {INTERVAL:g} without a number; Ctrl-C ends it.",
)
@controlling
def status(path: str, as_json: bool, watch: float | None) -> None:
    """Show how the server and its workers are.

    lanes: packets that wait for the handler of one before them; pool: packets that wait for a
    thread, and the threads there are.
    """
    if watch is None:
        found = _status(path)
        if as_json:
            click.echo(as_line(found))
        else:
            show(report(found))
        return
    try:
        _watch(path, as_json, watch)
    except KeyboardInterrupt:
        pass


def _status(path: str) -> dict[str, Any]:
    """Each time on a new connection: after an upgrade another server has the path."""
    with ControlClient(path) as server:
        return server.ask("status")


def _watch(path: str, as_json: bool, interval: float) -> None:
    if is_terminal() and not as_json:
        _watch_on_terminal(path, interval)
        return
    while True:
        found = _status(path)
        click.echo(as_line(found) if as_json else "\n".join([*plain(report(found)), ""]))
        sleep(interval)


def _watch_on_terminal(path: str, interval: float) -> None:
    from rich.live import Live

    first = rendered(report(_status(path)))
    with Live(first, console=terminal(), auto_refresh=False) as live:
        while True:
            sleep(interval)
            live.update(rendered(report(_status(path))), refresh=True)


def as_line(value: Any) -> str:
    """C{value} as JSON on one line, all of it printable."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def report(found: Mapping[str, Any]) -> list[str | Table]:
    """What the server has said, for a person; whatever it has not said is left out."""
    parts: list[str | Table] = [_head(found), _origin(found)]
    listening = found.get("listening")
    if isinstance(listening, list):
        parts.append("listening on " + (", ".join(map(text, listening)) or "nothing"))
    if found.get("doing"):
        parts.append(text(found["doing"]))
    parts.extend(_last_reload(found.get("last_reload")))
    workers = found.get("workers")
    if isinstance(workers, list) and workers:
        table = tabled(WORKER_COLUMNS, workers)
        if len(table.rows) > 1:
            table.rows.append(_total(workers))
        parts.extend(["", table])
    certificates = found.get("certificates")
    if isinstance(certificates, list) and certificates:
        parts.extend(["", tabled(CERTIFICATE_COLUMNS, certificates)])
    parts.extend(_counts(found))
    return parts


def _head(found: Mapping[str, Any]) -> str:
    return (
        f"ccserver {text(found.get('version'))}, pid {text(found.get('pid'))}: "
        f"{text(found.get('state'))}, up {duration(found.get('uptime'))}"
    )


def _origin(found: Mapping[str, Any]) -> str:
    words = [
        f"configuration {text(found.get('config'))}",
        f"generation {text(found.get('generation'))}",
    ]
    if "compiled" in found:
        words.append(f"{'with' if found['compiled'] else 'without'} compiled part")
    if "checksum" in found:
        words.append(f"checksum by {text(found['checksum'])}")
    return ", ".join(words)


def _last_reload(last: Any) -> list[str]:
    if not isinstance(last, Mapping) or last.get("result") is None:
        return []
    line = f"last reload: {text(last['result'])}, {duration(last.get('ago'))} ago"
    return [f"{line}: {text(last['reason'])}" if last.get("reason") else line]


def _total(workers: list[Any]) -> list[str]:
    """A last row with the sums of what can be summed."""
    all_of_them = [worker for worker in workers if isinstance(worker, Mapping)]
    places = {text(worker.get("slot")): worker for worker in all_of_them}
    sums: dict[str, Any] = {"slot": "total"}
    for key in SUMMED:
        counted = places.values() if key == "restarts" else all_of_them  # they are of the place
        values = [number(worker.get(key)) for worker in counted]
        sums[key] = sum(value for value in values if value is not None)
    [row] = tabled(WORKER_COLUMNS, [sums]).rows
    return ["" if cell == MISSING else cell for cell in row]


def _counts(found: Mapping[str, Any]) -> list[str]:
    lines = []
    if number(found.get("handed_over")):
        lines.append(f"handed over: {text(found['handed_over'])} connections")
    for key, title in (
        ("left", "not handed over"),
        ("refused", "refused packets"),
        ("closed", "closed connections"),
        ("dropped", "dropped packets to clients"),
    ):
        if found.get(key):
            lines.append(f"{title}: {reasons(found[key])}")
    if number(found.get("handler_errors")):
        lines.append(f"handlers have raised: {text(found['handler_errors'])} times")
    return ["", *lines] if lines else []
