"""The watching reactor: it asks the kernel for what Twisted's would, and knows it by a byte."""

from __future__ import annotations

import errno
import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.epollreactor import EPollReactor
from twisted.trial.unittest import SynchronousTestCase

from ccserver.net.watching import FIRST, WatchingReactor
from tests.net.sockets import FakePoller, fake_kernel

NUMBERS = [5, 6, FIRST - 1, FIRST, 5 * FIRST]
DEEDS = ["addReader", "addWriter", "removeReader", "removeWriter"]


class Thing:
    """Something with a descriptor, which it may have closed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd


class Files(FakePoller):
    """A kernel where everything is a file."""

    def register(self, fd: int, events: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


class WatchingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactors: list[Any] = [WatchingReactor(), EPollReactor()]
        for reactor in self.reactors:
            fake_kernel(reactor)
            self.addCleanup(self.close, reactor)
        self.ours = self.reactors[0]

    def close(self, reactor: Any) -> None:
        for reader in reactor._internalReaders:
            reader.connectionLost(None)

    def state(self, reactor: Any) -> Any:
        """What is watched; what the reactor itself reads has other numbers in each."""
        readers, writers = set(reactor.getReaders()), set(reactor.getWriters())
        inner = {reader.fileno() for reader in reactor._internalReaders}
        selectables = {fd: s for fd, s in reactor._selectables.items() if fd not in inner}
        poller = reactor._poller
        return readers - reactor._internalReaders, writers, selectables, poller.watched

    @given(
        st.lists(
            st.tuples(st.sampled_from([*DEEDS, "close"]), st.integers(0, len(NUMBERS) - 1)),
            max_size=30,
        )
    )
    @settings(deadline=None, max_examples=50)
    def test_whatever_is_asked_for_it_does_what_twisteds_does(self, deeds):
        things = [Thing(fd) for fd in NUMBERS]
        for deed, place in deeds:
            thing = things[place]
            if deed == "close":
                thing.fd = -1
            elif thing.fd >= 0 or deed.startswith("remove"):
                for reactor in self.reactors:
                    getattr(reactor, deed)(thing)
            states = [self.state(reactor) for reactor in self.reactors]
            self.assertEqual(states[0], states[1])
            counts = [reactor._poller.controls for reactor in self.reactors]
            self.assertEqual(counts[0], counts[1])
        for reactor in self.reactors:
            reactor.removeAll()
        self.assertEqual(self.state(self.ours), (set(), set(), {}, {}))
        for reactor in self.reactors:
            reactor._poller.controls = 0

    def test_it_knows_who_is_read_and_written(self):
        thing = Thing(FIRST)
        self.ours.addWriter(thing)
        seen = [[fd in watched for fd in (FIRST, FIRST - 1, 1 << 20, -1)]
                for watched in (self.ours._reads, self.ours._writes)]  # fmt: skip
        self.assertEqual(seen, [[False] * 4, [True, False, False, False]])

    def test_files_are_watched_in_another_way(self):
        self.ours._poller = Files()
        self.ours.seconds = lambda: 0.0
        thing = Thing(7)
        self.ours.addReader(thing)
        self.ours.addWriter(thing)
        self.assertIn(thing, self.ours.getReaders())
        self.assertIn(thing, self.ours.getWriters())
        self.ours.removeReader(thing)
        self.ours.removeWriter(thing)
        self.assertNotIn(thing, self.ours.getReaders())
        self.assertNotIn(thing, self.ours.getWriters())

    def test_other_errors_of_the_kernel_are_told_and_nothing_is_watched(self):
        def register(fd: int, events: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.ours._poller.register = register
        thing = Thing(7)
        for deed in (self.ours.addReader, self.ours.addWriter):
            self.assertRaises(OSError, deed, thing)
        self.assertRaises(OSError, self.ours.begin, thing, 7)
        self.assertEqual(self.state(self.ours), (set(), set(), {}, {}))

    def test_what_has_no_descriptor_cannot_be_watched(self):
        self.assertRaises(ValueError, self.ours.addReader, Thing(-1))

    def test_who_begins_is_read_and_who_is_forgotten_is_watched_for_nothing(self):
        for fd in (7, 3 * FIRST):
            thing = Thing(fd)
            self.ours.begin(thing, fd)
            self.assertEqual(self.state(self.ours)[:3], ({thing}, set(), {fd: thing}))
            self.ours.addWriter(thing)
            self.ours.forget(fd)
            self.assertEqual(self.state(self.ours), (set(), set(), {}, {}))
            controls = self.ours._poller.controls
            self.ours.forget(fd)
            self.assertEqual(self.ours._poller.controls, controls)
        self.ours.forget(-1)
        self.ours.forget(1 << 20)
