"""Inheritance: listening sockets that an old master or systemd passes to this process."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, MutableMapping

from ccserver.config import Address
from ccserver.errors import StartError
from ccserver.process.listening import SOCKETS_VARIABLE
from ccserver.process.logs import ProcessLogger
from ccserver.process.systemd import Systemd

log = ProcessLogger()

Sockets = dict[Address, list[socket.socket]]


def inherited(
    systemd: Systemd, environ: MutableMapping[str, str], addresses: Iterable[Address]
) -> Sockets:
    """The sockets that were passed to this process for C{addresses}.

    Each that is for none of them is closed, and a line in the log.

    @param environ: loses what an old master has written there.
    @raise StartError: what it has written cannot be true, or one that is passed is in the way.
    """
    wanted = tuple(addresses)
    told = environ.pop(SOCKETS_VARIABLE, "")
    if told:
        return _of_old_master(told, wanted)
    return _of_systemd(systemd.sockets(), wanted)


def _of_old_master(told: str, wanted: tuple[Address, ...]) -> Sockets:
    by_name = {str(address): address for address in wanted}
    found: Sockets = {}
    try:
        for name, descriptors in json.loads(told).items():
            for fd in descriptors:
                os.set_inheritable(fd, False)
                passed = socket.socket(fileno=fd)
                if name in by_name:
                    found.setdefault(by_name[name], []).append(passed)
                else:
                    passed.close()  # the old master has it, until it stops
    except (AttributeError, OSError, TypeError, ValueError) as error:
        _close(found)
        raise StartError(f"cannot take over sockets: {SOCKETS_VARIABLE}: {error}") from None
    return found


def _of_systemd(passed: list[tuple[str, socket.socket]], wanted: tuple[Address, ...]) -> Sockets:
    found: Sockets = {}
    for name, given in passed:
        address = _match(given, wanted)
        if address is None:
            log.warn(
                "the socket {name} that systemd passed, {what}, is for no address of the "
                "configuration: not used",
                name=name,
                what=_described(given),
            )
            given.close()
        else:
            found.setdefault(address, []).append(given)
    for address in wanted:
        for other, (first, *_) in found.items():
            if address not in found and _takes_ipv4(first) and address.collides(_ipv4(other)):
                _close(found)
                raise StartError(
                    f"cannot listen on {address}: the socket for {other} that systemd passed takes "
                    f"IPv4 as well (its unit needs BindIPv6Only=ipv6-only)"
                )
    return found


def _match(given: socket.socket, wanted: tuple[Address, ...]) -> Address | None:
    """Which of the addresses C{given} listens on; for IPv6's C{::}, IPv4's C{0.0.0.0} may do."""
    if given.type != socket.SOCK_STREAM or given.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    if not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return None
    host, port = given.getsockname()[:2]
    bound = Address(host, port)
    if bound in wanted:
        return bound
    if _takes_ipv4(given) and _ipv4(bound) in wanted:
        return _ipv4(bound)
    return None


def _takes_ipv4(given: socket.socket) -> bool:
    """Whether it is an IPv6 socket that IPv4 clients reach as well."""
    if given.family != socket.AF_INET6 or given.getsockname()[0] != "::":
        return False
    return not given.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def _ipv4(address: Address) -> Address:
    return Address("0.0.0.0", address.port)


def _described(given: socket.socket) -> str:
    name = given.getsockname()
    if given.family in (socket.AF_INET, socket.AF_INET6):
        return f"{Address(*name[:2])}"
    return f"{given.family.name} {name!r}" if hasattr(given.family, "name") else str(name)


def _close(sockets: Sockets) -> None:
    for listening in sockets.values():
        for each in listening:
            each.close()
