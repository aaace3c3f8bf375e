import json
import os
import sys
from tempfile import NamedTemporaryFile
from typing import ClassVar

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from ccserver.accounts import messages
from ccserver.app import App
from ccserver.commands import calling, checking, main, starting
from ccserver.config import Config
from ccserver.core.session import Session
from ccserver.errors import ConnectionClosed
from ccserver.message import Message, field
from tests.authority import Authority
from tests.support import folder

app = App()


class Login(Message):
    username: str = field.chars(8)
    password: str = field.chars(8)


class LoginReply(Message):
    username: str = field.chars(8)
    token: bytes = field.raw(4)
    load: float = field.f64()


@app.message(0)
def ping(session: Session, request: None) -> bytes:
    return b""


@app.message(6)
def login(session: Session, request: Login) -> LoginReply | None:
    return LoginReply()


@app.message(7)
def echo(session: Session, request: bytes) -> bytes:
    return request


class FakeClient:
    """Answers each request with C{reply}; shared by class, for the command makes its own."""

    calls: ClassVar[list] = []
    reply: bytes | Exception = b""

    def __init__(self, host, port, timeout):
        self.calls.append((host, port, timeout))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.calls.append("closed")

    def request(self, code, body):
        self.calls.append((code, body))
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    def send(self, code, body):
        self.calls.append(("sent", code, body))


class Case(SynchronousTestCase):
    def run_command(self, *arguments, **options):
        return CliRunner().invoke(main, arguments, prog_name="ccserver", **options)

    def output(self, *arguments, **options):
        """What the command prints; it must succeed."""
        result = self.run_command(*arguments, **options)
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        return result.stdout

    def complaint(self, *arguments, **options):
        """The one line that the command fails with, without C{Error: }."""
        result = self.run_command(*arguments, **options)
        self.assertEqual((result.exit_code, result.stdout), (1, ""))
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        return result.stderr.removeprefix("Error: ").removesuffix("\n")

    def usage_error(self, *arguments):
        """The last line of what a wrong usage prints."""
        result = self.run_command(*arguments)
        self.assertEqual((result.exit_code, result.stdout), (1, ""))
        return result.stderr.splitlines()[-1].removeprefix("Error: ")

    def write(self, text):
        """The path of a new file with C{text}."""
        with NamedTemporaryFile("w", suffix=".conf", delete=False) as file:
            self.addCleanup(os.unlink, file.name)
            file.write(text)
        return file.name


class GroupTests(Case):
    def test_without_a_command_it_shows_the_commands_and_fails(self):
        result = self.run_command()
        self.assertEqual(result.exit_code, 1)
        self.assertIn("check", result.output)

    def test_an_unknown_command_is_status_1(self):
        self.assertIn("'nonsense'", self.usage_error("nonsense"))

    def test_help_is_status_0(self):
        self.assertIn("Usage: ccserver", self.output("--help"))

    def test_both_ways_to_the_version_say_the_same(self):
        self.assertEqual(self.output("version"), self.output("--version"))
        self.assertIn("Twisted", self.output("version"))


class CheckTests(Case):
    def test_what_differs_stands_above_the_defaults(self):
        lines = self.output("check", self.write("worker_connections = 7\n")).splitlines()
        start = lines.index("[Net]")
        self.assertEqual(
            lines[start + 1 : start + 4],
            ["worker_connections = 7", "; by default:", "OnFewDescriptors = refuse"],
        )

    def test_a_section_without_defaults_has_no_line_for_them(self):
        path = self.write("App = email:b\nAppPath = /\n")
        self.assertIn("[App]\nApp = email:b\nAppPath = /\n\n", self.output("check", path))

    def test_what_it_prints_is_the_same_configuration(self):
        text = "[Net]\nworker_connections = 7\n[Socket]\nListen = [::1]:99, 5678\n"
        again = Config.parse(self.output("check", self.write(text)))
        self.assertEqual(again.describe(), Config.parse(text).describe())

    def test_above_them_stands_what_serves(self):
        self.patch(checking, "native", sys)
        self.patch(checking, "CHECKSUM", "isal")
        lines = self.output("check", self.write("")).splitlines()
        self.assertEqual(lines[:4], ["; compiled part: yes", "; checksum: isal", "", "[Socket]"])

    def test_why_the_compiled_part_is_not_used(self):
        self.patch(checking, "native", None)
        for off, spec, why in (
            ("0", sys, "CCSERVER_NATIVE=0"),
            ("", sys, "it cannot be loaded"),
            ("", None, "it has not been built"),
        ):
            self.patch(os, "environ", {**os.environ, "CCSERVER_NATIVE": off})
            self.patch(checking, "find_spec", lambda name, spec=spec: spec)
            first = self.output("check", self.write("")).splitlines()[0]
            self.assertEqual(first, f"; compiled part: no ({why})")

    def test_every_error_is_a_line_and_the_status_1(self):
        path = self.write("Nonsense = 1\nBacklog = many\n")
        result = self.run_command("check", path)
        self.assertEqual((result.exit_code, result.stdout), (1, ""))
        first, second = result.stderr.splitlines()
        self.assertTrue(first.startswith(f"{path}:1: "), first)
        self.assertTrue(second.startswith(f"{path}:2: "), second)

    def test_a_missing_file_is_an_error(self):
        self.assertIn("nowhere.conf: ", self.complaint("check", "nowhere.conf"))

    def test_a_certificate_that_cannot_be_used_is_an_error_in_one_line(self):
        text = "Listen = 127.0.0.1:1 tls\nTlsCertificate = /nowhere/a.pem\n"
        self.assertEqual(
            self.complaint("check", self.write(text)),
            "TlsCertificate /nowhere/a.pem: No such file or directory",
        )
        self.output("check", self.write(text.replace(" tls", "")))

    def test_relative_paths_begin_where_the_server_runs(self):
        made = os.path.relpath(folder(self))
        with open(os.path.join(made, "a.pem"), "wb") as file:
            file.write(b"".join(Authority().issue("localhost")))
        os.chmod(file.name, 0o600)
        path = self.write("Listen = 127.0.0.1:1 tls\nTlsCertificate = a.pem\n")
        self.assertIn("/a.pem: No such file or directory", self.complaint("check", path))
        shown = self.output("check", path, "--rundir", made)
        self.assertIn(f"TlsCertificate = {os.path.abspath(made)}/a.pem\n", shown)
        ran = []
        self.patch(starting, "run_twistd", ran.append)
        self.output("start", "--config", path, "-d", made)
        self.assertEqual(len(ran), 1)

    def test_an_application_that_is_not_there_is_an_error(self):
        path = self.write("[App]\nApp = nosuch.game:app\n")
        self.assertEqual(
            self.complaint("check", path),
            f"{path}:2: App = nosuch.game:app: there is no module nosuch",
        )

    def test_one_that_is_there_is_not_imported(self):
        made = folder(self)
        with open(os.path.join(made, "checked_only.py"), "w") as file:
            file.write("raise ValueError\n")
        self.output("check", self.write(f"App = checked_only:app\nAppPath = {made}\n"))

    def test_a_log_that_is_a_folder_is_an_error(self):
        path = self.write("\nLog = /\n")
        said = f"{path}:2: Log = /: it is a folder; allowed: a file"
        self.assertEqual(self.complaint("check", path), said)

    def test_a_database_that_is_not_supported_is_an_error_for_the_accounts(self):
        path = self.write("DBInfo = mysql://u:hunter2@h/d\n")
        said = self.complaint("check", path)
        self.assertTrue(said.startswith(f"{path}:1: DBInfo names a database that is not"), said)
        self.assertNotIn("hunter2", said)
        self.output("check", self.write("DBInfo = mysql://u:hunter2@h/d\nApp = email:app\n"))

    def test_all_of_that_is_told_at_once(self):
        path = self.write("DBInfo = a;b\nLog = /\n")
        self.assertEqual(self.run_command("check", path).stderr.count("\n"), 2)

    def warned(self, text):
        """The warnings of a check that succeeds."""
        result = self.run_command("check", self.write(text))
        self.assertEqual(result.exit_code, 0, result.stderr)
        return result.stderr

    def test_too_few_descriptors_are_warned_of(self):
        self.patch(checking.resource, "getrlimit", lambda which: (1024, 20000))
        said = self.warned("worker_connections = 1000000\n")
        self.assertIn("warning: worker_connections = 1000000 needs 1000105 file desc", said)
        self.assertIn("the hard limit is 20000: ", said)
        self.assertIn("; with this limit the server does not start\n", said)
        said = self.warned("worker_connections = 1000000\nOnFewDescriptors = warn\n")
        self.assertNotIn("does not start", said)
        self.assertEqual(self.warned("worker_connections = 1000\n"), "")
        self.patch(checking.resource, "getrlimit", lambda which: (1024, -1))
        self.assertEqual(self.warned("worker_connections = 1000000\n"), "")

    def test_folders_that_are_not_there_are_warned_of(self):
        said = self.warned("Log = /nowhere/a/error.log\nControl = /nowhere/b/control\n")
        self.assertIn(":1: Log: there is no folder /nowhere/a\n", said)
        self.assertIn(":2: Control: there is no folder /nowhere/b\n", said)
        said = self.warned("AppPath = /nowhere/c\n")
        self.assertIn(":1: AppPath: there is no /nowhere/c\n", said)

    def test_a_user_that_there_is_not_here_is_warned_of(self):
        said = self.warned("\nUser = no-such-user\n")
        self.assertIn(':2: User: there is no user "no-such-user"\n', said)
        said = self.warned("User = nobody\nGroup = no-such-group\n")
        self.assertIn(':2: Group: there is no group "no-such-group"\n', said)
        self.assertEqual(self.warned("User = nobody\n"), "")

    def test_masks_of_cpus_that_are_not_there_are_warned_of(self):
        before = os.sched_getaffinity(0)
        nowhere = "1" + "0" * 4000
        here = format(1 << min(before), "b")
        text = f"WorkerProcesses = 3\nworker_cpu_affinity = {nowhere} {here} {nowhere}\n"
        said = self.warned(text)
        self.assertIn(f":2: worker_cpu_affinity: none of the CPUs of 1{'0' * 76}... may be", said)
        self.assertEqual(said.count("\n"), 1)
        self.assertEqual(self.warned(f"worker_cpu_affinity = auto {here}\n"), "")
        self.assertEqual(os.sched_getaffinity(0), before)

    def test_a_key_that_anybody_may_read_is_warned_of(self):
        pem = self.write(b"".join(Authority().issue("localhost")).decode())
        os.chmod(pem, 0o644)
        text = f"Listen = 127.0.0.1:1 tls\nTlsCertificate = {pem}\n"
        result = self.run_command("check", self.write(text))
        self.assertEqual(result.exit_code, 0)
        self.assertIn(f"warning: TlsCertificate {pem}: mode 0644: any user may", result.stderr)

    def test_warnings_are_told_apart_from_the_settings(self):
        config = Config.parse("", base=os.getcwd())
        object.__setattr__(config, "warnings", ("likely a slip",))
        self.patch(checking.config, "check", lambda path, base: (config, []))
        result = self.run_command("check", "any.conf")
        self.assertEqual((result.exit_code, result.stderr), (0, "warning: likely a slip\n"))


class CallCase(Case):
    def setUp(self):
        self.patch(calling, "Client", FakeClient)
        self.patch(calling, "perf_counter", iter([1.0, 1.0004]).__next__)
        self.patch(FakeClient, "calls", [])
        self.patch(FakeClient, "reply", b"")
        self.patch(sys, "path", list(sys.path))

    def call(self, *arguments, reply=b"", **options):
        self.patch(FakeClient, "reply", reply)
        command = ("call", "127.0.0.1:5678", "--app", f"{__name__}:app", *arguments)
        return self.output(*command, **options)

    def refused(self, *arguments, **options):
        """The complaint about C{arguments}, at which nothing was sent."""
        command = ("call", "127.0.0.1:5678", "--app", f"{__name__}:app", *arguments)
        complaint = self.complaint(*command, **options)
        self.assertEqual(FakeClient.calls, [])
        return complaint


class CallTests(CallCase):
    def test_an_empty_answer_is_one_line(self):
        self.assertEqual(self.call("ping"), "ping: answered, no body, 0.4 ms\n")
        self.assertEqual(FakeClient.calls, [("127.0.0.1", 5678, 10.0), (0, b""), "closed"])

    def test_an_answer_s_fields_are_a_line_each(self):
        reply = LoginReply(username="a", token=b"\1\2", load=0.5).encode()
        self.assertEqual(
            self.call("login", "username=a", reply=reply),
            "login: answered, 20 bytes, 0.4 ms\n"
            "  username = 'a'\n  token = 01020000\n  load = 0.5\n",
        )

    def test_bytes_that_are_all_zero_are_only_counted(self):
        reply = LoginReply().encode()
        self.assertIn("  token = 4 zero bytes\n", self.call("login", reply=reply))

    def test_what_would_steer_a_terminal_is_escaped(self):
        reply = LoginReply(username="\x1b[2J").encode()
        self.assertIn(r"username = '\x1b[2J'", self.call("login", reply=reply))

    def test_fields_make_the_body(self):
        self.call("login", "username=a", "password=b=c", reply=LoginReply().encode())
        self.assertEqual(FakeClient.calls[1], (6, Login(username="a", password="b=c")))

    def test_a_code_of_the_application_is_as_good_as_its_name(self):
        self.call("6", "username=a", reply=LoginReply().encode())
        self.assertEqual(FakeClient.calls[1], (6, Login(username="a")))

    def test_the_timeout_is_passed_on(self):
        self.call("ping", "--timeout", "0.5")
        self.assertEqual(FakeClient.calls[0], ("127.0.0.1", 5678, 0.5))

    def test_without_a_reply_it_only_sends(self):
        self.assertEqual(self.call("echo", "--text", "x", "--no-reply"), "")
        self.assertEqual(FakeClient.calls[1], ("sent", 7, b"x"))

    def test_an_answer_of_the_wrong_size_is_an_error(self):
        self.patch(FakeClient, "reply", b"x")
        complaint = self.complaint("call", "a", "login", "--app", f"{__name__}:app")
        self.assertEqual(complaint, "login: 1 bytes, LoginReply has 20")

    def test_a_failed_request_is_an_error(self):
        self.patch(FakeClient, "reply", ConnectionClosed("the server closed\nit \x1b[2J"))
        complaint = self.complaint("call", "a", "ping", "--app", f"{__name__}:app")
        self.assertEqual(complaint, r"ping: the server closed\nit \x1b[2J")


class MeaningTests(CallCase):
    """What the replies of the bundled application say, behind the time it took."""

    def says(self, message, reply, *options):
        arguments = ("call", "127.0.0.1", message, "username=a", "password=b", *options)
        self.patch(FakeClient, "reply", reply.encode())
        self.patch(calling, "perf_counter", iter([1.0, 1.0004]).__next__)
        return self.output(*arguments)

    def test_a_wrong_login_is_refused(self):
        for reply, says in (
            (messages.LoginReply(), "refused: the name or the password is wrong"),
            (messages.LoginReply(username="a"), "done"),
            (messages.LoginReply(result=3), "refused for now: try again later"),
        ):
            (first, *_) = self.says("login", reply).splitlines()
            self.assertEqual(first, f"login: answered, 96 bytes, 0.4 ms: {says}")

    def test_a_registration_says_how_it_went(self):
        for result, says in (
            (0, "done"),
            (1, "refused: the name is taken"),
            (2, "refused: the name or the password is not acceptable"),
            (3, "refused for now: try again later"),
            (-7, "result -7"),
        ):
            reply = messages.RegisterReply(result=result)
            self.assertIn(f" ms: {says}\n", self.says("register", reply))

    def test_json_has_it_too(self):
        told = json.loads(self.says("login", messages.LoginReply(), "--json"))
        self.assertEqual(told["says"], "refused: the name or the password is wrong")


class RawCallTests(CallCase):
    def raw(self, *arguments, reply=b""):
        """Calls without an application that could be loaded."""
        self.patch(FakeClient, "reply", reply)
        return self.output("call", "127.0.0.1", "17", "--app", "none:given", *arguments)

    def test_hexadecimal_digits_are_answered_with_a_dump(self):
        self.assertEqual(
            self.raw("--hex", "00 ff", reply=b"\0A" * 9),
            "17: answered, 18 bytes, 0.4 ms\n"
            "  0000  00 41 00 41 00 41 00 41 00 41 00 41 00 41 00 41  .A.A.A.A.A.A.A.A\n"
            "  0010  00 41                                            .A\n",
        )
        self.assertEqual(FakeClient.calls[1], (17, b"\0\xff"))

    def test_text_is_answered_with_text(self):
        self.assertEqual(
            self.raw("--text", "hé", reply="hö\x1b\nyou\xff".encode("latin-1")),
            "17: answered, 8 bytes, 0.4 ms\n  h\ufffd\\x1b\n  you\ufffd\n",
        )
        self.assertEqual(FakeClient.calls[1], (17, "hé".encode()))

    def test_a_named_message_can_have_a_raw_body_too(self):
        self.call("login", "--hex", "00", reply=LoginReply().encode())
        self.assertEqual(FakeClient.calls[1], (6, b"\0"))

    def test_a_code_that_the_application_does_not_have_is_sent_without_a_body(self):
        self.call("99")
        self.assertEqual(FakeClient.calls[1], (99, b""))

    def test_as_json(self):
        self.assertEqual(
            json.loads(self.raw("--hex", "", "--json", reply=b"\1")),
            {"code": 17, "name": "17", "seconds": 0.0004, "hex": "01"},
        )


class JsonTests(CallCase):
    def test_fields_are_values_and_bytes_are_hexadecimal(self):
        reply = LoginReply(username="é", token=b"\1", load=0.5).encode()
        told = json.loads(self.call("login", "--json", reply=reply))
        self.assertEqual(told["fields"], {"username": "é", "token": "01000000", "load": 0.5})

    def test_what_json_has_no_number_for_is_text(self):
        reply = LoginReply(load=float("nan")).encode()
        told = json.loads(self.call("login", "--json", reply=reply))
        self.assertEqual(told["fields"]["load"], "nan")

    def test_text_stays_text(self):
        told = json.loads(self.call("echo", "--text", "x", "--json", reply=b"y"))
        self.assertEqual(told["text"], "y")


class RefusedCallTests(CallCase):
    def test_an_unknown_message_is_told_with_those_there_are(self):
        self.assertEqual(
            self.refused("lugin"),
            f"lugin: not a message of {__name__}:app; "
            "it has ping (no body), login (username password), echo (bytes)",
        )

    def test_an_unknown_field_is_told_with_those_there_are(self):
        for field_ in ("usename=a", "usename=-"):
            self.assertEqual(
                self.refused("login", field_),
                "login: Login has no field 'usename'; its fields: username, password",
            )

    def test_fields_for_what_has_none_are_refused(self):
        self.assertIn("it has no fields; its body: no body", self.refused("ping", "a=b"))
        self.assertIn("it has no fields; its body: bytes", self.refused("echo", "a=b"))
        self.assertIn("99: not a message of", self.refused("99", "a=b"))

    def test_what_is_no_field_is_refused(self):
        self.assertIn("'username' is not FIELD=VALUE", self.refused("login", "username"))
        self.assertIn("username is given twice", self.refused("login", "username=", "username="))

    def test_an_application_that_is_missing_is_told(self):
        self.assertEqual(
            self.complaint("call", "a", "ping", "--app", "nowhere_at_all:app"),
            "ping: there is no module nowhere_at_all",
        )

    def test_a_code_that_is_none_is_refused(self):
        self.assertEqual(self.refused("65536", "--hex", ""), "65536: codes go from 0 to 65535")

    def test_two_bodies_are_a_wrong_usage(self):
        for arguments in (["--hex", "00", "--text", "x"], ["--hex", "00", "a=b"]):
            self.assertIn("one of them only", self.usage_error("call", "a", "5", *arguments))

    def test_what_is_no_hexadecimal_number_is_a_wrong_usage(self):
        self.assertIn("'0' is not", self.usage_error("call", "a", "5", "--hex", "0"))


class TargetTests(CallCase):
    def target(self, text):
        self.patch(calling, "perf_counter", lambda: 0.0)
        del FakeClient.calls[:]
        self.output("call", text, "17", "--hex", "")
        return FakeClient.calls[0][:2]

    def test_host_and_port(self):
        self.assertEqual(self.target("example.org:99"), ("example.org", 99))
        self.assertEqual(self.target("[::1]:99"), ("::1", 99))

    def test_the_port_is_5678_unless_given(self):
        for text in ("127.0.0.1", "::1", "[::1]"):
            self.assertEqual(self.target(text), (text.strip("[]"), 5678))

    def test_what_is_no_target_is_a_wrong_usage(self):
        for text in ("a:", ":5", "a:0", "a:65536", "a:x", "a:\u0661", "[::1", "[::1]x", "5678", ""):
            self.assertIn("is not HOST or HOST:PORT", self.usage_error("call", text, "0"))


class SecretTests(CallCase):
    def test_it_is_a_line_of_standard_input(self):
        self.call("login", "password=-", input="se=c \nrest\n", reply=LoginReply().encode())
        self.assertEqual(FakeClient.calls[1], (6, Login(password="se=c ")))

    def test_two_are_two_lines(self):
        reply = LoginReply().encode()
        self.call("login", "password=-", "username=-", input="one\ntwo\n", reply=reply)
        self.assertEqual(FakeClient.calls[1], (6, Login(password="one", username="two")))

    def test_input_that_has_ended_is_told(self):
        self.assertEqual(
            self.refused("login", "password=-", input=""),
            "login: standard input has no line for password=-",
        )

    def test_a_terminal_is_asked_without_echo(self):
        asked = []
        self.patch(calling, "is_terminal", lambda: True)
        self.patch(calling.click, "prompt", lambda text, **kw: asked.append((text, kw)) or "s")
        self.call("login", "password=-", reply=LoginReply().encode())
        self.assertEqual(asked[0][0], "password")
        self.assertTrue(asked[0][1]["hide_input"])
        self.assertEqual(FakeClient.calls[1], (6, Login(password="s")))


class StartTests(Case):
    def started(self, text, *arguments):
        """The arguments that twistd gets, but for its name and the configuration's."""
        ran = []
        self.patch(starting, "run_twistd", ran.append)
        path = self.write(text)
        self.output("start", "--config", path, *arguments)
        (line,) = ran
        self.assertEqual((line[0], line[-3:]), ("twistd", ["ccserver", "--config", path]))
        return line[1:-3]

    def test_in_the_foreground(self):
        self.assertEqual(self.started(""), ["--nodaemon"])

    def test_in_the_background_where_the_file_says_so(self):
        self.assertEqual(self.started("Daemon = 1\n"), [])

    def test_in_the_foreground_all_the_same(self):
        self.assertEqual(self.started("Daemon = 1\n", "-n"), ["--nodaemon"])

    def test_options_are_passed_on(self):
        self.assertEqual(
            self.started("Daemon = 1\n", "--uid", "nobody", "--pidfile=", "-d", "/run"),
            ["--pidfile=", "--rundir=/run", "--uid", "nobody"],
        )

    def test_a_wrong_file_starts_nothing(self):
        ran = []
        self.patch(starting, "run_twistd", ran.append)
        self.complaint("start", "--config", self.write("Nonsense = 1\n"))
        self.assertEqual(ran, [])

    def test_a_file_without_its_option_is_a_wrong_usage(self):
        self.assertIn("--config FILE", self.usage_error("start", "etc/ccserver.conf"))

    def test_twistd_runs_with_its_arguments(self):
        import twisted.scripts.twistd

        seen = []
        self.patch(sys, "argv", ["ccserver"])
        self.patch(twisted.scripts.twistd, "run", lambda: seen.append(list(sys.argv)))
        starting.run_twistd(["twistd", "-n"])
        self.assertEqual(seen, [["twistd", "-n"]])
