"""What an idle connection costs different servers in memory."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.idle_clients import FIRST, Clients
from benchmarks.report import Spread
from benchmarks.servers import RunningServer, Server
from benchmarks.table import aligned

BASE = "uvloop"
MOST = 19_000
"""Connections, of the 20,000 for which the servers are set up."""


def cost(server: Server, connections: int) -> dict[str, float]:
    """Bytes that one of so many idle connections costs all processes of C{server}."""
    with RunningServer(server, None) as running:
        clients = Clients(running.port, server.code)
        try:
            clients.connect_and_wait(FIRST)
            pids = running.processes()
            before = _memory(pids)
            clients.connect_and_wait(connections - FIRST)
            after = _memory(pids)
        finally:
            clients.close()
    more = connections - FIRST
    return {
        "rss": (after[0] - before[0]) / more,
        "pss": (after[1] - before[1]) / more,
        "whole": after[1],
    }


def _memory(pids: Iterable[int]) -> tuple[int, int]:
    """Resident bytes, and those where a page that n processes share counts as an nth of one."""
    found = {"Rss:": 0, "Pss:": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, *values = line.split()
            if name in found:
                found[name] += int(values[0]) << 10
    return found["Rss:"], found["Pss:"]


def compare(
    servers: Sequence[Server], connections: int, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Measure in interleaved rounds and print; the samples of each server."""
    samples: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            samples[server.name].append(cost(server, connections))
    print(f"{connections} connections, each has sent one packet; {rounds} interleaved rounds")
    print("bytes a connection in all processes of the server: median (least-greatest)")
    rows = [["server", "RSS", "PSS", f"PSS / {BASE}", "whole, MiB"]]
    for name, found in samples.items():
        pairs = zip(found, samples.get(BASE, []), strict=False)
        ratios = [own["pss"] / base["pss"] for own, base in pairs]
        rows.append(
            [
                name,
                Spread.of(sample["rss"] for sample in found).text(0),
                Spread.of(sample["pss"] for sample in found).text(0),
                Spread.of(ratios).text(2) if ratios else "-",
                f"{Spread.of(sample['whole'] for sample in found).median / 2**20:.0f}",
            ]
        )
    print(aligned(rows))
    return samples
