"""Listening: the sockets that the master opens, one per address and worker slot."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from ccserver.config import Address
from ccserver.errors import StartError


class Listening:
    """The listening sockets of all slots, kept open for as long as the server lives.

    Each slot has a SO_REUSEPORT socket of its own for each address: the kernel spreads the
    connections evenly, and those that wait in the socket of a worker that died are there for
    its replacement (DESIGN 1).

    @ivar addresses: what is listened on.
    """

    def __init__(self, addresses: Iterable[Address], backlog: int) -> None:
        """@param backlog: how many connections may wait in each socket."""
        self.addresses = tuple(addresses)
        self._backlog = backlog
        self._slots: list[list[socket.socket]] = []

    def open(self, slots: int) -> None:
        """Open the sockets of C{slots} worker slots.

        @raise StartError: an address is taken or cannot be listened on; nothing stays open.
        """
        try:
            for address in self.addresses:
                self._probe(address)
            for _ in range(slots):
                self._slots.append([])
                for address in self.addresses:
                    self._slots[-1].append(self._listen(address))
        except BaseException:
            self.close()
            raise

    def of_slot(self, slot: int) -> list[socket.socket]:
        """The sockets of a slot, in the order of the addresses."""
        return self._slots[slot]

    def take(self, slot: int) -> list[socket.socket]:
        """Give away the sockets of a slot: they are the caller's from now on."""
        sockets, self._slots[slot] = self._slots[slot], []
        return sockets

    def close(self) -> None:
        """Close this process's hold on the sockets."""
        for sockets in self._slots:
            for listening in sockets:
                listening.close()
        self._slots = []

    def _probe(self, address: Address) -> None:
        """Make sure that nobody else has the port: with SO_REUSEPORT two servers could."""
        with _bound(address, share=False):
            pass

    def _listen(self, address: Address) -> socket.socket:
        listening = _bound(address, share=True)
        try:
            listening.listen(self._backlog)
        except OSError as error:
            listening.close()
            raise _failed(address, error) from None
        return listening


def _bound(address: Address, share: bool) -> socket.socket:
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.is_ipv6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address.host, address.port))
    except OSError as error:
        bound.close()
        raise _failed(address, error) from None
    return bound


def _failed(address: Address, error: OSError) -> StartError:
    why = os.strerror(error.errno) if error.errno else str(error)
    return StartError(f"cannot listen on {address}: {why}")
