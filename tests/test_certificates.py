"""Certificates: what files make of connections, and what is said of wrong ones."""

from __future__ import annotations

import builtins
import dataclasses
import os
import ssl
import time
from typing import Any

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from twisted.trial.unittest import SynchronousTestCase

from ccserver.certificates import EXPIRY_NOTICE, Certificates
from ccserver.config import TlsSettings
from ccserver.errors import StartError
from tests.authority import Authority, written
from tests.support import folder

DAY = 86400.0


class CertificateCase(SynchronousTestCase):
    """Writes certificates into a folder, and reads them."""

    authority = Authority()

    def setUp(self) -> None:
        self.folder = folder(self)
        self.now = time.time()

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def written(self, name: str, *parts: bytes) -> str:
        return written(self.path(name), *parts)

    def issued(self, file: str, *hosts: str, **more: Any) -> str:
        """The path of a file with a new certificate and its key."""
        return self.written(file, *self.authority.issue(*hosts, **more))

    def certificates(self, *paths: str, **settings: Any) -> Certificates:
        return Certificates(
            dataclasses.replace(TlsSettings(), certificates=paths, **settings), lambda: self.now
        )

    def loaded(self, *paths: str, **settings: Any) -> Certificates:
        certificates = self.certificates(*paths, **settings)
        certificates.load()
        return certificates

    def refusal(self, *paths: str, **settings: Any) -> str:
        text = str(self.assertRaises(StartError, self.loaded, *paths, **settings))
        self.assertNotIn("\n", text)
        return text

    def shake_hands(self, server: ssl.SSLContext, host: str = "localhost") -> list[bytes]:
        """The chain that a client who asks for C{host} gets, and believes, in DER."""
        trust = ssl.create_default_context(cadata=self.authority.pem.decode())
        trust.check_hostname = False
        trust.verify_flags |= ssl.VERIFY_X509_STRICT  # as from Python 3.13 on
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = server.wrap_bio(to_server, to_client, server_side=True)
        theirs = trust.wrap_bio(to_client, to_server, server_hostname=host)
        for _ in range(3):
            for side in (theirs, ours):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    pass
        found = theirs.getpeercert(True)
        assert found is not None
        return [found]

    def der(self, path: str) -> bytes:
        with open(path) as file:
            return ssl.PEM_cert_to_DER_cert(file.read().partition("-----BEGIN PRIVATE")[0])


class FileTests(CertificateCase):
    def test_certificate_and_key_may_share_a_file_or_have_their_own(self):
        certificate, key = self.authority.issue("localhost")
        for parts in ((certificate, key), (key, b"# text\n", certificate)):
            path = self.written("both.pem", *parts)
            self.assertEqual(
                self.shake_hands(self.loaded(path).context), [self.der_of(certificate)]
            )
        path = self.written("cert.pem", certificate)
        alone = self.loaded(path, keys=(self.written("key.pem", key),))
        self.assertEqual(self.shake_hands(alone.context), [self.der_of(certificate)])

    def der_of(self, pem: bytes) -> bytes:
        return ssl.PEM_cert_to_DER_cert(pem.decode())

    def test_a_chain_is_sent_from_the_same_file_or_its_own(self):
        between = Authority("between", above=self.authority)
        certificate, key = between.issue("localhost")
        whole = self.loaded(self.written("whole.pem", certificate, between.pem, key))
        self.shake_hands(whole.context)  # which fails without the certificate between
        path, chain = self.written("a.pem", certificate, key), self.written("b.pem", between.pem)
        self.shake_hands(self.loaded(path, chains=(chain,)).context)
        self.assertRaises(ssl.SSLCertVerificationError, self.shake_hands, self.loaded(path).context)

    def test_a_certificate_is_chosen_by_its_names(self):
        paths = [
            self.issued("a.pem", "a.example"),
            self.issued("b.pem", "B.example", "*.b.example"),
            self.issued("c.pem", name="c.example"),
        ]
        context = self.loaded(*paths).context
        for host, place in (
            ("a.example", 0),
            ("b.EXAMPLE", 1),
            ("x.b.example", 1),
            ("x.y.b.example", 0),
            ("c.example", 2),
            ("other", 0),
        ):
            self.assertEqual(self.shake_hands(context, host), [self.der(paths[place])], host)

    def test_what_holds_of_clients_and_versions_is_set(self):
        path = self.issued("a.pem", "localhost")
        authority = self.written("ca.pem", self.authority.pem, Authority("other").pem)
        context = self.loaded(
            path, client_ca=(authority,), client_certificates="required", min_version="1.3"
        ).context
        self.assertEqual(context.verify_mode, ssl.CERT_REQUIRED)
        self.assertEqual(context.cert_store_stats()["x509_ca"], 2)
        self.assertEqual(context.minimum_version, ssl.TLSVersion.TLSv1_3)
        usual = self.loaded(path).context
        self.assertEqual(usual.verify_mode, ssl.CERT_NONE)
        self.assertEqual(usual.minimum_version, ssl.TLSVersion.TLSv1_2)
        self.assertTrue(usual.options & ssl.OP_NO_RENEGOTIATION)
        self.assertTrue(usual.options & ssl.OP_NO_COMPRESSION)

    def test_ciphers_are_those_that_are_named(self):
        path = self.issued("a.pem", "localhost")
        context = self.loaded(path, ciphers="ECDHE-ECDSA-AES256-GCM-SHA384").context
        names = [each["name"] for each in context.get_ciphers() if each["protocol"] == "TLSv1.2"]
        self.assertEqual(names, ["ECDHE-ECDSA-AES256-GCM-SHA384"])


class RefusalTests(CertificateCase):
    def test_a_file_that_is_missing_or_none_is_named(self):
        path = self.path("missing.pem")
        self.assertEqual(self.refusal(path), f"TlsCertificate {path}: No such file or directory")
        self.assertIn("it is no file", self.refusal("/dev/null"))
        os.mkfifo(self.path("fifo"))
        self.assertIn("it is no file", self.refusal(self.path("fifo")))
        self.assertIn("Is a directory", self.refusal(self.folder))

    def test_a_file_without_a_certificate_is_named(self):
        for data in (b"", b"nonsense", b"\xff\xfe", self.authority.issue("x")[1]):
            path = self.written("a.pem", data)
            self.assertEqual(
                self.refusal(path), f"TlsCertificate {path}: there is no certificate in PEM in it"
            )

    def test_a_file_without_a_key_is_named(self):
        path = self.written("a.pem", self.authority.issue("x")[0])
        self.assertEqual(self.refusal(path), f"TlsCertificate {path}: there is no key in PEM in it")
        key = self.written("key.pem", b"nonsense")
        self.assertEqual(
            self.refusal(path, keys=(key,)), f"TlsKey {key}: there is no key in PEM in it"
        )

    def test_a_key_of_another_certificate_is_named(self):
        path = self.written("a.pem", self.authority.issue("x")[0])
        key = self.written("key.pem", self.authority.issue("x")[1])
        self.assertEqual(
            self.refusal(path, keys=(key,)),
            f"TlsKey {key}: the key is not that of the certificate in {path}",
        )

    def test_a_key_with_a_password_is_refused_and_nobody_is_asked(self):
        certificate, key = self.authority.issue("x")
        locked = load_pem_private_key(key, None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
        path = self.written("a.pem", certificate, locked)
        self.assertIn("the key has a password", self.refusal(path))

    def test_ciphers_that_do_not_exist_are_refused(self):
        path = self.issued("a.pem", "x")
        self.assertEqual(
            self.refusal(path, ciphers="NONE-SUCH"), "TlsCiphers = NONE-SUCH: no cipher of OpenSSL"
        )

    def test_an_authority_that_is_none_is_refused(self):
        path, nothing = self.issued("a.pem", "x"), self.written("ca.pem", b"nonsense")
        self.assertIn(f"TlsClientCa {nothing}:", self.refusal(path, client_ca=(nothing,)))

    def test_without_the_package_that_reads_them_the_way_to_get_it_is_told(self):
        usual = builtins.__import__

        def without(name: str, *rest: Any, **named: Any) -> Any:
            if name.partition(".")[0] == "cryptography":
                raise ImportError(name)
            return usual(name, *rest, **named)

        path = self.issued("a.pem", "x")
        self.patch(builtins, "__import__", without)
        self.assertIn('pip install "ccserver[tls]"', self.refusal(path))


class WarningTests(CertificateCase):
    def test_a_key_that_any_user_may_read_is_warned_of(self):
        path = self.issued("a.pem", "x")
        self.assertEqual(self.loaded(path).warnings, ())
        os.chmod(path, 0o644)
        self.assertEqual(
            self.loaded(path).warnings,
            (f"TlsCertificate {path}: mode 0644: any user may read the key",),
        )

    def test_one_that_is_not_valid_is_warned_of_at_the_start(self):
        expired = self.issued("a.pem", "x", begins=-3, ends=-1)
        self.assertIn("it has expired on ", self.loaded(expired).warnings[0])
        coming = self.issued("b.pem", "x", begins=1)
        self.assertIn("it is not valid before ", self.loaded(coming).warnings[0])

    def test_one_that_ends_soon_is_told_from_30_days_before_on(self):
        certificates = self.loaded(self.issued("a.pem", "x", ends=EXPIRY_NOTICE + 1))
        self.assertEqual(list(certificates.expiring()), [])
        self.now += 2 * DAY
        (line,) = certificates.expiring()
        self.assertIn("it expires on ", line)
        self.now += EXPIRY_NOTICE * DAY
        (line,) = certificates.expiring()
        self.assertIn("it has expired on ", line)

    def test_when_each_ends_is_known_by_its_path(self):
        paths = [self.issued("a.pem", "x", ends=3), self.issued("b.pem", "y", ends=5)]
        ends = self.loaded(*paths).ends
        self.assertEqual(list(ends), paths)
        self.assertAlmostEqual(ends[paths[1]] - ends[paths[0]], 2 * DAY, delta=60)


class ChangeTests(CertificateCase):
    def test_a_file_that_was_replaced_or_written_to_has_changed(self):
        path = self.issued("a.pem", "x")
        certificates = self.certificates(path)
        self.assertTrue(certificates.changed)
        certificates.load()
        self.assertFalse(certificates.changed)
        self.issued("a.pem", "x")
        self.assertTrue(certificates.changed)
        certificates.load()
        with open(path, "ab") as file:
            file.write(b"\n")
        self.assertTrue(certificates.changed)
        certificates.load()
        os.unlink(path)
        self.assertTrue(certificates.changed)

    def test_a_link_that_leads_to_another_file_has_changed(self):
        os.symlink(self.issued("1.pem", "x"), self.path("live.pem"))
        certificates = self.loaded(self.path("live.pem"))
        os.symlink(self.issued("2.pem", "x"), self.path("new"))
        os.rename(self.path("new"), self.path("live.pem"))
        self.assertTrue(certificates.changed)

    def test_what_is_wrong_or_not_valid_leaves_what_was_there(self):
        path = self.issued("a.pem", "localhost")
        certificates = self.loaded(path)
        context, der = certificates.context, self.der(path)
        self.written("a.pem", b"nonsense")
        self.assertRaises(StartError, certificates.load)
        self.issued("a.pem", "localhost", begins=-3, ends=-1)
        error = self.assertRaises(StartError, certificates.load, valid=True)
        self.assertIn("it has expired", str(error))
        self.assertIs(certificates.context, context)
        self.assertEqual(self.shake_hands(certificates.context), [der])
        self.issued("a.pem", "localhost")
        certificates.load(valid=True)
        self.assertEqual(self.shake_hands(certificates.context), [self.der(path)])
