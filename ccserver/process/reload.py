"""Reload: from one configuration to the next as a transaction, and what of it needs a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from ccserver.config import Config, check
from ccserver.errors import CcserverError, OperationFailed
from ccserver.process.fleet import Fleet
from ccserver.process.listening import keepalive
from ccserver.process.logs import LineObserver, ProcessLogger
from ccserver.process.operations import Progress

log = ProcessLogger()


async def reload(
    fleet: Fleet, path: str, observer: LineObserver, progress: Progress
) -> dict[str, Any]:
    """Replace all workers of C{fleet} by workers with the configuration that C{path} has now.

    Up to the moment at which all new workers are ready nothing changes for anybody.

    @return: what docs/operating.md tells of a reload.
    @raise OperationFailed: it could not be done, and nothing has changed.
    """
    old = fleet.config
    progress(f"reading {path}")
    config = read(path, old)
    notes = [*config.warnings, *needing_restart(old, config)]
    count = config.process.workers
    progress(f"starting {count} workers")
    try:
        observer.check(config.log.file)
        listening = fleet.listening.follow(
            config.listen.addresses, count, config.listen.backlog, keepalive(config)
        )
    except (OSError, CcserverError) as error:
        raise OperationFailed(str(error)) from None
    try:
        fresh = await fleet.prepare(range(count), fleet.generation + 1, config, listening)
    except BaseException:
        listening.release(fleet.listening)
        raise
    for note in notes:
        log.warn("{note}", note=note)  # "warning" has a meaning of its own in Twisted
    try:
        observer.change(config.log.file, config.log.level)
    except OSError as error:  # it could be opened a moment ago
        log.error("the log goes on in {path}: {error}", path=observer.path, error=error)
    fleet.log_level = config.log.level
    fleet.config = config
    fleet.generation += 1
    handed = await fleet.commit(fresh, count, listening, progress)
    return {
        "generation": fleet.generation,
        "workers": count,
        "handed_over": handed.moved,
        "left": handed.left,
        "warnings": notes,
    }


def read(path: str, old: Config) -> Config:
    """The configuration that C{path} has now, named as C{old} is.

    @raise OperationFailed: it is wrong, or such that only a restart can go there from C{old}.
    """
    config, errors = check(path, old.base)
    if config is None:
        raise OperationFailed(summary(errors))
    if config.process.workers == 0:
        raise OperationFailed("WorkerProcesses = 0 needs a restart")
    return dataclasses.replace(config, path=old.path)


def summary(errors: Sequence[CcserverError]) -> str:
    """What is wrong with a configuration, in one line."""
    more = f" (and {len(errors) - 1} more errors)" if len(errors) > 1 else ""
    return f"{errors[0]}{more}"


def needing_restart(old: Config, new: Config) -> Iterator[str]:
    """A line for each setting of C{new} that differs from C{old} and needs a restart."""
    now = {(told.section, told.key): told.value for told in old.describe()}
    for told in new.describe():
        if told.value != now[told.section, told.key] and not told.reloadable:
            yield f"{told.key} = {told.value}: takes effect at a restart"
