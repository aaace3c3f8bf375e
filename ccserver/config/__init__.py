"""The configuration: a file of the family's syntax to frozen, typed and bounded settings."""

from ccserver.config.addresses import Address, Listener, Network
from ccserver.config.application import AccountsSettings, AppSettings, DatabaseSettings
from ccserver.config.configuration import Config, Described, check
from ccserver.config.connections import NetSettings
from ccserver.config.listening import ListenSettings, TlsSettings
from ccserver.config.processes import ControlSettings, LogSettings, ProcessSettings
from ccserver.config.security import SecuritySettings

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
