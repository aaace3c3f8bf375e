"""The settings that protect against floods: how often, and who at all."""

from __future__ import annotations

from dataclasses import dataclass

from ccserver.config.addresses import Network, Networks
from ccserver.config.settings import Settings, setting
from ccserver.config.values import Choice, Seconds, Size, Switch, Whole


@dataclass(frozen=True)
class SecuritySettings(Settings):
    """Protection against floods. C{flood_interval} is in seconds, its key in milliseconds."""

    flood_kick: bool = setting(
        "NetSecurity",
        "Sock_FloodAttackKickEnable",
        Switch(),
        "0",
        "close connections that send packets in too quick a succession",
    )
    flood_interval: float = setting(
        "NetSecurity",
        "Sock_FloodTimeInterval",
        Seconds(0, 3_600_000, unit="ms"),
        "100",
        "milliseconds; a packet that comes sooner after the one before counts as quick",
    )
    flood_count: int = setting(
        "NetSecurity",
        "Sock_FloodKickCounter",
        Whole(1, 1_000_000),
        "10",
        "quick packets in a row that close the connection",
    )
    empty_reads: int = setting(
        "NetSecurity",
        "EmptyReads",
        Whole(0, 1_000_000),
        "10000",
        "reads of less than 512 bytes that complete no packet, of one connection in a second, "
        "before it is closed; 0: any number",
    )
    login_timeout: float = setting(
        "NetSecurity",
        "LoginTimeout",
        Seconds(0, 86400),
        "0",
        "seconds until the application has to know the client of a connection, as behind a login, "
        "before that is closed; 0: any time",
    )
    stranger_packet_length: int = setting(
        "NetSecurity",
        "StrangerPacketLength",
        Size(8, 65535),
        "65535",
        "bytes of the longest packet of a client that the application does not know yet, where "
        "MaxPacketLength is not less",
    )
    packet_rate: int = setting(
        "NetSecurity",
        "PacketRate",
        Whole(0, 1_000_000),
        "0",
        "packets of one connection in a second; 0: any number",
    )
    packet_burst: int = setting(
        "NetSecurity",
        "PacketBurst",
        Whole(0, 1_000_000),
        "0",
        "packets of one connection at once; 0: as many as in a second",
    )
    address_packet_rate: int = setting(
        "NetSecurity",
        "AddressPacketRate",
        Whole(0, 10_000_000),
        "0",
        "packets of one client address in a second, in each worker; 0: any number",
    )
    address_packet_burst: int = setting(
        "NetSecurity",
        "AddressPacketBurst",
        Whole(0, 10_000_000),
        "0",
        "packets of one client address at once; 0: as many as in a second",
    )
    packet_rate_action: str = setting(
        "NetSecurity",
        "PacketRateAction",
        Choice("delay", "drop", "kick"),
        "delay",
        "what more packets meet: delay them, drop them, or close their connection",
    )
    connections_per_address: int = setting(
        "NetSecurity",
        "ConnectionsPerAddress",
        Whole(0, 1_000_000),
        "0",
        "connections of one client address in each worker; 0: any number",
    )
    accept_rate: int = setting(
        "NetSecurity",
        "AcceptRate",
        Whole(0, 1_000_000),
        "0",
        "connections that each worker accepts in a second, the others wait; 0: any number",
    )
    address_accept_rate: int = setting(
        "NetSecurity",
        "AddressAcceptRate",
        Whole(0, 1_000_000),
        "0",
        "connections that one client address may make in a second, in each worker; 0: any number",
    )
    allow: tuple[Network, ...] = setting(
        "NetSecurity",
        "Allow",
        Networks(),
        "",
        "who may connect: addresses and networks; empty: everybody",
    )
    deny: tuple[Network, ...] = setting(
        "NetSecurity",
        "Deny",
        Networks(),
        "",
        "who may not, whatever Allow says",
    )
