"""Keys and certificates for tests, made on the spot."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
START = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2126, 1, 1, tzinfo=datetime.UTC)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certify(
    key: Key,
    sans: Sequence[x509.GeneralName] = (),
    common_name: str = "common.example.com",
    end: datetime.datetime = END,
    signer: Key | None = None,
) -> bytes:
    """A certificate in PEM: self-signed, or by `signer`, an issuer that nobody knows."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Some Issuer")]) if signer else name
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(end)
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return builder.sign(signer or key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def pem_key(key: Key, password: bytes | None = None) -> bytes:
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        protection = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def dns(*names: str) -> list[x509.GeneralName]:
    return [x509.DNSName(name) for name in names]


def ip(address: str) -> list[x509.GeneralName]:
    return [x509.IPAddress(ipaddress.ip_address(address))]


def memfd(content: bytes) -> int:
    """An anonymous file that holds `content`; the caller closes it."""
    fd = os.memfd_create("test-pem", os.MFD_CLOEXEC)
    os.write(fd, content)
    return fd
