"""The command C{ccserver}: one module for each of its commands."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from ccserver.commands.calling import call
from ccserver.commands.checking import check
from ccserver.commands.listing import connections, kick
from ccserver.commands.operating import (
    certificates,
    log,
    quit_server,
    rebalance,
    reload,
    reopen,
    stop,
    upgrade,
    workers,
)
from ccserver.commands.reporting import status
from ccserver.commands.starting import start
from ccserver.native import native

__all__ = ["main"]


class _Commands(click.Group):
    """Ends with status 1 after a wrong usage, where click says 2."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except SystemExit as end:
            raise SystemExit(1 if end.code == click.UsageError.exit_code else end.code) from None


def _versions() -> str:
    parts = []
    for name in ("ccserver", "Twisted"):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} (not installed)")
    compiled = "with" if native else "without"
    return ", ".join([*parts, f"Python {platform.python_version()}", f"{compiled} compiled part"])


def _show_versions(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        click.echo(_versions())
        context.exit()


@click.group(
    cls=_Commands,
    commands=[
        *(call, check, start, status, connections, kick),
        *(reload, certificates, reopen, stop, quit_server, upgrade, workers, rebalance, log),
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    "-V",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Say which versions these are.",
)
def main() -> None:
    """The nginx of binary TCP protocols, in Python."""


@main.command("version")
def show_versions() -> None:
    """Say which versions these are."""
    click.echo(_versions())
