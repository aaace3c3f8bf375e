"""The configuration: a file of the family's syntax to frozen, typed and bounded settings."""

from ccserver.config.configuration import Config, Described, check
from ccserver.config.settings import (
    AppSettings,
    ControlSettings,
    DatabaseSettings,
    ListenSettings,
    LogSettings,
    NetSettings,
    ProcessSettings,
    SecuritySettings,
)
from ccserver.config.values import Address

__all__ = [
    "Address",
    "AppSettings",
    "Config",
    "ControlSettings",
    "DatabaseSettings",
    "Described",
    "ListenSettings",
    "LogSettings",
    "NetSettings",
    "ProcessSettings",
    "SecuritySettings",
    "check",
]
