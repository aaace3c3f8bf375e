import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from tests.functional import apps
from tests.functional.server import ServerProcess
from tests.ports import bind

EXIT_CONFIG, EXIT_START, EXIT_APP = 1, 3, 4


class FailureCase(SynchronousTestCase):
    def failed(self, server, status):
        """Start C{server}, which ends with C{status}; what it says on stderr."""
        self.addCleanup(server.close)
        server.launch()
        self.assertEqual((server.wait(), server.stderr and status), (status, status))
        self.assertEqual(server.processes(), [])
        self.assertFalse(os.path.exists(server.path("twistd.pid")))
        self.assertTrue(os.path.exists(server.path("ccserver.conf")))
        return server.stderr

    def line(self, server, status):
        """As L{failed}, but what it says must be one line."""
        said = self.failed(server, status)
        self.assertEqual(said.count("\n"), 1, said)
        return said.rstrip("\n")


class PortTests(FailureCase):
    def taken(self, share):
        server = ServerProcess(LogLevel=6)
        with bind(server.port, share) as foreign:
            foreign.listen()
            said = self.line(server, EXIT_CONFIG)
        why = f"ccserver: cannot listen on 127.0.0.1:{server.port}: Address already in use"
        self.assertTrue(said.endswith(why), said)
        self.assertIn(why, server.log)

    def test_a_port_that_another_has(self):
        self.taken(share=False)

    def test_a_port_that_another_would_share(self):
        self.taken(share=True)

    def test_a_port_that_a_ccserver_has_and_keeps(self):
        with ServerProcess() as first:
            second = ServerProcess(Listen=f"127.0.0.1:{first.port}", LogLevel=6)
            self.assertIn("cannot listen on", self.line(second, EXIT_CONFIG))
            with first.connect() as client:
                self.assertEqual(client.ask(apps.REACTOR, b"body"), b"body")

    def test_a_port_in_time_wait_is_free(self):
        with ServerProcess() as server:
            client = server.connect()
            client.ask(apps.PING)
            server.stop()
            self.assertEqual(client.rest(), [])
            client.close()
            os.truncate(server.path("error.log"), 0)
            server.start()


class ConfigurationTests(FailureCase):
    def refused(self, server, *words):
        """The one line names all C{words}, and nothing was opened."""
        said = self.line(server, EXIT_CONFIG)
        for word in words:
            self.assertIn(word, said)
        self.assertFalse(os.path.exists(server.path("error.log")))

    def test_an_unknown_key(self):
        server = ServerProcess()
        server.write("ccserver.conf", b"[Net]\n\nWorker_Conections = 7\n")
        self.refused(server, "ccserver.conf:3:", "Worker_Conections", "worker_connections")

    def test_a_number_that_is_none(self):
        server = ServerProcess()
        server.write("ccserver.conf", b"[Net]\nworker_connections = many\n")
        self.refused(server, "ccserver.conf:2:", "worker_connections", "many")

    def test_a_number_out_of_its_bounds(self):
        server = ServerProcess()
        server.write("ccserver.conf", b"[Net]\nMaxPacketLength = 70000\n")
        self.refused(server, "ccserver.conf:2:", "MaxPacketLength", "65535")

    def test_a_file_that_is_not_there(self):
        server = ServerProcess()
        os.rename(server.path("ccserver.conf"), server.path("other.conf"))
        self.addCleanup(server.close)
        server.launch()
        self.assertEqual(server.wait(), EXIT_CONFIG)
        self.assertRegex(server.stderr, r"\Accserver: ccserver\.conf: .*[Nn]o such file.*\n\Z")
        self.assertEqual(sorted(os.listdir(server.folder)), ["other.conf", "stderr", "stdout"])

    def test_several_faults_are_a_line_each(self):
        server = ServerProcess()
        server.write("ccserver.conf", b"[Net]\nMaxPacketLength = 1\nworker_connections = x\n")
        said = self.failed(server, EXIT_CONFIG)
        self.assertRegex(
            said, r"\Accserver: ccserver\.conf:2: .*\nccserver: ccserver\.conf:3: .*\n\Z"
        )


class LogTests(FailureCase):
    def test_a_log_in_a_folder_that_is_not_there(self):
        said = self.line(ServerProcess(Log="missing/error.log", LogLevel=6), EXIT_CONFIG)
        self.assertIn("missing/error.log", said)
        self.assertIn("No such file or directory", said)

    def test_a_log_that_is_a_folder(self):
        server = ServerProcess(Log="folder", LogLevel=6)
        os.mkdir(server.path("folder"))
        self.assertIn("Is a directory", self.line(server, EXIT_CONFIG))


class PidFileTests(FailureCase):
    def test_in_a_folder_that_is_not_there(self):
        server = ServerProcess()
        server.pid_file = "missing/a.pid"
        why = "ccserver: cannot write the pid file missing/a.pid: No such file or directory"
        self.assertEqual(self.line(server, EXIT_CONFIG), why)


class ApplicationTests(FailureCase):
    def refused(self, app, status, *words, workers=2, source=None):
        server = ServerProcess(app, workers=workers)
        if source is not None:
            server.write("mine.py", source)
        said = self.failed(server, status)
        for word in words:
            self.assertIn(word, server.log)
            self.assertIn(word, said)
        self.assertTrue(server.is_port_free())
        return said

    def test_a_module_that_is_not_there(self):
        for workers in (2, 0):
            why = "cannot start: there is no module nowhere"
            said = self.refused("nowhere:app", EXIT_APP, why, workers=workers)
            self.assertEqual(said.count("nowhere"), 1, said)
            self.assertNotIn("Traceback", said)

    def test_a_module_whose_import_fails(self):
        for workers in (2, 0):
            said = self.refused(
                "mine:app",
                EXIT_APP,
                "importing mine failed: ZeroDivisionError",
                "mine.py, line 2",
                workers=workers,
                source=b"\n1 / 0\n",
            )
            self.assertIn("Traceback", said)  # for the author of the application

    def test_an_attribute_that_is_not_there(self):
        self.refused("tests.functional.apps:ecko", EXIT_APP, "no attribute 'ecko'")

    def test_an_attribute_that_is_no_application(self):
        self.refused("tests.functional.apps:PING", EXIT_APP, "not an App")

    def test_two_handlers_for_one_code(self):
        source = (
            b"from ccserver import App\napp = App()\n"
            b"@app.message(1)\nasync def one(session, request: bytes): pass\n"
            b"@app.message(1)\nasync def other(session, request: bytes): pass\n"
        )
        self.refused("mine:app", EXIT_APP, "message code 1 has two handlers", source=source)

    def test_a_start_hook_that_raises(self):
        for workers in (2, 0):
            self.refused(
                "tests.functional.apps:refuses_to_start",
                EXIT_START,
                "start hook refuse raised RuntimeError: the licence has expired",
                workers=workers,
            )

    def test_a_database_that_is_not_supported_is_a_wrong_configuration(self):
        server = ServerProcess("ccserver.accounts:app", workers=2, DBInfo="mysql://u:p@h/d")
        said = self.failed(server, EXIT_CONFIG)
        self.assertEqual(said.count("DBInfo names a database that is not supported"), 1, said)
        self.assertRegex(said, r"cannot start: ccserver\.conf:[0-9]+: DBInfo names")
        self.assertNotIn("Traceback", said)

    def test_a_process_that_ends_in_its_start(self):
        self.refused(
            "mine:app", EXIT_START, "exited with status 77", source=b"import os\nos._exit(77)\n"
        )


class UnreachableTests(FailureCase):
    def test_an_address_that_is_not_ours(self):
        said = self.line(ServerProcess(Listen="192.0.2.1:15999", LogLevel=6), EXIT_CONFIG)
        self.assertIn("cannot listen on 192.0.2.1:15999", said)

    def test_of_several_ports_one_is_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as foreign:
            port = foreign.getsockname()[1]
            server = ServerProcess()
            listen = f"Listen = 127.0.0.1:{server.port}, 127.0.0.1:{port}\n"
            server.write("ccserver.conf", listen.encode())
            self.assertIn(f"127.0.0.1:{port}", self.line(server, EXIT_CONFIG))
            self.assertTrue(server.is_port_free())
