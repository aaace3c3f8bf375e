"""Our transport under TLS, which takes Twisted's own path through it."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

import ccserver

ROOT = Path(ccserver.__file__).parent.parent


def certificate(path: Path) -> None:
    """Write a key and a certificate for C{localhost}, signed with it, to C{path}."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))


class OurTransportTests(SynchronousTestCase):
    def test_tls_works_on_our_reactor(self):
        self._talk("direct")

    def test_tls_works_on_the_stock_reactor(self):
        self._talk("stock")

    def _talk(self, kind: str) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        pem = Path(folder.name, "server.pem")
        certificate(pem)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.functional.tls_echo", str(pem), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
            text=True,
        )
        self.addCleanup(_end, server)
        assert server.stdout is not None
        port = int(server.stdout.readline())
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.check_hostname = False
        trust.verify_mode = ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", port), timeout=20) as clear:
            greeting = b"".join(clear.recv(1) for _ in range(6))
            self.assertEqual(greeting, b"clear\n")
            with trust.wrap_socket(clear) as client:
                for text in (b"hello", os.urandom(200_000), b"bye"):
                    client.sendall(text)
                    self.assertEqual(_read(client, len(text)), text)
                self.assertEqual(client.recv(1), b"")


def _end(server: subprocess.Popen[str]) -> None:
    try:
        server.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.communicate()
        raise


def _read(client: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = client.recv(count - len(data))
        if not part:
            break
        data += part
    return data
