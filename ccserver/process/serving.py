"""Serving: an application on listening sockets, in whatever process and on any reactor."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Iterable
from math import inf
from time import perf_counter
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from ccserver.app import App, Worker, is_coroutine_function
from ccserver.config import Address, Config
from ccserver.core.carried import Carried
from ccserver.core.counts import Counts
from ccserver.core.limits import FloodLimit, Heartbeat, SessionLimits
from ccserver.core.session import CloseReason
from ccserver.errors import StartError
from ccserver.net.connections import Connection, Connections
from ccserver.net.dispatch import Dispatch
from ccserver.net.giver import Giver, Report
from ccserver.net.pool import Pool
from ccserver.net.protocol import PacketFactory
from ccserver.net.statistics import collect, connection_rows
from ccserver.net.taker import Taker
from ccserver.net.transport import DirectPort
from ccserver.process.logs import INFO, ProcessLogger

SPARE_DESCRIPTORS = 64
"""File descriptors that a worker needs besides its connections."""

STEP = 0.02
"""Seconds between two looks at whether a stopping worker is done."""

ABORT_GRACE = 0.2
"""Seconds that cut connections have to be gone."""

HOOK_TIMEOUT = 5.0
"""Seconds that the stop hooks may take."""

HASTY_HOOK_TIMEOUT = 0.5
"""Seconds that they may take where the stop is to be at once."""


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
        self._pool = Pool(reactor, config.process.threads, config.process.handler_timeout)
        self._dispatch = Dispatch(app, self._pool, config.net.lane_packets, counts)
        self._limits = limits
        self._ports: dict[tuple[int, str], Any] = {}  # by slot and address
        self._factories: dict[str, PacketFactory] = {}
        self._log_ends = config.log.level >= INFO
        self._takers: set[Taker] = set()
        self._givers: set[Giver] = set()
        self._tried: set[Connection] = set()
        self._tick = LoopingCall(self._check)
        self._tick.clock = reactor
        self._stopped: Deferred[None] | None = None
        self._deadline = inf  # of what a stop waits for; brought forward by a second stop

    async def prepare(self) -> None:
        """Run the application's start hooks.

        @raise StartError: one of them raised.
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

    def serve(self) -> None:
        """Accept connections."""
        if self._stopped is not None:
            return
        for address, listening in self._sockets:
            self.listen(self._worker.slot, str(address), listening)
        self._sockets = []
        self._tick.start(1.0, now=True)

    def listen(self, slot: int, address: str, listening: socket.socket) -> None:
        """Accept connections from C{listening}, of C{slot}, too; it belongs to us from now on."""
        port: Any = DirectPort(listening, self.factory(address), self._reactor)
        port.startListening()
        self._ports[slot, address] = port

    def listen_no_more(self, slot: int) -> None:
        """Accept no connections from the sockets of C{slot}."""
        for key in [key for key in self._ports if key[0] == slot]:
            self._ports.pop(key).stopListening()

    def factory(self, address: str) -> PacketFactory:
        """What makes the connections to C{address}, whether it is listened on or not."""
        factory = self._factories.get(address)
        if factory is None:
            factory = self._factories[address] = PacketFactory(
                address,
                self._limits,
                self.connections,
                self._dispatch,
                self._reactor,
                self._log_ends,
            )
        return factory

    def set_log_level(self, level: int) -> None:
        """Log what C{level} says, 0 to 8, of the connections that end."""
        self._log_ends = level >= INFO
        for factory in self._factories.values():
            factory.log_ends = self._log_ends

    def stop_accepting(self) -> int:
        """Accept what waits, then no more; how many connections there are now."""
        ports, self._ports = self._ports, {}
        for port in ports.values():
            # all that wait, where the port would take as many as came the last time
            port.numberAccepts = self._config.listen.backlog + 1
            port.doRead()
            port.stopListening()
        self._close_unused()
        return len(self.connections)

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
        for giver in list(self._givers):  # who stops leaves the set at once
            giver.stop()
        for taker in list(self._takers):
            taker.stop()
        if graceful:
            self.stop_accepting()
            self.connections.finish(self._config.process.drain_spread)
            await self._gone()
            self.connections.abort()
        else:
            for port in self._ports.values():
                port.stopListening()
            self._close_unused()
        self._deadline = self._reactor.seconds() + ABORT_GRACE
        await self._gone()
        hooks_end = self._reactor.seconds() + (HOOK_TIMEOUT if graceful else HASTY_HOOK_TIMEOUT)
        for hook in self._app.worker_stop:
            left = max(0.0, hooks_end - self._reactor.seconds())
            try:
                await self._call(hook).addTimeout(left, self._reactor)
            except Exception:
                self.log.failure("stop hook {hook} raised", hook=_name(hook))
        if self._tick.running:
            self._tick.stop()
        self._pool.stop()
        self._stopped.callback(None)

    async def take(self, channel: socket.socket) -> int:
        """Adopt the connections that another worker hands over through C{channel}; how many."""
        taker = Taker(self._reactor, channel, self._adopt)
        self._takers.add(taker)
        count = await taker.take()
        self._takers.discard(taker)
        return count

    async def give(self, channel: socket.socket, count: int | None) -> Report:
        """Hand C{count} connections, or all, over through C{channel}.

        Those that could not leave before, and are not to stay, are not tried again.
        """
        candidates: list[Any] = [each for each in self.connections if each not in self._tried]
        given = candidates[:count]
        giver = Giver(self._reactor, channel, self._config.process.handover_timeout)
        self._givers.add(giver)
        report = await giver.give(given)
        self._givers.discard(giver)
        if not self._ports and "channel" not in report.left:
            self._tried.update(each for each in given if each.session.id in self.connections)
        return report

    def figures(self) -> dict[str, Any]:
        """What a beat tells the master."""
        return collect(self.connections, self._pool)

    def connection_rows(self) -> list[dict[str, Any]]:
        """What the connections are, a row each."""
        return connection_rows(self.connections, self._reactor.seconds())

    def kick(self, id: int) -> bool:
        """Close a connection; whether there was one."""
        connection = self.connections.get(id)
        if connection is None:
            return False
        connection.close(CloseReason.KICKED)
        return True

    def _check(self) -> None:
        """Look, once a second, at who is silent and what takes too long."""
        try:
            self.connections.check_heartbeats()
            self._pool.check(perf_counter())  # a stock reactor has another clock
        except Exception:  # it goes on at the next turn
            self.log.failure("check of connections and threads")

    def _adopt(self, sock: socket.socket, carried: Carried, unsent: list[bytes]) -> None:
        self.factory(carried.server).adopt(sock, carried, unsent)

    def _close_unused(self) -> None:
        for _, listening in self._sockets:
            listening.close()
        self._sockets = []

    def _gone(self) -> Deferred[None]:
        """Fires when no connection and no job is left, or at the deadline there is by then."""
        done: Deferred[None] = Deferred()

        def look() -> None:
            self.connections.finish_due()
            left = len(self.connections) or self._pool.unfinished or self._givers
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
    """Raise the soft limit of file descriptors to the hard one: C{count} are needed.

    More than that can be, for a worker adopts the connections of those that there are no more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if hard < count:
            Server.log.warn(
                "only {hard} file descriptors are allowed, {count} are needed",
                hard=hard,
                count=count,
            )


def _name(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__name__", str(hook))
