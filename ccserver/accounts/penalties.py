"""Penalties: what wrong logins cost those that follow; no clock, no thread, no connection."""

from __future__ import annotations

import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Hashable

from ccserver.config import AccountsSettings

QUIET = 3600.0
"""Seconds after which an address that had wrong logins for a name is as good as a new one."""

SITE = 16
"""How many addresses a /48 of IPv6 counts for, which has 65,536: it may be one customer's, or all
that a mobile operator gives out in a town."""


class Allowance:
    """So many wrong logins at once, and one more every C{delay} seconds.

    Each puts its I{due}, the moment at which all is forgiven, off by C{delay}. A due is all there
    is to remember, and one in the past is as good as none. A login that was refused puts nothing
    off: however many there are, the next one is let through no later than without them.
    """

    def __init__(self, count: int, delay: float) -> None:
        """@param count: 0: no limit."""
        self._delay = delay
        self._room = (count - 1) * delay if count else float("inf")

    def is_spent(self, due: float, now: float) -> bool:
        """Whether one more has to wait."""
        return due - now > self._room

    def put_off(self, due: float, now: float) -> float:
        """The due after one more."""
        return max(due, now) + self._delay


class Ledger:
    """Dues by what they are held against, the C{size} that were changed last."""

    def __init__(self, allowance: Allowance, size: int) -> None:
        self._allowance = allowance
        self._size = size
        self._dues: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._dues)

    def is_spent(self, key: Hashable, now: float) -> bool:
        """Whether one more has to wait."""
        due = self._dues.get(key)
        return due is not None and self._allowance.is_spent(due, now)

    def is_quiet(self, key: Hashable, now: float) -> bool:
        """Whether there was none for long."""
        due = self._dues.get(key)
        return due is None or now - due > QUIET

    def add(self, key: Hashable, now: float) -> None:
        """Note a wrong login; what has been quiet for long is forgotten."""
        dues = self._dues
        dues[key] = self._allowance.put_off(dues.get(key, now), now)
        dues.move_to_end(key)
        while len(dues) > self._size or now - dues[next(iter(dues))] > QUIET:
            dues.popitem(last=False)


class Penalties:
    """Which logins are refused without a look at their password.

    Wrong ones are held against the name at that address, against the address, against its L{site},
    and against the name wherever they come from. Who guesses at a name from many addresses must
    not keep its owner out: the name's own allowance does not concern an address that was quiet
    about it, as long as its site has not used up what L{SITE} addresses have of that, nor an
    address from which it was logged in to. That one is not held up by what others do at its
    address either. Nothing depends on whether there is such an account.
    """

    def __init__(self, settings: AccountsSettings) -> None:
        size = settings.wrong_login_memory
        one = Allowance(settings.wrong_logins, settings.wrong_login_delay)
        self.connection = one
        self._pairs = Ledger(one, size)
        count, delay = settings.address_wrong_logins, settings.address_wrong_login_delay
        self._addresses = Ledger(Allowance(count, delay), size)
        self._sites = Ledger(Allowance(count * SITE, delay / SITE), size)
        # a name at a site: an address that is new to a name has one wrong login in QUIET seconds
        self._visits = Ledger(Allowance(SITE, QUIET / SITE), size)
        self._names = Ledger(
            Allowance(settings.name_wrong_logins, settings.name_wrong_login_delay), size
        )
        self._homes: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._size = size

    def refuses(self, name: str, address: str, now: float) -> bool:
        """Whether a login has to wait.

        @param address: of L{network}; empty: an unknown one, which nothing is held against.
        """
        pair = name, address
        if self._pairs.is_spent(pair, now):
            return True
        if pair in self._homes:
            return False
        place = site(address)
        if self._addresses.is_spent(address, now) or self._sites.is_spent(place, now):
            return True
        if not self._names.is_spent(name, now):
            return False
        return not self._pairs.is_quiet(pair, now) or self._visits.is_spent((name, place), now)

    def failed(self, name: str, address: str, now: float) -> None:
        """A login that was let through was wrong."""
        self._pairs.add((name, address), now)
        self._names.add(name, now)
        if address:
            self._addresses.add(address, now)
        place = site(address)
        if place:
            self._sites.add(place, now)
            if not self._visits.is_spent(
                (name, place), now
            ):  # else it was let through as the name's
                self._visits.add((name, place), now)

    def succeeded(self, name: str, address: str) -> None:
        """A login that was let through was right; what was wrong before is not forgiven."""
        if address:
            homes = self._homes
            homes[name, address] = None
            homes.move_to_end((name, address))
            if len(homes) > self._size:
                homes.popitem(last=False)


def network(peer: str) -> str:
    """What wrong logins of C{peer}, a C{host:port}, are held against; empty, if it is none.

    An IPv4 address, or the /64 of an IPv6 address: a customer has all of that.
    """
    host = peer.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64))


def site(address: str) -> bytes:
    """The /48 of what L{network} returns; empty where that is no IPv6 address.

    Who has one /64 has many for nothing, up to a /48.
    """
    return socket.inet_pton(socket.AF_INET6, address)[:6] if ":" in address else b""
