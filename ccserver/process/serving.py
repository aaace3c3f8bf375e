"""Serving: an application on listening sockets, in whatever process and on any reactor."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from time import perf_counter
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from ccserver.app import App, Worker, is_coroutine_function
from ccserver.certificates import Certificates
from ccserver.config import Address, Config
from ccserver.core.addresses import AccessList, AddressLimits, NetworkSet, Origins
from ccserver.core.carried import Carried
from ccserver.core.counts import Counts, Throughput
from ccserver.core.limits import FloodLimit, Heartbeat, RateAction, SessionLimits
from ccserver.core.outbox import SendLimits
from ccserver.core.overload import Load
from ccserver.core.rates import Rate
from ccserver.core.session import CloseReason
from ccserver.errors import AppError, ConfigError, StartError
from ccserver.net.closing import CloseTimeouts
from ccserver.net.connections import Connection, Connections
from ccserver.net.dispatch import Dispatch
from ccserver.net.factory import PacketFactory
from ccserver.net.front import Front
from ccserver.net.giver import Giver, Report
from ccserver.net.intake import Intake
from ccserver.net.pace import Pace, PacedPort
from ccserver.net.pool import Pool
from ccserver.net.port import DirectPort
from ccserver.net.proxied import ProxyTerms
from ccserver.net.room import FULL, Room
from ccserver.net.slices import SLICE, Slices
from ccserver.net.statistics import collect, connection_rows
from ccserver.net.taker import Taker
from ccserver.net.tls import TlsTerms
from ccserver.process.descriptors import allow_descriptors
from ccserver.process.listening import keepalive
from ccserver.process.logs import INFO, ProcessLogger
from ccserver.process.pulse import Pulse
from ccserver.process.renewal import Renewal

TICK = 1.0
"""Seconds between two looks at who is silent, and at what takes too long."""

STEP = 0.02
"""Seconds between two looks at whether a stopping worker is done."""

OPENING_GRACE = 0.2
"""Seconds that a hand-over waits for the headers of proxies which have connected just now."""

ABORT_GRACE = 0.2
"""Seconds that cut connections have to be gone."""

HOOK_TIMEOUT = 5.0
"""Seconds that the stop hooks may take."""

HASTY_HOOK_TIMEOUT = 0.5
"""Seconds that they may take where the stop is to be at once."""


class Server:
    """Serves an application on listening sockets, on any reactor.

    @ivar connections: the connections there are.
    @ivar room: whether there may be more.
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
            first_packet_timeout=limits.first_packet_timeout,
            packet_timeout=limits.packet_timeout,
            login_timeout=limits.login_timeout,
            origins=origins(config),
        )
        self._pool = Pool(
            reactor, config.process.threads, config.process.handler_timeout, config.net.pool_queue
        )
        net = config.net
        self._dispatch = Dispatch(
            app,
            self._pool,
            net.lane_packets,
            counts,
            send_limits(config),
            net.lane_bytes,
            Slices(reactor, SLICE),
        )
        self._limits = limits
        self._ports: dict[tuple[int, str], Any] = {}  # by slot and address
        self._factories: dict[str, PacketFactory] = {}
        self._listeners = {str(each.address): each for each in config.listen.listeners}
        self._certificates = Certificates(config.tls)
        self._renewal: Renewal | None = None
        self._log_ends = config.log.level >= INFO
        self._takers: set[Taker] = set()
        self._givers: set[Giver] = set()
        self._tried: set[Connection] = set()
        self._tick = Pulse(reactor, "check of connections and threads", self._check)
        accept_rate = _rate(config.security.accept_rate)
        self._keepalive = keepalive(config)
        self._make_port: Callable[..., DirectPort] = DirectPort
        if accept_rate is not None:
            self._make_port = partial(PacedPort, pace=Pace(reactor, accept_rate))
        self._intake = Intake(reactor)
        self.room = Room(self.connections, self._intake)
        self._load: Load | None = None  # once it serves
        self._throughput = Throughput(reactor.seconds())
        self._stopped: Deferred[None] | None = None
        self._deadline = inf  # of what a stop waits for; brought forward by a second stop

    async def prepare(self) -> None:
        """Read the certificates, and run the application's start hooks.

        @raise StartError: a certificate cannot be used, there are too few threads, or a hook
            raised, which is its cause then.
        @raise ConfigError: a hook refuses the configuration.
        """
        if any(listener.tls for listener in self._config.listen.listeners):
            self._certificates.load()
            talkative = self._worker.slot == 0
            self._renewal = Renewal(self._certificates, self._reactor.seconds, talkative)
        allow_descriptors(self._config)
        try:
            self._pool.start()
        except (OSError, RuntimeError) as error:  # of memory, or of RLIMIT_NPROC
            raise StartError(
                f"no more than {self._pool.threads} of {self._pool.size} threads: {error}"
            ) from None
        for hook in self._app.worker_start:
            try:
                await self._call(hook)
            except (AppError, ConfigError, StartError):
                raise  # it says in one line what is wrong
            except Exception as error:
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
        self._load = Load(self._reactor.seconds() + TICK, self._config.net.overload_lag)
        self._tick.start(TICK)

    def listen(self, slot: int, address: str, listening: socket.socket) -> None:
        """Accept connections from C{listening}, of C{slot}, too; it belongs to us from now on."""
        if address not in self._listeners:  # of a configuration to come: how, nobody knows here
            listening.close()
            return
        self._keepalive.apply(listening)
        net = self._config.net
        port: Any = self._make_port(
            listening,
            self._front(address),
            self._reactor,
            send_buffer=net.send_buffer,
            receive_buffer=net.receive_buffer,
        )
        self._intake.add(port)
        port.startListening()
        self._ports[slot, address] = port

    def listen_no_more(self, slot: int) -> None:
        """Accept no connections from the sockets of C{slot}."""
        for key in [key for key in self._ports if key[0] == slot]:
            port = self._ports.pop(key)
            self._intake.remove(port)
            port.stopListening()

    def pause_accepting(self) -> None:
        """Accept nothing until there are file descriptors again, of which none is left."""
        self._intake.starve(os.strerror(errno.EMFILE))

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
                timeouts=close_timeouts(self._config),
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
        waits = FULL in self._intake.reasons
        for port in ports.values():
            # all that wait, where the port would take as many as came the last time
            port.pace = None
            self._intake.remove(port)
            port.numberAccepts = self._config.listen.backlog + 1
            if not waits:  # they would be refused, and somebody else has room
                port.doRead()
            port.stopListening()
        coming = self.connections.hasten_openings()
        self._close_unused()
        return len(self.connections) + coming

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
        end = self._reactor.seconds() + OPENING_GRACE
        while self.connections.hasten_openings() and self._reactor.seconds() < end:
            await deferLater(self._reactor, STEP, lambda: None)
        candidates: list[Any] = [each for each in self.connections if each not in self._tried]
        if count is not None:  # nobody has to go: those that cannot are not asked
            candidates = [each for each in candidates if each.reason_to_stay is None]
        given = candidates[:count]
        giver = Giver(self._reactor, channel, self._config.process.handover_timeout)
        self._givers.add(giver)
        report = await giver.give(given)
        self._givers.discard(giver)
        if not self._ports:
            again = {"channel", "target"} & report.left.keys()  # for another target
            self._tried.update(
                each
                for each in given
                if each.session.id in self.connections and not (again and not each.reason_to_stay)
            )
        return report

    def renew_certificates(self) -> str:
        """Read the certificates anew, without touching connections; what they are.

        @raise StartError: they are wrong, or there are none: what was there before stays.
        """
        if self._renewal is None:
            raise StartError("there is no address with tls")
        return self._renewal.renew()

    @property
    def full(self) -> bool:
        """Whether it accepts no more connections for the time being."""
        return self.room.full or bool(self._intake.reasons)

    def figures(self) -> dict[str, Any]:
        """What a beat tells the master."""
        figures = collect(self.connections, self._pool)
        figures["packets_per_second"] = self._throughput.look(
            self._reactor.seconds(), figures["packets"]
        )
        if self._load is not None:
            figures["lag_ms"] = round(1000 * self._load.lag)
            figures["overloaded"] = self._load.overloaded
        if self._renewal is not None:
            figures["certificates"] = self._certificates.ends
        return figures

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
        self._look_at_load()
        self.connections.check_heartbeats()
        self.connections.check_deadlines()
        self._dispatch.check(self._reactor.seconds())
        if self._renewal is not None:
            self._renewal.look()
        self._pool.check(perf_counter())  # a stock reactor has another clock

    def _look_at_load(self) -> None:
        """Shed new connections while there is too much to do for those there are."""
        if self._load is None:
            return
        before = self._load.overloaded
        if self._load.look(self._reactor.seconds(), self._pool.crowded) == before:
            return
        close = self._config.net.overload_action == "close"
        if before:
            self.connections.shedding = False
            self._intake.open(CloseReason.OVERLOAD)
            self.log.notice("no longer overloaded: new connections are accepted")
        else:
            self.connections.shedding = close
            if not close:
                self._intake.close(CloseReason.OVERLOAD)
            self.log.warn(
                "overloaded: {lag:.0f} ms late, {queued} jobs wait for a thread: new connections "
                "{what}",
                lag=1000 * self._load.lag,
                queued=self._pool.queued,
                what="are closed" if close else "wait",
            )

    def _adopt(self, sock: socket.socket, carried: Carried, unsent: list[bytes]) -> None:
        self.factory(carried.server).adopt(sock, carried, unsent)

    def _front(self, address: str) -> PacketFactory | Front:
        """What makes what the connections that are accepted at C{address} begin with."""
        sessions, listener = self.factory(address), self._listeners[address]
        if not (listener.tls or listener.proxy):
            return sessions
        listen, tls = self._config.listen, self._config.tls
        proxy = ProxyTerms(NetworkSet(listen.proxy_from), listen.proxy_timeout)
        secret = TlsTerms(lambda: self._certificates.context, tls.handshake_timeout)
        return Front(sessions, proxy if listener.proxy else None, secret if listener.tls else None)

    def _close_unused(self) -> None:
        for _, listening in self._sockets:
            listening.close()
        self._sockets = []

    def _gone(self) -> Deferred[None]:
        """Fires when no connection and no job is left, or at the deadline there is by then."""
        done: Deferred[None] = Deferred()

        def look() -> None:
            self.connections.finish_due()
            table = self.connections
            connections = len(table) or table.openings or table.remnants
            left = connections or self._pool.unfinished or self._givers
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
        rate=_rate(security.packet_rate, security.packet_burst),
        address_rate=security.address_packet_rate > 0,
        rate_action=RateAction(security.packet_rate_action),
        empty_reads=security.empty_reads,
        first_packet_timeout=net.first_packet_timeout,
        packet_timeout=net.packet_timeout,
        stranger_packet_length=security.stranger_packet_length,
        login_timeout=security.login_timeout,
    )


def send_limits(config: Config) -> SendLimits:
    """How much may wait to be sent, by C{config}."""
    net = config.net
    totals = (net.send_queue_total, net.send_queue_total_messages)
    return SendLimits(*net.send_queue, net.send_queue_messages, *totals, net.send_timeout)


def close_timeouts(config: Config) -> CloseTimeouts:
    """How long the end of a connection may take, by C{config}."""
    net = config.net
    return CloseTimeouts(net.flush_timeout, net.linger_timeout, config.process.handler_timeout)


def origins(config: Config) -> Origins | None:
    """The clients' addresses, where C{config} asks something of them."""
    security = config.security
    limits = AddressLimits(
        security.connections_per_address,
        accepts=_rate(security.address_accept_rate),
        packets=_rate(security.address_packet_rate, security.address_packet_burst),
    )
    access = AccessList(security.allow, security.deny)
    return Origins(limits, access) if limits.any or access else None


def _rate(per_second: int, burst: int = 0) -> Rate | None:
    return Rate(per_second, burst or per_second) if per_second else None


def _name(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__name__", str(hook))
