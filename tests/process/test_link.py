"""The link: what is too long for AMP travels in files in memory."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ccserver.process import link
from tests.support import FakeTransport, logged, open_descriptors

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
)


class MemoryFileTests(SynchronousTestCase):
    def made(self, value: Any = None) -> int:
        fd = link.memory_file("test", value)
        self.addCleanup(os.close, fd)
        return fd

    @given(PLAIN.filter(lambda value: value is not None))
    @settings(deadline=None)
    def test_what_is_written_is_read(self, value: Any):
        fd = link.memory_file("test", value)
        try:
            self.assertEqual(link.read_json(fd), value)
        finally:
            os.close(fd)

    def test_a_reader_elsewhere_has_an_offset_that_somebody_moved(self):
        fd = self.made(list(range(1000)))
        os.lseek(fd, 7, os.SEEK_SET)
        self.assertEqual(link.read_json(fd), list(range(1000)))
        self.assertEqual(link.read_json(fd), list(range(1000)))

    def test_without_a_value_it_is_empty_for_the_other_to_write(self):
        fd = self.made()
        self.assertEqual(os.fstat(fd).st_size, 0)
        link.write_json(fd, {"a": 1})
        self.assertEqual(link.read_json(fd), {"a": 1})

    def test_text_that_is_no_utf8_in_the_file_travels(self):
        self.assertEqual(link.read_json(self.made({"text": "caf\udce9"})), {"text": "caf\udce9"})

    def test_what_the_kernel_takes_in_parts_is_written_whole(self):
        real = os.pwrite
        self.patch(os, "pwrite", lambda fd, data, place: real(fd, bytes(data[:1000]), place))
        value = ["x" * 100] * 1000
        self.assertEqual(link.read_json(self.made(value)), value)

    def test_it_is_no_file_that_others_could_open(self):
        self.assertEqual(os.fstat(self.made([1])).st_nlink, 0)

    def test_one_that_cannot_be_written_stays_not_open(self):
        def full(*args: Any) -> int:
            raise OSError(28, "No space left on device")

        self.patch(os, "pwrite", full)
        before = open_descriptors()
        self.assertRaises(OSError, link.memory_file, "test", [1])
        self.assertLessEqual(open_descriptors(), before)

    def test_a_value_that_is_not_plain_leaves_no_file(self):
        before = open_descriptors()
        self.assertRaises(TypeError, link.memory_file, "test", {"a": object()})
        self.assertLessEqual(open_descriptors(), before)


class WorkerSide(link.Line):
    """Notes what it is lent, and closes it."""

    def __init__(self) -> None:
        super().__init__()
        self.lent: list[tuple[int, int]] = []
        self.lacked = 0

    @link.Lend.responder
    def lend(self, slot: int, address: str, listening: int) -> dict[str, Any]:
        self.lent.append((slot, os.fstat(listening).st_ino))
        os.close(listening)
        return {}

    def lacks_descriptor(self) -> None:
        self.lacked += 1


class PassedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.master, self.worker = link.Line(), WorkerSide()
        self.master.makeConnection(FakeTransport())
        self.worker.makeConnection(FakeTransport())
        self.fds = [link.memory_file("test") for _ in range(3)]
        for fd in self.fds:
            self.addCleanup(os.close, fd)
        self.before = open_descriptors()

    def lend(self, slot: int) -> Any:
        asked = self.master.callRemote(link.Lend, slot=slot, address="", listening=self.fds[slot])
        return asked.addErrback(lambda failure: failure.type)  # unhandled, it ends the link

    def talk(self) -> None:
        self.master.transport.deliver(self.worker)
        self.worker.transport.deliver(self.master)

    def inode(self, slot: int) -> int:
        return os.fstat(self.fds[slot]).st_ino

    def test_each_command_has_its_own(self):
        answers = [self.lend(slot) for slot in (2, 0, 1)]
        self.talk()
        self.assertEqual([self.successResultOf(each) for each in answers], [{}] * 3)
        self.assertEqual(self.worker.lent, [(slot, self.inode(slot)) for slot in (2, 0, 1)])
        self.assertLessEqual(open_descriptors(), self.before)

    def test_one_that_could_not_come_refuses_its_command_and_no_other(self):
        answers = [self.lend(slot) for slot in range(3)]
        os.close(self.master.transport.descriptors.pop(0))  # as the kernel does, with MSG_CTRUNC
        self.talk()
        results = [self.successResultOf(each) for each in answers]
        self.assertEqual(results, [link.NoDescriptor, {}, {}])
        self.assertEqual(self.worker.lent, [(slot, self.inode(slot)) for slot in (1, 2)])
        self.assertEqual(self.worker.lacked, 1)
        self.assertTrue(self.worker.transport.connected)

    def test_what_was_for_nobody_is_closed_at_the_end(self):
        self.worker.fileDescriptorReceived(os.dup(self.fds[0]))
        self.worker.connectionLost(Failure(ConnectionDone()))
        self.assertLessEqual(open_descriptors(), self.before)


class LineTests(SynchronousTestCase):
    def connected(self) -> link.Line:
        end = link.Line()
        end.makeConnection(FakeTransport())
        return end

    def test_it_comes_and_goes_without_a_line_in_the_log(self):
        events = logged(self)
        self.connected().connectionLost(Failure(ConnectionDone()))
        self.assertEqual(events, [])

    def test_what_was_asked_fails_when_it_ends_and_what_is_asked_afterwards(self):
        end = self.connected()
        before = end.callRemote(link.StopAccepting)
        end.connectionLost(Failure(ConnectionDone()))
        self.failureResultOf(before, ConnectionDone)
        self.failureResultOf(end.callRemote(link.StopAccepting), ConnectionDone)

    def test_a_reason_at_its_limit_fits_whatever_its_characters(self):
        end = self.connected()
        end.callRemote(link.Failed, status=3, reason="\U0001f40d" * link.REASON_LIMIT)
        self.assertTrue(end.transport.value())

    def test_that_there_is_no_room_is_not_answered(self):
        heard: list[bool] = []

        class Master(link.Line):
            @link.Room.responder
            def room(self, full: bool) -> dict[str, Any]:
                heard.append(full)
                return {}

        end, master = self.connected(), Master()
        master.makeConnection(FakeTransport())
        end.callRemote(link.Room, full=True)
        end.transport.deliver(master)
        self.assertEqual(heard, [True])
        self.assertEqual(master.transport.value(), b"")
