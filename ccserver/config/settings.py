"""The settings by part: a dataclass field is key, section, type, default, bounds and doc in one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ccserver.config.values import (
    Address,
    AppName,
    Choice,
    DatabaseInfo,
    FilePath,
    FilePaths,
    FolderPaths,
    Kind,
    Listener,
    Listeners,
    Network,
    Networks,
    Seconds,
    SendQueue,
    SendQueues,
    Size,
    Switch,
    Text,
    Whole,
    WholeSeconds,
    Workers,
)

T = TypeVar("T")

SECTIONS = (
    "Socket",
    "Log",
    "Proc",
    "Net",
    "NetSecurity",
    "App",
    "Database",
    "Accounts",
    "TLS",
    "Control",
)


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

    listeners: tuple[Listener, ...] = setting(
        "Socket",
        "Listen",
        Listeners(),
        "0.0.0.0:5678",
        "addresses to listen on, beside those of ListenPort and ListenPort0...; tls behind one: "
        "encrypted; proxy: behind a proxy that tells the client's address",
    )
    backlog: int = setting(
        "Socket",
        "Backlog",
        Whole(1, 65535),
        "4096",
        "connections of one port that wait to be accepted; the kernel's somaxconn bounds it too",
    )
    proxy_from: tuple[Network, ...] = setting(
        "Socket",
        "ProxyFrom",
        Networks(),
        "",
        "the proxies: who may connect to the addresses with proxy, and is believed",
    )
    proxy_timeout: float = setting(
        "Socket",
        "ProxyTimeout",
        Seconds(1, 600),
        "5",
        "seconds that a proxy has to send its header",
    )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where to listen."""
        return tuple(listener.address for listener in self.listeners)


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
        "connections a worker holds; more go to other workers, or, if all are full, are closed at "
        "once",
    )
    on_few_descriptors: str = setting(
        "Net",
        "OnFewDescriptors",
        Choice("refuse", "warn"),
        "refuse",
        "what a limit of file descriptors that is too low for worker_connections meets: refuse to "
        "start, or warn, and let connections wait where there are none left",
    )
    pool_queue: int = setting(
        "Net",
        "PoolQueue",
        Whole(1, 10_000_000),
        "10000",
        "jobs of a worker that wait for a thread; a connection that brings one more is not read "
        "until its own is done",
    )
    overload_lag: float = setting(
        "Net",
        "OverloadLag",
        Seconds(0, 60_000, unit="ms"),
        "1000",
        "milliseconds; a worker that does all so late, or has more jobs than PoolQueue, for 3 "
        "seconds is overloaded; 0: only the jobs count",
    )
    overload_action: str = setting(
        "Net",
        "OverloadAction",
        Choice("wait", "close"),
        "wait",
        "what new connections of a worker that is overloaded meet: they wait to be accepted, or "
        "are closed at once",
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
    first_packet_timeout: float = setting(
        "Net",
        "FirstPacketTimeout",
        Seconds(0, 86400),
        "0",
        "seconds that a new connection's first packet may take before it is closed; 0: any time",
    )
    packet_timeout: float = setting(
        "Net",
        "PacketTimeout",
        Seconds(0, 86400),
        "120",
        "seconds that a packet may take from its first byte to its last before its connection is "
        "closed; 0: any time",
    )
    keepalive: int = setting(
        "Net",
        "KeepAlive",
        WholeSeconds(0, 32767),
        "300",
        "seconds of silence before the kernel asks whether the client is still there; 0: never",
    )
    keepalive_interval: int = setting(
        "Net",
        "KeepAliveInterval",
        WholeSeconds(1, 32767),
        "75",
        "seconds from one such question to the next",
    )
    keepalive_count: int = setting(
        "Net",
        "KeepAliveCount",
        Whole(1, 127),
        "9",
        "questions without an answer that end the connection",
    )
    tcp_user_timeout: float = setting(
        "Net",
        "TcpUserTimeout",
        Seconds(0, 86400),
        "0",
        "seconds that the client's kernel may leave what we sent unacknowledged before the "
        "connection ends; 0: as long as the system says",
    )
    send_queue: SendQueue = setting(  # noqa: RUF009, it is immutable
        "Net",
        "SendQueueLimit",
        SendQueues(),
        "4MiB 1MiB 30",
        "bytes that wait to be sent to a client: more than the first, or than the second for so "
        "many seconds, and the connection is closed; 0: any",
    )
    send_queue_messages: int = setting(
        "Net",
        "SendQueueMessages",
        Whole(0, 1_000_000),
        "400",
        "pushed packets that wait for a client; more, and the connection is closed; 0: any",
    )
    send_queue_total: int = setting(
        "Net",
        "SendQueueTotal",
        Size(0, 1 << 40),
        "64MiB",
        "bytes that wait in a worker, for all clients; 0: any",
    )
    send_queue_total_messages: int = setting(
        "Net",
        "SendQueueTotalMessages",
        Whole(0, 100_000_000),
        "50000",
        "pushed packets that wait in a worker, for all clients; 0: any",
    )
    send_timeout: float = setting(
        "Net",
        "SendTimeout",
        Seconds(0, 86400),
        "60",
        "seconds that a client for which more waits than the kernel takes may read nothing before "
        "its connection is closed; 0: any time",
    )
    flush_timeout: float = setting(
        "Net",
        "FlushTimeout",
        Seconds(1, 3600),
        "10",
        "seconds that the client of a connection that is closed may read nothing of what is left",
    )
    linger_timeout: float = setting(
        "Net",
        "LingerTimeout",
        Seconds(0, 60),
        "2",
        "seconds that the client has for its own end once it was sent ours",
    )
    send_buffer: int = setting(
        "Net",
        "SendBuffer",
        Size(0, 64 << 20),
        "0",
        "bytes that the kernel holds of what is sent to a client; 0: as many as it likes",
    )
    receive_buffer: int = setting(
        "Net",
        "ReceiveBuffer",
        Size(0, 64 << 20),
        "0",
        "bytes that the kernel holds of what a client has sent; 0: as many as it likes",
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
    empty_reads: int = setting(
        "NetSecurity",
        "EmptyReads",
        Whole(0, 1_000_000),
        "10000",
        "reads of less than 512 bytes that complete no packet, of one connection in a second, "
        "before it is closed; 0: any number",
    )
    packet_rate: int = setting(
        "NetSecurity",
        "PacketRate",
        Whole(0, 1_000_000),
        "0",
        "packets of one connection in a second; 0: any number",
    )
    packet_burst: int = setting(
        "NetSecurity",
        "PacketBurst",
        Whole(0, 1_000_000),
        "0",
        "packets of one connection at once; 0: as many as in a second",
    )
    address_packet_rate: int = setting(
        "NetSecurity",
        "AddressPacketRate",
        Whole(0, 10_000_000),
        "0",
        "packets of one client address in a second, in each worker; 0: any number",
    )
    address_packet_burst: int = setting(
        "NetSecurity",
        "AddressPacketBurst",
        Whole(0, 10_000_000),
        "0",
        "packets of one client address at once; 0: as many as in a second",
    )
    packet_rate_action: str = setting(
        "NetSecurity",
        "PacketRateAction",
        Choice("delay", "drop", "kick"),
        "delay",
        "what more packets meet: delay them, drop them, or close their connection",
    )
    connections_per_address: int = setting(
        "NetSecurity",
        "ConnectionsPerAddress",
        Whole(0, 1_000_000),
        "0",
        "connections of one client address in each worker; 0: any number",
    )
    accept_rate: int = setting(
        "NetSecurity",
        "AcceptRate",
        Whole(0, 1_000_000),
        "0",
        "connections that each worker accepts in a second, the others wait; 0: any number",
    )
    address_accept_rate: int = setting(
        "NetSecurity",
        "AddressAcceptRate",
        Whole(0, 1_000_000),
        "0",
        "connections that one client address may make in a second, in each worker; 0: any number",
    )
    allow: tuple[Network, ...] = setting(
        "NetSecurity",
        "Allow",
        Networks(),
        "",
        "who may connect: addresses and networks; empty: everybody",
    )
    deny: tuple[Network, ...] = setting(
        "NetSecurity",
        "Deny",
        Networks(),
        "",
        "who may not, whatever Allow says",
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


@dataclass(frozen=True)
class TlsSettings(Settings):
    """How connections to the addresses with tls are encrypted."""

    certificates: tuple[str, ...] = setting(
        "TLS",
        "TlsCertificate",
        FilePaths(),
        "",
        "certificates, the first for clients that name no host; each may hold its chain and key",
    )
    keys: tuple[str, ...] = setting(
        "TLS",
        "TlsKey",
        FilePaths(),
        "",
        "the keys of the certificates, in their order; empty: in the same files",
    )
    chains: tuple[str, ...] = setting(
        "TLS",
        "TlsChain",
        FilePaths(),
        "",
        "the chains of the certificates, in their order; empty: in the same files, if any",
    )
    client_ca: tuple[str, ...] = setting(
        "TLS", "TlsClientCa", FilePaths(), "", "whose certificates of clients are believed"
    )
    client_certificates: str = setting(
        "TLS",
        "TlsClientCertificates",
        Choice("off", "optional", "required"),
        "off",
        "whether clients are asked for a certificate, and may do without",
    )
    min_version: str = setting(
        "TLS", "TlsMinVersion", Choice("1.2", "1.3"), "1.2", "the oldest version of TLS accepted"
    )
    ciphers: str = setting(
        "TLS", "TlsCiphers", Text(), "", "OpenSSL's list of ciphers for TLS 1.2; empty: its own"
    )
    handshake_timeout: float = setting(
        "TLS",
        "TlsHandshakeTimeout",
        Seconds(1, 600),
        "10",
        "seconds that a client has for the handshake",
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
    AccountsSettings,
    TlsSettings,
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
