"""C{ccserver start}: twistd with the arguments that a server needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from ccserver.commands.checking import checked


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--config",
    "-c",
    "file",
    default="etc/ccserver.conf",
    show_default=True,
    metavar="FILE",
    help="The configuration.",
)
@click.option("--nodaemon", "-n", is_flag=True, help="Stay in the foreground whatever FILE says.")
@click.option("--pidfile", metavar="FILE", help="Where the master's process id is written.")
@click.option("--rundir", "-d", metavar="FOLDER", help="Where the server runs.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[TWISTD OPTIONS]...")
def start(
    file: str, nodaemon: bool, pidfile: str | None, rundir: str | None, options: Sequence[str]
) -> None:
    """Start the server: in the foreground, unless FILE says Daemon = 1.

    The same as twistd ccserver --config FILE, with the current folder on the path. What follows
    these options is passed on to twistd (see twistd --help), such as --uid=nobody.
    """
    if options and not options[0].startswith("-"):
        raise click.UsageError(f"{options[0]!r} is no option; the configuration: --config FILE")
    daemon = checked(file, rundir).process.daemon and not nodaemon
    arguments = ["twistd"]
    if not daemon:
        arguments.append("--nodaemon")
    if pidfile is not None:
        arguments.append(f"--pidfile={pidfile}")
    if rundir is not None:
        arguments.append(f"--rundir={rundir}")
    run_twistd([*arguments, *options, "ccserver", "--config", file])


def run_twistd(arguments: list[str]) -> None:
    """Become twistd, whose C{sys.argv} is C{arguments}; returns when the server has ended.

    In this process, not by exec: sys.path, by which ccserver was found, stays as it is.
    """
    # Imported late, for it takes half a second and chooses a reactor.
    from twisted.scripts.twistd import run

    sys.argv[:] = arguments
    run()
