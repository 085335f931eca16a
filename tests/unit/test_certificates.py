"""Certificates as operators have them on disk, good and bad."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from lb.config.certificates import (
    CertificateError,
    expiry_warning,
    load_certificates,
    read_certificates,
)
from tests.unit.pem import END, Key, certify, dns, new_key, pem_key


def fails(tmp_path: Path, pattern: str) -> CertificateError:
    with pytest.raises(CertificateError) as caught:
        load_certificates([pattern], tmp_path)
    assert str(caught.value) == f"{caught.value.file}: {caught.value.message}"
    return caught.value


def test_certificate_and_key_in_one_file(tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "site.pem").write_bytes(certify(key, dns("Example.COM", "*.example.com")) + pem_key(key))
    (loaded,) = load_certificates(["site.pem"], tmp_path)
    assert loaded.name == "site.pem"
    assert loaded.hosts == ("example.com", "*.example.com")
    assert loaded.not_after == END.timestamp()
    assert loaded.pem.count(b"BEGIN CERTIFICATE") == 1
    assert loaded.pem.count(b"BEGIN PRIVATE KEY") == 1


@pytest.mark.parametrize(
    ("certificate", "key_name"),
    [("a.pem", "a.key"), ("a.crt", "a.key"), ("a/fullchain.pem", "a/privkey.pem")],
)
def test_key_beside_the_certificate(tmp_path: Path, certificate: str, key_name: str) -> None:
    key = new_key()
    (tmp_path / "a").mkdir()
    (tmp_path / certificate).write_bytes(certify(key))
    (tmp_path / key_name).write_bytes(pem_key(key))
    (loaded,) = load_certificates([certificate], tmp_path)
    assert loaded.name == certificate
    assert b"PRIVATE KEY" in loaded.pem


def test_the_traditional_key_format_with_its_parameters_block(tmp_path: Path) -> None:
    key = new_key()
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    traditional = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    (tmp_path / "a.pem").write_bytes(parameters + traditional + b"some text\n" + certify(key))
    (loaded,) = load_certificates(["a.pem"], tmp_path)
    assert b"BEGIN EC PRIVATE KEY" in loaded.pem


def test_globs_keep_the_order_of_patterns_and_count_a_file_once(tmp_path: Path) -> None:
    for name in ("b", "a", "z"):
        key = new_key()
        (tmp_path / f"{name}.crt").write_bytes(certify(key, dns(f"{name}.example.com")))
        (tmp_path / f"{name}.key").write_bytes(pem_key(key))
    loaded = load_certificates(["z.crt", "*"], tmp_path)
    assert [one.name for one in loaded] == ["z.crt", "a.crt", "b.crt"]


def test_a_file_outside_the_base_is_named_by_its_path(tmp_path: Path) -> None:
    key = new_key()
    file = tmp_path / "a.pem"
    file.write_bytes(certify(key) + pem_key(key))
    (tmp_path / "conf").mkdir()
    (loaded,) = load_certificates([str(file)], tmp_path / "conf")
    assert loaded.name == str(file)


def test_a_base_with_glob_characters_is_taken_literally(tmp_path: Path) -> None:
    base = tmp_path / "site[1]"
    base.mkdir()
    key = new_key()
    (base / "a.pem").write_bytes(certify(key) + pem_key(key))
    assert [one.name for one in load_certificates(["*.pem"], base)] == ["a.pem"]


def test_the_chain_is_kept_in_order(tmp_path: Path) -> None:
    key, issuer = new_key(), new_key()
    leaf, above = certify(key, dns("leaf.example.com")), certify(issuer)
    (tmp_path / "a.pem").write_bytes(pem_key(key) + leaf + above)
    (loaded,) = load_certificates(["a.pem"], tmp_path)
    assert loaded.hosts == ("leaf.example.com",)
    assert loaded.pem.index(leaf.strip()) < loaded.pem.index(above.strip())


@pytest.mark.parametrize(
    ("sans", "common_name", "hosts"),
    [
        ([], "Fallback.Example.com", ("fallback.example.com",)),
        ([], "Some Organisation", ()),
        (dns("a.example.com"), "b.example.com", ("a.example.com",)),
        (dns("w*.example.com", "*.*.example.com", "ok.example.com"), "x", ("ok.example.com",)),
        (dns("a.example.com", "A.example.com."), "x", ("a.example.com",)),
    ],
)
def test_hosts(
    tmp_path: Path, sans: list[x509.GeneralName], common_name: str, hosts: tuple[str, ...]
) -> None:
    key = new_key()
    (tmp_path / "a.pem").write_bytes(certify(key, sans, common_name) + pem_key(key))
    assert load_certificates(["a.pem"], tmp_path)[0].hosts == hosts


def test_an_expired_certificate_is_a_warning(tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "a.pem").write_bytes(certify(key) + pem_key(key))
    (loaded,) = load_certificates(["a.pem"], tmp_path)
    month = 30 * 86_400
    assert expiry_warning(loaded, END.timestamp() - month - 1) is None
    warning = expiry_warning(loaded, END.timestamp() - month)
    assert warning == "a.pem: the certificate expires at 2126-01-01 00:00:00+00:00: renew it and reload"
    warning = expiry_warning(loaded, END.timestamp())
    assert warning == "a.pem: the certificate expired at 2126-01-01 00:00:00+00:00: renew it and reload"
    # One that lives for six days is not warned about all its life.
    short = loaded._replace(not_before=END.timestamp() - 6 * 86_400)
    assert expiry_warning(short, END.timestamp() - 2 * 86_400 - 1) is None
    assert expiry_warning(short, END.timestamp() - 2 * 86_400) is not None


def one_file(content: Callable[[Key], bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a.pem").write_bytes(content(new_key()))

    return write


def wrong_key_beside(folder: Path) -> None:
    (folder / "a.pem").write_bytes(certify(new_key()))
    (folder / "a.key").write_bytes(pem_key(new_key()))


def no_key_in_key_file(folder: Path) -> None:
    (folder / "a.pem").write_bytes(certify(new_key()))
    (folder / "a.key").write_bytes(b"nothing")


def weak(folder: Path) -> None:
    key = rsa.generate_private_key(65537, 1024)
    (folder / "a.pem").write_bytes(certify(key) + pem_key(key))


GARBLED = b"-----BEGIN CERTIFICATE-----\nMIIBIjAN\n-----END CERTIFICATE-----\n"
GARBLED_KEY = b"-----BEGIN PRIVATE KEY-----\nMIIBIjAN\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("write", "file", "part"),
    [
        (lambda folder: None, "a.pem", "can't be read: No such file"),
        (lambda folder: (folder / "a.pem").mkdir(), "a.pem", "can't be read: Is a directory"),
        (one_file(lambda key: b""), "a.pem", "holds no certificate"),
        (one_file(lambda key: pem_key(key)), "a.pem", "holds no certificate"),
        (one_file(lambda key: certify(key)), "a.pem", "beside it as a.key"),
        (one_file(lambda key: certify(key) + pem_key(key)[:-30]), "a.pem", "cut short"),
        (one_file(lambda key: GARBLED + pem_key(key)), "a.pem", "broken certificate"),
        (one_file(lambda key: certify(key) + GARBLED_KEY), "a.pem", "can't be read: use an RSA"),
        (one_file(lambda key: certify(key) + pem_key(new_key())), "a.pem", "does not belong"),
        (one_file(lambda key: certify(key) + pem_key(key, b"secret")), "a.pem", "key is encrypted"),
        (one_file(lambda key: certify(new_key()) + certify(key) + pem_key(key)), "a.pem", "wrong order"),
        (one_file(lambda key: certify(key) + pem_key(key) * 2), "a.pem", "more than one private key"),
        (one_file(lambda key: b"x" * (1024 * 1024 + 1)), "a.pem", "larger than"),
        (wrong_key_beside, "a.pem", "key in a.key does not belong"),
        (no_key_in_key_file, "a.key", "holds no private key"),
        (weak, "a.pem", "OpenSSL refuses it: ee key too small"),
    ],
)
def test_a_bad_file_is_named_with_what_to_do(
    tmp_path: Path, write: Callable[[Path], None], file: str, part: str
) -> None:
    write(tmp_path)
    error = fails(tmp_path, "a.pem")
    assert error.file == str(tmp_path / file)
    assert part in error.message


def test_a_pattern_without_a_match_is_an_error(tmp_path: Path) -> None:
    error = fails(tmp_path, "certs/*.pem")
    assert error.file == "certs/*.pem"
    assert "no file matches" in error.message


def test_every_error_is_reported_beside_what_is_good(tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "good.pem").write_bytes(certify(key) + pem_key(key))
    (tmp_path / "bad.pem").write_bytes(b"")
    loaded, errors = read_certificates(["*.pem", "none/*", "missing.pem"], tmp_path)
    assert [one.name for one in loaded] == ["good.pem"]
    assert [os.path.basename(error.file) for error in errors] == ["bad.pem", "*", "missing.pem"]


def test_nothing_stays_open(tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "a.pem").write_bytes(certify(key) + pem_key(key))
    before = os.listdir("/proc/self/fd")
    load_certificates(["a.pem"], tmp_path)
    assert os.listdir("/proc/self/fd") == before
