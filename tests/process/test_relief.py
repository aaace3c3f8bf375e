"""Relief: those who have room accept for who is full; all must be, for a client to be refused."""

from __future__ import annotations

from typing import Any

from ccserver.process.upkeep import Upkeep
from tests.process.test_upkeep import UpkeepCase
from tests.process.workers import FakeWorkerProcess


class ReliefTests(UpkeepCase):
    def setUp(self) -> None:
        super().setUp()
        self.all: list[FakeWorkerProcess] = []

    def beat(self, *full: bool) -> None:
        """A beat of each worker, full or not."""
        for each, is_full in zip(self.all, full, strict=True):
            each.beat(full=is_full, connections=20 if is_full else 5)
        self.turn()

    def begin(self, workers: int = 2) -> None:
        self.all = self.tended(workers)
        self.beat(*[False] * workers)

    def said_to(self, number: int) -> list[Any]:
        """What a worker was told since the last call."""
        told = [each for each in self.all[number].told if isinstance(each, tuple)]
        kinds = [each for each in told if each[0] in ("wait", "lend", "return")]
        self.all[number].told.clear()
        return kinds

    def test_connections_beyond_wait_from_the_beginning_if_there_are_others(self):
        self.begin()
        self.assertEqual(self.said_to(0), [("wait", True)])
        self.assertEqual(self.said_to(1), [("wait", True)])

    def test_but_not_where_there_is_nobody_else(self):
        self.begin(1)
        self.beat(True)
        self.assertEqual(self.said_to(0), [("wait", False)])

    def test_who_has_room_accepts_for_who_is_full(self):
        self.begin()
        self.said_to(1)
        self.beat(True, False)
        # who is the last with room refuses when he is full too
        self.assertEqual(
            self.said_to(1), [("lend", 0, f"127.0.0.1:{self.ports[0]}"), ("wait", False)]
        )
        self.beat(True, False)
        self.assertEqual(self.said_to(1), [])

    def test_when_all_are_full_they_refuse(self):
        self.begin()
        self.beat(True, True)
        self.assertIn(("wait", False), self.said_to(0))
        self.assertEqual(self.said_to(1)[-1], ("return", 0))

    def test_a_place_that_is_freed_is_for_the_clients_of_all(self):
        self.begin()
        self.beat(True, True)
        for number in range(2):
            self.said_to(number)
        self.beat(True, False)
        self.assertEqual(self.said_to(0), [("wait", True)])
        self.assertEqual(self.said_to(1)[0][:2], ("lend", 0))

    def test_it_ends_with_the_need(self):
        self.begin()
        self.beat(True, False)
        self.said_to(1)
        self.beat(False, False)
        self.assertEqual(self.said_to(1), [("return", 0), ("wait", True)])

    def test_who_helps_and_is_full_himself_is_relieved_by_the_next(self):
        self.begin(3)
        self.beat(True, False, True)
        self.assertEqual(sum(each[0] == "lend" for each in self.said_to(1)), 2)
        self.beat(True, True, False)
        self.assertIn(("return", 0), self.said_to(1))
        self.assertEqual(sum(each[0] == "lend" for each in self.said_to(2)), 2)

    def test_a_helper_that_dies_is_replaced_by_another(self):
        self.begin(3)
        self.beat(True, False, True)
        self.all[1].die(1)
        self.turn()
        del self.all[1]
        self.beat(True, False)
        self.assertEqual([each[0] for each in self.said_to(1)].count("lend"), 1)

    def test_while_the_fleet_is_changed_nothing_is_done(self):
        self.begin()
        self.said_to(1)
        self.upkeep: Upkeep
        self.patch(self.upkeep._administration, "doing", "reload")
        self.beat(True, False)
        self.assertEqual(self.said_to(1), [])
