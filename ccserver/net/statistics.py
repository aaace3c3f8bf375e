"""Statistics: what a worker tells of itself, and of its connections."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from typing import Any

from ccserver.net.connections import Connections
from ccserver.net.pool import Pool
from ccserver.net.protocol import PacketProtocol
from ccserver.net.waiting import waiting_packets

PAGE = os.sysconf("SC_PAGESIZE")


def collect(connections: Connections, pool: Pool) -> dict[str, Any]:
    """How the worker is: plain values, the counts since its start.

    C{packets} are those received, C{remnants} the connections that have ended and of which packets
    are still to be handled, C{lane_packets} the packets, theirs too, that wait behind what their
    lane does (not those that it has taken up at once with that), C{pool_queue} the jobs that wait
    for a thread, C{unsent} and C{unsent_packets} the bytes, and the packets that were pushed, that
    wait for clients that are behind, C{memory} the resident bytes. Takes 1.2 ms with 20,000
    connections.
    """
    counts = connections.counts
    table: Iterable[Any] = connections
    remnants: Iterable[Any] = connections.remnants
    return {
        "connections": len(connections),
        "packets": connections.received(),
        "remnants": len(connections.remnants),
        "lane_packets": waiting_packets([each.lane for each in (*table, *remnants)]),
        "pool_queue": pool.queued,
        "pool_threads": pool.threads,
        "pool_stuck": pool.stuck,
        "unsent": counts.waiting.bytes,
        "unsent_packets": counts.waiting.messages,
        "memory": resident_memory(),
        "accepted": counts.accepted,
        "handed_over": counts.handed_over,
        "adopted": counts.adopted,
        "refused": dict(counts.refused),
        "closed": {str(reason): count for reason, count in counts.closed.items()},
        "handler_errors": counts.handler_errors,
        "late_replies": counts.late_replies,
        "dropped": dict(counts.waiting.dropped),
    }


def connection_rows(connections: Iterable[Any], now: float) -> list[dict[str, Any]]:
    """What each of C{connections}, which are L{PacketProtocol}s, is at C{now}."""
    return [connection_row(connection, now) for connection in connections]


def connection_row(connection: PacketProtocol, now: float) -> dict[str, Any]:
    """What C{connection} is: plain values.

    C{seconds} since its beginning; C{idle}, those since it was heard last, None where nobody
    keeps that; C{waiting} packets without a handler yet, C{unsent} bytes.
    """
    session = connection.session
    return {
        "id": session.id,
        "peer": session.peer,
        "server": session.server,
        "seconds": round(now - session.started, 3),
        "idle": round(now - session.heard, 3) if connection.factory.timed else None,
        "packets_in": session.packets_in,
        "packets_out": session.packets_out,
        "bytes_in": session.bytes_in,
        "bytes_out": session.bytes_out,
        "waiting": connection.lane.waiting,
        "unsent": unsent_bytes(connection.transport) + connection.lane.unsent,
        "state": state_of(connection),
    }


def state_of(connection: PacketProtocol) -> str:
    """One word for what is going on with C{connection}.

    C{closing}; C{blocked}: the client does not read its replies; C{busy}: a packet is being
    handled; C{idle}.
    """
    if connection.session.close_reason is not None:
        return "closing"
    if connection.lane.blocked:
        return "blocked"
    return "idle" if connection.lane.idle else "busy"


def unsent_bytes(transport: Any) -> int:
    """The bytes that C{transport} has not handed to the kernel yet."""
    unsent: int = getattr(transport, "unsent", 0)
    return unsent


def resident_memory() -> int | None:
    """The bytes of memory that this process has; None where it may open no file to find out."""
    try:
        return int(os.pread(_statm(), 200, 0).split()[1]) * PAGE
    except OSError:
        return None


@cache
def _statm() -> int:
    """The kernel's file about this process's memory (proc(5)), which stays open."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
