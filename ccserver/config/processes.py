"""The settings of the processes: what they log, how many they are, where they are operated."""

from __future__ import annotations

from dataclasses import dataclass

from ccserver.config.affinity import Affinity, AffinityMasks
from ccserver.config.settings import Settings, setting
from ccserver.config.values import Choice, FilePath, Seconds, Size, Switch, Text, Whole, Workers


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
    affinity: Affinity = setting(  # noqa: RUF009, it is immutable
        "Proc",
        "worker_cpu_affinity",
        AffinityMasks(),
        "",
        "the CPUs of each worker; empty: any",
    )
    scheduling: str = setting(
        "Proc",
        "WorkerScheduling",
        Choice("auto", "normal", "batch"),
        "auto",
        "batch: a worker that wakes up interrupts nobody; auto: while its reactor is busy",
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
