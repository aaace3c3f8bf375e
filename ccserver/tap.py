"""The twistd plugin's other half: options, and the service made of them. Opens nothing."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.python import usage

from ccserver.config import Config, check
from ccserver.errors import CcserverError, StartError
from ccserver.owner import Owner
from ccserver.process.host import Host
from ccserver.process.listening import SOCKETS_VARIABLE
from ccserver.process.logs import LineObserver, last_words
from ccserver.process.master import Master
from ccserver.process.pidfile import PidFile, remove_stale
from ccserver.process.pidfile import check as check_pid_file
from ccserver.process.reload import summary
from ccserver.process.single import SingleProcess
from ccserver.process.systemd import Systemd
from ccserver.process.upgrade import VARIABLE, Predecessor

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
        if config is None:
            raise _refusal(*errors)
        pid_file = self._of_twistd("pidfile")
        remove_stale(pid_file)
        try:
            self.settings = self._with_owner(config)
            if not self._of_twistd("chroot"):
                check_pid_file(pid_file)
        except StartError as error:
            raise _refusal(error) from None

    @property
    def owner(self) -> Owner | None:
        """Whom twistd makes the process after C{privilegedStartService}; C{None}: it stays.

        @raise StartError: there is no such user.
        """
        uid = self._of_twistd("uid")
        return None if uid is None else Owner.with_ids(uid, self._of_twistd("gid"))

    @property
    def foreground(self) -> bool:
        """Whether twistd stays in the foreground."""
        return bool(self._of_twistd("nodaemon"))

    def _with_owner(self, config: Config) -> Config:
        """Let twistd become the user of the configuration, unless it is told another itself.

        @return: C{config}, with a warning if that cannot be.
        @raise StartError: there is no such user, or no such group.
        """
        user, group = config.process.user, config.process.group
        if not user:
            return config
        owner = Owner.named(user, group)
        if os.geteuid() != 0:
            if os.geteuid() == owner.uid:
                return config
            warning = f"User {user} has no effect: only root can become another user"
            return replace(config, warnings=(*config.warnings, warning))
        if self.parent is not None and self._of_twistd("uid") is None and owner.uid != 0:
            self.parent["uid"] = owner.uid
            if self._of_twistd("gid") is None:
                self.parent["gid"] = owner.gid
        return config

    def _of_twistd(self, name: str) -> Any:
        return self.parent.get(name) if self.parent is not None else None


def _refusal(*errors: CcserverError) -> SystemExit:
    """The end of a process that cannot start, when a line for each error is said."""
    for error in errors:
        last_words(str(error))
    if VARIABLE in os.environ:
        Predecessor.refuse_early(summary(errors))
    return SystemExit(1)


def makeService(options: Options) -> IService:
    """The service for C{twistd}: a master with its workers, or a single process."""
    from twisted.internet import reactor

    clocked: Any = reactor
    clocked.seconds = time.monotonic  # a change of the system's time moves no timer of ours
    config = options.settings
    observer = LineObserver(config.log.file, config.log.level, options.foreground)
    sys.excepthook = _say_plainly
    # before the environment of the workers is made: theirs is without what is for us alone
    host = Host(Systemd(os.environ), PidFile(options.parent), options.owner)
    predecessor = Predecessor.found(os.environ)
    if config.process.workers == 0 and predecessor is None:  # a master can say that it cannot
        return SingleProcess(reactor, config, observer, host)
    environment = worker_environment()
    return Master(reactor, config, observer, host, options.foreground, environment, predecessor)


def worker_environment() -> dict[str, str]:
    """The environment of workers: ours, with a path on which they find what we find."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if os.path.exists(entry))
    ours = {name: value for name, value in os.environ.items() if name != SOCKETS_VARIABLE}
    return {**ours, "PYTHONPATH": path}


def _say_plainly(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """A refusal to start is a line, not a traceback."""
    if isinstance(error, CcserverError):
        last_words(str(error))
    else:
        sys.__excepthook__(kind, error, traceback)
