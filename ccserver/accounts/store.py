"""Store: accounts in a database, SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, TimeoutError

from ccserver import CcserverError, ConfigError
from ccserver.accounts.outage import Outage
from ccserver.accounts.sqlite import SqliteDatabase

T = TypeVar("T")

MAX_CONNECTIONS = 10
"""Of a worker, however many its threads: a transaction takes a thousandth of a hash's time."""

METADATA = MetaData()

ACCOUNTS = Table(
    "accounts",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    # compared byte by byte on both: SQLite does, PostgreSQL with this collation
    Column("username", Text().with_variant(Text(collation="C"), "postgresql"), nullable=False),
    Column("password_hash", String(255), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("username", name="accounts_username_key"),
)

_FIND = select(ACCOUNTS.c.password_hash).where(ACCOUNTS.c.username == bindparam("name"))
_ADD = insert(ACCOUNTS)
_REPLACE = (
    update(ACCOUNTS)
    .where(ACCOUNTS.c.username == bindparam("name"), ACCOUNTS.c.password_hash == bindparam("old"))
    .values(password_hash=bindparam("new"))
)


class Unavailable(CcserverError):
    """The database cannot be asked, or can't do what it was asked, now."""

    reason = "unavailable"


class Database(Protocol):
    """What SQLite and PostgreSQL have to be told differently.

    @ivar where: the database, as log lines call it.
    @ivar engine: for transactions that read.
    @ivar writing: for those that write.
    """

    where: str
    engine: Engine
    writing: Engine

    def make(self) -> None:
        """Make what connections need, unless it is there."""

    def lock_schema(self, connection: Connection) -> None:
        """Keep other processes from making the tables until the transaction ends."""


class Store:
    """The accounts; from any thread of this process.

    Each request raises L{Unavailable} when the database is away. It says so in the log, not
    more than once in a while, and when the database is back.
    """

    def __init__(self, url: URL, threads: int) -> None:
        self._database = _open(url, min(threads, MAX_CONNECTIONS))
        self._outage = Outage(self._database.where)
        self._is_prepared = False

    @property
    def where(self) -> str:
        """The database, as log lines call it."""
        return self._database.where

    def prepare(self) -> None:
        """Make the table, unless it is there; if the database is away, the first use will.

        @raise ConfigError: the database can't be used as it is.
        """
        try:
            self._transact(self._database.engine, lambda connection: None)
        except Unavailable as unavailable:
            if isinstance(unavailable.__cause__, ConfigError):
                raise unavailable.__cause__ from None

    def find(self, name: str) -> str | None:
        """The password hash of the account, None if there is no such account."""
        return self._transact(
            self._database.engine,
            lambda connection: connection.execute(_FIND, {"name": name}).scalar_one_or_none(),
        )

    def add(self, name: str, password_hash: str) -> bool:
        """Whether there is an account now that was not there before."""
        row = {
            "username": name,
            "password_hash": password_hash,
            "created_at": datetime.now(UTC),
        }
        try:
            self._transact(self._database.writing, lambda connection: connection.execute(_ADD, row))
        except IntegrityError as error:
            stored = self.find(name)
            if stored is None:
                raise self._refused(error) from error
            # ours, if the connection was lost between the commit and its confirmation
            return stored == password_hash
        return True

    def replace(self, name: str, old: str, new: str) -> None:
        """Store another hash of the same password, unless somebody else did."""
        values = {"name": name, "old": old, "new": new}
        try:
            self._transact(
                self._database.writing, lambda connection: connection.execute(_REPLACE, values)
            )
        except IntegrityError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        self._database.engine.dispose()

    def _transact(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        """Do C{work} in a transaction, and once more if the connection turns out to be lost."""
        if not self._outage.admits():
            raise Unavailable
        is_second = False
        while True:
            is_connected = False
            try:
                if not self._is_prepared:
                    self._make_schema()
                with engine.connect() as connection:
                    is_connected = True
                    with connection.begin():
                        result = work(connection)
            except IntegrityError:
                self._outage.worked()
                raise
            except TimeoutError as error:  # others have all connections: too much at once, no fault
                self._outage.failed(f"all connections are busy: {error}", is_away=False)
                raise Unavailable from error
            except (DBAPIError, OSError, ConfigError) as error:
                is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
                if is_lost and not is_second:
                    is_second = True
                    continue
                if is_lost or not is_connected:
                    self._is_prepared = False
                self._outage.failed(_told(error), is_away=is_lost or not is_connected)
                raise Unavailable from error
            else:
                self._outage.worked()
                return result

    def _refused(self, error: IntegrityError) -> Unavailable:
        """A constraint that is not ours forbids it; the driver's own text may show the row."""
        self._outage.failed(_told(error), is_away=False)
        return Unavailable()

    def _make_schema(self) -> None:
        self._database.make()
        with self._database.writing.begin() as connection:
            self._database.lock_schema(connection)
            METADATA.create_all(connection)
        self._is_prepared = True


def _open(url: URL, connections: int) -> Database:
    if url.get_backend_name() == "sqlite":
        return SqliteDatabase(url, connections)
    try:
        from ccserver.accounts.postgresql import PostgresqlDatabase
    except ImportError as error:
        raise ConfigError(f"DBInfo: a PostgreSQL database needs psycopg: {error}") from error
    return PostgresqlDatabase(url, connections)


def _told(error: Exception) -> str:
    """What the driver says, on one line, without the statement, its values and the row."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return " ".join((primary or str(cause)).split())[:300]
