"""A fuzzer that looks at nothing: changes what is in the corpus, again and again.

For where the one that follows the branches of the code (atheris) is not installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random

POOL = 4096
"""Inputs that are kept to go on from."""

LONGEST = 1 << 16
NUMBERS = (0, 1, 7, 8, 9, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000)


def mutated(data: bytes, other: bytes, random: Random) -> bytes:
    """C{data} with a few changes, some of them pieces of C{other}."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        place = random.randrange(len(changed) + 1)
        size = random.choice((1, 1, 2, 4, 8, 64))
        match random.randrange(7):
            case 0 if changed:
                changed[place - 1] ^= 1 << random.randrange(8)
            case 1 if changed:
                changed[place - 1] = random.randrange(256)
            case 2:
                del changed[place : place + size]
            case 3:
                changed[place:place] = random.randbytes(size)
            case 4:
                changed[place:place] = changed[place : place + size]
            case 5:
                width = random.choice((1, 2, 4))
                number = random.choice(NUMBERS) & ((1 << 8 * width) - 1)
                changed[place : place + width] = number.to_bytes(width, "big")
            case _:
                start = random.randrange(len(other) + 1)
                changed[place : place + random.choice((0, size))] = other[start : start + size]
    return bytes(changed[:LONGEST])


def run(
    target: Callable[[bytes], None],
    corpus: Sequence[bytes],
    random: Random,
    seconds: float,
    executions: int,
    found: Callable[[bytes], None],
) -> int:
    """Call C{target} until the time is over, or for so many times; how often it was.

    @param found: is told what it raised at; the exception follows.
    """
    pool = list(corpus) or [b""]
    end = time.monotonic() + seconds
    count = 0
    while count < executions and time.monotonic() < end:
        data = random.choice(pool)
        if count >= len(corpus):
            data = mutated(data, random.choice(pool), random)
        elif corpus:
            data = corpus[count]
        count += 1
        try:
            target(data)
        except BaseException:
            found(data)
            raise
        if not count % 64 and len(data) < 4096:
            if len(pool) < POOL:
                pool.append(data)
            else:
                pool[random.randrange(len(corpus), POOL)] = data
    return count
