"""What the stateful tests have in common: how much they do, and what a client may send."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from ccserver.core.framing import HEADER, encode

RUNS = 120
STEPS = 30

CODES = st.sampled_from([0, 1, 2, 0xFFFF])


def packet(code: int, body: bytes) -> bytes:
    return encode(code, body)


def spoiled(code: int, body: bytes) -> bytes:
    """A packet whose checksum is wrong."""
    return HEADER.pack(HEADER.size + len(body), code, 0xDEADBEEF) + body


GOOD = st.builds(packet, CODES, st.binary(max_size=40))
SPOILED = st.builds(spoiled, CODES, st.binary(max_size=12))
OF_BAD_LENGTH = st.builds(HEADER.pack, st.sampled_from([0, 7, 101, 0xFFFF]), CODES, st.just(0))


def run_machine(machine: type[Any], runs: int = RUNS) -> None:
    """Let hypothesis drive a state machine, in a bounded number of runs and steps."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
