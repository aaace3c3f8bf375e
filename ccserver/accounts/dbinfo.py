"""DBInfo: the text of the configuration to the URL of a database."""

from __future__ import annotations

import ipaddress
import os
import re

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ccserver import ConfigError

EMBEDDED = "ccserver.db"
ALLOWED = (
    "allowed: nothing, host;port;user;password;database, postgresql://..., sqlite:///FILE, "
    "or a path that has a / in it or ends in .db, .sqlite or .sqlite3"
)

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
_SQLITE = ("sqlite", "sqlite+pysqlite")


def database_url(info: str, log_file: str) -> URL:
    """The database that C{info} names; SQLite files stand beside C{log_file}.

    @raise ConfigError: it names none. The text quotes nothing of C{info}, which may hold a
        password.
    """
    folder = os.path.dirname(log_file)
    if not info or names_no_database(info):
        return _file(EMBEDDED, folder)
    if "://" in info:
        return _of_url(info, folder)
    if ";" in info:
        return _of_list(info)
    if _is_path(info):
        return _file(info, folder)
    raise ConfigError(f"DBInfo names no database; {ALLOWED}")


def names_no_database(info: str) -> bool:
    """Whether it is a host alone: the family's sample value, 127.0.0.1."""
    if _is_path(info):
        return False
    try:
        ipaddress.ip_address(info)
    except ValueError:
        return _HOST_NAME.fullmatch(info) is not None
    return True


def _is_path(info: str) -> bool:
    return "/" in info or info.endswith((".db", ".sqlite", ".sqlite3"))


def _file(path: str, folder: str) -> URL:
    return URL.create("sqlite", database=os.path.normpath(os.path.join(folder, path)))


def _of_url(info: str, folder: str) -> URL:
    try:
        url = make_url(info)
    except (ArgumentError, ValueError):
        raise ConfigError(f"DBInfo is not a URL; {ALLOWED}") from None
    if "@" in (url.host or ""):  # a part of the password, which log lines would show
        raise ConfigError("DBInfo is not a URL: a @ in the password is written as %40")
    if url.drivername in _POSTGRESQL:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in _SQLITE:
        raise ConfigError(f"DBInfo names a database that is not supported; {ALLOWED}")
    if url.host or url.query or not url.database or url.database.startswith((":", "file:")):
        raise ConfigError(
            "DBInfo: an SQLite database is a file, sqlite:///FILE, without host and options"
        )
    return _file(url.database, folder)


def _of_list(info: str) -> URL:
    """A C{;} in the password needs no quoting: two fields in front, one behind it are known."""
    parts = info.split(";")
    if len(parts) < 5:
        raise ConfigError(
            f"DBInfo has {len(parts)} parts; allowed: host;port;user;password;database"
        )
    host, port, user = (part.strip() for part in parts[:3])
    database = parts[-1].strip()
    if not (host and user and database):
        raise ConfigError("DBInfo: host, user and database can't be empty")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ConfigError("DBInfo: the port is not a number from 1 to 65535")
    return URL.create(
        "postgresql+psycopg",
        username=user,
        password=";".join(parts[3:-1]),
        host=host,
        port=int(port),
        database=database,
    )
