"""The settings of a worker's connections."""

from __future__ import annotations

from dataclasses import dataclass

from ccserver.config.settings import Settings, setting
from ccserver.config.values import (
    Choice,
    Seconds,
    SendQueue,
    SendQueues,
    Size,
    Switch,
    Whole,
    WholeSeconds,
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
    lane_bytes: int = setting(
        "Net",
        "LaneBytes",
        Size(1 << 10, 1 << 30),
        "256KiB",
        "bytes of one connection's packets that wait for their handler before reading is paused",
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
        "seconds that the client has for its own end once it has taken all",
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
