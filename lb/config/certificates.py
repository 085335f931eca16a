"""Reads the certificates that `tls.certs` names: PEM files with chain and key, together or side by side.

The master runs this with the rights that the keys need, and hands the PEM to the workers in memory; so
whatever a worker could stumble over later is found here, with the file's name and what to do about it.
"""

from __future__ import annotations

import glob
import os
import re
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from lb.config.files import read_regular

# RFC 7468 section 3: a PEM file is a sequence of labelled blocks, with anything between them.
_BLOCK: Final = re.compile(
    rb"-----BEGIN (?P<label>[A-Z0-9 ]+)-----\s.*?-----END (?P=label)-----", re.DOTALL | re.ASCII
)
# What a client can send as a server name, and what a wildcard may look like (RFC 9525 section 6.3: the
# wildcard is the whole left-most label).
_HOST: Final = re.compile(r"(?:\*\.)?(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.ASCII)
# No certificate chain comes near this; it bounds what a wrong path can cost.
_MAX_BYTES: Final = 1024 * 1024
_WARN_BEFORE: Final = 30 * 86_400.0


class LoadedCertificate(NamedTuple):
    """A certificate that is fit to serve: the key belongs to it and OpenSSL accepts both."""

    name: str  # the file's path relative to the configuration's folder: the metric label and log field
    hosts: tuple[str, ...]  # DNS names, lower case, "*.example.com" for wildcards; may be empty
    not_before: float  # Unix time
    not_after: float
    pem: bytes  # the chain, leaf first, then the private key


class CertificateError(ValueError):
    """A certificate that can't be served. `file` is the file or pattern at fault; `message` says what is
    wrong and what to do."""

    def __init__(self, message: str, file: str) -> None:
        super().__init__(f"{file}: {message}")
        self.message = message
        self.file = file


class _Pem(NamedTuple):
    certificates: list[bytes]
    keys: list[bytes]


def load_certificates(patterns: Sequence[str], base: Path) -> list[LoadedCertificate]:
    """The certificates that `patterns` (paths or globs, relative to `base`) name, in the order of the
    patterns and by name within one; a file named twice counts once. The first is the listener's default.

    Raises the first `CertificateError`; `read_certificates` reports them all.
    """
    certificates, errors = read_certificates(patterns, base)
    if errors:
        raise errors[0]
    return certificates


def read_certificates(
    patterns: Sequence[str], base: Path
) -> tuple[list[LoadedCertificate], list[CertificateError]]:
    """As `load_certificates`, but goes on after an error: (what can be served, every error)."""
    certificates: list[LoadedCertificate] = []
    errors: list[CertificateError] = []
    seen: set[str] = set()
    for pattern in patterns:
        try:
            files = _match(pattern, base)
        except CertificateError as error:
            errors.append(error)
            continue
        for file in files:
            if file in seen:
                continue
            seen.add(file)
            try:
                certificates.append(_load(file, base))
            except CertificateError as error:
                errors.append(error)
    return certificates, errors


def expiry_warning(certificate: LoadedCertificate, now: float) -> str | None:
    """A warning for the operator where `certificate` has expired at Unix time `now`, or will within 30 days
    and the last third of its life. It is served all the same, since refusing it would take down what else
    the configuration serves."""
    soon = min(_WARN_BEFORE, (certificate.not_after - certificate.not_before) / 3)
    if certificate.not_after - soon > now:
        return None
    when = datetime.fromtimestamp(certificate.not_after, UTC).isoformat(" ", "seconds")
    verb = "expired" if certificate.not_after <= now else "expires"
    return f"{certificate.name}: the certificate {verb} at {when}: renew it and reload"


def _match(pattern: str, base: Path) -> list[str]:
    path = os.path.normpath(os.path.join(base, pattern))
    if not glob.has_magic(pattern):
        return [path]
    root = glob.escape(str(base))
    files = sorted(file for file in glob.glob(os.path.join(root, pattern)) if os.path.isfile(file))
    # `certs/*` finds the key beside its certificate too.
    files = [os.path.normpath(file) for file in files if not file.endswith(".key")]
    if not files:
        raise CertificateError("no file matches: correct the pattern or put the certificate there", pattern)
    return files


def _load(file: str, base: Path) -> LoadedCertificate:
    pem = _split(_read(file), file)
    if not pem.certificates:
        _fail(file, "holds no certificate: a PEM file with a BEGIN CERTIFICATE block is needed")
    chain = [_parse(block, file) for block in pem.certificates]
    key_file, key = _find_key(pem, file)
    _check_pair(chain, key, file, key_file)
    whole = b"\n".join((*pem.certificates, key, b""))
    _check_openssl(whole, file)
    leaf = chain[0]
    return LoadedCertificate(
        name=_name(file, base),
        hosts=_hosts(leaf, file),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
        pem=whole,
    )


def _name(file: str, base: Path) -> str:
    root = os.path.normpath(base)
    return os.path.relpath(file, root) if file.startswith(os.path.join(root, "")) else file


def _read(file: str) -> bytes:
    try:
        data, _ = read_regular(file, _MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CertificateError(
            f"can't be read: {reason}: correct the path, or the rights of the user that starts lb", file
        ) from error
    if len(data) > _MAX_BYTES:
        _fail(file, f"is larger than {_MAX_BYTES} bytes: that is no certificate")
    return data


def _split(data: bytes, file: str) -> _Pem:
    pem = _Pem([], [])
    blocks = 0
    for match in _BLOCK.finditer(data):
        blocks += 1
        label = match["label"]
        if label in (b"CERTIFICATE", b"X509 CERTIFICATE"):
            pem.certificates.append(match[0])
        elif label.endswith(b"PRIVATE KEY"):
            pem.keys.append(match[0])
    if blocks != data.count(b"-----BEGIN "):
        _fail(file, "is broken PEM: a BEGIN line has no END line of its own; was the file cut short?")
    return pem


def _parse(block: bytes, file: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(block)
    except ValueError as error:
        raise CertificateError("holds a broken certificate: issue it again or copy it anew", file) from error


def _beside(file: str) -> Iterator[str]:
    stem, _ = os.path.splitext(file)
    yield f"{stem}.key"
    folder, name = os.path.split(file)
    if name == "fullchain.pem":  # ACME clients write fullchain.pem and privkey.pem
        yield os.path.join(folder, "privkey.pem")


def _find_key(pem: _Pem, file: str) -> tuple[str, bytes]:
    """The private key of the certificate in `file`: (the file that it is in, its PEM block)."""
    key_file, keys = file, pem.keys
    if not keys:
        for key_file in _beside(file):
            if os.path.lexists(key_file):
                keys = _split(_read(key_file), key_file).keys
                break
        else:
            expected = os.path.basename(next(_beside(file)))
            _fail(file, f"has no private key: put the key into the same file, or beside it as {expected}")
        if not keys:
            _fail(key_file, "holds no private key: a PEM file with a BEGIN PRIVATE KEY block is needed")
    if len(keys) > 1:
        _fail(key_file, "holds more than one private key: leave only the one that belongs to the certificate")
    return key_file, keys[0]


def _check_pair(chain: list[x509.Certificate], block: bytes, file: str, key_file: str) -> None:
    try:
        key = serialization.load_pem_private_key(block, password=None)
    except TypeError as error:  # what the library raises where a password is needed
        hint = "lb can't ask for a password: decrypt it with `openssl pkey -in FILE -out FILE.new`"
        raise CertificateError(f"the private key is encrypted; {hint}", key_file) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "use an RSA, ECDSA or Ed25519 key in PEM"
        raise CertificateError(f"holds a private key that can't be read: {hint}", key_file) from error
    ours = _spki(key.public_key())
    if ours == _spki(chain[0].public_key()):
        return
    if any(ours == _spki(other.public_key()) for other in chain[1:]):
        _fail(file, "the certificates are in the wrong order: the server's own comes first, then its issuers")
    _fail(file, f"the private key in {os.path.basename(key_file)} does not belong to this certificate")


def _spki(key: object) -> bytes:
    if not hasattr(key, "public_bytes"):
        return b""
    encoded: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _check_openssl(pem: bytes, file: str) -> None:
    """What only OpenSSL knows, before a worker finds out: a key too short or a digest too weak for its
    security level. The context takes paths only; an anonymous file keeps the key off the disk."""
    fd = os.memfd_create("lb-certificate", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as target:
            target.write(pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a password callback OpenSSL would ask on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{fd}", password="")
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise CertificateError(
            f"OpenSSL refuses it: {reason}: issue it again with a stronger key", file
        ) from error
    finally:
        os.close(fd)


def _hosts(certificate: x509.Certificate, file: str) -> tuple[str, ...]:
    """The DNS names of the subjectAltName; the common name only where there is none (RFC 9525 appendix A)."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        names = [str(attribute.value) for attribute in common]
    except ValueError as error:
        raise CertificateError("has a broken subjectAltName: issue it again", file) from error
    lowered = (name.lower().rstrip(".") for name in names)
    return tuple(dict.fromkeys(name for name in lowered if _HOST.fullmatch(name)))


def _fail(file: str, message: str) -> NoReturn:
    raise CertificateError(message, file)
