"""The link: what master and worker say to each other, AMP over a socketpair.

Its end of file tells either side that the other is gone.
"""

from __future__ import annotations

from typing import ClassVar

from twisted.protocols import amp


class Ready(amp.Command):
    """Worker to master: it accepts connections."""


class Failed(amp.Command):
    """Worker to master: it cannot start; it ends with C{status}, and C{reason} is why."""

    arguments: ClassVar = [(b"status", amp.Integer()), (b"reason", amp.Unicode())]


class Stop(amp.Command):
    """Master to worker: stop.

    C{graceful}: answer what has been received first, for at most C{timeout} seconds.
    """

    arguments: ClassVar = [(b"graceful", amp.Boolean()), (b"timeout", amp.Float())]


class Reopen(amp.Command):
    """Master to worker: open the log file anew."""


REASON_LIMIT = 8000
"""Characters of a C{reason}: AMP carries at most 65535 bytes in a value."""
