"""Serving: an application on listening sockets, in whatever process and on any reactor."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from ccserver.app import App, Worker, is_coroutine_function
from ccserver.config import Address, Config
from ccserver.core.counts import Counts
from ccserver.core.limits import FloodLimit, Heartbeat, SessionLimits
from ccserver.errors import StartError
from ccserver.net.connections import Connections
from ccserver.net.dispatch import Dispatch, Pool
from ccserver.net.protocol import PacketFactory
from ccserver.net.transport import DirectPort
from ccserver.process.logs import INFO, ProcessLogger

SPARE_DESCRIPTORS = 64
"""File descriptors that a worker needs besides its connections."""

STEP = 0.02
"""Seconds between two looks at whether a stopping worker is done."""

ABORT_GRACE = 0.2
"""Seconds that cut connections have to be gone."""

HOOK_TIMEOUT = 5.0
"""Seconds that a stop hook may take."""


class Server:
    """Serves an application on listening sockets, on any reactor.

    @ivar connections: the connections there are.
    """

    log = ProcessLogger()

    def __init__(
        self,
        reactor: Any,
        config: Config,
        app: App,
        sockets: Iterable[tuple[Address, socket.socket]],
        slot: int = 0,
        process_number: int = 0,
    ) -> None:
        """
        @param sockets: listening; they belong to the worker from now on.
        @param slot: the worker's number, from 0.
        @param process_number: which of all worker processes it is, so that ids stay apart.
        """
        self._reactor = reactor
        self._config = config
        self._app = app
        self._sockets = list(sockets)
        self._worker = Worker(slot, config)
        counts = Counts()
        limits = session_limits(config)
        self.connections = Connections(
            config.net.worker_connections,
            process_number,
            counts,
            reactor.seconds,
            limits.heartbeat,
        )
        self._pool = Pool(reactor, config.process.threads)
        self._dispatch = Dispatch(app, self._pool, config.net.lane_packets, counts)
        self._limits = limits
        self._ports: list[Any] = []
        self._tick = LoopingCall(self.connections.check_heartbeats)
        self._tick.clock = reactor
        self._stopped: Deferred[None] | None = None
        self._deadline = inf  # of what a stop waits for; brought forward by a second stop

    async def start(self) -> None:
        """Run the application's start hooks, then accept connections.

        @raise StartError: a hook raised.
        """
        allow_descriptors(self._config.net.worker_connections + SPARE_DESCRIPTORS)
        self._pool.start()
        for hook in self._app.worker_start:
            try:
                await self._call(hook)
            except Exception as error:
                self.log.failure("start hook {hook} raised", hook=_name(hook))
                raise StartError(
                    f"start hook {_name(hook)} raised {type(error).__name__}: {error}"
                ) from error
        for address, listening in self._sockets:
            factory = PacketFactory(
                str(address),
                self._limits,
                self.connections,
                self._dispatch,
                self._reactor,
                self._config.log.level >= INFO,
            )
            port = DirectPort(listening, factory, self._reactor)
            port.startListening()
            self._ports.append(port)
        self._sockets = []
        self._tick.start(1.0, now=True)

    async def stop(self, graceful: bool, timeout: float) -> None:
        """Stop accepting, end the connections, run the stop hooks.

        @param graceful: answer first what has been received, those that still wait to be
            accepted too, for at most C{timeout} seconds. A later call that is not graceful
            cuts this short.
        """
        now = self._reactor.seconds()
        self._deadline = min(self._deadline, now + (timeout if graceful else 0.0))
        if not graceful:
            self.connections.abort()
        if self._stopped is not None:
            await self._join(self._stopped)
            return
        self._stopped = Deferred()
        for port in self._ports:
            if graceful:
                # all that wait, where the port would take as many as came the last time
                port.numberAccepts = self._config.listen.backlog + 1
                port.doRead()
            port.stopListening()
        for _, listening in self._sockets:
            listening.close()
        if graceful:
            self.connections.finish()
            await self._gone()
            self.connections.abort()
        self._deadline = self._reactor.seconds() + ABORT_GRACE
        await self._gone()
        for hook in self._app.worker_stop:
            try:
                await self._call(hook).addTimeout(HOOK_TIMEOUT, self._reactor)
            except Exception:
                self.log.failure("stop hook {hook} raised", hook=_name(hook))
        if self._tick.running:
            self._tick.stop()
        self._pool.stop()
        self._stopped.callback(None)

    def _gone(self) -> Deferred[None]:
        """Fires when no connection and no job is left, or at the deadline there is by then."""
        done: Deferred[None] = Deferred()

        def look() -> None:
            left = len(self.connections) or self._pool.unfinished
            if left and self._reactor.seconds() < self._deadline:
                self._reactor.callLater(STEP, look)
            else:
                done.callback(None)

        look()
        return done

    async def _join(self, done: Deferred[None]) -> None:
        mine: Deferred[None] = Deferred()

        def pass_on(result: None) -> None:
            mine.callback(None)

        done.addCallback(pass_on)
        await mine

    def _call(self, hook: Callable[[Worker], Any]) -> Deferred[Any]:
        if is_coroutine_function(hook):
            return Deferred.fromCoroutine(hook(self._worker))
        return self._pool.run(hook, self._worker)


def session_limits(config: Config) -> SessionLimits:
    """The limits of a connection that C{config} sets."""
    net, security = config.net, config.security
    flood = FloodLimit(security.flood_interval, security.flood_count)
    heartbeat = Heartbeat(net.heartbeat_interval, net.heartbeat_kick)
    return SessionLimits(
        max_packet_length=net.max_packet_length,
        close_on_bad_checksum=net.on_bad_checksum == "close",
        flood=flood if security.flood_kick else None,
        heartbeat=heartbeat if net.heartbeat else None,
        ping_only=net.heartbeat_ping_only,
    )


def allow_descriptors(count: int) -> None:
    """Raise the soft limit of file descriptors to C{count}, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        if wanted < count:
            Server.log.warn(
                "only {wanted} file descriptors are allowed, {count} are needed",
                wanted=wanted,
                count=count,
            )


def _name(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__name__", str(hook))
