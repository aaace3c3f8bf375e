"""Counts, and how many log lines a flood may cost."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.counts import LineLimit, Throughput


def told(text: str | None) -> int | None:
    """How many suppressed lines C{text} tells of; None if no line may be written."""
    return None if text is None else int((text.strip(" (").split() or ["0"])[0])


class LineLimitTests(SynchronousTestCase):
    def test_so_many_lines_of_a_kind_are_written_in_a_second(self):
        lines = LineLimit(3)
        admitted = [told(lines.admit("bad_crc", 7.0 + n / 10)) for n in range(5)]
        self.assertEqual(admitted, [0, 0, 0, None, None])

    def test_the_next_line_tells_how_many_were_suppressed(self):
        lines = LineLimit(1)
        admitted = [told(lines.admit("bad_crc", now)) for now in (7.0, 7.1, 7.2, 8.0, 9.0)]
        self.assertEqual(admitted, [0, None, None, 2, 0])

    def test_suppressed_lines_are_told_after_any_pause(self):
        lines = LineLimit(1)
        lines.admit("bad_crc", 7.0)
        lines.admit("bad_crc", 7.0)
        text = lines.admit("bad_crc", 1000.0)
        self.assertEqual(text, " (1 more such lines suppressed)")

    def test_many_are_suppressed_at_once(self):
        lines = LineLimit(1)
        for kind in ("bad_crc", "bad_crc", "bad_body"):
            lines.admit(kind, 7.0)
        lines.suppress("bad_crc", 98)
        self.assertEqual(lines.admit("bad_crc", 8.0), " (99 more such lines suppressed)")
        self.assertEqual(lines.admit("bad_body", 8.0), "")

    def test_kinds_do_not_share(self):
        lines = LineLimit(1)
        lines.admit("bad_crc", 7.0)
        self.assertEqual(lines.admit("unknown_code", 7.0), "")
        self.assertIsNone(lines.admit("bad_crc", 7.0))

    @given(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 900)), max_size=60),
        st.integers(1, 5),
    )
    @settings(deadline=None)
    def test_every_line_is_written_or_told_as_suppressed(
        self, asked: list[tuple[str, int]], per_second: int
    ):
        lines, now = LineLimit(per_second), 0.0
        written: list[tuple[str, int]] = []
        suppressed_in = {"a": 0, "b": 0}
        for kind, pause in asked:
            now += pause / 1000
            suppressed = told(lines.admit(kind, now))
            if suppressed is not None:
                written.append((kind, int(now)))
                suppressed_in[kind] += suppressed
        self.assertTrue(all(written.count(line) <= per_second for line in written))
        for kind in "ab":
            last = told(lines.admit(kind, now + 2))
            self.assertEqual(
                sum(k == kind for k, _ in asked),
                sum(k == kind for k, _ in written) + suppressed_in[kind] + (last or 0),
            )


class ThroughputTests(SynchronousTestCase):
    def test_it_is_what_came_since_the_last_look(self):
        throughput = Throughput(10.0)
        self.assertEqual(throughput.look(12.0, 100), 50.0)
        self.assertEqual(throughput.look(13.0, 133), 33.0)
        self.assertEqual(throughput.look(14.0, 133), 0.0)

    def test_looks_that_follow_each_other_closely_are_one(self):
        throughput = Throughput(0.0)
        self.assertEqual(throughput.look(1.0, 100), 100.0)
        self.assertEqual(throughput.look(1.1, 100), 100.0)
        self.assertEqual(throughput.look(1.2, 900), 100.0)
        self.assertEqual(throughput.look(2.0, 1000), 900.0)

    def test_at_first_it_is_nothing(self):
        self.assertEqual(Throughput(5.0).look(5.0, 0), 0.0)
