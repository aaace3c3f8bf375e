"""C{ccserver check}: what is wrong with a configuration, or what it amounts to."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import groupby
from math import inf

import click

from ccserver import config
from ccserver.certificates import Certificates
from ccserver.config import Config
from ccserver.config.affinity import quoted
from ccserver.core.framing import CHECKSUM
from ccserver.errors import ConfigError, StartError, UnknownOwner
from ccserver.loading import missing_module
from ccserver.native import native
from ccserver.owner import Owner

ACCOUNTS = "ccserver.accounts:app"
"""The application whose C{DBInfo} can be read here: another may mean something else by it."""


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--rundir", "-d", metavar="FOLDER", help="Where the server runs: relative paths begin there."
)
def check(file: str, rundir: str | None) -> None:
    """Check the configuration FILE and print the settings in force.

    What is printed is a configuration again, but for a password in it: in each section what
    differs from the defaults, then the defaults. Opens nothing but the file, and the certificates
    and keys of listeners with tls; the application is looked for, but not imported. Above them
    stands what serves here: the compiled part, if it has been built, and the implementation of the
    checksum.
    """
    found = checked(file, rundir)
    for warning in _doubts(found):
        click.echo(f"warning: {warning}", err=True)
    errors = list(_faults(found))
    for error in errors:
        click.echo(str(error), err=True)
    if errors:
        raise SystemExit(1)
    sections = _sections(found)
    click.echo(f"; compiled part: {_compiled()}\n; checksum: {CHECKSUM}\n")
    click.echo("\n\n".join(sections))


def checked(file: str, rundir: str | None = None) -> Config:
    """The configuration in C{file}, its warnings told; ends the command if it has errors.

    @param rundir: the folder that its relative paths start from; the current one if None.
    """
    found, errors = config.check(file, rundir)
    for error in errors:
        click.echo(str(error), err=True)
    if found is None:
        raise SystemExit(1)
    certificates = Certificates(found.tls)
    if any(listener.tls for listener in found.listen.listeners):
        try:
            certificates.load()
        except StartError as error:
            click.echo(str(error), err=True)
            raise SystemExit(1) from None
    for warning in (*found.warnings, *certificates.warnings):
        click.echo(f"warning: {warning}", err=True)
    return found


def _faults(found: Config) -> Iterator[ConfigError]:
    """What the start would end with, though each line may be written as it is."""
    name = found.app.app
    try:
        missing = missing_module(name, found.app.path)
        if missing is not None:
            yield found.refusal("App", f"App = {name}: there is no module {missing}")
    except ConfigError as error:
        yield found.refusal("AppPath", str(error))
    if os.path.isdir(found.log.file):
        yield found.refusal("Log", f"Log = {found.log.file}: it is a folder; allowed: a file")
    if name == ACCOUNTS:
        # imported late, for it takes a fifth of a second
        from ccserver.accounts.dbinfo import database_url

        try:
            database_url(found.database.info, found.log.file)
        except ConfigError as error:
            yield found.refusal("DBInfo", str(error))


def _doubts(found: Config) -> Iterator[str]:
    """What hinders a start here and now, but perhaps not where and when the server starts."""
    for key, path in (("Log", found.log.file), ("Control", found.control.path)):
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            yield str(found.refusal(key, f"{key}: there is no folder {folder}"))
    for path in found.app.path:
        if not os.path.exists(path):
            yield str(found.refusal("AppPath", f"AppPath: there is no {path}"))
    try:
        if found.process.user:
            Owner.named(found.process.user, found.process.group)
    except UnknownOwner as error:
        yield str(found.refusal(error.key, str(error)))
    for cpus in dict.fromkeys(found.process.affinity.sets):
        if found.process.workers and not _may_run_on(cpus):
            why = f"worker_cpu_affinity: none of the CPUs of {quoted(cpus)} may be used here"
            yield str(found.refusal("worker_cpu_affinity", why))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    few = found.few_descriptors(inf if hard == resource.RLIM_INFINITY else hard)
    if few is not None:
        refused = found.net.on_few_descriptors == "refuse"
        yield f"{few}; with this limit the server does not start" if refused else few


def _may_run_on(cpus: frozenset[int]) -> bool:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        return False
    os.sched_setaffinity(0, before)
    return True


def _compiled() -> str:
    """Whether the compiled part is used, or why it is not."""
    if native is not None:
        return "yes"
    if os.environ.get("CCSERVER_NATIVE") == "0":
        return "no (CCSERVER_NATIVE=0)"
    built = find_spec("ccserver._native") is not None
    return "no (it cannot be loaded)" if built else "no (it has not been built)"


def _sections(found: Config) -> list[str]:
    """The text of each section."""
    sections = []
    for name, group in groupby(found.describe(), key=lambda setting: setting.section):
        settings = list(group)
        lines = [f"[{name}]", *(f"{s.key} = {s.value}" for s in settings if not s.is_default)]
        if any(s.is_default for s in settings):
            lines.append("; by default:")
            lines.extend(f"{s.key} = {s.value}" for s in settings if s.is_default)
        sections.append("\n".join(line.rstrip() for line in lines))
    return sections
