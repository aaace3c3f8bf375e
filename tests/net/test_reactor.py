"""The reactor: Twisted's, with less to do for an event. Its time is the test's."""

from __future__ import annotations

import errno
import time
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReactorTCP, IReactorTime
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ccserver.net.reactor import TURN, DirectReactor
from ccserver.net.transport import DirectServer
from tests.net.sockets import Recorder, Wire


class ReactorCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.wire = Wire(self, DirectReactor, DirectServer)
        self.reactor: Any = self.wire.reactor
        self.poller = self.wire.poller

    def run_until_idle(self) -> None:
        """Run the reactor until it would sleep for ever."""
        self.poller.idle = lambda: self.reactor.callFromThread(self.reactor.stop)
        self.reactor.run(installSignalHandlers=False)


class ClockTests(ReactorCase):
    def test_its_clock_is_the_monotonic_one(self):
        self.assertIs(DirectReactor.seconds, time.monotonic)

    def test_timed_calls_come_in_their_order_at_their_time(self):
        start, seen = self.poller.now, []
        for delay in (3, 1, 2, 0):
            self.reactor.callLater(delay, lambda d=delay: seen.append((d, self.poller.now - start)))
        self.run_until_idle()
        self.assertEqual(seen, [(0, 0), (1, 1), (2, 2), (3, 3)])

    def test_a_timed_call_that_is_cancelled_does_not_come(self):
        seen: list[str] = []
        call = self.reactor.callLater(1, seen.append, "never")
        self.reactor.callLater(0.5, call.cancel)
        self.reactor.callLater(2, seen.append, "later")
        self.run_until_idle()
        self.assertEqual(seen, ["later"])

    def test_a_timed_call_that_is_put_off_comes_later(self):
        start, seen = self.poller.now, []
        call = self.reactor.callLater(1, lambda: seen.append(self.poller.now - start))
        self.reactor.callLater(0.5, call.reset, 2)
        self.run_until_idle()
        self.assertEqual(seen, [2.5])

    def test_a_timed_call_made_in_a_timed_call_comes(self):
        seen: list[str] = []
        again = lambda: self.reactor.callLater(0, seen.append, "inner")  # noqa: E731
        self.reactor.callLater(1, again)
        self.run_until_idle()
        self.assertEqual(seen, ["inner"])

    def test_it_sleeps_until_the_next_timed_call_and_for_ever_without_one(self):
        self.reactor.callLater(5, int)
        self.run_until_idle()
        sleeps = [sleep for sleep in self.poller.sleeps if sleep]
        self.assertEqual(sleeps[:2], [5, -1])

    def test_a_very_long_time_is_no_fault(self):
        call = self.reactor.callLater(10_000_000, int)
        self.reactor.callLater(1, call.cancel)
        self.run_until_idle()


class EndTests(ReactorCase):
    def test_an_end_that_fails_leaves_the_other_events_of_the_turn(self):
        class Bug(Exception):
            pass

        class Faulty(Recorder):
            def connectionLost(self, reason: Any) -> None:
                raise Bug

        other = Recorder()
        for protocol, incoming in ((Faulty(), b""), (other, b"read")):
            _, socket = self.wire.connect(protocol)
            socket.incoming.append(incoming)
        self.reactor.doIteration(0)
        self.assertEqual(other.got, [b"read"])
        self.assertEqual(len(self.flushLoggedErrors(Bug)), 1)


class LoopTests(ReactorCase):
    def test_it_is_a_reactor(self):
        for interface in (IReactorTime, IReactorFDSet, IReactorTCP):
            verifyObject(interface, self.reactor)

    def test_calls_from_threads_come_in_their_order(self):
        seen: list[int] = []
        for number in range(5):
            self.reactor.callFromThread(seen.append, number)
        self.run_until_idle()
        self.assertEqual(seen, [0, 1, 2, 3, 4])

    def test_calls_for_when_it_runs_come_when_it_runs(self):
        seen: list[bool] = []
        self.reactor.callWhenRunning(lambda: seen.append(self.reactor.running))
        self.run_until_idle()
        self.assertEqual(seen, [True])

    def test_a_call_that_raises_is_logged_and_the_loop_goes_on(self):
        seen: list[str] = []
        self.reactor.callLater(1, lambda: 1 // 0)
        self.reactor.callFromThread(int, "x")
        self.reactor.callLater(2, seen.append, "next")
        self.run_until_idle()
        self.assertEqual(seen, ["next"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError, ValueError)), 2)

    def test_stopping_runs_the_shutdown_triggers(self):
        seen: list[str] = []
        for phase in ("before", "during", "after"):
            self.reactor.addSystemEventTrigger(phase, "shutdown", seen.append, phase)
        self.run_until_idle()
        self.assertEqual(seen, ["before", "during", "after"])

    def test_a_signal_in_the_sleep_is_no_fault(self):
        protocol = Recorder()
        _, socket = self.wire.connect(protocol)
        socket.incoming.append(b"a")
        self.poller.errors.append(InterruptedError(errno.EINTR, "interrupted"))
        self.wire.turn(2)
        self.assertEqual(protocol.got, [b"a"])

    def test_another_error_of_the_poll_is_raised(self):
        self.poller.errors.append(OSError(errno.EBADF, "bad"))
        self.assertRaises(OSError, self.reactor.doIteration, 0)


class EventTests(ReactorCase):
    def test_who_was_removed_in_the_same_turn_is_not_called(self):
        protocols = [Recorder() for _ in range(2)]
        wires = [self.wire.connect(protocol) for protocol in protocols]
        for place in (0, 1):
            other = wires[1 - place][0]
            protocols[place].on_data = lambda data, other=other: other.stopReading()
            wires[place][1].incoming.append(b"x")
        self.wire.turn()
        self.assertEqual([len(protocol.got) for protocol in protocols].count(1), 1)

    def test_a_turn_is_bounded(self):
        protocols = [Recorder() for _ in range(TURN + 10)]
        for protocol in protocols:
            self.wire.connect(protocol)[1].incoming.append(b"x")
        self.reactor.doIteration(0)
        self.assertEqual(sum(len(protocol.got) for protocol in protocols), TURN)
        self.reactor.doIteration(0)
        self.assertTrue(all(protocol.got for protocol in protocols))

    def test_what_the_first_of_a_turn_writes_is_sent_behind_the_last(self):
        sent: list[int] = []
        protocols = [Recorder() for _ in range(3)]
        wires = [self.wire.connect(protocol) for protocol in protocols]
        for protocol, (transport, socket) in zip(protocols, wires, strict=True):
            protocol.on_data = lambda data, transport=transport: (
                sent.append(sum(len(s.sent) for _, s in wires)),
                transport.write(b"x"),
            )
            socket.incoming.append(b"go")
        self.wire.turn()
        self.assertEqual(sent, [0, 0, 0])
        self.assertEqual([socket.received for _, socket in wires], [b"x"] * 3)

    def test_an_exception_is_logged_once(self):
        protocol = Recorder()
        protocol.on_data = lambda data: 1 // 0
        _, socket = self.wire.connect(protocol)
        socket.incoming.append(b"x")
        self.wire.settle()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(protocol.lost), 1)
        self.assertTrue(socket.closed)
