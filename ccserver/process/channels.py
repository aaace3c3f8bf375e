"""Channels: connections on their way from one worker to another, as the master arranges it."""

from __future__ import annotations

import socket
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from ccserver.process.logs import ProcessLogger
from ccserver.process.moment import Moment
from ccserver.process.workers import Handed, WorkerOfMaster

log = ProcessLogger()


class Target(Protocol):
    """Who adopts connections: a worker, also one of another master."""

    gone: Moment[Any]

    def take(self, channel: socket.socket) -> Deferred[bool]:
        """Let it adopt what comes through C{channel}; fires with whether it will."""


async def hand_over(source: WorkerOfMaster, target: Target, count: int) -> Handed | None:
    """Let C{source} hand C{count} of its connections, or L{link.ALL}, over to C{target}.

    @return: None: C{target} takes none, or there can be no channel to it: none was tried.
    """
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        log.error("no connections handed over: {error}", error=error)
        return None
    with ours, theirs:
        if not await target.take(theirs):
            return None
        theirs.close()  # so that its end is the end of the channel
        return await source.give(ours, count)
