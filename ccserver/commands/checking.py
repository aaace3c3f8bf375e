"""C{ccserver check}: what is wrong with a configuration, or what it amounts to."""

from __future__ import annotations

from itertools import groupby

import click

from ccserver import config
from ccserver.certificates import Certificates
from ccserver.config import Config
from ccserver.errors import StartError


@click.command()
@click.argument("file", metavar="FILE")
def check(file: str) -> None:
    """Check the configuration FILE and print the settings in force.

    What is printed is a configuration again, but for a password in it: in each section what
    differs from the defaults, then the defaults. Opens nothing but the file, and the certificates
    and keys of listeners with tls.
    """
    click.echo("\n\n".join(_sections(checked(file))))


def checked(file: str) -> Config:
    """The configuration in C{file}, its warnings told; ends the command if it has errors."""
    found, errors = config.check(file)
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
