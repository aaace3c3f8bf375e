"""C{ccserver connections} and C{kick}: the server's clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ccserver.commands.controlling import ControlClient, controlling
from ccserver.commands.reporting import as_line
from ccserver.commands.tables import Column, Table, duration, show, size, tabled, text
from ccserver.errors import OperationFailed

SORTS = (
    *("id", "age", "idle", "bytes_in", "bytes_out"),
    *("packets_in", "packets_out", "waiting", "unsent"),
)
MAX_CONNECTIONS = 10_000
MAX_ID = (1 << 64) - 1

CONNECTION_COLUMNS = (
    Column("id", lambda connection: text(connection.get("id"))),
    Column("worker", lambda connection: text(connection.get("worker"))),
    Column("pid", lambda connection: text(connection.get("pid"))),
    Column("peer", lambda connection: text(connection.get("peer")), left=True),
    Column("server", lambda connection: text(connection.get("server")), left=True),
    Column("state", lambda connection: text(connection.get("state")), left=True),
    Column("age", lambda connection: duration(connection.get("seconds"))),
    Column("idle", lambda connection: duration(connection.get("idle"))),
    Column("packets in", lambda connection: text(connection.get("packets_in"))),
    Column("out", lambda connection: text(connection.get("packets_out"))),
    Column("bytes in", lambda connection: size(connection.get("bytes_in"))),
    Column("out", lambda connection: size(connection.get("bytes_out"))),
    Column("waiting", lambda connection: text(connection.get("waiting"))),
    Column("unsent", lambda connection: size(connection.get("unsent"))),
)


@click.command()
@click.option(
    "--peer", metavar="ADDRESS", help="Only those from here: HOST, NETWORK/BITS, HOST:PORT, :PORT."
)
@click.option("--server", metavar="ADDRESS", help="Only those to this address of the server.")
@click.option("--worker", type=click.IntRange(0, 255), metavar="N", help="Only those of worker N.")
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default="id",
    show_default=True,
    help="The order: ids ascend, of all else the largest come first.",
)
@click.option(
    "--limit",
    type=click.IntRange(0, MAX_CONNECTIONS),
    default=100,
    show_default=True,
    metavar="N",
    help="How many are shown.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@controlling
def connections(
    path: str,
    peer: str | None,
    server: str | None,
    worker: int | None,
    sort: str,
    limit: int,
    as_json: bool,
) -> None:
    """Show the connections of the server's clients."""
    with ControlClient(path) as control:
        found = control.ask(
            "connections", peer=peer, server=server, worker=worker, sort=sort, limit=limit
        )
    if as_json:
        click.echo(as_line(found))
    else:
        show(listing(found))


def listing(found: Mapping[str, Any]) -> list[str | Table]:
    """What the server has said, for a person."""
    items = found.get("connections")
    table = tabled(CONNECTION_COLUMNS, items if isinstance(items, list) else [])
    total = found.get("total", len(table.rows))
    many = f"{len(table.rows)} of {text(total)} connections"
    return [table, many] if table.rows else [many]


@click.command()
@click.argument("ids", nargs=-1, required=True, type=click.IntRange(0, MAX_ID), metavar="ID...")
@controlling
def kick(path: str, ids: Sequence[int]) -> None:
    """Close the connections with these IDs.

    The others are closed also where one of them is not there any more.
    """
    with ControlClient(path) as control:
        gone = [str(id) for id in ids if not control.ask("kick", id=id).get("kicked")]
    if gone:
        raise OperationFailed(f"no such connection: {', '.join(gone)}")
