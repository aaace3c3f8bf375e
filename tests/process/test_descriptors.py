"""Descriptors: as many as may be, or a refusal that says what to change."""

from __future__ import annotations

import os
import resource
from math import inf
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Config
from ccserver.errors import StartError
from ccserver.process.descriptors import (
    PLENTY,
    allow_descriptors,
    keep_high_ones,
    raise_limit,
    room,
)
from tests.support import logged, texts

INFINITY = resource.RLIM_INFINITY


class DescriptorTests(SynchronousTestCase):
    """1896 connections, 64 to spare, 40 for threads and one listening socket make 2001."""

    def setUp(self) -> None:
        self.events = logged(self)

    def limited(self, soft: int, hard: int) -> list[Any]:
        """What will be asked of the kernel."""
        asked: list[Any] = []
        self.patch(resource, "getrlimit", lambda which: (soft, hard))
        self.patch(resource, "setrlimit", lambda which, limits: asked.append(limits))
        return asked

    def allow(self, soft: int, hard: int, more: str = "") -> list[Any]:
        """What is asked of the kernel."""
        asked = self.limited(soft, hard)
        text = f"Listen = 127.0.0.1:5678\nworker_connections = 1896\n{more}"
        allow_descriptors(Config.parse(text))
        return asked

    def test_as_many_as_may_be(self):
        self.assertEqual(self.allow(1024, 4096), [(4096, 4096)])
        self.assertEqual(self.events, [])

    def test_just_enough_is_enough(self):
        self.assertEqual(self.allow(1024, 2001), [(2001, 2001)])

    def test_one_too_few_is_refused_with_numbers_and_what_to_change(self):
        error = self.assertRaises(StartError, self.allow, 1024, 2000)
        self.assertEqual(
            str(error),
            "worker_connections = 1896 needs 2001 file descriptors, the hard limit is 2000: raise "
            "that (ulimit -n, LimitNOFILE of systemd), or lower worker_connections, or set "
            "OnFewDescriptors = warn",
        )

    def test_each_address_needs_one(self):
        more = "ListenPort0 = 5679\n"
        self.assertRaises(StartError, self.allow, 1024, 2001, more)

    def test_where_that_is_wanted_it_is_only_told(self):
        self.assertEqual(self.allow(1024, 1500, "OnFewDescriptors = warn\n"), [(1500, 1500)])
        (text,) = texts(self.events)
        self.assertIn("needs 2001 file descriptors, the hard limit is 1500", text)

    def test_without_a_limit_there_is_nothing_to_raise(self):
        self.assertEqual(self.allow(INFINITY, INFINITY), [])

    def test_without_a_hard_limit_as_many_as_are_needed(self):
        self.assertEqual(self.allow(1024, INFINITY), [(2001, INFINITY)])
        self.assertEqual(self.allow(9999, INFINITY), [(9999, INFINITY)])

    def test_how_many_connections_there_is_room_for(self):
        config = Config.parse("Listen = 127.0.0.1:5678\nworker_connections = 1896\n")
        for hard, count in ((4096, 3991), (INFINITY, inf)):
            self.limited(1024, hard)
            self.assertEqual(room(config), count)

    def test_one_that_is_not_below_the_limit_is_not_passed_on(self):
        numbers = []
        for _ in range(2):
            read, write = os.pipe()
            for fd in (read, write):
                self.addCleanup(os.close, fd)
                os.set_inheritable(fd, True)
                numbers.append(fd)
        numbers.sort()
        self.limited(numbers[2], numbers[2])
        keep_high_ones()
        self.assertEqual([os.get_inheritable(fd) for fd in numbers], [True, True, False, False])

    def test_who_cannot_say_how_many_he_needs_gets_as_many_as_may_be_or_plenty(self):
        for hard, given in ((4096, 4096), (INFINITY, PLENTY)):
            asked = self.limited(1024, hard)
            raise_limit()
            self.assertEqual(asked, [(given, hard)])
