"""TLS with real clients: Python's and OpenSSL's own."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import tempfile
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.framing import encode
from tests.authority import Authority, written
from tests.functional.codes import CLOSE, LATER, REACTOR, THREAD
from tests.functional.operator import Operator, Refused
from tests.functional.server import TIMEOUT, Client, ServerProcess, measured, wait_until
from tests.functional.stopwatch import Stopwatch
from tests.ports import free_port


class TlsClient(Client):
    """A L{Client} that speaks TLS."""

    def __init__(self, port: int, context: ssl.SSLContext, host: str | None = "localhost") -> None:
        Client.__init__(self, port)
        try:
            self.socket: Any = context.wrap_socket(self.socket, server_hostname=host)
        except BaseException:
            self.socket.close()
            raise

    @property
    def certificate(self) -> bytes:
        """The server's, in DER."""
        found = self.socket.getpeercert(True)
        assert isinstance(found, bytes)
        return found


class TlsCase(SynchronousTestCase):
    """Tests with a server that listens with TLS and without."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.authority = Authority()

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def issued(self, name: str, *hosts: str, authority: Authority | None = None) -> str:
        """The path of a file with a new certificate and its key."""
        return written(self.path(name), *(authority or self.authority).issue(*hosts))

    def running(self, **settings: object) -> ServerProcess:
        """A server whose port C{tls} is encrypted; with a certificate for C{localhost}."""
        self.tls = free_port()
        port = free_port()
        if "TlsCertificate" not in settings:
            settings["TlsCertificate"] = self.issued("server.pem", "localhost")
        server = ServerProcess(Listen=f"127.0.0.1:{port}, 127.0.0.1:{self.tls} tls", **settings)
        server.port = port
        self.addCleanup(server.close)
        server.start()
        return server

    def context(self, authority: Authority | None = None) -> ssl.SSLContext:
        """Believes in the authority."""
        pem = (authority or self.authority).pem
        return ssl.create_default_context(cadata=pem.decode())

    def openssl(self, *options: str) -> subprocess.CompletedProcess[bytes]:
        """What OpenSSL's own client makes of an echo, and the server's closing behind it."""
        return subprocess.run(
            [
                *("openssl", "s_client", "-connect", f"127.0.0.1:{self.tls}", "-quiet"),
                *("-CAfile", written(self.path("ca.pem"), self.authority.pem)),
                *("-verify_return_error", "-servername", "localhost", *options),
            ],
            input=encode(REACTOR, b"hello") + encode(CLOSE),
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )

    def connect(self, context: ssl.SSLContext | None = None, host: str = "localhost") -> TlsClient:
        client = TlsClient(self.tls, context or self.context(), host)
        self.addCleanup(client.close)
        return client


class ConversationTests(TlsCase):
    def test_packets_of_any_size_are_answered_through_tls_1_2_and_1_3(self):
        self.running()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = self.context()
            context.minimum_version = context.maximum_version = version
            client = self.connect(context)
            for code in (REACTOR, THREAD):
                for size in (0, 1, 16384, 28992):
                    body = os.urandom(size)
                    self.assertEqual(client.ask(code, body), body)

    def test_a_client_that_ends_its_side_gets_what_it_asked_for(self):
        self.running()
        with_notice = self.connect()
        with_notice.send((LATER, b"300"), (REACTOR, b"x"))
        raw = with_notice.socket
        with contextlib.suppress(ssl.SSLWantReadError):
            raw.setblocking(False)
            raw.unwrap()
        raw.setblocking(True)
        raw.settimeout(TIMEOUT)
        self.assertEqual(_rest(raw), encode(LATER, b"300") + encode(REACTOR, b"x"))

    def test_a_close_by_the_server_ends_the_stream_properly(self):
        self.running()
        client = self.connect()
        client.send((CLOSE, b""))
        client.rest()  # an end without a close_notify would be an error
        self.assertEqual(client.socket.recv(1), b"")

    def test_openssl_gets_an_answer(self):
        self.running()
        ran = self.openssl()
        self.assertIn(encode(REACTOR, b"hello"), ran.stdout, ran.stderr)


class RefusalTests(TlsCase):
    def test_versions_before_1_2_are_refused(self):
        server = self.running()
        ran = self.openssl("-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
        self.assertIn(b"alert protocol version", ran.stderr)
        self.assertNotEqual(ran.returncode, 0)
        self.assertIn("tls: 127.0.0.1:", server.log)
        self.assertIn("refused: unsupported protocol", server.log)

    def test_a_second_handshake_in_a_connection_is_refused(self):
        self.running()
        options = ("openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{self.tls}")
        pipe = subprocess.PIPE
        with subprocess.Popen(options, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as client:
            self.addCleanup(client.kill)
            assert client.stdin is not None
            assert client.stdout is not None
            while b"Verify return code" not in client.stdout.readline():
                self.assertIs(client.poll(), None)
            client.stdin.write(b"R\n")
            client.stdin.flush()
            self.assertIn(b"no renegotiation", client.stdout.read())

    def test_host_names_that_are_none_are_no_flood_of_lines_anywhere(self):
        paths = self.issued("a.pem", "localhost"), self.issued("b.pem", "b.example")
        server = self.running(TlsCertificate=", ".join(paths))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.context().wrap_bio(incoming, outgoing, server_hostname="xxxx.example")
        self.assertRaises(ssl.SSLWantReadError, client.do_handshake)
        hello = outgoing.read().replace(b"xxxx.", b"\xff\n\x1b\x80.")
        began = time.monotonic()
        for _ in range(50):
            with Client(self.tls) as odd:
                odd.socket.sendall(hello)
                _until_closed(odd)
        self.assertEqual(self.connect().ask(REACTOR, b"x"), b"x")
        lines = server.log.count("UnicodeDecodeError")
        self.assertLessEqual(lines, time.monotonic() - began + 2)
        self.assertNotIn("Exception ignored", server.stderr)
        self.assertIn("tls: 127.0.0.1:", server.log)

    def test_1_2_is_refused_where_1_3_is_asked_for(self):
        self.running(TlsMinVersion="1.3")
        context = self.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.assertRaises(ssl.SSLError, self.connect, context)
        self.assertEqual(self.connect().ask(REACTOR, b"x"), b"x")

    def test_who_speaks_in_clear_is_closed_at_once_and_who_stalls_at_the_deadline(self):
        server = self.running(TlsHandshakeTimeout="2s")
        stalling, halfway = Client(self.tls), Client(self.tls)
        halfway.socket.sendall(b"\x16\x03\x01\x02\x00\x01")
        with Stopwatch(server) as watch:
            start = time.monotonic()
            for data in (encode(REACTOR, bytes(100)), b"GET / HTTP/1.0\r\n\r\n"):
                with Client(self.tls) as clear:
                    clear.socket.sendall(data)
                    _until_closed(clear)
            closed = time.monotonic()
            for client in (stalling, halfway):
                with client:
                    _until_closed(client)
        self.assertLess(watch.own(start, closed), 1.0)
        self.assertGreater(watch.elapsed, 1.9)
        self.assertLess(watch.seconds, 4)
        wait_until(lambda: server.log.count("tls: 127.0.0.1:") == 4, "four refusals")
        self.assertEqual(self.connect().ask(REACTOR, b"x"), b"x")

    def test_a_client_that_never_reads_is_cut_at_the_end(self):
        server = self.running(ShutdownTimeout="1s")
        client = self.connect()
        body = bytes(28000)
        client.socket.settimeout(1)
        with contextlib.suppress(OSError):
            while True:
                client.send((REACTOR, body))
        memory = _memory(server)
        self.assertLess(memory, 200 << 20)
        server.send_signal(signal.SIGQUIT)
        self.assertEqual(server.wait(), 0)


class ClientCertificateTests(TlsCase):
    def test_one_that_is_required_has_to_be_there_and_signed_by_the_right_one(self):
        self.running(
            TlsClientCertificates="required",
            TlsClientCa=written(self.path("ca.pem"), self.authority.pem),
        )
        context = self.context()
        self.assertRaises(OSError, self._answer, context)
        context.load_cert_chain(self.issued("stranger.pem", "c", authority=Authority("other")))
        self.assertRaises(OSError, self._answer, context)
        context = self.context()
        context.load_cert_chain(self.issued("client.pem", "client"))
        self.assertEqual(self._answer(context), b"x")

    def test_one_that_is_optional_may_be_missing_but_not_wrong(self):
        self.running(
            TlsClientCertificates="optional",
            TlsClientCa=written(self.path("ca.pem"), self.authority.pem),
        )
        context = self.context()
        self.assertEqual(self._answer(context), b"x")
        context.load_cert_chain(self.issued("stranger.pem", "c", authority=Authority("other")))
        self.assertRaises(OSError, self._answer, context)

    def _answer(self, context: ssl.SSLContext) -> bytes:
        return self.connect(context).ask(REACTOR, b"x")


class NameTests(TlsCase):
    def test_a_client_gets_the_certificate_for_the_host_that_it_asks_for(self):
        files = [
            self.issued("a.pem", "a.example", "localhost"),
            self.issued("b.pem", "b.example", "*.b.example"),
        ]
        self.running(TlsCertificate=", ".join(files))
        for host, place in (("a.example", 0), ("b.example", 1), ("x.b.example", 1)):
            client = self.connect(host=host)
            self.assertEqual(client.certificate, _der(files[place]), host)
            self.assertEqual(client.ask(REACTOR, b"x"), b"x")
        context = self.context()
        context.check_hostname = False
        for host in ("unknown.example", None):
            client = TlsClient(self.tls, context, host)
            self.addCleanup(client.close)
            self.assertEqual(client.certificate, _der(files[0]), host)


class RenewalTests(TlsCase):
    def test_certificates_change_under_200_connections_of_which_none_closes(self):
        path = self.issued("server.pem", "localhost")
        old = _der(path)
        server = self.running(TlsCertificate=path, workers=2)
        workers = server.workers()
        context = self.context()
        clients = [self.connect(context) for _ in range(200)]
        self.issued("server.pem", "localhost")
        new = _der(path)
        start = time.monotonic()
        wait_until(lambda: self._certificates(context, 20) == {new}, "the new certificate")
        measured("seconds until all workers have a new certificate", time.monotonic() - start)
        for number, client in enumerate(clients):
            self.assertEqual(client.certificate, old)
            body = b"%d" % number
            self.assertEqual(client.ask(THREAD, body), body)
        self.assertEqual(server.workers(), workers)

    def test_an_operator_has_them_changed_at_once(self):
        path = self.issued("server.pem", "localhost")
        server = self.running(TlsCertificate=path, workers=2)
        operator = Operator(server)
        client = self.connect()
        self.issued("server.pem", "localhost", "new.example")
        told = operator.ask("certificates")["certificates"]
        self.assertIn("localhost new.example until 20", told[0])
        self.assertEqual(self._certificates(self.context(), 20), {_der(path)})
        self.assertEqual(client.ask(REACTOR, b"x"), b"x")
        written(path, b"nonsense")
        error = self.assertRaises(Refused, operator.ask, "certificates")
        self.assertIn("there is no certificate in PEM in it", str(error))
        self.assertEqual(self.connect().ask(REACTOR, b"x"), b"x")

    def test_status_tells_until_when_the_one_is_valid_that_clients_get(self):
        path = self.issued("server.pem", "localhost")
        server = self.running(TlsCertificate=path, workers=2)
        operator = Operator(server)
        (told,) = operator.ask("status")["certificates"]
        self.assertEqual((told["path"], told["listening"]), (path, [f"127.0.0.1:{self.tls}"]))
        self.assertTrue(360 < told["days_left"] < 365.1, told)
        written(path, self.authority.issue("localhost", ends=5)[0])  # and no key: stays unused
        wait_until(lambda: "certificates stay as they were" in server.log, "the error")
        self.assertEqual(operator.ask("status")["certificates"][0]["not_after"], told["not_after"])
        written(path, *self.authority.issue("localhost", ends=5))
        operator.ask("certificates")

        def days_left() -> float:
            (renewed,) = operator.ask("status")["certificates"]
            return float(renewed["days_left"])

        wait_until(lambda: 4 < days_left() < 5.1, "the new certificate, in a beat of each worker")

    def test_a_bad_certificate_keeps_the_old_one(self):
        path = self.issued("server.pem", "localhost")
        old = _der(path)
        server = self.running(TlsCertificate=path)
        written(path, self.authority.issue("localhost")[0])
        wait_until(lambda: "certificates stay as they were" in server.log, "the error")
        self.assertIn(f"TlsCertificate {path}: there is no key in PEM in it", server.log)
        self.assertEqual(self._certificates(self.context(), 1), {old})

    def test_a_reload_with_a_bad_certificate_changes_nothing(self):
        path = self.issued("server.pem", "localhost")
        server = self.running(TlsCertificate=path)
        workers = server.workers()
        client = self.connect()
        written(path, b"nonsense")
        server.send_signal(signal.SIGHUP)
        text = f"TlsCertificate {path}: there is no certificate in PEM in it"
        wait_until(lambda: text in server.log and "reload" in server.log, "the reload to fail")
        self.assertEqual(client.ask(REACTOR, b"x"), b"x")
        self.assertEqual(self.connect().ask(REACTOR, b"x"), b"x")
        self.assertEqual(server.workers(), workers)

    def test_a_reload_drains_and_answers_and_new_connections_are_served(self):
        server = self.running()
        workers = server.workers()
        idle, busy, plain = self.connect(), self.connect(), server.connect()
        self.addCleanup(plain.close)
        for client in (idle, busy, plain):
            client.ask(REACTOR, b"x")
        busy.send((LATER, b"500"), (REACTOR, b"y"))
        server.send_signal(signal.SIGHUP)
        self.assertEqual(idle.rest(), [])
        self.assertEqual(busy.rest(), [(LATER, b"500"), (REACTOR, b"y")])
        self.assertEqual(plain.ask(REACTOR, b"z"), b"z")
        self.assertEqual(self.connect().ask(REACTOR, b"x"), b"x")
        wait_until(lambda: len(server.workers()) == 1 and server.workers() != workers, "its end")
        self.assertIn("2 tls", server.log)

    def test_a_server_without_a_good_certificate_does_not_start_and_says_why(self):
        path = written(self.path("server.pem"), self.authority.issue("localhost")[0])
        server = ServerProcess(
            Listen=f"127.0.0.1:{free_port()} tls", TlsCertificate=path, TlsKey=path
        )
        self.addCleanup(server.close)
        server.launch()
        self.assertNotEqual(server.wait(), 0)
        self.assertIn(f"TlsKey {path}: there is no key in PEM in it", server.stderr + server.log)

    def _certificates(self, context: ssl.SSLContext, count: int) -> set[bytes]:
        """The certificates that so many new connections get."""
        found = set()
        for _ in range(count):
            with TlsClient(self.tls, context) as client:
                found.add(client.certificate)
        return found


def _der(path: str) -> bytes:
    with open(path) as file:
        text = file.read()
    start = text.index("-----BEGIN CERTIFICATE")
    end = text.index("-----END CERTIFICATE-----") + 25
    return ssl.PEM_cert_to_DER_cert(text[start:end])


def _memory(server: ServerProcess) -> int:
    """The resident bytes of the first worker."""
    with open(f"/proc/{server.workers()[0]}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _until_closed(client: Client) -> None:
    with contextlib.suppress(ConnectionResetError):
        while client.socket.recv(65536):
            pass


def _rest(raw: ssl.SSLSocket) -> bytes:
    """What comes until the server says that there is no more."""
    data = b""
    with contextlib.suppress(ssl.SSLZeroReturnError):
        while more := raw.recv(65536):
            data += more
    return data
