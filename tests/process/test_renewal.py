"""Renewal: when files are looked at, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ccserver.errors import StartError
from ccserver.process.renewal import LOOK_INTERVAL, NOTICE_INTERVAL, Renewal
from tests.support import logged, texts


class FakeCertificates:
    """Certificates whose files are what the test says.

    @ivar loads: how often they were read.
    """

    def __init__(self) -> None:
        self.changed = False
        self.error: str | None = None
        self.warnings = ("too old",)
        self.ending = ["ends soon"]
        self.loads = 0

    def load(self, valid: bool = False) -> None:
        assert valid
        self.changed = False
        self.loads += 1
        if self.error is not None:
            raise StartError(self.error)

    def expiring(self) -> Iterator[str]:
        yield from self.ending

    def __str__(self) -> str:
        return "localhost"


class RenewalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.certificates = FakeCertificates()
        self.events = logged(self)

    def renewal(self, talkative: bool = True) -> Renewal:
        return Renewal(self.certificates, self.clock.seconds, talkative)  # type: ignore[arg-type]

    def passes(self, renewal: Renewal, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1)
            renewal.look()

    def said(self) -> list[str]:
        lines = texts(self.events)
        self.events.clear()
        return lines

    def test_files_are_read_only_when_they_have_changed(self):
        renewal = self.renewal()
        self.passes(renewal, 10 * LOOK_INTERVAL)
        self.assertEqual(self.certificates.loads, 0)
        self.certificates.changed = True
        self.passes(renewal, LOOK_INTERVAL)
        self.assertEqual(self.certificates.loads, 1)
        self.assertIn("new certificates: localhost", self.said())

    def test_files_that_do_not_fit_for_a_moment_are_no_news(self):
        renewal = self.renewal()
        self.said()
        self.certificates.changed, self.certificates.error = True, "the key is not that"
        self.passes(renewal, LOOK_INTERVAL)
        self.assertEqual(self.said(), ["ends soon"])
        self.certificates.changed, self.certificates.error = True, None
        self.passes(renewal, LOOK_INTERVAL)
        self.assertEqual(self.said(), ["new certificates: localhost", "too old"])

    def test_files_that_stay_wrong_are_told_once_and_tried_until_they_are_right(self):
        renewal = self.renewal(talkative=False)
        self.certificates.changed, self.certificates.error = True, "no key"
        self.passes(renewal, 20 * LOOK_INTERVAL)
        self.assertEqual(self.said(), ["certificates stay as they were: no key"])
        self.certificates.error = None
        loads = self.certificates.loads
        self.passes(renewal, 2 * LOOK_INTERVAL)
        self.assertEqual(self.certificates.loads, loads + 1)

    def test_what_is_wrong_in_another_way_is_told_again(self):
        renewal = self.renewal(talkative=False)
        for error in ("no key", "no certificate"):
            self.certificates.changed, self.certificates.error = True, error
            self.passes(renewal, 2 * LOOK_INTERVAL)
            self.assertEqual(self.said(), [f"certificates stay as they were: {error}"])

    def test_an_end_is_warned_of_at_the_start_and_once_a_day(self):
        renewal = self.renewal()
        self.assertEqual(self.said(), ["too old"])
        renewal.look()
        self.assertEqual(self.said(), ["ends soon"])
        self.passes(renewal, NOTICE_INTERVAL - 1)
        self.assertEqual(self.said(), [])
        self.passes(renewal, 1)
        self.assertEqual(self.said(), ["ends soon"])

    def test_asked_to_it_reads_them_at_once(self):
        renewal = self.renewal(talkative=False)
        self.assertEqual(renewal.renew(), "localhost")
        self.certificates.error = "no key"
        self.assertEqual(str(self.assertRaises(StartError, renewal.renew)), "no key")

    def test_one_worker_of_many_warns(self):
        renewal = self.renewal(talkative=False)
        renewal.look()
        self.certificates.changed = True
        self.passes(renewal, LOOK_INTERVAL)
        self.assertEqual(self.said(), [])
