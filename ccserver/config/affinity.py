"""Which CPUs workers may run on, in the manner of nginx's C{worker_cpu_affinity}."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from ccserver.config.conffile import shortened
from ccserver.config.values import Kind


class Affinity(NamedTuple):
    """Sets of CPUs, by their numbers from 0; none: any CPU.

    @ivar sets: those of the workers of slot 0, 1, ..., beyond the last of them the last.
    @ivar automatic: a worker has one CPU, in its turn, of those of its set.
    """

    sets: tuple[frozenset[int], ...] = ()
    automatic: bool = False

    def of(self, slot: int) -> frozenset[int]:
        """The set of the worker of C{slot}; empty: any CPU."""
        return self.sets[min(slot, len(self.sets) - 1)] if self.sets else frozenset()


class AffinityMasks(Kind[Affinity]):
    """A mask for each worker, or a CPU for each, of all or of those in a mask."""

    longest = 256 * 1025  # a mask of 1024 CPUs for each worker that there may be
    allowed = (
        "auto, auto and a mask of CPUs such as auto 1100, or a mask for each worker such as "
        "0001 0010, where the last digit is CPU 0"
    )

    def parse(self, text: str, base: str) -> Affinity:
        words = text.lower().split()
        automatic = words[:1] == ["auto"]
        sets = tuple(map(_cpus, words[1:] if automatic else words))
        if automatic and len(sets) > 1:
            raise ValueError("auto takes one mask")
        return Affinity(sets, automatic)

    def show(self, value: Affinity) -> str:
        return " ".join([*(["auto"] if value.automatic else []), *map(_mask, value.sets)])


def quoted(cpus: AbstractSet[int]) -> str:
    """The mask of the CPUs as a message quotes it."""
    return shortened(_mask(cpus))


def _mask(cpus: AbstractSet[int]) -> str:
    return format(sum(1 << cpu for cpu in cpus), "b")


def _cpus(text: str) -> frozenset[int]:
    if not re.fullmatch("[01]+", text):
        raise ValueError("not a mask of CPUs")
    cpus = frozenset(cpu for cpu, bit in enumerate(reversed(text)) if bit == "1")
    if not cpus:
        raise ValueError("a mask without a CPU")
    return cpus
