"""A server's operations for tests: they note what they are asked for, and end when told."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed


class FakeOperations:
    """Operations of which those that take time have to be finished by the test.

    @ivar asked: names and arguments, in the order in which they came.
    @ivar running: what has been given for an answer, not fired yet.
    @ivar progress: what the last operation may tell its progress to.
    @ivar state: what C{status} answers.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.running: list[Deferred[Any]] = []
        self.progress: Any = None
        self.state: Any = {"pid": 17}
        self.error: Exception | None = None

    def status(self) -> Deferred[dict[str, Any]]:
        self._note("status")
        return succeed(self.state)

    def connections(self, filter: Any, sort: str, limit: int) -> Deferred[dict[str, Any]]:
        self._note("connections", filter, sort, limit)
        return succeed({"connections": [], "total": 0})

    def kick(self, id: int) -> Deferred[bool]:
        self._note("kick", id)
        return succeed(id == 7)

    def reload(self, progress: Any) -> Deferred[dict[str, Any]]:
        return self._begin("reload", progress)

    def upgrade(self, progress: Any) -> Deferred[dict[str, Any]]:
        return self._begin("upgrade", progress)

    def set_workers(self, count: int, progress: Any) -> Deferred[dict[str, Any]]:
        return self._begin("workers", progress, count)

    def rebalance(self, progress: Any) -> Deferred[dict[str, Any]]:
        return self._begin("rebalance", progress)

    def certificates(self) -> Deferred[dict[str, Any]]:
        self._note("certificates")
        return succeed({"certificates": ["localhost until 2027-01-01"]})

    def reopen(self) -> Deferred[None]:
        self._note("reopen")
        return succeed(None)

    def stop(self, graceful: bool) -> Deferred[None]:
        self._note("stop", graceful)
        return succeed(None)

    def set_log_level(self, level: int) -> Deferred[None]:
        self._note("log_level", level)
        return succeed(None)

    def _begin(self, name: str, progress: Any, *arguments: Any) -> Deferred[Any]:
        self._note(name, *arguments)
        self.progress = progress
        self.running.append(Deferred())
        return self.running[-1]

    def _note(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
