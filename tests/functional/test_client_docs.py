"""docs/client.md: every example runs."""

import os
import re
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

import ccserver
from ccserver.accounts.messages import Login, LoginReply
from ccserver.core.framing import encode
from tests.functional.packet_server import listening

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(ccserver.__file__)))


def respond(code, body):
    """What the bundled application answers to a ping and a good login, and a push before."""
    if code == 6:
        body = LoginReply(username=Login.decode(body).username).encode()
    return encode(9, b"news") + encode(code, body)


class DocsTests(SynchronousTestCase):
    def setUp(self):
        with open(os.path.join(ROOT, "docs", "client.md"), encoding="utf-8") as file:
            self.blocks = re.findall(r"^```(\w+)\n(.*?)^```$", file.read(), re.M | re.S)

    def run_example(self, command, port):
        """Run C{command}, port 5678 being C{port}; what it prints. It must succeed."""
        result = subprocess.run(
            [part.replace("5678", str(port)) for part in command],
            env={**os.environ, "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual((result.returncode, result.stderr), (0, ""), command)
        return result.stdout

    def test_the_python_examples_run(self):
        programs = [text for language, text in self.blocks if language == "python"]
        self.assertEqual(len(programs), 4)
        with listening(respond) as port:
            output = "".join(self.run_example([sys.executable, "-c", p], port) for p in programs)
        self.assertEqual(output.count("ann\n"), 2)
        self.assertIn("10000\n", output)
        self.assertIn("push 9 b'news'\n", output)

    def test_the_commands_print_what_is_shown(self):
        (console,) = [text for language, text in self.blocks if language == "console"]
        shown = re.split(r"^\$ (.*)\n", console, flags=re.M)[1:]
        with listening(respond) as port:
            for command, output in zip(shown[::2], shown[1::2], strict=True):
                command = command.replace("ccserver", f"{sys.executable} -m ccserver")
                printed = self.run_example(["sh", "-c", command], port)
                times = re.compile(r"[0-9]+\.[0-9]+")
                self.assertEqual(times.sub("T", printed), times.sub("T", output))
