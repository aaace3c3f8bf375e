"""A certificate authority of the tests."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM
DAY = datetime.timedelta(days=1)

_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """Signs certificates.

    @ivar key: what it signs with.
    @ivar pem: its own certificate.
    """

    def __init__(self, name: str = "authority", above: Authority | None = None) -> None:
        """@param above: who has signed its certificate; else it has itself."""
        self.name = _name(name)
        self.key = ec.generate_private_key(ec.SECP256R1())
        signer = above or self
        builder = _builder(self.name, signer, self.key, 1, 3650)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        builder = builder.add_extension(_SIGNS, True)
        self.pem = builder.sign(signer.key, hashes.SHA256()).public_bytes(PEM)

    def issue(
        self, *hosts: str, begins: float = -1, ends: float = 365, name: str | None = None
    ) -> tuple[bytes, bytes]:
        """A certificate for C{hosts}, and its key.

        @param begins: days from now.
        @param ends: days from now.
        @param name: its common name; the first host, if there is none given.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name or hosts[0]), self, key, -begins, ends)
        if hosts:
            names = x509.SubjectAlternativeName(list(_alternatives(hosts)))
            builder = builder.add_extension(names, False)
        signed = builder.sign(self.key, hashes.SHA256())
        form = serialization.PrivateFormat.PKCS8
        return signed.public_bytes(PEM), key.private_bytes(PEM, form, serialization.NoEncryption())


def written(path: str | Path, *parts: bytes) -> str:
    """The path of a file that holds C{parts}, which nobody else may read; replaced in one go."""
    path = Path(path)
    fresh = path.with_name(path.name + ".new")
    fresh.touch(0o600)
    fresh.write_bytes(b"".join(parts))
    fresh.rename(path)
    return str(path)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternatives(hosts: Iterable[str]) -> Iterable[x509.GeneralName]:
    for host in hosts:
        try:
            yield x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            yield x509.DNSName(host)


def _builder(
    subject: x509.Name,
    issuer: Authority,
    key: ec.EllipticCurvePrivateKey,
    before: float,
    after: float,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - before * DAY)
        .not_valid_after(now + after * DAY)
        # asked for by clients that are strict, such as Python's from 3.13 on
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False
        )
    )
