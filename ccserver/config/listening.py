"""The settings of the addresses that are listened on, and of how they are encrypted."""

from __future__ import annotations

from dataclasses import dataclass

from ccserver.config.addresses import Address, Listener, Listeners, Network, Networks
from ccserver.config.settings import Settings, setting
from ccserver.config.values import Choice, FilePaths, Seconds, Text, Whole


@dataclass(frozen=True)
class ListenSettings(Settings):
    """Where connections come in. In this order: ListenPort, ListenPort0..., Listen."""

    listeners: tuple[Listener, ...] = setting(
        "Socket",
        "Listen",
        Listeners(),
        "0.0.0.0:5678",
        "addresses to listen on, beside those of ListenPort and ListenPort0...; tls behind one: "
        "encrypted; proxy: behind a proxy that tells the client's address",
    )
    backlog: int = setting(
        "Socket",
        "Backlog",
        Whole(1, 65535),
        "4096",
        "connections of one port that wait to be accepted; the kernel's somaxconn bounds it too",
    )
    proxy_from: tuple[Network, ...] = setting(
        "Socket",
        "ProxyFrom",
        Networks(),
        "",
        "the proxies: who may connect to the addresses with proxy, and is believed",
    )
    proxy_timeout: float = setting(
        "Socket",
        "ProxyTimeout",
        Seconds(1, 600),
        "5",
        "seconds that a proxy has to send its header",
    )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where to listen."""
        return tuple(listener.address for listener in self.listeners)


@dataclass(frozen=True)
class TlsSettings(Settings):
    """How connections to the addresses with tls are encrypted."""

    certificates: tuple[str, ...] = setting(
        "TLS",
        "TlsCertificate",
        FilePaths(),
        "",
        "certificates, the first for clients that name no host; each may hold its chain and key",
    )
    keys: tuple[str, ...] = setting(
        "TLS",
        "TlsKey",
        FilePaths(),
        "",
        "the keys of the certificates, in their order; empty: in the same files",
    )
    chains: tuple[str, ...] = setting(
        "TLS",
        "TlsChain",
        FilePaths(),
        "",
        "the chains of the certificates, in their order; empty: in the same files, if any",
    )
    client_ca: tuple[str, ...] = setting(
        "TLS", "TlsClientCa", FilePaths(), "", "whose certificates of clients are believed"
    )
    client_certificates: str = setting(
        "TLS",
        "TlsClientCertificates",
        Choice("off", "optional", "required"),
        "off",
        "whether clients are asked for a certificate, and may do without",
    )
    min_version: str = setting(
        "TLS", "TlsMinVersion", Choice("1.2", "1.3"), "1.2", "the oldest version of TLS accepted"
    )
    ciphers: str = setting(
        "TLS", "TlsCiphers", Text(), "", "OpenSSL's list of ciphers for TLS 1.2; empty: its own"
    )
    handshake_timeout: float = setting(
        "TLS",
        "TlsHandshakeTimeout",
        Seconds(1, 600),
        "10",
        "seconds that a client has for the handshake",
    )
