"""Descriptors: how many files a process may have open, and whether that is enough."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from math import inf

from ccserver.config import Config
from ccserver.errors import StartError
from ccserver.process.logs import ProcessLogger

PLENTY = 65536
"""As many as a process gets where it may have any number."""

log = ProcessLogger()


def raise_limit(enough: int = PLENTY) -> float:
    """Raise the soft limit of file descriptors to the hard one; how many there may be now.

    @param enough: what to raise it to where there is no hard one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return inf
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
        return inf
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def room(config: Config) -> float:
    """How many connections a worker can have, by the limit of file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):
        return inf
    return hard - (config.descriptors - config.net.worker_connections)


def keep_high_ones() -> None:
    """Let no child have what was inherited with a number that is not below the limit.

    It was opened before the limit was lowered; posix_spawn fails where it is to close such a one.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for name in os.listdir("/proc/self/fd"):
        if soft != resource.RLIM_INFINITY and int(name) >= soft:
            with suppress(OSError):  # it was that of the listing
                os.set_inheritable(int(name), False)


def allow_descriptors(config: Config) -> None:
    """Raise the soft limit of file descriptors to the hard one, which must do for C{config}.

    More than is needed can be, for a worker adopts the connections of those that there are no more.

    @raise StartError: it does not do, and C{OnFewDescriptors} is to refuse that.
    """
    text = config.few_descriptors(raise_limit(config.descriptors))
    if text is None:
        return
    if config.net.on_few_descriptors == "refuse":
        raise StartError(f"{text}, or set OnFewDescriptors = warn")
    log.warn("{text}", text=text)
