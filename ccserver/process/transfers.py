"""Transfers: connections go from workers to others, as many as can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, gatherResults

from ccserver.process import link
from ccserver.process.channels import Target, hand_over
from ccserver.process.logs import ProcessLogger
from ccserver.process.operations import Progress
from ccserver.process.pulse import Pulse
from ccserver.process.workers import Handed, WorkerOfMaster

PROGRESS_INTERVAL = 0.5
"""Seconds between two lines of progress."""

RETRIES = 3
"""How often connections are offered to another worker when the one they were to go to is gone."""


class Leaver(NamedTuple):
    """A worker that leaves, and who is to have its connections; nobody: it ends what it has."""

    source: WorkerOfMaster
    targets: Sequence[Target]


StandIns = Callable[[], Awaitable[Sequence[Target]]]
"""Who may have connections whose targets are all gone."""


class Transfers:
    """Hands connections over, and counts them.

    @ivar moved: connections that went from one worker to another.
    @ivar left: connections that could not, by reason.
    """

    log = ProcessLogger()

    def __init__(self, reactor: Any, retire: Callable[[WorkerOfMaster], None]) -> None:
        """@param retire: lets a worker go that has handed over what it could."""
        self.moved = 0
        self.left: Counter[str] = Counter()
        self._reactor = reactor
        self._retire = retire

    async def move(
        self, moves: Iterable[tuple[WorkerOfMaster, WorkerOfMaster, int]], progress: Progress
    ) -> Handed:
        """Hand connections over between workers that go on: (source, target, count)."""
        results: list[Handed] = []
        for source, target, count in moves:
            progress(f"handing {count} connections over, {source.slot} to {target.slot}")
            handed = await hand_over(source, target, count)
            results.append(handed or Handed(0, {"channel": count}))
        return self._counted(results)

    async def leave(
        self, leavers: Sequence[Leaver], stand_ins: StandIns, progress: Progress
    ) -> Handed:
        """Let workers hand their connections over, each to its targets, and go."""
        if not leavers:
            return Handed(0, {})
        sources = [source for source, _ in leavers]

        def tell() -> None:
            left = sum(source.connections for source in sources if not source.gone.over)
            progress(f"handing over: {left} connections left")

        telling = Pulse(self._reactor, "progress", tell)
        telling.start(PROGRESS_INTERVAL, now=True)
        try:
            handed = await gatherResults(
                [Deferred.fromCoroutine(self._leave_one(*each, stand_ins)) for each in leavers],
                consumeErrors=True,
            )
        finally:
            telling.stop()
        return self._counted(handed)

    async def _leave_one(
        self, source: WorkerOfMaster, targets: Sequence[Target], stand_ins: StandIns
    ) -> Handed:
        try:
            return await self._give_all(source, targets, stand_ins)
        finally:
            if not source.gone.over:
                self._retire(source)

    async def _give_all(
        self, source: WorkerOfMaster, targets: Sequence[Target], stand_ins: StandIns
    ) -> Handed:
        """Let C{source} accept no more, and hand over what can go."""
        count = await source.stop_accepting()
        moved, left, why = 0, Counter[str](), "channel"
        waiting = list(targets)
        tries = len(waiting) + RETRIES  # that may fail
        while count and tries and source.linked:
            waiting = [each for each in waiting if not each.gone.over] or list(await stand_ins())
            if not waiting:
                break
            target = waiting.pop(0)
            share = -(-count // (len(waiting) + 1)) if waiting else link.ALL
            handed = await hand_over(source, target, share)
            if handed is None:
                tries -= 1
                continue
            moved += handed.moved
            untried = 0  # another one may have them
            for reason in ("channel", "target"):  # the target has gone, or has no room
                if reason in handed.left:
                    why = reason
                    untried += handed.left.pop(reason)
            tries -= bool(untried)
            left.update(handed.left)
            count = untried if share == link.ALL else count - handed.moved
        if count and targets and source.linked:
            left[why] += count
        return Handed(moved, dict(left))

    def _counted(self, results: Iterable[Handed]) -> Handed:
        """All of them in one, counted and logged."""
        moved, left = 0, Counter[str]()
        for each in results:
            moved += each.moved
            left.update(each.left)
        self.moved += moved
        self.left.update(left)
        if left:
            self.log.notice(
                "{moved} connections handed over, not: {left}",
                moved=moved,
                left=", ".join(f"{count} {reason}" for reason, count in sorted(left.items())),
            )
        return Handed(moved, dict(left))
