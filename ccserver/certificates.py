"""Certificates: files in PEM to what connections are encrypted with."""

from __future__ import annotations

import os
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ccserver.config import TlsSettings
from ccserver.errors import StartError

MAX_BYTES = 1 << 20
"""Bytes of a file at most."""

EXPIRY_NOTICE = 30
"""Days before its end from which on one is warned of a certificate."""

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENTS = {"off": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class Identity(NamedTuple):
    """A certificate with its key.

    @ivar path: where it was read from.
    @ivar names: the hosts it is for, in lower case; C{*} may stand for the first label.
    @ivar begins: from when on it is valid, in seconds since 1970.
    @ivar ends: until when.
    @ivar context: what encrypts with it.
    """

    path: str
    names: tuple[str, ...]
    begins: float
    ends: float
    context: ssl.SSLContext

    def doubt(self, now: float) -> str | None:
        """Why clients will not believe it at C{now}, if so."""
        if self.ends <= now:
            return f"TlsCertificate {self.path}: it has expired on {_date(self.ends)}"
        if self.begins > now:
            return f"TlsCertificate {self.path}: it is not valid before {_date(self.begins)}"
        return None


class Certificates:
    """The certificates that settings name.

    @ivar identities: what was read last.
    @ivar warnings: what clients or their users may suffer from in it, a line each.
    """

    def __init__(self, settings: TlsSettings, clock: Callable[[], float] = time.time) -> None:
        """@param clock: seconds since 1970."""
        self.identities: tuple[Identity, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self._settings = settings
        self._clock = clock
        self._seen: list[tuple[int, ...] | None] = []

    def __str__(self) -> str:
        return "; ".join(
            f"{' '.join(each.names) or each.path} until {_date(each.ends)}"
            for each in self.identities
        )

    @property
    def context(self) -> ssl.SSLContext:
        """What a connection is encrypted with that is made now."""
        return self.identities[0].context

    @property
    def ends(self) -> dict[str, float]:
        """When each of them ends, in seconds since 1970, by its path."""
        return {each.path: each.ends for each in self.identities}

    @property
    def changed(self) -> bool:
        """Whether a file is another than when it was read last, or tried to be."""
        return self._look() != self._seen

    def load(self, valid: bool = False) -> None:
        """Read the files.

        @param valid: take only certificates that are valid now; else it is a warning.
        @raise StartError: one is missing or wrong, or they do not fit each other: what was read
            before stays.
        """
        self._seen = self._look()
        now = self._clock()
        warnings: list[str] = []
        identities = tuple(_identities(self._settings, warnings))
        doubts = [doubt for each in identities if (doubt := each.doubt(now)) is not None]
        if valid and doubts:
            raise StartError(doubts[0])
        if len(identities) > 1:
            identities[0].context.sni_callback = _choice(identities)
        self.identities, self.warnings = identities, (*warnings, *doubts)

    def expiring(self) -> Iterator[str]:
        """A line for each certificate that has ended or will soon."""
        now = self._clock()
        for each in self.identities:
            if each.ends <= now:
                yield each.doubt(now) or ""
            elif each.ends - now < EXPIRY_NOTICE * 86400:
                yield f"TlsCertificate {each.path}: it expires on {_date(each.ends)}"

    def _look(self) -> list[tuple[int, ...] | None]:
        """What tells whether a file is another than before."""
        of = self._settings
        seen: list[tuple[int, ...] | None] = []
        for path in (*of.certificates, *of.keys, *of.chains, *of.client_ca):
            try:
                found = os.stat(path)
            except OSError:
                seen.append(None)
            else:
                seen.append((found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size))
        return seen


def _identities(settings: TlsSettings, warnings: list[str]) -> Iterator[Identity]:
    """What the files hold; checked, but for whether it is valid now."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        text = 'tls needs the package cryptography: pip install "ccserver[tls]" (script/setup tls)'
        raise StartError(text) from None
    authorities = b"".join(
        der for path in settings.client_ca for _, der in _certificates("TlsClientCa", path)
    )
    for place, path in enumerate(settings.certificates):
        chain = _certificates("TlsCertificate", path)
        if settings.chains:
            chain += _certificates("TlsChain", settings.chains[place])
        named = ("TlsKey", settings.keys[place]) if settings.keys else ("TlsCertificate", path)
        leaf = chain[0][0]
        key = _key(*named, leaf, path, warnings)
        context = _context(settings, authorities)
        pem = "".join(ssl.DER_cert_to_PEM_cert(der) for _, der in chain).encode() + key
        try:
            _load(context, pem)
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise StartError(f"TlsCertificate {path}: {error}") from None
        yield Identity(
            path,
            _names(leaf),
            leaf.not_valid_before_utc.timestamp(),
            leaf.not_valid_after_utc.timestamp(),
            context,
        )


def _read(setting: str, path: str) -> tuple[bytes, int]:
    """What is in a file, and its mode."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise StartError(f"{setting} {path}: it is no file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StartError(f"{setting} {path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise StartError(f"{setting} {path}: it is larger than {MAX_BYTES} bytes")
    return data, mode


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe without a writer would be waited for


def _certificates(setting: str, path: str) -> list[tuple[Any, bytes]]:
    """The certificates in a file, each as what it is and in DER; at least one."""
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_certificates

    try:
        found = load_pem_x509_certificates(_read(setting, path)[0])
    except ValueError:
        raise StartError(f"{setting} {path}: there is no certificate in PEM in it") from None
    return [(each, each.public_bytes(Encoding.DER)) for each in found]


def _key(setting: str, path: str, leaf: Any, of: str, warnings: list[str]) -> bytes:
    """The key of the certificate C{leaf}, which was read from C{of}, in PEM."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
    )

    data, mode = _read(setting, path)
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        raise StartError(f"{setting} {path}: the key has a password, which nobody has") from None
    except (ValueError, UnsupportedAlgorithm):
        raise StartError(f"{setting} {path}: there is no key in PEM in it") from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise StartError(f"{setting} {path}: the key is not that of the certificate in {of}")
    if mode & stat.S_IROTH:
        octal = f"{stat.S_IMODE(mode):04o}"
        warnings.append(f"{setting} {path}: mode {octal}: any user may read the key")
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _context(settings: TlsSettings, authorities: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if settings.ciphers:
        try:
            context.set_ciphers(settings.ciphers)
        except ssl.SSLError:
            raise StartError(f"TlsCiphers = {settings.ciphers}: no cipher of OpenSSL") from None
    if authorities:
        context.load_verify_locations(cadata=authorities)
    context.verify_mode = _CLIENTS[settings.client_certificates]
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Let C{context} use the chain and the key in C{pem}, which OpenSSL takes from files only."""
    fd = os.memfd_create("tls")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _names(leaf: Any) -> tuple[str, ...]:
    """The hosts that a certificate is for."""
    from cryptography.x509 import DNSName, ExtensionNotFound, SubjectAlternativeName
    from cryptography.x509.oid import NameOID

    try:
        other = leaf.extensions.get_extension_for_class(SubjectAlternativeName).value
        names = other.get_values_for_type(DNSName)
    except (ExtensionNotFound, ValueError):
        names = [each.value for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return tuple(str(name).lower() for name in names)


def _choice(
    identities: tuple[Identity, ...],
) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], None]:
    """What gives a client the certificate for the host that it asks for."""
    by_name: dict[str, ssl.SSLContext] = {}
    for each in identities:
        for name in each.names:
            by_name.setdefault(name, each.context)

    def choose(connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        name = (name or "").lower()
        found = by_name.get(name) or by_name.get(f"*.{name.partition('.')[2]}")
        if found is not None:
            connection.context = found

    return choose


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
