"""The configuration: a file of the family's syntax to frozen, typed and bounded settings."""

from ccserver.config.configuration import Config, Described, check
from ccserver.config.settings import (
    AccountsSettings,
    AppSettings,
    ControlSettings,
    DatabaseSettings,
    ListenSettings,
    LogSettings,
    NetSettings,
    ProcessSettings,
    SecuritySettings,
    TlsSettings,
)
from ccserver.config.values import Address, Listener, Network

__all__ = [
    "AccountsSettings",
    "Address",
    "AppSettings",
    "Config",
    "ControlSettings",
    "DatabaseSettings",
    "Described",
    "ListenSettings",
    "Listener",
    "LogSettings",
    "NetSettings",
    "Network",
    "ProcessSettings",
    "SecuritySettings",
    "TlsSettings",
    "check",
]
