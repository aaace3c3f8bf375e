"""Status: how a server is, in the words of docs/operating.md."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import floor
from typing import Any

from ccserver.config import Address, Config
from ccserver.core.framing import CHECKSUM
from ccserver.native import native
from ccserver.process.fleet import Fleet
from ccserver.process.places import Place
from ccserver.process.workers import WorkerOfMaster, WorkerState

FIGURES = (
    *("packets", "remnants", "lane_packets", "pool_queue", "pool_threads", "memory"),
    *("lag_ms", "overloaded"),
)
"""What is told of a worker as it was at its last beat."""


def server_status(
    config: Config,
    addresses: Iterable[Address],
    figures: Iterable[Mapping[str, Any]],
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """What is to be told of any server.

    @param addresses: where it listens.
    @param figures: those of all who serve.
    @param clock: seconds since 1970.
    """
    return {
        "version": installed_version(),
        "pid": os.getpid(),
        "config": config.path,
        "compiled": native is not None,
        "checksum": CHECKSUM,
        "listening": [str(address) for address in addresses],
        "certificates": _certificates(config, figures, clock()),
    }


def fleet_status(fleet: Fleet, now: float) -> dict[str, Any]:
    """What is to be told of the workers, and of their connections in sum."""
    workers = sorted(fleet.workers, key=lambda each: (each.slot, each.generation, each.since))
    restarts = {place.slot.number: place.slot.restarts for place in fleet.places}
    return {
        **server_status(
            fleet.config, fleet.listening.addresses, (each.figures for each in fleet.serving)
        ),
        "generation": fleet.generation,
        "workers": [
            *(_row(each, restarts.get(each.slot, 0), now) for each in workers),
            *(_vacancy(place) for place in fleet.places if place.worker is None),
        ],
        "handed_over": fleet.transfers.moved,
        "left": dict(fleet.transfers.left),
        "refused": _sum(workers, "refused"),
        "closed": _sum(workers, "closed"),
        "dropped": _sum(workers, "dropped"),
        "handler_errors": sum(each.figures.get("handler_errors", 0) for each in workers),
    }


def installed_version() -> str:
    """The version of ccserver; C{unknown} where it is not installed."""
    try:
        return version("ccserver")
    except PackageNotFoundError:
        return "unknown"


def _certificates(
    config: Config, figures: Iterable[Mapping[str, Any]], now: float
) -> list[dict[str, Any]]:
    """The certificates that are served with: of one that some have still to renew, the old."""
    ends: dict[str, float] = {}
    for each in figures:
        for path, end in each.get("certificates", {}).items():
            ends[path] = min(end, ends.get(path, end))
    listening = [str(each.address) for each in config.listen.listeners if each.tls]
    return [
        {
            "path": path,
            "listening": listening,
            "not_after": datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "days_left": floor((end - now) / 8640) / 10,
        }
        for path, end in ends.items()
    ]


def _row(process: WorkerOfMaster, restarts: int, now: float) -> dict[str, Any]:
    figures = process.figures
    return {
        "slot": process.slot,
        "pid": process.pid,
        "state": _state(process),
        "generation": process.generation,
        "age": round(now - process.since, 1),
        "connections": process.connections,
        "packets_per_second": figures.get("packets_per_second", 0.0),
        "restarts": restarts,
        **{key: figures.get(key) for key in FIGURES},
    }


def _state(process: WorkerOfMaster) -> str:
    if process.state is WorkerState.READY:
        if process.silent:
            return "silent"
        if process.figures.get("overloaded"):
            return "overloaded"
    return process.state.value


def _vacancy(place: Place) -> dict[str, Any]:
    """A slot whose worker died, and whose next one is not started yet."""
    return {
        "slot": place.slot.number,
        "pid": None,
        "state": "waiting",
        "generation": None,
        "age": None,
        "connections": 0,
        "packets_per_second": 0.0,
        "restarts": place.slot.restarts,
        **dict.fromkeys(FIGURES),
    }


def _sum(workers: list[WorkerOfMaster], key: str) -> dict[str, int]:
    """Counts by reason, of all workers there are."""
    total: Counter[str] = Counter()
    for each in workers:
        total.update(each.figures.get(key, {}))
    return dict(total)
