"""The settings by part: a dataclass field is key, section, type, default, bounds and doc in one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ccserver.config.values import (
    Address,
    Addresses,
    AppName,
    Choice,
    DatabaseInfo,
    FilePath,
    FolderPaths,
    Kind,
    Seconds,
    Size,
    Switch,
    Text,
    Whole,
    WholeSeconds,
    Workers,
)

T = TypeVar("T")

SECTIONS = ("Socket", "Log", "Proc", "Net", "NetSecurity", "App", "Database", "TLS", "Control")


@dataclass(frozen=True)
class Setting(Generic[T]):
    """One key of the file.

    @ivar default: the text that stands for it when a file does not have it; C{None}: nothing does.
    @ivar reloadable: a reload applies a new value; else it needs a restart.
    @ivar secret: its value may hold a password and is never quoted.
    """

    section: str
    key: str
    kind: Kind[T]
    default: str | None
    doc: str
    reloadable: bool = True
    secret: bool = False


def setting(
    section: str,
    key: str,
    kind: Kind[T],
    default: str,
    doc: str,
    *,
    reloadable: bool = True,
    secret: bool = False,
) -> T:
    """A dataclass field that is read from C{key}; its L{Setting} stands in the metadata."""
    made = Setting(section, key, kind, default, doc, reloadable, secret)
    value: T = dataclasses.field(
        default=kind.parse(default, ""), metadata={"setting": made}, repr=not secret
    )
    return value


@dataclass(frozen=True)
class Settings:
    """The root of the parts."""

    @classmethod
    def fields(cls) -> Iterator[tuple[str, Setting[Any]]]:
        """The attributes of the part, and what each is read from."""
        for field in dataclasses.fields(cls):
            yield field.name, field.metadata["setting"]


@dataclass(frozen=True)
class ListenSettings(Settings):
    """Where connections come in. In this order: ListenPort, ListenPort0..., Listen."""

    addresses: tuple[Address, ...] = setting(
        "Socket",
        "Listen",
        Addresses(),
        "0.0.0.0:5678",
        "addresses to listen on, beside those of ListenPort and ListenPort0...",
    )
    backlog: int = setting(
        "Socket",
        "Backlog",
        Whole(1, 65535),
        "4096",
        "connections of one port that wait to be accepted; the kernel's somaxconn bounds it too",
    )


@dataclass(frozen=True)
class LogSettings(Settings):
    """What is logged, and where to."""

    file: str = setting("Log", "Log", FilePath(), "error.log", "the log file")
    level: int = setting(
        "Log",
        "LogLevel",
        Whole(0, 8),
        "6",
        "0 stderr, 1 emerg, 2 alert, 3 crit, 4 error, 5 warn, 6 notice, 7 info, 8 debug; "
        "lines above it are dropped",
    )


@dataclass(frozen=True)
class ProcessSettings(Settings):
    """The processes and their threads."""

    workers: int = setting(
        "Proc",
        "WorkerProcesses",
        Workers(0, 256),
        "auto",
        "worker processes; auto: one a CPU; 0: no workers, all in one process",
    )
    daemon: bool = setting(
        "Proc", "Daemon", Switch(), "0", "run in the background", reloadable=False
    )
    threads: int = setting(
        "Proc",
        "ProcMsgRecvWorkThreadCount",
        Whole(1, 1000),
        "20",
        "threads in each worker for the handlers that may block",
    )
    shutdown_timeout: float = setting(
        "Proc",
        "ShutdownTimeout",
        Seconds(0, 86400),
        "30",
        "seconds that a graceful stop may take before the rest is cut off",
    )
    drain_spread: float = setting(
        "Proc",
        "DrainSpread",
        Seconds(0, 86400),
        "0",
        "seconds over which a drain spreads the ends of idle connections, so that their clients do "
        "not all come back at once",
    )
    ready_timeout: float = setting(
        "Proc",
        "ReadyTimeout",
        Seconds(1, 3600),
        "30",
        "seconds that a worker may take from its start until it can serve",
    )
    handover_timeout: float = setting(
        "Proc",
        "HandoverTimeout",
        Seconds(1, 3600),
        "10",
        "seconds that a connection may take to finish its running handler before it is handed over",
    )
    worker_timeout: float = setting(
        "Proc",
        "WorkerTimeout",
        Seconds(0, 86400),
        "30",
        "seconds without a beat of its reactor after which a worker is replaced; 0: never",
    )
    handler_timeout: float = setting(
        "Proc",
        "HandlerTimeout",
        Seconds(0, 86400),
        "60",
        "seconds that a handler may hold a thread before its connection is closed; 0: any time",
    )
    max_requests: int = setting(
        "Proc",
        "MaxRequests",
        Whole(0, 1_000_000_000_000),
        "0",
        "packets after which a worker is recycled; 0: never",
    )
    max_requests_jitter: int = setting(
        "Proc",
        "MaxRequestsJitter",
        Whole(0, 1_000_000_000_000),
        "0",
        "up to so many more, at random, so that workers are not recycled together",
    )
    max_worker_age: float = setting(
        "Proc",
        "MaxWorkerAge",
        Seconds(0, 31_536_000),
        "0",
        "seconds after which a worker is recycled; 0: never",
    )
    max_worker_memory: int = setting(
        "Proc",
        "MaxWorkerMemory",
        Size(0, 1 << 40),
        "0",
        "resident memory above which a worker is recycled; 0: any",
    )
    rebalance_interval: float = setting(
        "Proc",
        "RebalanceInterval",
        Seconds(0, 86400),
        "10",
        "seconds between two looks at whether workers hold equally many connections; 0: never",
    )
    user: str = setting(
        "Proc", "User", Text(), "", "the user to become once the ports are open", reloadable=False
    )
    group: str = setting(
        "Proc", "Group", Text(), "", "the group to become; the user's, if empty", reloadable=False
    )


@dataclass(frozen=True)
class NetSettings(Settings):
    """What holds for the connections of a worker."""

    worker_connections: int = setting(
        "Net",
        "worker_connections",
        Whole(1, 1_000_000),
        "2048",
        "connections a worker holds; more are accepted and closed at once",
    )
    max_packet_length: int = setting(
        "Net",
        "MaxPacketLength",
        Size(8, 65535),
        "29000",
        "bytes of the longest packet, header and body; a longer one closes its connection",
    )
    on_bad_checksum: str = setting(
        "Net",
        "OnBadChecksum",
        Choice("drop", "close"),
        "drop",
        "what a packet with a wrong checksum meets: drop it, or close its connection",
    )
    lane_packets: int = setting(
        "Net",
        "LanePackets",
        Whole(1, 65536),
        "64",
        "packets of one connection that wait for their handler before its reading is paused",
    )
    recycle_wait: int = setting(
        "Net",
        "Sock_RecyConnectionWaitTime",
        WholeSeconds(0, 86400),
        "60",
        "accepted for the family's sake, without effect: connection ids are never reused",
    )
    heartbeat: bool = setting(
        "Net", "Sock_WaitTimeEnable", Switch(), "0", "close connections that are silent too long"
    )
    heartbeat_interval: int = setting(
        "Net",
        "Sock_MaxWaitTime",
        WholeSeconds(0, 86400, least=5),
        "20",
        "seconds between two checks of a connection, at least 5; silent for longer than three of "
        "them and 10 seconds, it is closed",
    )
    heartbeat_kick: bool = setting(
        "Net",
        "Sock_TimeOutKick",
        Switch(),
        "0",
        "close every connection at its first check, whatever it sent",
    )
    heartbeat_ping_only: bool = setting(
        "Net",
        "HeartbeatPingOnly",
        Switch(),
        "0",
        "only a ping is a sign of life, as in the family; else any complete packet is",
    )


@dataclass(frozen=True)
class SecuritySettings(Settings):
    """Protection against floods. C{flood_interval} is in seconds, its key in milliseconds."""

    flood_kick: bool = setting(
        "NetSecurity",
        "Sock_FloodAttackKickEnable",
        Switch(),
        "0",
        "close connections that send packets in too quick a succession",
    )
    flood_interval: float = setting(
        "NetSecurity",
        "Sock_FloodTimeInterval",
        Seconds(0, 3_600_000, unit="ms"),
        "100",
        "milliseconds; a packet that comes sooner after the one before counts as quick",
    )
    flood_count: int = setting(
        "NetSecurity",
        "Sock_FloodKickCounter",
        Whole(1, 1_000_000),
        "10",
        "quick packets in a row that close the connection",
    )


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
        "password hashes computed at once in a worker; 0: one a CPU",
    )


@dataclass(frozen=True)
class ControlSettings(Settings):
    """Where operators talk to the server."""

    path: str = setting(
        "Control",
        "Control",
        FilePath(),
        "ccserver.sock",
        "the UNIX socket of the ccserver command",
        reloadable=False,
    )


LISTEN_PORT = Setting("Socket", "ListenPort", Whole(1, 65535), None, "a port on 0.0.0.0")
LISTEN_PORT_COUNT = Setting(
    "Net", "ListenPortCount", Whole(1, 256), None, "how many of ListenPort0, ListenPort1... count"
)
LISTEN_PORT_0 = Setting("Net", "ListenPort0", Whole(1, 65535), None, "the first of several ports")

PARTS: tuple[type[Settings], ...] = (
    ListenSettings,
    LogSettings,
    ProcessSettings,
    NetSettings,
    SecuritySettings,
    AppSettings,
    DatabaseSettings,
    ControlSettings,
)

KNOWN: dict[str, Setting[Any]] = {
    known.key.lower(): known
    for known in (
        *(LISTEN_PORT, LISTEN_PORT_COUNT, LISTEN_PORT_0),
        *(field for part in PARTS for _, field in part.fields()),
    )
}
"""Every key but ListenPort1 to ListenPort255, by its name in lower case."""


def port_number(key: str) -> int | None:
    """The N of a key ListenPortN, 0 to 255; C{None} for any other key."""
    match = re.fullmatch(r"listenport(0|[1-9][0-9]{0,2})", key.lower())
    return int(match[1]) if match and int(match[1]) <= 255 else None


def known_key(key: str) -> str | None:
    """C{key} as it is spelled here, or C{None} when it is not one of ours."""
    number = port_number(key)
    if number is not None:
        return f"ListenPort{number}"
    known = KNOWN.get(key.lower())
    return known.key if known else None
