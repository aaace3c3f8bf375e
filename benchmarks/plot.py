"""Draws CPU time a packet as bars; needs matplotlib, which nothing else here does."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.report import Summary

FORMATS = (".svg", ".png")
LOG_FROM = 10.0  # greatest through least figure: beyond it the small bars would vanish


def check(file: Path) -> None:
    """End the program before anything is measured where nothing could be drawn."""
    if file.suffix not in FORMATS:
        sys.exit(f"--plot: {file} ends neither in {' nor in '.join(FORMATS)}")
    _figure_module()


def draw(summaries: Sequence[Summary], file: Path) -> None:
    """A group of bars for each cell and body, a bar for each server, least and greatest on it."""
    if not summaries:
        return
    groups = list(dict.fromkeys((row.cell, row.body) for row in summaries))
    servers = list(dict.fromkeys(row.server for row in summaries))
    width = 0.8 / len(servers)
    figure = _figure_module().Figure(figsize=(max(6.0, 2.4 * len(groups)), 4.5))
    axes = figure.add_subplot()
    for i, server in enumerate(servers):
        rows = [row for row in summaries if row.server == server]
        medians = [row.cpu_us.median for row in rows]
        axes.bar(
            [groups.index((row.cell, row.body)) + (i + 0.5) * width - 0.4 for row in rows],
            medians,
            width,
            label=server,
            yerr=[
                [row.cpu_us.median - row.cpu_us.least for row in rows],
                [row.cpu_us.greatest - row.cpu_us.median for row in rows],
            ],
            capsize=2,
        )
    every = [row.cpu_us.median for row in summaries]
    if max(every) > LOG_FROM * min(every):
        axes.set_yscale("log")
    axes.set_ylabel("CPU us a packet: less is better")
    axes.set_xticks(range(len(groups)), [f"{cell}\n{body:,} bytes" for cell, body in groups])
    axes.legend(fontsize="small")
    figure.savefig(file, bbox_inches="tight")


def _figure_module() -> Any:
    try:
        return import_module("matplotlib.figure")
    except ImportError:
        sys.exit("--plot needs matplotlib: pip install 'ccserver[plot]', or matplotlib alone")
