"""Descriptors: how many files a worker may have open, and whether that is enough."""

from __future__ import annotations

import resource

from ccserver.config import Config
from ccserver.errors import StartError
from ccserver.process.logs import ProcessLogger

SPARE_DESCRIPTORS = 64
"""File descriptors that a worker needs besides its connections and listening sockets."""

log = ProcessLogger()


def allow_descriptors(config: Config) -> None:
    """Raise the soft limit of file descriptors to the hard one, which must do for C{config}.

    More than is needed can be, for a worker adopts the connections of those that there are no more.

    @raise StartError: it does not do, and C{OnFewDescriptors} is to refuse that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    connections = config.net.worker_connections
    needed = connections + SPARE_DESCRIPTORS + len(config.listen.listeners)
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard >= needed:
        return
    text = (
        f"worker_connections = {connections} needs {needed} file descriptors, the hard limit is "
        f"{hard}: raise that (ulimit -n, LimitNOFILE of systemd), or lower worker_connections"
    )
    if config.net.on_few_descriptors == "refuse":
        raise StartError(f"{text}, or set OnFewDescriptors = warn")
    log.warn("{text}", text=text)
