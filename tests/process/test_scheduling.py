"""What a worker asks the kernel for: its CPUs and its policy."""

from __future__ import annotations

import os
from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Config
from ccserver.process.scheduling import schedule
from tests.support import logged, texts


class Kernel:
    """A machine whose process may run on CPUs 1, 3 and 4, and runs on 1 and 3."""

    def __init__(self) -> None:
        self.cpus, self.policy = {1, 3}, os.SCHED_OTHER

    def sched_getaffinity(self, pid: int) -> set[int]:
        return set(self.cpus)

    def sched_setaffinity(self, pid: int, cpus: Iterable[int]) -> None:
        granted = {1, 3, 4} & set(cpus)
        if not granted:
            raise OSError(22, "Invalid argument")
        self.cpus = granted

    def sched_setscheduler(self, pid: int, policy: int, parameter: os.sched_param) -> None:
        self.policy = policy


class SchedulingTests(SynchronousTestCase):
    def schedule(self, text: str, slot: int = 0) -> list[str]:
        """What is logged by the worker of a slot."""
        self.kernel = Kernel()
        for name in ("sched_getaffinity", "sched_setaffinity", "sched_setscheduler"):
            self.patch(os, name, getattr(self.kernel, name))
        events = logged(self)
        schedule(Config.parse(text, "a.conf", "/srv").process, slot)
        return texts(events)

    def cpus(self, value: str, slot: int) -> set[int]:
        """Those of the worker of a slot."""
        self.assertEqual(self.schedule(f"worker_cpu_affinity = {value}", slot), [])
        return self.kernel.cpus

    def test_by_default_all_stays_as_it_is(self):
        self.assertEqual(self.cpus("", 1), {1, 3})
        self.assertEqual(self.kernel.policy, os.SCHED_OTHER)

    def test_a_worker_runs_on_the_cpus_of_its_mask_that_there_are(self):
        masks = "00010 11000 10101"
        found = [self.cpus(masks, slot) for slot in range(4)]
        self.assertEqual(found, [{1}, {3, 4}, {4}, {4}])

    def test_by_itself_each_has_one_of_those_that_the_server_may_run_on(self):
        found = [self.cpus("auto", slot) for slot in range(3)]
        self.assertEqual(found, [{1}, {3}, {1}])

    def test_of_a_mask_each_has_one_that_there_is(self):
        found = [self.cpus("auto 11100", slot) for slot in range(3)]
        self.assertEqual(found, [{3}, {4}, {3}])

    def test_cpus_that_are_not_there_are_told_of_and_done_without(self):
        for value in ("1 101", "auto 101"):
            (told,) = self.schedule(f"worker_cpu_affinity = {value}", 1)
            self.assertEqual(
                told,
                "worker process 1: worker_cpu_affinity is not granted, none of the CPUs of 101: "
                "[Errno 22] Invalid argument",
            )
            self.assertEqual(self.kernel.cpus, {1, 3})

    def test_where_no_cpu_may_be_chosen_that_is_told(self):
        def refuse(*arguments: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(Kernel, "sched_setaffinity", refuse)
        (told,) = self.schedule("worker_cpu_affinity = auto", 1)
        expected = "worker process 1: worker_cpu_affinity is not granted: [Errno 1] "
        self.assertEqual(told, f"{expected}Operation not permitted")

    def test_a_worker_may_be_scheduled_as_a_batch(self):
        self.assertEqual(self.schedule("WorkerScheduling = batch"), [])
        self.assertEqual(self.kernel.policy, os.SCHED_BATCH)

    def test_a_policy_that_is_not_granted_is_told_of_and_done_without(self):
        def refuse(*arguments: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(Kernel, "sched_setscheduler", refuse)
        (told,) = self.schedule("WorkerScheduling = batch", 3)
        self.assertEqual(
            told,
            "worker process 3: WorkerScheduling = batch is not granted: [Errno 1] Operation not "
            "permitted",
        )
