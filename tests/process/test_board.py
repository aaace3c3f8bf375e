"""The board: what stands on it is whole and the last, whoever writes meanwhile."""

from __future__ import annotations

import json
import os
from zlib import crc32

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.process import board
from ccserver.process.board import HEAD, Board
from tests.support import open_descriptors

FIGURES = st.dictionaries(
    st.text(), st.integers() | st.text() | st.dictionaries(st.text(), st.integers())
)


class BoardCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 50.0
        self.patch(board, "monotonic", lambda: self.now)
        self.mine = self.made()
        self.masters = self.other(self.mine)

    def made(self) -> Board:
        made = Board.made()
        self.addCleanup(made.close)
        return made

    def other(self, mine: Board) -> Board:
        """The other process's end of a board."""
        other = Board(os.dup(mine.fileno()))
        self.addCleanup(other.close)
        return other


class BoardTests(BoardCase):
    def test_at_first_there_is_nothing_on_it(self):
        self.assertEqual(self.masters.figures, {})
        self.assertIsNone(self.masters.written)
        self.assertIsNone(self.masters.age)

    @settings(max_examples=100)
    @given(st.lists(FIGURES, min_size=1, max_size=3))
    def test_what_was_written_last_is_read(self, several):
        for figures in several:
            self.mine.write(figures)
            self.assertEqual(self.masters.figures, figures)
        self.assertEqual(self.masters.figures, several[-1])

    def test_of_any_length(self):
        figures = {"certificates": {f"/etc/{number}.pem": 1.0 for number in range(10_000)}}
        self.mine.write(figures)
        self.assertEqual(self.masters.figures, figures)
        self.mine.write({})
        self.assertEqual(self.masters.figures, {})

    def test_it_tells_how_old_that_is(self):
        self.mine.write({})
        self.now += 3
        self.assertEqual((self.masters.written, self.masters.age), (50.0, 3.0))
        self.mine.write({})
        self.assertEqual((self.masters.written, self.masters.age), (53.0, 0.0))

    def test_while_it_is_written_what_was_read_last_counts(self):
        self.mine.write({"packets": 1})
        self.assertEqual(self.masters.figures, {"packets": 1})
        self.mine.write({"packets": 2})
        whole = os.pread(self.mine.fileno(), 1000, 0)
        for end in range(HEAD.size, len(whole) - 1):
            with self.subTest(end=end):
                os.ftruncate(self.mine.fileno(), 0)
                os.pwrite(self.mine.fileno(), whole[:end].ljust(len(whole), b"?"), 0)
                self.assertEqual(self.masters.figures, {"packets": 1})
        os.pwrite(self.mine.fileno(), whole, 0)
        self.assertEqual(self.masters.figures, {"packets": 2})

    def test_a_head_that_is_cut_off_is_none(self):
        os.pwrite(self.mine.fileno(), b"\0" * (HEAD.size - 1), 0)
        self.assertIsNone(self.masters.written)
        self.assertEqual(self.masters.figures, {})

    def test_what_no_board_has_written_is_not_believed(self):
        self.mine.write({"packets": 1})
        self.assertEqual(self.masters.figures, {"packets": 1})
        for text in (b"", b"{"):
            head = HEAD.pack(0.0, len(text), crc32(text))
            os.pwrite(self.mine.fileno(), head + text, 0)
            self.assertEqual(self.masters.figures, {"packets": 1})
        self.masters.close()
        self.assertEqual(self.masters.figures, {"packets": 1})

    def test_it_is_never_from_the_time_to_come(self):
        self.mine.write({})
        self.now -= 3
        self.assertEqual(self.masters.age, 0.0)

    def test_closed_it_tells_what_stood_on_it(self):
        self.mine.write({"packets": 1})
        self.masters.close()
        self.masters.close()
        self.assertEqual(self.masters.figures, {"packets": 1})
        self.assertIsNone(self.masters.written)

    def test_it_is_one_descriptor(self):
        before = open_descriptors()
        for _ in range(5):
            Board.made().close()
        self.assertLessEqual(open_descriptors(), before)

    def test_what_was_read_is_not_read_again(self):
        self.mine.write({"packets": 1})
        read = []
        self.patch(json, "loads", lambda text, loads=json.loads: read.append(text) or loads(text))
        for _ in range(3):
            self.assertEqual(self.masters.figures, {"packets": 1})
        self.assertEqual(len(read), 1)
