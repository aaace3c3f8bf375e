"""Relief: for who is full, or silent, others who have room accept connections."""

from __future__ import annotations

from typing import Any

from ccserver.process.fleet import Fleet
from ccserver.process.workers import WorkerOfMaster


class Relief:
    """Lets workers that have room accept those connections that the kernel gives to others.

    Those are full, or silent, which they are long before they are taken for dead. Only when nobody
    has room are connections refused.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._told: dict[WorkerOfMaster, bool] = {}

    def look(self) -> None:
        """Somebody is full, or silent, or has begun to serve; or is so no more."""
        serving = self._fleet.serving
        silent = {each for each in serving if each.silent}
        workers = [each for each in serving if each in silent or each.full is not None]
        new = len(self._fleet.places) - len(workers)  # who has said nothing yet has room
        roomy = [each for each in workers if not (each in silent or each.full)]
        for each in workers:
            wait = len(roomy) + new > (each in roomy)  # somebody else has room
            if each not in silent and self._told.get(each) is not wait:
                self._told[each] = wait
                each.keep_waiting(wait)
            if roomy and each not in roomy:
                self._fleet.relieve(each, roomy)
            else:
                self._fleet.end_relief(each)

    def gone(self, process: Any) -> None:
        """A worker's process has ended."""
        self._told.pop(process, None)
