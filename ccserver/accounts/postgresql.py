"""PostgresqlDatabase: connections to a PostgreSQL server, none of which waits for ever."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import URL, Connection, create_engine, event, text

from ccserver import ConfigError

CONNECT_TIMEOUT = 3
"""Seconds to wait for a new connection; C{connect_timeout} in a URL is another number."""

POOL_TIMEOUT = 1.0
"""Seconds to wait for one of the worker's connections to be free."""

ANSWER_TIMEOUT = 5.0
"""Seconds to wait for the answer to a statement."""

_SCHEMA_LOCK = 0x63637365727665
_ACTIVE = psycopg.pq.TransactionStatus.ACTIVE


class BoundedConnection(psycopg.Connection[Any]):
    """Gives up, and closes, when the server owes an answer for longer than L{ANSWER_TIMEOUT}.

    A server that is frozen or behind a dead network path says nothing at all, so that neither
    its own statement_timeout nor TCP would end the wait.
    """

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Called by psycopg for all that it waits for."""
        kwargs.setdefault("timeout", ANSWER_TIMEOUT)
        try:
            return super().wait(gen, *args, **kwargs)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == _ACTIVE:
                self.pgconn.finish()
            raise


class PostgresqlDatabase:
    """A database of a server.

    @ivar engine: for transactions that read.
    @ivar writing: for those that write.
    """

    def __init__(self, url: URL, connections: int) -> None:
        self.where = f"{url.host or 'postgresql'}:{url.port or 5432}/{url.database or ''}"
        self.engine = self.writing = create_engine(
            url,
            connect_args={} if "connect_timeout" in url.query else _DEFAULTS,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT,
            pool_pre_ping=True,
            hide_parameters=True,
        )
        event.listen(self.engine, "do_connect", _connect)

    def make(self) -> None:
        """Nothing: the database is there, or an administrator's to make."""

    def lock_schema(self, connection: Connection) -> None:
        """Until the end of the transaction, no other worker gets past here.

        @raise ConfigError: the database cannot hold every name.
        """
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise ConfigError(f"DBInfo: the database's encoding is {encoding}; allowed: UTF8")
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})


_DEFAULTS = {"connect_timeout": CONNECT_TIMEOUT}


def _connect(dialect: Any, record: Any, arguments: Any, parameters: Any) -> BoundedConnection:
    return BoundedConnection.connect(*arguments, **parameters)
