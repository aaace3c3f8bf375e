"""Listening: the sockets that the master opens, one per address and worker slot."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence

from ccserver.config import Address, Config
from ccserver.errors import StartError
from ccserver.net.keepalive import KeepAlive
from ccserver.process import steering
from ccserver.process.logs import ProcessLogger

STEER_GRACE = 1.0
"""Seconds between L{Listening.steer} and the closing of the sockets steered away from, in which
handshakes that began before end: the kernel repeats its part of one after a second."""

SOCKETS_VARIABLE = "CCSERVER_SOCKETS"
"""The environment variable that tells a new master which sockets it inherits."""

_MAY_NOT = (errno.EACCES, errno.EADDRINUSE)

Inherited = Mapping[Address, Sequence[socket.socket]]


def keepalive(config: Config) -> KeepAlive:
    """What the kernel is to do about clients that say nothing, by C{config}."""
    net = config.net
    return KeepAlive(
        net.keepalive, net.keepalive_interval, net.keepalive_count, net.tcp_user_timeout
    )


class Listening:
    """The listening sockets of all slots, kept open for as long as the server lives.

    Each slot has a SO_REUSEPORT socket of its own for each address: the kernel spreads the
    connections evenly, and those that wait in the socket of a worker that died are there for
    its replacement. A slot that cannot get its own shares that of another.

    @ivar addresses: what is listened on.
    @ivar slots: how many slots there are.
    """

    log = ProcessLogger()

    def __init__(
        self, addresses: Iterable[Address], backlog: int, keepalive: KeepAlive | None = None
    ) -> None:
        """
        @param backlog: how many connections may wait in each socket.
        @param keepalive: is set before clients can connect: a connection has what was set then.
        """
        self._keepalive = keepalive
        self.addresses = tuple(addresses)
        self.slots = 0
        self._backlog = backlog
        self._sockets: dict[tuple[Address, int], socket.socket] = {}
        self._told = False  # that steering does not work

    def open(self, slots: int, inherited: Inherited | None = None) -> None:
        """Open the sockets of C{slots} worker slots.

        With sockets that are inherited, the further ones do not listen before L{listen}.

        @param inherited: sockets that listen already, in the order of the slots; they are ours
            from now on. Those beyond C{slots} stay open until L{drop_surplus}: whoever serves
            them now has not stopped yet.
        @raise StartError: an address is taken or cannot be listened on; nothing stays open.
        """
        self.slots = slots
        for address, sockets in (inherited or {}).items():
            for slot, listening in enumerate(sockets):
                listening.setblocking(False)
                self._sockets[address, slot] = listening
        try:
            self._open_missing(self._of_others(()))
            if not inherited:
                self.listen()
        except BaseException:
            self.close()
            raise

    def follow(
        self,
        addresses: Iterable[Address],
        slots: int,
        backlog: int,
        keepalive: KeepAlive | None = None,
    ) -> Listening:
        """What follows with a changed configuration: shares with this what both have.

        The sockets that this does not have are opened, and listen from L{listen} on. End with
        C{old.release(new)}, or with C{new.release(old)} to go on as before.

        @param slots: 0: as many as now, which go on listening while there is no worker.
        @raise StartError: one cannot be opened; nothing has changed.
        """
        new = Listening(addresses, backlog, keepalive)
        new.slots = slots or self.slots
        for (address, slot), listening in self._sockets.items():
            if address in new.addresses and slot < new.slots:
                new._sockets[address, slot] = listening
        try:
            new._open_missing(self._of_others(new.addresses))
        except BaseException:
            new.release(self)
            raise
        return new

    def listen(self) -> None:
        """Let clients connect to all of them, and the changed backlog hold.

        @raise StartError: one of them can't.
        """
        for address, slot in sorted(self._sockets, key=lambda key: key[1]):
            listening = self._sockets[address, slot]
            try:
                if self._keepalive is not None:
                    self._keepalive.apply(listening)
                listening.listen(self._backlog)
            except OSError as error:
                raise _failed(address, error) from None

    def release(self, other: Listening) -> None:
        """Close what C{other} does not have; the rest is only its own from now on."""
        kept = {id(listening) for listening in other._sockets.values()}
        for listening in self._sockets.values():
            if id(listening) not in kept:
                listening.close()
        self._sockets = {}

    def of_slot(self, slot: int) -> list[socket.socket]:
        """The sockets of a slot, in the order of the addresses."""
        places = ((address, slot) for address in self.addresses)
        return [self._sockets[place] for place in places if place in self._sockets]

    def take(self, slot: int) -> list[socket.socket]:
        """Give away the sockets of a slot: they are the caller's from now on."""
        sockets = self.of_slot(slot)
        for address in self.addresses:
            self._sockets.pop((address, slot), None)
        return sockets

    def close(self) -> None:
        """Close this process's hold on the sockets."""
        for listening in self._sockets.values():
            listening.close()
        self._sockets = {}

    @property
    def surplus(self) -> int:
        """How many slots there are sockets for beyond L{slots}."""
        return max((slot + 1 - self.slots for _, slot in self._sockets), default=0)

    def drop_surplus(self) -> None:
        """Close the sockets of slots beyond L{slots}: nobody serves them any more."""
        for place in [place for place in self._sockets if place[1] >= self.slots]:
            self._sockets.pop(place).close()

    def give(self, uid: int) -> None:
        """Make the sockets another user's, whom the process becomes.

        The kernel lets only the owner of a SO_REUSEPORT socket open another on its port.
        """
        for listening in self._sockets.values():
            os.fchown(listening.fileno(), uid, -1)

    def steer(self, count: int) -> None:
        """Let only the first C{count} slots get new connections from now on.

        Those that wait in other sockets stay there. Where the kernel can't, they go on as before.
        """
        for address in self.addresses:
            group = [
                (slot, listening)
                for slot, listening in self._of_address(address)
                if steering.shares_port(listening) and steering.is_listening(listening)
            ]
            # slots may share one
            chosen = {steering.identity(listening) for slot, listening in group if slot < count}
            if chosen:
                self._try_to_steer(address, group[0][1], len(chosen))

    def unsteer(self) -> None:
        """Let all sockets get new connections again."""
        for address in self.addresses:
            for _, listening in self._of_address(address)[:1]:
                try:
                    steering.unsteer(listening)
                except OSError:
                    pass  # it was not steered

    def inheritance(self, first: int) -> tuple[dict[int, int], str]:
        """What another process needs to go on listening.

        @param first: the first of its descriptors that it has them as.
        @return: our descriptors by its, and the value of L{SOCKETS_VARIABLE} for it.
        """
        descriptors: dict[int, int] = {}
        told: dict[str, list[int]] = {}
        for address in self.addresses:
            for _, listening in self._of_address(address):
                theirs = first + len(descriptors)
                descriptors[theirs] = listening.fileno()
                told.setdefault(str(address), []).append(theirs)
        return descriptors, json.dumps(told)

    def _of_address(self, address: Address) -> list[tuple[int, socket.socket]]:
        return sorted(
            (slot, listening) for (of, slot), listening in self._sockets.items() if of == address
        )

    def _of_others(self, addresses: Iterable[Address]) -> set[Address]:
        """The addresses that are listened on, other than C{addresses}."""
        return {address for address, _ in self._sockets}.difference(addresses)

    def _open_missing(self, leaving: Iterable[Address]) -> None:
        """Open what is not open yet.

        @param leaving: addresses that others of our sockets still have: they are in the way of
            a probe, not of a socket.
        """
        for address in self.addresses:
            have = [listening for _, listening in self._of_address(address)]
            try:
                if not have and not any(address.collides(other) for other in leaving):
                    _bound(address, share=False).close()  # nobody else has the port
                for slot in range(len(have), self.slots):
                    self._sockets[address, slot] = self._another(address, have, slot)
            except OSError as error:
                raise _failed(address, error) from None

    def _another(self, address: Address, have: list[socket.socket], slot: int) -> socket.socket:
        """Another socket for C{address}, or, where there can't be one, one of those it has."""
        if not have:
            return _bound(address, share=True)
        why = "it was passed without SO_REUSEPORT"
        if steering.shares_port(have[0]):
            try:
                return _bound(address, share=True, like=have[0])
            except OSError as error:
                if error.errno not in _MAY_NOT:
                    raise
                why = os.strerror(error.errno)
        self.log.info(
            "slot {slot} shares a socket of {address} with another: {why}",
            slot=slot,
            address=str(address),
            why=why,
        )
        return have[slot % len(have)].dup()

    def _try_to_steer(self, address: Address, member: socket.socket, count: int) -> None:
        try:
            steering.steer(member, count)
        except OSError as error:
            if not self._told:
                self.log.warn("{address} cannot be steered: {why}", address=str(address), why=error)
            self._told = True


def _bound(address: Address, share: bool, like: socket.socket | None = None) -> socket.socket:
    """A socket bound to C{address}, or to what C{like} is bound to."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    bound = socket.socket(like.family if like else family, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if bound.family == socket.AF_INET6:
            alone = like.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) if like else 1
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
        bound.bind(like.getsockname() if like else (address.host, address.port))
    except BaseException:
        bound.close()
        raise
    return bound


def _failed(address: Address, error: OSError) -> StartError:
    why = os.strerror(error.errno) if error.errno else str(error)
    return StartError(f"cannot listen on {address}: {why}")
