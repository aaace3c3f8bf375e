"""The fakes: what tests rely on."""

from __future__ import annotations

import gc
import weakref

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

import tests.support  # noqa: F401


class Thing:
    """Something that a test had open."""


class LoggedTests(SynchronousTestCase):
    def test_what_a_failure_was_logged_with_is_gone_with_its_test(self):
        def fail() -> weakref.ref[Thing]:
            thing = Thing()
            try:
                raise ValueError
            except ValueError:
                Logger().failure("no")
            return weakref.ref(thing)

        left = fail()
        self.flushLoggedErrors(ValueError)
        gc.collect()
        self.assertIsNone(left())
