"""Which connections an operator sees: patterns of addresses, order and number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.process.selection import SORTS, AddressPattern, ConnectionFilter, selected

ROWS = [
    {
        "id": 1,
        "worker": 0,
        "peer": "10.0.0.1:5000",
        "server": "0.0.0.0:80",
        "seconds": 5,
        "idle": 2,
    },
    {
        "id": 2,
        "worker": 1,
        "peer": "10.0.9.1:5001",
        "server": "0.0.0.0:80",
        "seconds": 9,
        "idle": None,
    },
    {
        "id": 3,
        "worker": 1,
        "peer": "[2001:db8::1]:5000",
        "server": "[::]:80",
        "seconds": 1,
        "idle": 1,
    },
]


def ids(sort: str = "id", limit: int = 10, **filter: object) -> list[int]:
    rows = selected(reversed(ROWS), ConnectionFilter(**filter), sort, limit)
    return [row["id"] for row in rows["connections"]]


class PatternTests(SynchronousTestCase):
    def test_what_it_matches(self):
        for text, address in [
            ("10.1.2.3", "10.1.2.3:80"),
            ("10.1.2.3:80", "10.1.2.3:80"),
            (":80", "10.1.2.3:80"),
            (":80", "[::1]:80"),
            ("10.0.0.0/8", "10.1.2.3:80"),
            ("10.1.2.3/8", "10.1.2.3:80"),
            ("10.0.0.0/8:80", "10.1.2.3:80"),
            ("::1", "[::1]:80"),
            ("[::1]", "[::1]:80"),
            ("[::1]:80", "[::1]:80"),
            ("0:0::1", "[::1]:80"),
            ("fe80::/10", "[fe80::7]:80"),
        ]:
            self.assertTrue(AddressPattern.parse(text).matches(address), (text, address))

    def test_what_it_does_not_match(self):
        for text, address in [
            ("10.1.2.3", "10.1.2.4:80"),
            ("10.1.2.3:80", "10.1.2.3:81"),
            (":80", "10.1.2.3:8080"),
            ("10.0.0.0/8", "[::1]:80"),
            ("::/0", "10.1.2.3:80"),
            ("10.0.0.0/8", "somewhere"),
        ]:
            self.assertFalse(AddressPattern.parse(text).matches(address), (text, address))

    def test_what_is_no_pattern(self):
        for text in ("", ":", "host", "10.0.0", "10.0.0.1:x", "10.0.0.1:65536", "[::1]x", "1/33"):
            with self.assertRaises(ValueError, msg=text):
                AddressPattern.parse(text)

    @given(st.text(max_size=30))
    def test_any_text_is_a_pattern_or_a_value_error(self, text):
        try:
            AddressPattern.parse(text).matches(text)
        except ValueError:
            pass


class SelectionTests(SynchronousTestCase):
    def test_ids_ascend_and_of_all_else_the_largest_come_first(self):
        self.assertEqual(ids("id"), [1, 2, 3])
        self.assertEqual(ids("age"), [2, 1, 3])

    def test_those_without_a_value_come_last(self):
        self.assertEqual(ids("idle"), [1, 3, 2])
        self.assertEqual(ids("unsent"), [1, 2, 3])

    def test_it_is_limited_and_tells_how_many_there_are(self):
        found = selected(ROWS, ConnectionFilter(server=":80"), "age", 1)
        self.assertEqual(([row["id"] for row in found["connections"]], found["total"]), ([2], 3))

    def test_each_filter_and_all_of_them(self):
        self.assertEqual(ids(peer="10.0.0.0/8"), [1, 2])
        self.assertEqual(ids(server="::"), [3])
        self.assertEqual(ids(worker=1), [2, 3])
        self.assertEqual(ids(worker=1, peer=":5000", server=":80"), [3])
        self.assertEqual(ids(worker=2), [])

    def test_parts_of_parts_give_the_same(self):
        for sort in SORTS:
            parts = [selected([row], ConnectionFilter(), sort, 2) for row in ROWS]
            merged = [row for part in parts for row in part["connections"]]
            self.assertEqual(
                selected(merged, ConnectionFilter(), sort, 2)["connections"],
                selected(ROWS, ConnectionFilter(), sort, 2)["connections"],
            )
