"""The link: what is too long for AMP travels in files in memory."""

from __future__ import annotations

import json
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
        self.assertEqual(open_descriptors(), before)

    def test_a_value_that_is_not_plain_leaves_no_file(self):
        before = open_descriptors()
        self.assertRaises(TypeError, link.memory_file, "test", {"a": object()})
        self.assertEqual(open_descriptors(), before)


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

    def test_the_figures_of_a_beat_are_one_json_text(self):
        heard: list[Any] = []

        class Master(link.Line):
            @link.Beat.responder
            def beat(self, figures: str) -> dict[str, Any]:
                heard.append(json.loads(figures))
                return {}

        end, master = self.connected(), Master()
        master.makeConnection(FakeTransport())
        end.callRemote(link.Beat, figures=json.dumps({"connections": 5}))
        end.transport.deliver(master)
        self.assertEqual(heard, [{"connections": 5}])
        self.assertEqual(master.transport.value(), b"", "a beat is not answered")
