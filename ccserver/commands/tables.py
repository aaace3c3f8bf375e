"""Tables on the terminal, or plain where the output is none; and how cells are written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import click

from ccserver.config.conffile import printable

MISSING = "-"
GAP = "  "


class Column(NamedTuple):
    """One column: its title, and what it says of an item, for which it may be missing."""

    title: str
    cell: Callable[[Mapping[str, Any]], str]
    left: bool = False


class Table(NamedTuple):
    """Cells, all of them printable, under their titles."""

    columns: tuple[Column, ...]
    rows: list[list[str]]

    def lines(self) -> list[str]:
        """As plain text, with nothing cut off."""
        rows = [[column.title for column in self.columns], *self.rows]
        widths = [max(len(row[place]) for row in rows) for place in range(len(self.columns))]
        return [
            GAP.join(
                cell.ljust(width) if column.left else cell.rjust(width)
                for cell, width, column in zip(row, widths, self.columns, strict=True)
            ).rstrip()
            for row in rows
        ]

    def rendered(self) -> Any:
        """For rich."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in self.columns:
            justify: Any = "left" if column.left else "right"
            table.add_column(column.title, justify=justify, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
        return table


STYLES = {
    "ready": "green",
    "starting": "yellow",
    "loaded": "yellow",
    "leaving": "yellow",
    "stopping": "yellow",
    "overloaded": "red",
    "waiting": "red",
    "blocked": "bold red",
}
"""What a worker is doing, in colour."""


def tabled(columns: tuple[Column, ...], items: Iterable[Any]) -> Table:
    """A row for each of the items; those that are no mappings are left out."""
    rows = [
        [column.cell(item) for column in columns] for item in items if isinstance(item, Mapping)
    ]
    return Table(columns, rows)


def is_terminal() -> bool:
    """Whether somebody looks at standard output."""
    return sys.stdout.isatty()


def terminal() -> Any:
    """Standard output for rich: imported late, for it takes a tenth of a second."""
    from rich.console import Console

    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False)


def show(parts: Iterable[str | Table]) -> None:
    """Print lines and tables."""
    if is_terminal():
        terminal().print(rendered(parts))
    else:
        click.echo("\n".join(plain(parts)))


def plain(parts: Iterable[str | Table]) -> list[str]:
    """Lines and tables as lines."""
    lines: list[str] = []
    for part in parts:
        lines.extend([part] if isinstance(part, str) else part.lines())
    return lines


def rendered(parts: Iterable[str | Table]) -> Any:
    """Lines and tables for rich."""
    from rich.console import Group
    from rich.text import Text

    return Group(*(Text(part) if isinstance(part, str) else part.rendered() for part in parts))


def text(value: Any) -> str:
    """Any value in one cell."""
    if isinstance(value, float):
        return f"{value:.0f}"
    return MISSING if value is None or value == "" else printable(str(value))


def number(value: Any) -> float | None:
    """C{value}, if it is a number of something."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < 1 << 64 else None  # neither NaN nor infinite


def size(value: Any) -> str:
    """Bytes."""
    count = number(value)
    if count is None:
        return text(value)
    if count < 1 << 10:
        return f"{count:.0f} B"
    units = iter(("KiB", "MiB", "GiB"))
    for unit in units:
        count /= 1 << 10
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count:.0f} {unit}"


def duration(value: Any) -> str:
    """Seconds."""
    seconds = number(value)
    if seconds is None:
        return text(value)
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for unit, length, smaller, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= length:
            return f"{whole // length}{unit}{whole % length // part:02d}{smaller}"
    return f"{whole}s"


def reasons(counts: Any) -> str:
    """Counts by reason, the largest first."""
    if not isinstance(counts, Mapping):
        return text(counts)
    ordered = sorted(counts.items(), key=lambda item: (-(number(item[1]) or 0), str(item[0])))
    return ", ".join(f"{text(reason)} {text(count)}" for reason, count in ordered)
