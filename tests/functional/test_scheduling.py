"""The CPUs and the policy of real workers: all their threads', and new ones after a reload."""

from __future__ import annotations

import contextlib
import os

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.codes import COMPUTE, REACTOR
from tests.functional.operator import Operator
from tests.functional.server import ServerProcess, wait_until


class SchedulingTests(SynchronousTestCase):
    def scheduled(self, server: ServerProcess) -> dict[int, set[tuple[frozenset[int], int]]]:
        """By slot, the CPUs and the policies of a worker's threads."""
        found: dict[int, set[tuple[frozenset[int], int]]] = {}
        for slot, pid in server.workers().items():
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    how = frozenset(os.sched_getaffinity(thread)), os.sched_getscheduler(thread)
                    found.setdefault(slot, set()).add(how)
        return found

    def test_workers_have_the_cpus_and_the_policy_of_the_configuration(self):
        cpus = sorted(os.sched_getaffinity(0))
        settings = {"worker_cpu_affinity": "auto", "WorkerScheduling": "batch"}
        with ServerProcess(workers=2, **settings) as server:
            expected = {
                slot: {(frozenset({cpus[slot % len(cpus)]}), os.SCHED_BATCH)} for slot in range(2)
            }
            self.assertEqual(self.scheduled(server), expected)
            master = server.master
            self.assertEqual(os.sched_getaffinity(master), set(cpus))
            self.assertEqual(os.sched_getscheduler(master), os.sched_getscheduler(0))

            text = server.read("ccserver.conf")
            for key, value in settings.items():
                text = text.replace(f"{key} = {value}\n", "")
            server.write("ccserver.conf", text.encode())
            with server.connect() as client:
                Operator(server).reload()
                self.assertEqual(client.ask(REACTOR, b"still here"), b"still here")
            usual = {(frozenset(cpus), os.sched_getscheduler(0))}
            self.assertEqual(self.scheduled(server), {0: usual, 1: usual})

    def test_a_worker_is_a_batch_while_it_is_busy(self):
        # whatever we have been started with: the server inherits it
        self.addCleanup(os.sched_setscheduler, 0, os.sched_getscheduler(0), os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        with ServerProcess(workers=1) as server, server.connect() as client:
            (pid,) = server.workers().values()

            def has_become_a_batch() -> bool:
                client.ask(COMPUTE, b"50")
                return os.sched_getscheduler(pid) == os.SCHED_BATCH

            wait_until(has_become_a_batch, "a busy worker that is scheduled as a batch")
            others = {how for how in self.scheduled(server)[0] if how[1] != os.SCHED_BATCH}
            self.assertEqual({policy for _, policy in others}, {os.SCHED_OTHER}, "its threads")
            wait_until(
                lambda: os.sched_getscheduler(pid) == os.SCHED_OTHER,
                "an idle worker that is scheduled as usual",
            )
            self.assertEqual(client.ask(REACTOR, b"still here"), b"still here")
