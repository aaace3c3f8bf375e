"""Status: how a server is, in the words of docs/operating.md."""

from __future__ import annotations

import os
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ccserver.native import native
from ccserver.process.fleet import Fleet, Place
from ccserver.process.workers import WorkerOfMaster, WorkerState


def fleet_status(fleet: Fleet, now: float) -> dict[str, Any]:
    """What is to be told of the workers, and of their connections in sum."""
    workers = sorted(fleet.workers, key=lambda each: (each.slot, each.generation, each.since))
    restarts = {place.slot.number: place.slot.restarts for place in fleet.places}
    return {
        "version": installed_version(),
        "pid": os.getpid(),
        "config": fleet.config.path,
        "generation": fleet.generation,
        "compiled": native is not None,
        "listening": [str(address) for address in fleet.listening.addresses],
        "workers": [
            *(_row(each, restarts.get(each.slot, 0), now) for each in workers),
            *(_vacancy(place) for place in fleet.places if place.worker is None),
        ],
        "handed_over": fleet.handed_over,
        "left": dict(fleet.left),
        "refused": _sum(workers, "refused"),
        "closed": _sum(workers, "closed"),
    }


def installed_version() -> str:
    """The version of ccserver; C{unknown} where it is not installed."""
    try:
        return version("ccserver")
    except PackageNotFoundError:
        return "unknown"


def _row(process: WorkerOfMaster, restarts: int, now: float) -> dict[str, Any]:
    figures = process.figures
    return {
        "slot": process.slot,
        "pid": process.pid,
        "state": _state(process),
        "generation": process.generation,
        "age": round(now - process.since, 1),
        "connections": process.connections,
        "packets_per_second": round(process.rate, 1),
        "restarts": restarts,
        **{
            key: figures[key]
            for key in (
                *("packets", "lane_packets", "pool_queue", "pool_threads", "memory"),
                *("lag_ms", "overloaded"),
            )
            if key in figures
        },
    }


def _state(process: WorkerOfMaster) -> str:
    if process.state is WorkerState.READY and process.figures.get("overloaded"):
        return "overloaded"
    return process.state.value


def _vacancy(place: Place) -> dict[str, Any]:
    """A slot whose worker died, and whose next one is not started yet."""
    return {"slot": place.slot.number, "state": "waiting", "restarts": place.slot.restarts}


def _sum(workers: list[WorkerOfMaster], key: str) -> dict[str, int]:
    """Counts by reason, of all workers there are."""
    total: Counter[str] = Counter()
    for each in workers:
        total.update(each.figures.get(key, {}))
    return dict(total)
