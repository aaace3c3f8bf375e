"""Balance: which worker gives how many of its connections to which other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

TOLERANCE = 0.1
"""What workers may differ by, as a share of the mean, before connections are moved unasked."""

FEW = 10
"""So many connections workers may differ by in any case: a share of a small mean is chance."""

SHARE = 0.05
"""The share of all connections that one round moves unasked."""


class Move(NamedTuple):
    """C{count} connections that go from one slot's worker to another's."""

    source: int
    target: int
    count: int  # type: ignore[assignment]  # a tuple has a method of the name


def plan(counts: Mapping[int, int]) -> list[Move]:
    """The moves behind which workers differ by at most one connection: as few as there can be.

    @param counts: the connections of each slot's worker.
    """
    if not counts:
        return []
    mean, more = divmod(sum(counts.values()), len(counts))
    # those who have most keep the one that the mean leaves over: nothing is moved for it
    slots = sorted(counts, key=lambda slot: (-counts[slot], slot))
    wanted = {slot: mean + (place < more) for place, slot in enumerate(slots)}
    surplus = [[slot, counts[slot] - wanted[slot]] for slot in slots]
    moves = []
    first, last = 0, len(surplus) - 1
    while first < last:
        source, target = surplus[first], surplus[last]
        count = min(source[1], -target[1])
        if count > 0:
            moves.append(Move(source[0], target[0], count))
            source[1] -= count
            target[1] += count
        if source[1] <= 0:
            first += 1
        if target[1] >= 0:
            last -= 1
    return moves


def plan_slowly(counts: Mapping[int, int], share: float = SHARE) -> list[Move]:
    """A round of the moves that nobody has asked for: none where workers differ by little.

    @param share: of all connections, how many are moved at most; one in any case.
    """
    if not counts:
        return []
    total = sum(counts.values())
    difference = max(counts.values()) - min(counts.values())
    if difference <= max(TOLERANCE * total / len(counts), FEW):
        return []
    left = max(1, int(share * total))
    moves = []
    for move in plan(counts):
        count = min(move.count, left)
        if count:
            moves.append(move._replace(count=count))
            left -= count
    return moves
