import json
import os
import subprocess
import sys

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

import ccserver
from ccserver.commands import main
from ccserver.core.framing import encode
from tests.functional.packet_server import listening

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(ccserver.__file__)))


def echo(code, body):
    return encode(code, body)


class CallTests(SynchronousTestCase):
    def call(self, target, *arguments, **options):
        """What C{ccserver call} prints; it must succeed."""
        result = CliRunner().invoke(main, ["call", target, *arguments], **options)
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        return result.stdout

    def test_a_ping_of_the_bundled_application_is_answered(self):
        with listening(echo) as port:
            self.assertRegex(
                self.call(f"127.0.0.1:{port}", "ping"),
                r"\Aping: answered, no body, [0-9]+\.[0-9] ms\n\Z",
            )

    def test_a_login_has_its_fields_and_its_password_from_standard_input(self):
        received = []

        def respond(code, body):
            received.append(body)
            return encode(code, body[:56] + bytes(40))

        arguments = ("login", "username=ann", "password=-")
        with listening(respond) as port:
            output = self.call(f"127.0.0.1:{port}", *arguments, input="secret\n")
        self.assertIn("  username = 'ann'\n", output)
        self.assertEqual(received, [b"ann".ljust(56, b"\0") + b"secret".ljust(40, b"\0")])

    def test_over_ipv6(self):
        with listening(echo, "::1") as port:
            output = self.call(f"[::1]:{port}", "17", "--text", "hello", "--json")
        self.assertEqual(json.loads(output)["text"], "hello")

    def test_nobody_there_is_status_1_and_one_line(self):
        with listening(echo) as port:
            pass
        result = CliRunner().invoke(main, ["call", f"127.0.0.1:{port}", "ping"])
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(
            result.stderr,
            f"Error: ping: cannot connect to 127.0.0.1 port {port}: Connection refused\n",
        )

    def test_no_answer_is_status_1(self):
        with listening(lambda code, body: b"") as port:
            arguments = ["call", f"127.0.0.1:{port}", "17", "--hex", "", "--timeout", "0.02"]
            result = CliRunner().invoke(main, arguments)
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(result.stderr, "Error: 17: no answer to message 17 in time\n")

    def test_as_a_module_and_without_importing_twisted_for_a_raw_message(self):
        code = (
            "import sys; from ccserver.commands import main; "
            "main(sys.argv[1:], standalone_mode=False); "
            "assert 'twisted' not in sys.modules"
        )
        environment = {**os.environ, "PYTHONPATH": ROOT}
        with listening(echo) as port:
            arguments = ["call", f"127.0.0.1:{port}", "17", "--text", "hello"]
            for start in (["-c", code], ["-m", "ccserver"]):
                output = subprocess.run(
                    [sys.executable, *start, *arguments],
                    env=environment,
                    stdout=subprocess.PIPE,
                    timeout=60,
                    check=True,
                ).stdout
                self.assertIn(b"17: answered, 5 bytes", output)
