"""The system's time is set, by a day, while the server runs: nothing comes early or late."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import codes
from tests.functional.server import ServerProcess, wait_until
from tests.functional.stopwatch import Stopwatch
from tests.support import folder

DAY = 86400

SETTABLE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* How far the system's time has been set, in seconds: what the file says at this moment. */
static long offset(void) {
    char text[32] = "";
    int fd = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    return n > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t id, struct timespec *t) {
    int (*real)(clockid_t, struct timespec *) =
        (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, t);
    if (!failed && id == CLOCK_REALTIME)
        t->tv_sec += offset();
    return failed;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t)
        *t = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *t, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


class ClockTests(SynchronousTestCase):
    if shutil.which("cc") is None:
        skip = "no C compiler"

    def setUp(self) -> None:
        made = folder(self)
        source, self.offset = os.path.join(made, "clock.c"), os.path.join(made, "offset")
        library = os.path.join(made, "clock.so")
        with open(source, "w") as file:
            file.write(SETTABLE)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.set_time(0)
        for name, value in (("LD_PRELOAD", library), ("CLOCK_OFFSET", self.offset)):
            self.assertNotIn(name, os.environ)
            os.environ[name] = value
            self.addCleanup(os.environ.pop, name)

    def set_time(self, seconds: int) -> None:
        with open(self.offset + ".new", "w") as file:
            file.write(str(seconds))
        os.rename(self.offset + ".new", self.offset)

    def jump(self, seconds: int) -> None:
        heartbeat = {"Sock_WaitTimeEnable": 1, "Sock_MaxWaitTime": 20}
        with (
            ServerProcess(workers=2, WorkerTimeout=2, **heartbeat) as server,
            server.connect() as client,
        ):
            workers = server.workers()
            ours = int(client.ask(codes.PID))
            ((other, its_pid),) = ((n, pid) for n, pid in workers.items() if pid != ours)
            self.assertEqual(client.ask(codes.REACTOR, b"before"), b"before")
            self.set_time(seconds)
            self.addCleanup(self.set_time, 0)
            self.assertEqual(client.ask(codes.REACTOR, b"behind"), b"behind")
            # who stands still is replaced, by timers that were set before
            os.kill(its_pid, signal.SIGSTOP)
            wait_until(lambda: server.workers().get(other, its_pid) != its_pid, "another worker")
            self.assertIn(ours, server.workers().values())
            self.assertEqual(client.ask(codes.REACTOR, b"still"), b"still")
            self.assertEqual(server.log.count("no sign of life"), 1, server.log)
            self.assertIn(self.day_of(server), (-1, 1))
            with Stopwatch(server) as watch:
                server.stop()
            self.assertLess(watch.seconds, 5.0)

    def day_of(self, server: ServerProcess) -> int:
        """How many days the last line of the log is ahead of the first."""
        first, last = (server.log.splitlines()[place][:10] for place in (0, -1))
        return (last > first) - (last < first)

    def test_a_day_ahead(self):
        self.jump(DAY)

    def test_a_day_back(self):
        self.jump(-DAY)
