"""C{ccserver reload}, C{quit}, C{upgrade} and all else that changes a running server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from time import monotonic
from typing import Any

import click

from ccserver.commands.controlling import ControlClient, controlling
from ccserver.commands.tables import number, reasons, text
from ccserver.config.conffile import printable

LEVELS = ("stderr", "emerg", "alert", "crit", "error", "warn", "notice", "info", "debug")
"""The names of the log levels; their places are their numbers (PROTOCOL.md 6)."""

PROGRESS_INTERVAL = 1.0
"""Seconds between two lines of progress, where it is not a terminal that shows them."""


def waiting(default: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option that says whether the end of a command is waited for."""
    return click.option(
        "--wait/--no-wait",
        default=default,
        show_default=True,
        help="Wait until it is done, and show how far it is.",
    )


@click.command()
@waiting(False)
@controlling
def reload(path: str, wait: bool) -> None:
    """Serve with the configuration and the application as they are now.

    No connection is cut. What fails changes nothing; without --wait only the log tells.
    """
    _operate(path, wait, "reload", "reloaded")


@click.command()
@waiting(True)
@controlling
def upgrade(path: str, wait: bool) -> None:
    """Let a new master take over, with Python and ccserver as they are installed now.

    No connection is cut. What fails changes nothing.
    """
    _operate(path, wait, "upgrade", "upgraded")


@click.command()
@click.argument("count", type=click.IntRange(1, 256), metavar="N")
@waiting(True)
@controlling
def workers(path: str, count: int, wait: bool) -> None:
    """Serve with N workers, until the next start or reload. No connection is cut."""
    _operate(path, wait, "workers", "done", count=count)


@click.command()
@waiting(True)
@controlling
def rebalance(path: str, wait: bool) -> None:
    """Move connections, so that the workers have equally many."""
    _operate(path, wait, "rebalance", "rebalanced")


@click.command()
@controlling
def reopen(path: str) -> None:
    """Open the log file anew: after it has been moved away."""
    with ControlClient(path) as server:
        server.ask("reopen")


@click.command()
@controlling
def certificates(path: str) -> None:
    """Read the certificates anew, at once and without touching connections, and show them."""
    with ControlClient(path) as server:
        for line in server.ask("certificates")["certificates"]:
            click.echo(printable(line))


@click.command("quit")
@waiting(True)
@controlling
def quit_server(path: str, wait: bool) -> None:
    """Stop gracefully: what has been received is answered, within ShutdownTimeout."""
    _stop(path, wait, graceful=True)


@click.command()
@waiting(True)
@controlling
def stop(path: str, wait: bool) -> None:
    """Stop at once."""
    _stop(path, wait, graceful=False)


@click.group()
def log() -> None:
    """The server's log."""


class LevelType(click.ParamType[int]):
    """A log level by its number or name."""

    name = "LEVEL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        word = str(value).lower()
        if word in LEVELS:
            return LEVELS.index(word)
        if word not in map(str, range(len(LEVELS))):
            names = ", ".join(f"{place} {name}" for place, name in enumerate(LEVELS))
            self.fail(f"{value!r} is not one of {names}", param, ctx)
        return int(word)


@log.command()
@click.argument("level", type=LevelType())
@controlling
def level(path: str, level: int) -> None:
    """Log what is not above LEVEL, a number from 0 to 8 or a name such as debug.

    It holds until the next start or reload.
    """
    with ControlClient(path) as server:
        server.ask("log_level", level=level)


def _operate(path: str, wait: bool, command: str, done: str, **arguments: Any) -> None:
    with ControlClient(path) as server:
        if not wait:
            server.begin(command, **arguments)
            click.echo(f"{command}: accepted")
            return
        with Progress() as progress:
            result = server.carry_out(command, progress.tell, **arguments)
    warnings = result.get("warnings")
    for warning in warnings if isinstance(warnings, list) else []:
        click.echo(f"warning: {text(warning)}", err=True)
    click.echo(outcome(done, result))


def _stop(path: str, wait: bool, graceful: bool) -> None:
    with ControlClient(path) as server:
        server.ask("stop", graceful=graceful)
        if wait:
            with Progress() as progress:
                server.wait_for_end(progress.tell)


def outcome(done: str, result: Mapping[str, Any]) -> str:
    """What a command has brought about, of what the server says of it."""
    parts = [
        words.format(text(result[key]))
        for key, words in (
            ("pid", "pid {}"),
            ("generation", "generation {}"),
            ("workers", "{} workers"),
            ("handed_over", "{} connections handed over"),
        )
        if result.get(key) is not None
    ]
    left = result.get("left")
    if isinstance(left, Mapping) and left:
        total = sum(number(count) or 0 for count in left.values())
        parts.append(f"{total:.0f} left to drain ({reasons(left)})")
    seconds = number(result.get("seconds"))
    if seconds is not None:
        parts.append(f"{seconds:.1f} s")
    return f"{done}: {', '.join(parts)}" if parts else done


class Progress(AbstractContextManager["Progress"]):
    """What a server says meanwhile, on stderr: on a terminal one line, which goes at the end."""

    def __init__(self) -> None:
        self._shown = ""
        self._shown_at: float | None = None
        self._stack = ExitStack()
        self._spinner: Any = None

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def tell(self, words: str) -> None:
        """Show C{words}, unless there are none, or they are shown already."""
        words = printable(words)
        if not words or words == self._shown:
            return
        if sys.stderr.isatty():
            self._spin(words)
        elif self._shown_at is None or monotonic() - self._shown_at >= PROGRESS_INTERVAL:
            click.echo(words, err=True)
        else:
            return
        self._shown, self._shown_at = words, monotonic()

    def _spin(self, words: str) -> None:
        from rich.console import Console
        from rich.text import Text

        if self._spinner is None:
            console = Console(stderr=True, markup=False, highlight=False, emoji=False)
            self._spinner = self._stack.enter_context(console.status(Text(words)))
        else:
            self._spinner.update(Text(words))
