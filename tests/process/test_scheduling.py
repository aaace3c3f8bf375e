"""What a worker asks the kernel for: its CPUs and its policy."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Config
from ccserver.process.scheduling import schedule
from tests.support import logged, texts

NO_CPU = "1" + "0" * 4000
"""The mask of a CPU that no machine has."""


class SchedulingTests(SynchronousTestCase):
    """They change this process, and put it back."""

    def setUp(self) -> None:
        self.cpus = os.sched_getaffinity(0)
        self.addCleanup(os.sched_setaffinity, 0, self.cpus)
        policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
        self.addCleanup(os.sched_setscheduler, 0, policy, parameter)

    def schedule(self, text: str, slot: int = 0) -> list[str]:
        """What is logged."""
        events = logged(self)
        schedule(Config.parse(text, "a.conf", "/srv").process, slot)
        return texts(events)

    def test_by_default_all_stays_as_it_is(self):
        before = os.sched_getscheduler(0)
        self.assertEqual(self.schedule(""), [])
        self.assertEqual(os.sched_getaffinity(0), self.cpus)
        self.assertEqual(os.sched_getscheduler(0), before)

    def test_a_worker_runs_on_its_cpu(self):
        for slot, cpu in enumerate(sorted(self.cpus)):
            os.sched_setaffinity(0, self.cpus)
            self.assertEqual(self.schedule("worker_cpu_affinity = auto", slot), [])
            self.assertEqual(os.sched_getaffinity(0), {cpu})

    def test_a_cpu_that_is_not_there_is_told_and_done_without(self):
        told = self.schedule(f"worker_cpu_affinity = {NO_CPU}")
        self.assertEqual(told, ["worker_cpu_affinity: CPU 4000: [Errno 22] Invalid argument"])
        self.assertEqual(os.sched_getaffinity(0), self.cpus)

    def test_a_worker_may_be_scheduled_as_a_batch(self):
        self.assertEqual(self.schedule("worker_scheduling = batch"), [])
        self.assertEqual(os.sched_getscheduler(0), os.SCHED_BATCH)

    def test_a_policy_that_is_not_granted_is_told_and_done_without(self):
        def refuse(*arguments: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        before = os.sched_getscheduler(0)
        self.patch(os, "sched_setscheduler", refuse)
        told = self.schedule("worker_scheduling = batch")
        self.assertEqual(told, ["worker_scheduling: [Errno 1] Operation not permitted"])
        self.assertEqual(os.sched_getscheduler(0), before)
