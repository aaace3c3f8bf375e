"""What operators can ask of a server, and the commands by which they ask it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred, maybeDeferred

from ccserver.errors import OperationFailed
from ccserver.process.logs import LEVELS
from ccserver.process.selection import MAX_CONNECTIONS, SORTS, ConnectionFilter

MAX_WORKERS = 256
MAX_TEXT = 200

Progress = Callable[[str], None]
"""Told how far an operation is, in a few words; may be called at any time, and often."""


class Operations(Protocol):
    """What a server does for its operators.

    Each fails with L{OperationFailed} where it cannot be done; any other exception is a bug.
    What is described for the results is promised in docs/operating.md.
    """

    def status(self) -> Deferred[dict[str, Any]]:
        """How the server is."""

    def connections(
        self, filter: ConnectionFilter, sort: str, limit: int
    ) -> Deferred[dict[str, Any]]:
        """The first C{limit} connections that match, in the order C{sort}, and their C{total}."""

    def kick(self, id: int) -> Deferred[bool]:
        """Close a connection; whether it was there."""

    def reload(self, progress: Progress) -> Deferred[dict[str, Any]]:
        """Serve with the configuration and application as they are now."""

    def upgrade(self, progress: Progress) -> Deferred[dict[str, Any]]:
        """Let a new master take over."""

    def set_workers(self, count: int, progress: Progress) -> Deferred[dict[str, Any]]:
        """Serve with C{count} workers."""

    def rebalance(self, progress: Progress) -> Deferred[dict[str, Any]]:
        """Let the workers hold equally many connections."""

    def certificates(self) -> Deferred[dict[str, Any]]:
        """Let all workers read the certificates anew, and nothing else; what they are."""

    def reopen(self) -> Deferred[None]:
        """Open the log file anew; fires when all processes have, fails where one cannot."""

    def stop(self, graceful: bool) -> Deferred[None]:
        """Begin to stop; fires when it has begun."""

    def set_log_level(self, level: int) -> Deferred[None]:
        """Log what is not above C{level}, 0 to 8, until the next start or reload.

        Fires when all processes do.
        """


class Argument(NamedTuple):
    """What an argument may be; without a default it has to be given."""

    check: Callable[[Any], bool]
    allowed: str
    optional: bool = False
    default: Any = None


class Command(NamedTuple):
    """One command: its arguments, and what it does with them, checked.

    @ivar quiet: it changes nothing, and is not worth a line in the log.
    """

    perform: Callable[[Operations, dict[str, Any], Progress], Any]
    arguments: Mapping[str, Argument] = {}
    quiet: bool = False


def _whole(low: int, high: int, **default: Any) -> Argument:
    def check(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Argument(check, f"a whole number from {low} to {high}", **default)


def _text(**default: Any) -> Argument:
    def check(value: Any) -> bool:
        return isinstance(value, str) and len(value) <= MAX_TEXT

    return Argument(check, f"a text of at most {MAX_TEXT} characters", **default)


def _choice(*words: str, **default: Any) -> Argument:
    def check(value: Any) -> bool:
        return isinstance(value, str) and value in words

    return Argument(check, f"one of {', '.join(words)}", **default)


_SWITCH = Argument(lambda value: isinstance(value, bool), "true or false")


def _connections(
    operations: Operations, given: dict[str, Any], progress: Progress
) -> Deferred[dict[str, Any]]:
    try:
        filter = ConnectionFilter(given["peer"], given["server"], given["worker"])
    except ValueError as error:
        raise OperationFailed(f"not an address, network or port: {error}") from None
    return operations.connections(filter, given["sort"], given["limit"])


COMMANDS: Mapping[str, Command] = {
    "status": Command(lambda server, given, progress: server.status(), quiet=True),
    "connections": Command(
        _connections,
        {
            "peer": _text(optional=True),
            "server": _text(optional=True),
            "worker": _whole(0, MAX_WORKERS - 1, optional=True),
            "sort": _choice(*SORTS, optional=True, default="id"),
            "limit": _whole(0, MAX_CONNECTIONS, optional=True, default=100),
        },
        quiet=True,
    ),
    "kick": Command(
        lambda server, given, progress: server.kick(given["id"]).addCallback(
            lambda kicked: {"kicked": kicked}
        ),
        {"id": _whole(0, (1 << 64) - 1)},
    ),
    "reload": Command(lambda server, given, progress: server.reload(progress)),
    "upgrade": Command(lambda server, given, progress: server.upgrade(progress)),
    "workers": Command(
        lambda server, given, progress: server.set_workers(given["count"], progress),
        {"count": _whole(1, MAX_WORKERS)},
    ),
    "rebalance": Command(lambda server, given, progress: server.rebalance(progress)),
    "certificates": Command(lambda server, given, progress: server.certificates()),
    "reopen": Command(lambda server, given, progress: server.reopen()),
    "stop": Command(
        lambda server, given, progress: server.stop(given["graceful"]), {"graceful": _SWITCH}
    ),
    "log_level": Command(
        lambda server, given, progress: server.set_log_level(given["level"]),
        {"level": _whole(0, len(LEVELS) - 1)},
    ),
}
"""Every command by its name in a request."""


def command_of(request: Any) -> tuple[Command, dict[str, Any]]:
    """The command that a request names, and its arguments, those not given by default.

    @raise OperationFailed: there is no such command, or it has no such arguments.
    """
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        raise OperationFailed('not a request: {"command": "status"} is one')
    name = request["command"]
    command = COMMANDS.get(name)
    if command is None:
        raise OperationFailed(f"unknown command {name[:MAX_TEXT]!r}")
    given = {key: value for key, value in request.items() if key != "command"}
    for key in given:
        if key not in command.arguments:
            raise OperationFailed(f"{name} has no argument {key[:MAX_TEXT]!r}")
    for key, argument in command.arguments.items():
        if given.get(key) is None and argument.optional:
            given[key] = argument.default
        elif not argument.check(given.get(key)):
            raise OperationFailed(f"{name}: {key} must be {argument.allowed}")
    return command, given


def perform(
    command: Command, operations: Operations, given: dict[str, Any], progress: Progress
) -> Deferred[Any]:
    """Carry out what L{command_of} gave; fires with the result, None where there is none."""
    return maybeDeferred(command.perform, operations, given, progress)
