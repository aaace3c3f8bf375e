"""The twistd plugin's other half: options, and the service made of them. Opens nothing."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import ClassVar

from twisted.application.service import IService
from twisted.python import usage

from ccserver.config import Config, check
from ccserver.errors import CcserverError
from ccserver.process.logs import LineObserver, last_words
from ccserver.process.master import Master
from ccserver.process.single import SingleProcess

DEFAULT_CONFIG = "etc/ccserver.conf"


class Options(usage.Options):
    """C{twistd ccserver} and what can follow."""

    optParameters: ClassVar = [
        ["config", "c", DEFAULT_CONFIG, "The configuration file."],
    ]

    settings: Config

    def postOptions(self) -> None:
        """Read the configuration; end with status 1 and a line for each error, if it has any."""
        base = os.path.abspath(self._of_twistd("rundir") or ".")
        config, errors = check(self["config"], base)
        for error in errors:
            last_words(str(error))
        if config is None:
            raise SystemExit(1)
        self.settings = config

    @property
    def foreground(self) -> bool:
        """Whether twistd stays in the foreground."""
        return bool(self._of_twistd("nodaemon"))

    def _of_twistd(self, name: str) -> str | None:
        parent = self.parent
        return parent.get(name) if parent is not None else None


def makeService(options: Options) -> IService:
    """The service for C{twistd}: a master with its workers, or a single process."""
    from twisted.internet import reactor

    config = options.settings
    observer = LineObserver(config.log.file, config.log.level, options.foreground)
    sys.excepthook = _say_plainly
    if config.process.workers == 0:
        return SingleProcess(reactor, config, observer)
    return Master(reactor, config, observer, options.foreground, worker_environment())


def worker_environment() -> dict[str, str]:
    """The environment of workers: ours, with a path on which they find what we find."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if os.path.exists(entry))
    return {**os.environ, "PYTHONPATH": path}


def _say_plainly(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """A refusal to start is a line, not a traceback."""
    if isinstance(error, CcserverError):
        last_words(str(error))
    else:
        sys.__excepthook__(kind, error, traceback)
