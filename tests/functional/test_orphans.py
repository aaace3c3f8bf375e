"""Orphans: a process that adopts them reaps them, and leaves Twisted's own to Twisted."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.server import ROOT, TWISTD, ServerProcess, wait_until

ADOPTING = """
import ctypes, json, os, sys
from twisted.internet import reactor
from twisted.internet.protocol import ProcessProtocol
from ccserver.process import orphans

before = orphans.adopts_orphans()
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
told = {"before": before, "adopts": orphans.adopts_orphans(), "adopted": [], "own": []}

# each makes three orphans, which end when their pipe is closed
PARENT = '''
import os, sys
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        os.read(0, 1)
        os._exit(3)
    print(pid, flush=True)
sys.stdout.flush()
os._exit(5)
'''

class Own(ProcessProtocol):
    def outReceived(self, data):
        told["adopted"] += map(int, data.split())
    def processExited(self, reason):
        told["own"].append(reason.value.exitCode)
        self.transport.closeStdin()

def children():
    # zombies are children too
    return [p for p in told["adopted"] if os.path.exists(f"/proc/{p}")]

def look():
    if len(told["own"]) == 4 and len(told["adopted"]) == 12 and not children():
        print(json.dumps(told))
        reactor.stop()
    else:
        reactor.callLater(0.02, look)

orphans.INTERVAL = 0.05
watch = orphans.Orphans(reactor)
reactor.callWhenRunning(watch.start)
for _ in range(4):
    reactor.spawnProcess(Own(), sys.executable, [sys.executable, "-c", PARENT], env=None)
reactor.callWhenRunning(look)
reactor.callLater(20, reactor.stop)
reactor.run()
watch.stop()
"""


class OrphanTests(SynchronousTestCase):
    def test_orphans_are_reaped_and_twisted_learns_how_its_own_ended(self):
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, *sys.path])}
        command = [sys.executable, "-c", ADOPTING]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.stderr, "")
        told = json.loads(done.stdout or "null")
        self.assertIsNotNone(told, "zombies were left after 20 seconds")
        self.assertEqual((told["before"], told["adopts"]), (False, True))
        self.assertEqual(told["own"], [5] * 4)


AS_PROCESS_1 = (
    "import ctypes, os, sys\n"
    "assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
)
"""Orphans go to a subreaper as they go to process 1, which only root could make of a server."""


class AdoptingServer(ServerProcess):
    def command(self):
        return (sys.executable, "-c", AS_PROCESS_1, *TWISTD[1:])


class ServerTests(SynchronousTestCase):
    APP = b"""
import subprocess
from ccserver import App, Session

app = App()

@app.message(1)
def make_an_orphan(session: Session, status: bytes) -> bytes:
    # it outlives the shell, its parent, by a little
    script = "(sleep 0.1; exit $0) >/dev/null & echo $!"
    return subprocess.run(["sh", "-c", script, status], stdout=subprocess.PIPE).stdout
"""

    def test_a_server_reaps_what_it_has_not_started_and_takes_no_status_of_it_for_its_workers(self):
        server = AdoptingServer("orphaning:app", workers=2)
        self.addCleanup(server.close)
        server.write("orphaning.py", self.APP)
        server.start()
        workers = server.workers()
        with server.connect() as client:
            for status in (b"0", b"3", b"4"):  # 3 and 4 of a worker would end a server
                pid = int(client.ask(1, status))
                wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), "it to be reaped")
        self.assertEqual(server.workers(), workers)
        self.assertNotIn("[alert]", server.log)
        os.kill(workers[0], 9)  # whose ends are still noticed
        server.settle()
