"""The targets of the fuzzer by name, which is also that of their folder in C{corpus}.

A target takes any bytes. What it raises is a finding.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.framing import cutter, decoder, header, receiver
from tests.fuzz.lines import control, proxy
from tests.fuzz.records import carried, taker, values

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {
    "decoder": decoder,
    "receiver": receiver,
    "cutter": cutter,
    "header": header,
    "values": values,
    "carried": carried,
    "taker": taker,
    "control": control,
    "proxy": proxy,
}
