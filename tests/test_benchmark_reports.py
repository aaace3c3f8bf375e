"""The benchmarks' own arithmetic: ratios, tables, what is tried again, what is asked of load.c."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import plot
from benchmarks.command_line import bodies, cells
from benchmarks.generator import Cell, GeneratorError, Load
from benchmarks.report import of_cell, ratio_of, spread_of, summarise, text
from benchmarks.runner import Attempts, Failure, Plan, Sample
from benchmarks.servers import SERVERS, StartError

FACTS = {
    "date": "today", "machine": "this", "load_average": 0, "python": "3", "packages": {},
    "commit": "0", "cores": "two", "generator": "c", "rounds": 2, "seconds": 1.0, "servers": {},
}  # fmt: skip


def sample(server: str, number: int, cpu_us: float, body: int = 32) -> Sample:
    return Sample(
        round=number, cell="64x1", body=body, server=server, cpu_us=cpu_us, packets=1,
        packets_per_second=1.0, p50_us=1.0, p99_us=2.0, p999_us=3.0, max_us=4.0, late_p99_us=0.0,
        server_busy=0.5, generator_busy=0.5, others_busy=0.0,
    )  # fmt: skip


class SummaryTests(SynchronousTestCase):
    """Medians and ratios."""

    def test_ratio_is_taken_within_each_round(self) -> None:
        own = [sample("own", 1, 2.0), sample("own", 2, 30.0), sample("own", 3, 5.0)]
        base = [sample("base", 1, 1.0), sample("base", 2, 10.0), sample("base", 3, 5.0)]
        summary, _ = summarise([*own, *base], ["base"])
        ratio = summary.ratios["cpu_us"]["base"]
        self.assertEqual((ratio.median, ratio.least, ratio.greatest), (2.0, 1.0, 3.0))

    def test_round_without_the_base_gives_no_ratio(self) -> None:
        samples = [sample("own", 1, 2.0), sample("own", 2, 9.0), sample("base", 1, 1.0)]
        ratio = summarise(samples, ["base"])[0].ratios["cpu_us"]["base"]
        self.assertEqual((ratio.least, ratio.greatest), (2.0, 2.0))

    def test_bodies_are_not_mixed(self) -> None:
        samples = [sample("own", 1, 2.0), sample("own", 1, 8.0, body=1024)]
        found = [(row.body, row.cpu_us.median) for row in summarise(samples, [])]
        self.assertEqual(found, [(32, 2.0), (1024, 8.0)])

    def test_base_that_was_not_measured_has_no_column(self) -> None:
        summaries = summarise([sample("own", 1, 2.0)], ["base"])
        columns = [spread_of("CPU", "cpu_us", 1), ratio_of("/ base", "cpu_us", "base")]
        shown = text(FACTS, summaries, [], columns, of_cell)
        self.assertIn("2.0 (2.0-2.0)", shown)
        self.assertNotIn("/ base", shown)


class AttemptsTests(SynchronousTestCase):
    """What has failed is not tried again where it would fail again."""

    def attempt(self, attempts: Attempts, load: Load, error: Exception) -> list[Sample | Failure]:
        def fail() -> Sample:
            raise error

        return list(attempts.sample(SERVERS[0], load, fail))

    def test_failure_in_a_cell_ends_that_cell_only(self) -> None:
        attempts, error = Attempts(), GeneratorError("lost")
        (failure,) = self.attempt(attempts, Load(Cell(1, 1)), error)
        self.assertEqual(failure, Failure("1x1", 32, SERVERS[0].name, "lost"))
        self.assertEqual(self.attempt(attempts, Load(Cell(1, 1)), error), [])
        self.assertEqual(len(self.attempt(attempts, Load(Cell(1, 1), body=1024), error)), 1)

    def test_server_that_does_not_start_is_not_started_again(self) -> None:
        attempts, error = Attempts(), StartError("no answer")
        self.assertEqual(len(self.attempt(attempts, Load(Cell(1, 1)), error)), 1)
        self.assertEqual(self.attempt(attempts, Load(Cell(64, 1)), error), [])


class LoadTests(SynchronousTestCase):
    """The generator's command line."""

    def test_every_cell_is_measured_with_every_body(self) -> None:
        plan = Plan([], cells("1x1,64x64"), bodies("32,1024"), 1, 1.0, 0.0, ["load"])
        found = [(str(load.cell), load.body) for load in plan.loads]
        self.assertEqual(found, [("1x1", 32), ("1x1", 1024), ("64x64", 32), ("64x64", 1024)])

    def test_body_longer_than_the_servers_take_is_refused(self) -> None:
        self.assertRaises(ArgumentTypeError, bodies, "32,28993")

    def test_open_loop_and_churn_leave_the_depth_to_the_generator(self) -> None:
        for load in (Load(Cell(2, 1), rate=100.0), Load(Cell(2, 1), churn=True)):
            self.assertFalse([part for part in load.arguments() if part.startswith("--depth")])

    def test_gigabyte_in_flight_is_no_stall_while_it_moves(self) -> None:
        self.assertIn("--stall=5.0", Load(Cell(64, 1)).arguments())
        self.assertIn("--stall=26.0", Load(Cell(1000, 64), body=16384).arguments())


class PlotTests(SynchronousTestCase):
    """C{--plot}."""

    def test_missing_matplotlib_is_said_before_anything_is_measured(self) -> None:
        with mock.patch.dict(sys.modules, {"matplotlib": None, "matplotlib.figure": None}):
            error = self.assertRaises(SystemExit, plot.check, Path("bars.svg"))
        self.assertIn("matplotlib", str(error))

    def test_unknown_format_is_refused(self) -> None:
        error = self.assertRaises(SystemExit, plot.check, Path("bars.bmp"))
        self.assertIn("bars.bmp", str(error))

    def test_every_server_has_bars_with_its_spread(self) -> None:
        summaries = summarise([sample("own", 1, 40.0), sample("base", 1, 2.0)], [])
        figures: list[mock.Mock] = []

        def make(**options: object) -> mock.Mock:
            figures.append(mock.Mock())
            return figures[-1]

        module = mock.Mock(Figure=make)
        self.patch(plot, "_figure_module", lambda: module)
        plot.draw(summaries, Path("bars.svg"))
        (figure,) = figures
        axes = figure.add_subplot.return_value
        self.assertEqual([call.kwargs["label"] for call in axes.bar.mock_calls], ["own", "base"])
        axes.set_yscale.assert_called_once_with("log")
        self.assertEqual(figure.savefig.mock_calls[0].args, (Path("bars.svg"),))
