"""What a worker asks the kernel for: its CPUs and its policy."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Config
from ccserver.process.scheduling import Eagerness, schedule
from tests.support import logged, texts

REFUSED = (
    "worker process 2: WorkerScheduling = auto is not granted: [Errno 1] Operation not permitted"
)


def compute(seconds: float) -> None:
    """Use so much CPU."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


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

    def sched_getscheduler(self, pid: int) -> int:
        return self.policy

    def sched_setscheduler(self, pid: int, policy: int, parameter: os.sched_param) -> None:
        self.policy = policy

    def refuse(self, *arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")


def kernel(case: SynchronousTestCase) -> Kernel:
    """The one that there is during a test."""
    made = Kernel()
    for name in (name for name in vars(Kernel) if name.startswith("sched_")):
        case.patch(os, name, getattr(made, name))
    return made


class SchedulingTests(SynchronousTestCase):
    def schedule(self, text: str, slot: int = 0) -> list[str]:
        """What is logged by the worker of a slot."""
        self.kernel = kernel(self)
        events = logged(self)
        schedule(Config.parse(text, "a.conf", "/srv").process, slot)
        return texts(events)

    def cpus(self, value: str, slot: int) -> set[int]:
        """Those of the worker of a slot."""
        self.assertEqual(self.schedule(f"worker_cpu_affinity = {value}", slot), [])
        return self.kernel.cpus

    def test_by_default_all_begins_as_it_is(self):
        self.assertEqual(self.cpus("", 1), {1, 3})
        self.assertEqual(self.kernel.policy, os.SCHED_OTHER)

    def test_normal_is_what_it_has_been_started_with(self):
        self.assertEqual(self.schedule("WorkerScheduling = normal"), [])
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
        self.patch(Kernel, "sched_setaffinity", Kernel.refuse)
        (told,) = self.schedule("worker_cpu_affinity = auto", 1)
        expected = "worker process 1: worker_cpu_affinity is not granted: [Errno 1] "
        self.assertEqual(told, f"{expected}Operation not permitted")

    def test_only_with_auto_there_is_something_to_look_at(self):
        for text, expected in (("", True), ("auto", True), ("normal", False), ("batch", False)):
            text = text and f"WorkerScheduling = {text}"
            kernel(self)
            found = schedule(Config.parse(text, "a.conf", "/srv").process, 0)
            self.assertEqual(found is not None, expected, text)

    def test_a_worker_may_be_scheduled_as_a_batch(self):
        self.assertEqual(self.schedule("WorkerScheduling = batch"), [])
        self.assertEqual(self.kernel.policy, os.SCHED_BATCH)

    def test_a_policy_that_is_not_granted_is_told_of_and_done_without(self):
        self.patch(Kernel, "sched_setscheduler", Kernel.refuse)
        (told,) = self.schedule("WorkerScheduling = batch", 3)
        self.assertEqual(
            told,
            "worker process 3: WorkerScheduling = batch is not granted: [Errno 1] Operation not "
            "permitted",
        )


class EagernessTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.kernel = kernel(self)
        self.events = logged(self)
        self.now = self.used = 0.0
        self.eagerness = Eagerness(2, lambda: self.now, lambda: self.used)
        self.eagerness.look()

    def second(self, share: float) -> int:
        """The policy after a second in which it has used such a share of a core."""
        self.now, self.used = self.now + 1.0, self.used + share
        self.eagerness.look()
        return self.kernel.policy

    def test_it_is_a_batch_while_it_is_busy(self):
        found = [self.second(share) for share in (0.1, 0.9, 0.9, 0.1, 0.9)]
        batch, other = os.SCHED_BATCH, os.SCHED_OTHER
        self.assertEqual(found, [other, batch, batch, other, batch])
        self.assertEqual(self.events, [])

    def test_the_policy_of_somebody_else_is_left_alone(self):
        self.kernel.policy = os.SCHED_RR
        self.assertEqual([self.second(0.9), self.second(0.1)], [os.SCHED_RR] * 2)
        self.kernel.policy = os.SCHED_OTHER
        self.assertEqual(self.second(0.9), os.SCHED_BATCH, "it is its own once more")
        self.kernel.policy = os.SCHED_IDLE
        self.assertEqual(self.second(0.1), os.SCHED_IDLE)

    def test_who_was_a_batch_before_stays_one(self):
        self.kernel.policy = os.SCHED_BATCH
        self.assertEqual([self.second(0.9), self.second(0.1)], [os.SCHED_BATCH] * 2)

    def test_what_was_used_before_the_first_look_does_not_count(self):
        self.used = 5.0
        self.eagerness = Eagerness(2, lambda: self.now, lambda: self.used)
        self.eagerness.look()
        self.assertEqual(self.second(0.1), os.SCHED_OTHER)

    def test_by_itself_it_looks_at_what_this_thread_has_used(self):
        eagerness = Eagerness(2)
        eagerness.look()
        self.assertEqual(self.kernel.policy, os.SCHED_OTHER, "it is only known from then on")
        computing = threading.Thread(target=compute, args=(0.1,))
        computing.start()
        computing.join()
        eagerness.look()
        self.assertEqual(self.kernel.policy, os.SCHED_OTHER, "another one was busy")
        compute(0.1)
        eagerness.look()
        self.assertEqual(self.kernel.policy, os.SCHED_BATCH)

    def test_a_refusal_is_told_once(self):
        self.patch(os, "sched_setscheduler", self.kernel.refuse)
        self.assertEqual(
            [self.second(share) for share in (0.9, 0.9, 0.1, 0.9)], [os.SCHED_OTHER] * 4
        )
        self.assertEqual(texts(self.events), [REFUSED])

    def test_a_batch_that_may_be_none_only_later_is_none_then(self):
        self.assertEqual(self.second(0.9), os.SCHED_BATCH)
        granting = os.sched_setscheduler
        self.patch(os, "sched_setscheduler", self.kernel.refuse)
        self.assertEqual([self.second(0.1), self.second(0.1)], [os.SCHED_BATCH] * 2)
        self.assertEqual(texts(self.events), [REFUSED])
        self.patch(os, "sched_setscheduler", granting)
        self.assertEqual(self.second(0.1), os.SCHED_OTHER)
        self.assertEqual(self.second(0.9), os.SCHED_OTHER, "it does not try that again")
