"""The keys that a file may have: all parts, and what is written otherwise than it is kept."""

from __future__ import annotations

import re
from typing import Any

from ccserver.config.application import AccountsSettings, AppSettings, DatabaseSettings
from ccserver.config.connections import NetSettings
from ccserver.config.listening import ListenSettings, TlsSettings
from ccserver.config.processes import ControlSettings, LogSettings, ProcessSettings
from ccserver.config.security import SecuritySettings
from ccserver.config.settings import Setting, Settings
from ccserver.config.values import Whole

SECTIONS = (
    "Socket",
    "Log",
    "Proc",
    "Net",
    "NetSecurity",
    "App",
    "Database",
    "Accounts",
    "TLS",
    "Control",
)

LISTEN_PORT = Setting("Socket", "ListenPort", Whole(1, 65535), None, "a port on 0.0.0.0")
LISTEN_PORT_COUNT = Setting(
    "Net", "ListenPortCount", Whole(1, 256), None, "how many of ListenPort0, ListenPort1... count"
)
LISTEN_PORT_0 = Setting("Net", "ListenPort0", Whole(1, 65535), None, "the first of several ports")

PARTS: tuple[type[Settings], ...] = (
    ListenSettings,
    LogSettings,
    ProcessSettings,
    NetSettings,
    SecuritySettings,
    AppSettings,
    DatabaseSettings,
    AccountsSettings,
    TlsSettings,
    ControlSettings,
)

KNOWN: dict[str, Setting[Any]] = {
    known.key.lower(): known
    for known in (
        *(LISTEN_PORT, LISTEN_PORT_COUNT, LISTEN_PORT_0),
        *(field for part in PARTS for _, field in part.fields()),
    )
}
"""Every key but ListenPort1 to ListenPort255, by its name in lower case."""


def port_number(key: str) -> int | None:
    """The N of a key ListenPortN, 0 to 255; C{None} for any other key."""
    match = re.fullmatch(r"listenport(0|[1-9][0-9]{0,2})", key.lower())
    return int(match[1]) if match and int(match[1]) <= 255 else None


def known_key(key: str) -> str | None:
    """C{key} as it is spelled here, or C{None} when it is not one of ours."""
    number = port_number(key)
    if number is not None:
        return f"ListenPort{number}"
    known = KNOWN.get(key.lower())
    return known.key if known else None
