"""Channels: two ends of one socket, one for each worker, and none for the master."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ccserver.process import link
from ccserver.process.channels import hand_over
from ccserver.process.moment import Moment
from ccserver.process.workers import Handed
from tests.support import logged, open_descriptors, texts


class Side:
    """A worker as the channel sees it: has a copy of what it was sent, as over a link."""

    def __init__(self) -> None:
        self.gone: Moment[Any] = Moment()
        self.connections = 40
        self.channel: socket.socket | None = None
        self.count: int | None = None
        self.answer: Deferred[Any] = Deferred()

    def take(self, channel: socket.socket) -> Deferred[bool]:
        self.channel = channel.dup()
        return self.answer

    def give(self, channel: socket.socket, count: int) -> Deferred[Handed]:
        self.count = count
        return self.take(channel)


class HandOverTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.source, self.target = Side(), Side()
        self.addCleanup(self.close)

    def close(self) -> None:
        for side in (self.source, self.target):
            if side.channel is not None:
                side.channel.close()

    def begun(self, count: int = link.ALL) -> Deferred[Any]:
        return Deferred.fromCoroutine(hand_over(self.source, self.target, count))

    def test_the_source_gives_when_the_target_takes(self):
        done = self.begun(7)
        self.assertIsNone(self.source.count)
        self.target.answer.callback(True)
        self.assertEqual(self.source.count, 7)
        self.assertNoResult(done)
        self.source.answer.callback(Handed(5, {"tls": 2}))
        self.assertEqual(self.successResultOf(done), Handed(5, {"tls": 2}))

    def test_they_are_connected(self):
        self.begun()
        self.target.answer.callback(True)
        self.source.channel.sendall(b"connection")
        self.assertEqual(self.target.channel.recv(100), b"connection")

    def test_the_end_of_either_is_seen_by_the_other(self):
        self.begun()
        self.target.answer.callback(True)
        self.target.channel.close()
        self.source.channel.setblocking(False)
        self.assertEqual(self.source.channel.recv(1), b"", "the master has no copy of that end")
        self.source.answer.callback(Handed(0, {}))
        self.source.channel.close()

    def test_a_target_that_does_not_take_is_no_target_and_the_source_is_not_asked(self):
        done = self.begun(3)
        self.target.answer.callback(False)
        self.assertIsNone(self.source.count)
        self.assertIsNone(self.successResultOf(done))

    def test_without_descriptors_for_a_channel_nobody_is_asked_and_that_is_told(self):
        def fail() -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        events = logged(self)
        self.patch(socket, "socketpair", fail)
        self.assertIsNone(self.successResultOf(self.begun()))
        self.assertEqual((self.source.channel, self.target.channel), (None, None))
        (text,) = texts(events)
        self.assertIn("no connections handed over: [Errno 24] Too many open files", text)

    def test_the_master_keeps_nothing_open_however_it_ends(self):
        for taken, error in ((False, None), (True, None), (True, ValueError("a bug"))):
            self.source, self.target = Side(), Side()
            before = open_descriptors()
            done = self.begun()
            self.target.answer.callback(taken)
            if taken and error is None:
                self.source.answer.callback(Handed(0, {}))
            elif error is not None:
                self.source.answer.errback(error)
                self.failureResultOf(done, ValueError)
            self.close()
            self.assertLessEqual(open_descriptors(), before)
