"""The command C{python -m benchmarks.limits}: what the limits cost a packet and a second.

With as many connections as are asked for, in one process and without a network.
"""

import argparse
import sys
from collections.abc import Callable
from time import thread_time

from ccserver.core.deadlines import Deadlines
from ccserver.core.framing import encode
from ccserver.core.limits import FloodLimit, Heartbeat, HeartbeatWheel, SessionLimits
from ccserver.core.rates import Rate
from ccserver.core.session import Session

ROUNDS = 200_000
INTERVAL = 20

EACH = {
    "none": SessionLimits(),
    "heartbeat": SessionLimits(heartbeat=Heartbeat(INTERVAL)),
    "flood": SessionLimits(flood=FloodLimit(0.0001, 1_000_000)),
    "rate": SessionLimits(rate=Rate(1_000_000_000, 1_000_000_000)),
    "all": SessionLimits(
        heartbeat=Heartbeat(INTERVAL),
        flood=FloodLimit(0.0001, 1_000_000),
        rate=Rate(1_000_000_000, 1_000_000_000),
    ),
}


def best(step: Callable[[int], None], count: int, rounds: int = 25) -> float:
    """The nanoseconds of one of C{count} steps, in the quickest of some rounds."""
    times = []
    for _ in range(rounds):
        start = thread_time()
        step(count)
        times.append(thread_time() - start)
    return min(times) / count * 1e9


def read_cost(limits: SessionLimits, packets: int) -> float:
    """The nanoseconds of a read of so many packets."""
    session = Session(1, "192.0.2.1:5000", "0.0.0.0:5678", limits, 0.0)
    data = encode(1, b"32 bytes of what a client sends.") * packets
    now = 0.0

    def read(count: int) -> None:
        nonlocal now
        feed, admit, timed = session.decoder.feed, session.admit, limits.timed
        for _ in range(count):
            got = feed(data)
            if timed:
                now += 0.0002
                admit(got, now)

    return best(read, max(1, ROUNDS // packets // 20))


def tick_cost(connections: int) -> tuple[float, float]:
    """The milliseconds of a second's look at heartbeats, and at deadlines: middle and longest."""
    wheel: HeartbeatWheel[int] = HeartbeatWheel(Heartbeat(INTERVAL), 0.0)
    deadlines: Deadlines[int] = Deadlines(0.0)
    for connection in range(connections):
        wheel.add(connection, connection % INTERVAL)
        deadlines.set(connection, 1_000_000.0 + connection)
    beats, looks = [], []
    for second in range(INTERVAL + 2, 3 * INTERVAL + 2):
        start = thread_time()
        wheel.due(float(second))
        middle = thread_time()
        deadlines.due(float(second))
        beats.append((middle - start) * 1000)
        looks.append((thread_time() - middle) * 1000)
    return sorted(beats)[len(beats) // 2], sorted(looks)[len(looks) // 2]


def main() -> int:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--connections", type=int, default=100_000)
    arguments = parser.parse_args()
    print(f"{'nanoseconds':16}{'a read of 1 packet':>20}{'of 100 packets':>20}")
    base = [read_cost(EACH["none"], packets) for packets in (1, 100)]
    for name, limits in EACH.items():
        cost = [read_cost(limits, packets) for packets in (1, 100)]
        more = [f"{it:.0f} (+{it - zero:.0f})" for it, zero in zip(cost, base, strict=True)]
        print(f"{name:16}{more[0]:>20}{more[1]:>20}")
    beat, look = tick_cost(arguments.connections)
    print(f"a second with {arguments.connections} connections: heartbeats {beat:.2f} ms, ", end="")
    print(f"deadlines {look:.4f} ms, where nobody's time is up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
