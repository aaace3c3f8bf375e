"""The host: what a server finds where it runs."""

from __future__ import annotations

from dataclasses import dataclass

from ccserver.owner import Owner
from ccserver.process.pidfile import PidFile
from ccserver.process.systemd import Systemd


@dataclass(frozen=True)
class Host:
    """Who starts the server, and who it is to be.

    @ivar systemd: whom to tell how it goes, and who may have passed sockets.
    @ivar pid_file: twistd's.
    @ivar owner: whom the process becomes after C{privilegedStartService}; C{None}: it stays.
    """

    systemd: Systemd
    pid_file: PidFile
    owner: Owner | None = None
