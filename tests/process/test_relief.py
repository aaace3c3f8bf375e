"""Relief: those who have room accept for who is full; all must be, for a client to be refused."""

from __future__ import annotations

from typing import Any

from ccserver.process.selection import ConnectionFilter
from tests.process.test_upkeep import UpkeepCase
from tests.process.workers import FakeWorkerProcess, lose_descriptors


class ReliefCase(UpkeepCase):
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


class ReliefTests(ReliefCase):
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

    def test_it_goes_on_while_the_fleet_is_changed(self):
        self.begin()
        self.said_to(1)
        self.patch(self.administration, "doing", "reload")
        self.beat(True, False)
        self.assertEqual(self.said_to(1)[0][:2], ("lend", 0))

    def test_a_helper_without_a_descriptor_for_the_socket_is_none(self):
        self.begin()
        self.said_to(1)
        lose_descriptors(self, self.all[1])
        self.beat(True, False)
        self.assertEqual(self.said_to(1), [("wait", False), ("return", 0)])
        self.assertEqual([place.lender for place in self.fleet.places], [None, None])


class SilenceTests(ReliefCase):
    """Two workers, of which the first gives no sign of life; it is no news that would tell."""

    def silenced(self, seconds: float) -> None:
        """Time goes by in which only the second one beats."""
        self.begin()
        self.said_to(1)
        self.silent.add(self.all[0])
        self.figures[self.all[1]] = {"full": False, "connections": 5}
        self.live(seconds)

    def test_a_beat_that_comes_late_is_no_silence(self):
        self.silenced(1.0)
        self.assertEqual(self.said_to(1), [])

    def test_another_accepts_for_it_long_before_it_is_killed(self):
        self.silenced(2.5)
        self.assertEqual(
            self.said_to(1), [("lend", 0, f"127.0.0.1:{self.ports[0]}"), ("wait", False)]
        )
        self.assertEqual(self.all[0].process.killed, [])

    def test_that_ends_with_the_silence(self):
        self.silenced(2.5)
        self.said_to(1)
        self.beat(False, False)
        self.turn(1)
        self.assertEqual(self.said_to(1), [("return", 0), ("wait", True)])

    def test_it_is_no_help_for_who_is_full(self):
        self.silenced(2.5)
        self.figures[self.all[1]] = {"full": True, "connections": 20}
        self.all[0].told.clear()
        self.live(1)
        self.assertEqual(self.said_to(0), [])
        self.assertEqual(self.said_to(1)[-1], ("return", 0))

    def test_who_helped_and_is_silent_is_replaced_by_another(self):
        self.begin(3)
        self.beat(True, False, False)
        (helper,) = [each for each in (1, 2) if "lend" in [told[0] for told in self.said_to(each)]]
        other = 3 - helper
        self.figures[self.all[0]] = {"full": True, "connections": 20}
        self.figures[self.all[other]] = {"full": False, "connections": 9}
        self.silent.add(self.all[helper])
        self.live(2.5)
        self.assertEqual(
            sorted(each[1] for each in self.said_to(other) if each[0] == "lend"), [0, helper]
        )

    def test_rebalancing_leaves_it_out(self):
        self.begin(3)
        self.silent.add(self.all[0])
        for each, count in zip(self.all, (0, 90, 0), strict=True):
            each.beat(full=False, connections=count)
            self.figures[each] = {"full": False, "connections": count}
        self.live(2.5)
        result = self.did(self.administration.rebalance(lambda text: None))
        self.assertEqual(result["handed_over"], 45)
        self.assertNotIn("take", self.all[0].told)

    def test_the_status_says_so(self):
        self.silenced(2.5)
        rows = self.successResultOf(self.administration.status())["workers"]
        self.assertEqual([row["state"] for row in rows], ["silent", "ready"])

    def test_its_connections_and_a_kick_are_not_waited_for(self):
        self.silenced(2.5)
        for each in self.all:
            each.end.rows = [{"id": 1, "peer": "10.0.0.1:5000", "server": "10.0.0.1:5678"}]
        self.all[0].end.holding.update(("list", "kick"))
        asked = self.administration.connections(ConnectionFilter(), "id", 10)
        kicked = self.administration.kick(1)
        self.turn()
        self.assertEqual(self.successResultOf(asked)["total"], 1)
        self.assertTrue(self.successResultOf(kicked))
