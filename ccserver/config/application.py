"""The settings of the application, and of the accounts that are one."""

from __future__ import annotations

from dataclasses import dataclass

from ccserver.config.settings import Settings, setting
from ccserver.config.values import AppName, DatabaseInfo, FolderPaths, Seconds, Size, Whole


@dataclass(frozen=True)
class AppSettings(Settings):
    """The application that is served."""

    app: str = setting(
        "App", "App", AppName(), "ccserver.accounts:app", "module and attribute of the application"
    )
    path: tuple[str, ...] = setting(
        "App",
        "AppPath",
        FolderPaths(),
        ".",
        "folders, separated by colons, from which the application is imported",
    )


@dataclass(frozen=True)
class DatabaseSettings(Settings):
    """The accounts' database and the cost of their password hashes."""

    info: str = setting(
        "Socket",
        "DBInfo",
        DatabaseInfo(),
        "",
        "the database: a URL or host;port;user;password;database",
        secret=True,
    )
    hash_time_cost: int = setting(
        "Database", "HashTimeCost", Whole(1, 100), "2", "passes of a password hash over its memory"
    )
    hash_memory: int = setting(
        "Database",
        "HashMemory",
        Size(8 << 10, 4 << 30),
        "19MiB",
        "memory that one password hash takes",
    )
    hash_parallelism: int = setting(
        "Database", "HashParallelism", Whole(1, 64), "1", "lanes of one password hash"
    )
    hash_threads: int = setting(
        "Database",
        "HashThreads",
        Whole(0, 64),
        "0",
        "password hashes computed at once in a worker; 0: one for each of its CPUs",
    )


@dataclass(frozen=True)
class AccountsSettings(Settings):
    """How often a wrong password may be given before the next login has to wait."""

    wrong_logins: int = setting(
        "Accounts",
        "WrongLogins",
        Whole(0, 1_000_000),
        "10",
        "wrong logins at once for one name from one address, and on one connection; 0: no limit",
    )
    wrong_login_delay: float = setting(
        "Accounts",
        "WrongLoginDelay",
        Seconds(0, 86400),
        "30",
        "seconds until one more is let through",
    )
    address_wrong_logins: int = setting(
        "Accounts",
        "AddressWrongLogins",
        Whole(0, 1_000_000),
        "500",
        "wrong logins at once from one address, for whatever names; 0: no limit",
    )
    address_wrong_login_delay: float = setting(
        "Accounts",
        "AddressWrongLoginDelay",
        Seconds(0, 86400),
        "0.5",
        "seconds until one more is let through",
    )
    name_wrong_logins: int = setting(
        "Accounts",
        "NameWrongLogins",
        Whole(0, 1_000_000),
        "100",
        "wrong logins at once for one name, from whatever addresses; 0: no limit",
    )
    name_wrong_login_delay: float = setting(
        "Accounts",
        "NameWrongLoginDelay",
        Seconds(0, 86400),
        "10",
        "seconds until one more is let through",
    )
    wrong_login_memory: int = setting(
        "Accounts",
        "WrongLoginMemory",
        Whole(1, 10_000_000),
        "65536",
        "how many names, addresses and pairs of them a worker remembers, of each",
    )
