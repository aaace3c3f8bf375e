"""The system calls of a real worker, counted by strace; without it these tests do not exist."""

from __future__ import annotations

import shutil
import time

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.generator import Cell, Load, generator_command
from benchmarks.runner import Cores
from benchmarks.servers import SERVERS
from benchmarks.syscalls import count_calls
from tests.functional.server import measured

if shutil.which("strace"):

    class SystemCallTests(SynchronousTestCase):
        """C{tests/test_costs.py} has the exact figures, but no clients and no threads that run."""

        def test_one_that_waits_costs_a_receive_a_send_and_a_sleep(self):
            self.check("ccserver", Cell(1, 1), 1000, 2.02)

        def test_many_that_wait_share_the_sleep(self):
            self.check("ccserver", Cell(64, 1), 3000, 2.02)

        def test_packets_in_flight_share_all(self):
            self.check("ccserver", Cell(64, 64), 3 * 4096, 2.1 / 64)

        def test_threads_add_hardly_any(self):
            # how often a thread waits for a lock is not ours to say; in a turn the reactor may wake
            # a thread, a thread the reactor, the pool one more where that is held: two calls each
            self.check(
                "ccserver-thread", Cell(64, 1), 3000, 2.02, a_turn=7, turns=2, without="futex"
            )

        def check(
            self,
            name: str,
            cell: Cell,
            packets: int,
            a_packet: float,
            a_turn: int = 1,
            turns: int = 1,
            without: str = "",
        ) -> None:
            """Fail where a packet, or a turn of the reactor, takes more than so many.

            How many packets share a turn is up to the machine: where it has no time for the
            clients, a worker wakes for a few of them at once.

            @param turns: that a packet has, where no other shares them.
            """
            server = next(server for server in SERVERS if server.name == name)
            load = Load(cell, code=server.code, packets=packets, warmup=0.05)
            began = time.monotonic()
            counts = count_calls(server, load, generator_command(), Cores(None, None))
            calls = {count.name: count.calls for count in counts if count.name != without}
            taken = calls["epoll_wait"]
            total = sum(calls.values())
            measured(f"strace: system calls a packet, {name} {cell}", total / packets)
            # a line for the log, the time, and the 16 calls that an idle worker makes in a second
            leeway = 0.01 * packets + 10 + 2 * 16 * (time.monotonic() - began)
            self.assertLessEqual(total, a_packet * packets + a_turn * taken + leeway, calls)
            self.assertLessEqual(taken, turns * 1.05 * packets + 10, calls)
