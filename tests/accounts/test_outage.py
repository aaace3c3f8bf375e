"""Outage: who may try, and what the log says."""

from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from ccserver.accounts.outage import LINE_INTERVAL, RETRY_INTERVAL, Outage
from tests.accounts.support import in_threads


class OutageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 1000.0
        self.outage = Outage("db", clock=lambda: self.now)

    def lines(self, work) -> list[tuple[LogLevel, str]]:
        with capturedLogs() as events:
            work()
        return [(event["log_level"], formatEvent(event)) for event in events]

    def test_a_database_that_works_is_asked(self):
        self.assertTrue(self.outage.admits())

    def test_a_database_that_is_away_is_tried_once_an_interval(self):
        self.outage.failed("refused", is_away=True)
        self.assertFalse(self.outage.admits())
        self.now += RETRY_INTERVAL
        self.assertEqual(in_threads(20, lambda _: self.outage.admits()).count(True), 1)
        self.now += RETRY_INTERVAL
        self.assertTrue(self.outage.admits())

    def test_a_database_that_is_back_is_asked(self):
        self.outage.failed("refused", is_away=True)
        self.outage.worked()
        self.assertTrue(self.outage.admits())

    def test_one_request_that_fails_is_no_outage(self):
        self.outage.failed("disk full", is_away=False)
        self.assertTrue(self.outage.admits())

    def test_the_first_failure_is_told(self):
        told = self.lines(lambda: self.outage.failed("refused", is_away=True))
        self.assertEqual(told, [(LogLevel.error, "database db fails: refused")])

    def test_further_failures_are_counted_and_told_once_an_interval(self):
        self.outage.failed("refused", is_away=True)

        def fail() -> None:
            for _ in range(5):
                self.outage.failed("refused", is_away=True)
                self.outage.admits()

        self.assertEqual(self.lines(fail), [])
        self.now += LINE_INTERVAL
        told = self.lines(lambda: self.outage.failed("refused", is_away=True))
        more = "database db fails: refused (10 more since the last such line)"
        self.assertEqual(told, [(LogLevel.error, more)])

    def test_a_database_that_comes_and_goes_is_not_a_flood_of_lines(self):
        def flap() -> None:
            for _ in range(50):
                self.outage.failed("refused", is_away=True)
                self.outage.worked()

        self.assertEqual(len(self.lines(flap)), 2)

    def test_the_return_is_told_once(self):
        self.outage.failed("refused", is_away=True)
        self.outage.admits()
        self.now += 2.5
        text = "database db is back after 2.5 s (1 more requests were not served meanwhile)"

        def work() -> None:
            self.outage.worked()
            self.outage.worked()

        self.assertEqual(self.lines(work), [(LogLevel.info, text)])
