"""Client addresses: who may connect, and what the connections of one address may do together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import islice

from ccserver.core.rates import Rate, SharedBucket, TokenBucket

Network = IPv4Network | IPv6Network

IPV6_PREFIX = 64
"""Bits that tell one client from another in IPv6: whoever has an address there has 2^64."""

MEMORY = 65536
"""Addresses without a connection of which a worker knows how much they have used up."""

FORGOTTEN = 2048
"""Addresses that are forgotten in one go at most: 3 ms."""

MAPPED_BITS = 96
"""Bits before the IPv4 address in one that is mapped into IPv6."""


@dataclass(frozen=True)
class AddressLimits:
    """What one client address may do in one worker.

    @ivar connections: how many it may have; 0: any number.
    @ivar accepts: how many it may make in a second, None: any number.
    @ivar packets: how many it may send, all its connections together; None: any number.
    """

    connections: int = 0
    accepts: Rate | None = None
    packets: Rate | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return bool(self.connections or self.accepts or self.packets)


def parse_host(host: str) -> IPv4Address | IPv6Address | None:
    """The address C{host}, an IPv4 one also where it is mapped into IPv6; None if it is none."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def address_key(host: str) -> str | int:
    """What C{host} has in common with the other addresses of its client."""
    if ":" not in host:
        return host
    address = parse_host(host)
    if address is None or address.version == 4:
        return str(address or host)
    return int(address) >> (128 - IPV6_PREFIX)


def host_of(peer: str) -> str:
    """The host in C{host:port} or C{[host]:port}."""
    return peer.rpartition(":")[0].strip("[]")


class NetworkSet:
    """Networks; whether an address is in one takes a look for each length of prefix, not each."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._prefixes: dict[tuple[int, int], set[int]] = {}  # by version and bits behind it
        for network in networks:
            first, length = network.network_address, network.prefixlen
            if first.version == 6 and first.ipv4_mapped is not None and length >= MAPPED_BITS:
                first, length = first.ipv4_mapped, length - MAPPED_BITS
            behind = first.max_prefixlen - length
            self._prefixes.setdefault((first.version, behind), set()).add(int(first) >> behind)

    def __bool__(self) -> bool:
        return bool(self._prefixes)

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        number = int(address)
        return any(
            version == address.version and number >> behind in starts
            for (version, behind), starts in self._prefixes.items()
        )


class AccessList:
    """Who may connect: nobody in C{deny}, and where there is an C{allow}, nobody outside that."""

    def __init__(self, allow: Iterable[Network] = (), deny: Iterable[Network] = ()) -> None:
        self._allow, self._deny = NetworkSet(allow), NetworkSet(deny)

    def __bool__(self) -> bool:
        """Whether there is anybody who may not."""
        return bool(self._allow or self._deny)

    def admits(self, host: str) -> bool:
        """Whether C{host} may connect; who has no address may where all others may."""
        address = parse_host(host)
        if address is None:
            return not self
        if address in self._deny:
            return False
        return not self._allow or address in self._allow


class Origin:
    """What the connections of one client address have in common in one worker.

    @ivar connections: how many there are.
    @ivar packets: the tokens for their packets, None where they need none.
    @ivar waiting: how many connections wait for them.
    """

    __slots__ = ("accepts", "connections", "key", "packets", "waiting")

    def __init__(self, key: str | int, limits: AddressLimits, now: float) -> None:
        self.key = key
        self.connections = self.waiting = 0
        self.accepts = TokenBucket(limits.accepts, now) if limits.accepts else None
        self.packets = SharedBucket(limits.packets, now) if limits.packets else None

    def is_fresh(self, now: float) -> bool:
        """Whether a new one would not differ, but for its connections."""
        return all(bucket.is_full(now) for bucket in (self.accepts, self.packets) if bucket)


class Origins:
    """The client addresses of a worker: those that have connections, and what others used up.

    Of the latter it remembers L{MEMORY}, those that went last.
    """

    def __init__(self, limits: AddressLimits, access: AccessList) -> None:
        self._limits = limits
        self._access = access
        self._present: dict[str | int, Origin] = {}
        self._gone: dict[str | int, Origin] = {}  # in the order in which they went

    def __len__(self) -> int:
        return len(self._present) + len(self._gone)

    def refusal(self, host: str, now: float) -> str | None:
        """The reason not to let C{host} connect at C{now}; None: one more connection is let in."""
        if self._access and not self._access.admits(host):
            return "denied"
        if not self._limits.any:
            return None
        origin = self._origin(host, now)
        if self._limits.connections and origin.connections >= self._limits.connections:
            return "address_limit"
        if origin.accepts is not None:
            if origin.accepts.available(now) < 1:
                return "address_rate"
            origin.accepts.take(1)
        return None

    def enter(self, host: str, now: float) -> Origin | None:
        """There is a connection of C{host}; its origin, for L{leave}; None without limits."""
        if not self._limits.any:
            return None
        origin = self._origin(host, now)
        if not origin.connections:
            self._gone.pop(origin.key, None)
            self._present[origin.key] = origin
        origin.connections += 1
        return origin

    def is_crowded(self, origin: Origin) -> bool:
        """Whether C{origin} has more connections than it may."""
        return 0 < self._limits.connections < origin.connections

    def leave(self, origin: Origin) -> None:
        """One connection of C{origin} is there no more."""
        origin.connections -= 1
        if not origin.connections:
            del self._present[origin.key]
            self._remember(origin)

    def forget(self, now: float) -> None:
        """Forget those that went and have used up nothing; to be called about once a second.

        Looks at the eldest only, as far as they are to be forgotten.
        """
        for key, origin in list(islice(self._gone.items(), FORGOTTEN)):
            if not origin.is_fresh(now):
                break
            del self._gone[key]

    def _origin(self, host: str, now: float) -> Origin:
        key = address_key(host)
        origin = self._present.get(key) or self._gone.get(key)
        if origin is None:
            origin = Origin(key, self._limits, now)
            self._remember(origin)
        return origin

    def _remember(self, origin: Origin) -> None:
        if len(self._gone) >= MEMORY and origin.key not in self._gone:
            del self._gone[next(iter(self._gone))]
        self._gone[origin.key] = origin
