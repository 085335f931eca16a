"""Which certificate, version and protocol a client gets, and whom we trust as a client ourselves."""

from __future__ import annotations

import datetime
import gc
import os
import pwd
import select
import socket
import ssl
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.pem import certify, dns, ip, memfd, new_key, pem_key
from workers.contract.snapshot import CertificateSpec, ListenTls, UpstreamTls
from workers.contract.trust import TlsSetupError, client_context, server_name
from workers.io.tls import Handshake, TlsError, TlsStream
from workers.io.tls_context import ServerContexts

ROOT = Path(__file__).parents[2]
DEADLINE = 10.0


class Site:
    """A listener's certificates, by their hosts."""

    def __init__(self, *certificates: Sequence[str]) -> None:
        self.pems: list[bytes] = []
        specs, descriptors = [], {}
        for index, hosts in enumerate(certificates):
            key = new_key()
            self.pems.append(certify(key, dns(*hosts)))
            specs.append(CertificateSpec(name=str(index), hosts=tuple(hosts)))
            descriptors[str(index)] = memfd(self.pems[-1] + pem_key(key))
        self.contexts = ServerContexts(ListenTls(certificates=tuple(specs)), descriptors)
        for descriptor in descriptors.values():
            os.close(descriptor)


def trusting() -> ssl.SSLContext:
    return client_context(UpstreamTls(verify=False))


def shake(server: TlsStream, client: TlsStream) -> None:
    """Both handshakes to their ends; raises what either raises."""
    states = [Handshake.WANT_READ, Handshake.WANT_READ]
    while states != [Handshake.DONE, Handshake.DONE]:
        states = [client.handshake(), server.handshake()]


def streams(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = "a.example.com"
) -> tuple[TlsStream, TlsStream]:
    ours, theirs = socket.socketpair()
    return (
        TlsStream(ours, server, server_side=True),
        TlsStream(theirs, client, server_side=False, server_name=name),
    )


def served(site: Site, name: str | None) -> int:
    """The index of the certificate that a client gets that asks for `name`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        client.setblocking(False)
        server = TlsStream(listener.accept()[0], site.contexts.default, server_side=True)
    with trusting().wrap_socket(client, server_hostname=name, do_handshake_on_connect=False) as secured:
        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                server.handshake()
        encoded = secured.getpeercert(binary_form=True)
        server.handshake()
        assert server.server_name == (name.lower() if name else None)
        server.abort()
    assert encoded is not None
    return site.pems.index(ssl.DER_cert_to_PEM_cert(encoded).encode())


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(
        ("default.example.com", "www.other.example"),
        ("*.example.com", "exact.example.org"),
        ("a.example.com", "*.other.example"),
        ("exact.example.org",),
    )


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("default.example.com", 0),  # exact, though another one has a wildcard for it
        ("www.other.example", 0),
        ("b.example.com", 1),
        ("B.Example.COM", 1),
        ("a.example.com", 2),  # exact wins over the wildcard before it
        ("x.other.example", 2),
        ("exact.example.org", 1),  # the first of two
        ("deep.b.example.com", 0),  # a wildcard is one label
        ("example.com", 0),
        ("unknown.example", 0),
        ("localhost", 0),
        (None, 0),
    ],
)
def test_the_name_chooses_the_certificate(site: Site, name: str | None, index: int) -> None:
    assert served(site, name) == index


@pytest.mark.parametrize("name", ["default.example.com", "a.example.com"])
@pytest.mark.parametrize(
    ("offered", "agreed"),
    [(["h2", "http/1.1"], "http/1.1"), (["h2"], ""), ([], "")],
)
def test_http_1_1_is_the_only_protocol(site: Site, name: str, offered: list[str], agreed: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if offered:
        context.set_alpn_protocols(offered)
    server, client = streams(site.contexts.default, context, name)
    shake(server, client)
    assert server.alpn == client.alpn == agreed
    server.close()
    client.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_are_served(site: Site, version: ssl.TLSVersion) -> None:
    context = trusting()
    context.minimum_version = context.maximum_version = version
    server, client = streams(site.contexts.default, context)
    assert server.version == ""
    shake(server, client)
    assert server.version == client.version == version.name.replace("v1_", "v1.")
    server.close()
    client.close()


def test_ciphers_are_strong(site: Site) -> None:
    for cipher in site.contexts.default.get_ciphers():
        assert cipher["aead"], cipher
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-"), cipher
        assert cipher["strength_bits"] >= 128, cipher


def test_a_renegotiation_is_refused(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with subprocess.Popen(
            ["openssl", "s_client", "-connect", address, "-tls1_2", "-noservername"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as client:
            server = TlsStream(listener.accept()[0], site.contexts.default, server_side=True)
            while server.handshake() is not Handshake.DONE:
                assert select.select([server], [], [], DEADLINE)[0]
            assert client.stdin is not None
            assert client.stderr is not None
            client.stdin.write(b"R\n")
            client.stdin.flush()
            with pytest.raises((TlsError, BlockingIOError)):
                while True:
                    assert select.select([server], [], [], DEADLINE)[0]
                    assert server.recv_into(bytearray(100))
            client.stdin.close()
            complaint = client.stderr.read()
            server.abort()
    assert b"no renegotiation" in complaint


DROPPED = """
import os, sys
from workers.contract.snapshot import CertificateSpec, ListenTls
from workers.io.tls_context import ServerContexts

os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
assert os.stat("/proc/self/fd").st_uid == 0, "dumpable: this is not what a worker is"
spec = ListenTls(certificates=(CertificateSpec(name="a", hosts=()),))
ServerContexts(spec, {"a": int(sys.argv[1])})
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_worker_without_rights_reads_the_key_from_its_descriptor() -> None:
    key = new_key()
    descriptor = memfd(certify(key) + pem_key(key))
    try:
        user = pwd.getpwnam("nobody").pw_uid
        subprocess.run(
            [sys.executable, "-c", DROPPED, str(descriptor), str(user)],
            pass_fds=[descriptor],
            cwd=ROOT,
            check=True,
            timeout=DEADLINE,
        )
    finally:
        os.close(descriptor)


def test_a_reload_leaves_nothing_for_the_collector() -> None:
    site = Site(("a.example.com",), ("b.example.com",))
    server, client = streams(site.contexts.default, trusting(), "b.example.com")
    shake(server, client)
    contexts = weakref.ref(site.contexts.default)
    gc.disable()
    try:
        del site
        assert client.send(b"still") == 5
        assert server.recv_into(bytearray(10)) == 5
        server.close()
        client.close()
        del server, client
        assert contexts() is None
    finally:
        gc.enable()


def test_what_can_not_be_served_is_named() -> None:
    key = new_key()
    spec = ListenTls(certificates=(CertificateSpec(name="certs/a.pem", hosts=()),))
    with pytest.raises(TlsSetupError, match=r"certs/a\.pem came without"):
        ServerContexts(spec, {})
    with pytest.raises(TlsSetupError, match="at least one"):
        ServerContexts(ListenTls(certificates=()), {})
    for content in (b"", certify(key), certify(key) + pem_key(new_key()), certify(key) + pem_key(key, b"pw")):
        descriptor = memfd(content)
        with pytest.raises(TlsSetupError, match=r"certificate certs/a\.pem can't be used"):
            ServerContexts(spec, {"certs/a.pem": descriptor})
        os.close(descriptor)


def upstream(certificate: bytes, key: bytes, tls: UpstreamTls, host: str | None) -> str:
    """How a connection to a server with this certificate goes: "" or the reason and its detail."""
    descriptor = memfd(certificate + key)
    spec = ListenTls(certificates=(CertificateSpec(name="a", hosts=()),))
    contexts = ServerContexts(spec, {"a": descriptor})
    os.close(descriptor)
    server, client = streams(contexts.default, client_context(tls), server_name(tls, host))
    try:
        client.handshake()
        server.handshake()
        assert client.handshake() is Handshake.DONE
        assert client.alpn == "http/1.1"
    except TlsError as error:
        return f"{error.reason}: {error.detail}"
    finally:
        client.abort()
        server.abort()
    return ""


def test_a_server_is_verified_against_the_given_authority() -> None:
    key = new_key()
    certificate = certify(key, dns("backend.internal", "*.wild.internal"))
    trusted = UpstreamTls(ca=certificate.decode())
    assert upstream(certificate, pem_key(key), trusted, "backend.internal") == ""
    assert upstream(certificate, pem_key(key), trusted, "x.wild.internal") == ""
    by_sni = UpstreamTls(ca="# Főtanúsítvány\n" + certificate.decode(), sni="backend.internal")
    assert upstream(certificate, pem_key(key), by_sni, "10.0.0.1") == ""
    assert upstream(certificate, pem_key(key), by_sni, None) == ""
    wrong_name = upstream(certificate, pem_key(key), trusted, "other.internal")
    assert wrong_name.startswith("verify_failed: Hostname mismatch")
    unknown = upstream(
        certificate, pem_key(key), UpstreamTls(ca=certify(new_key()).decode()), "backend.internal"
    )
    assert unknown.startswith("verify_failed: self-signed")


def test_a_servers_own_certificate_can_be_trusted_without_its_issuer() -> None:
    key = new_key()
    certificate = certify(key, dns("backend.internal"), signer=new_key())
    pinned = UpstreamTls(ca=certificate.decode())
    assert upstream(certificate, pem_key(key), pinned, "backend.internal") == ""


def test_a_server_is_verified_by_its_address() -> None:
    key = new_key()
    certificate = certify(key, ip("10.0.0.1"))
    trusted = UpstreamTls(ca=certificate.decode())
    assert upstream(certificate, pem_key(key), trusted, "10.0.0.1") == ""
    assert upstream(certificate, pem_key(key), trusted, "10.0.0.2").startswith("verify_failed: IP address")


def test_an_expired_server_is_refused() -> None:
    key = new_key()
    end = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)
    certificate = certify(key, dns("backend.internal"), end=end)
    trusted = UpstreamTls(ca=certificate.decode())
    reason = upstream(certificate, pem_key(key), trusted, "backend.internal")
    assert reason == "verify_failed: certificate has expired"


def test_the_systems_store_does_not_know_a_stranger() -> None:
    key = new_key()
    certificate = certify(key, dns("backend.internal"))
    assert upstream(certificate, pem_key(key), UpstreamTls(), "backend.internal").startswith("verify_failed")


def test_verification_can_be_switched_off() -> None:
    key = new_key()
    certificate = certify(key, dns("a.internal"))
    assert upstream(certificate, pem_key(key), UpstreamTls(verify=False), "b.internal") == ""
    assert upstream(certificate, pem_key(key), UpstreamTls(verify=False), None) == ""


def test_verification_needs_a_name() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ValueError, match="without a name"):
            TlsStream(ours, client_context(UpstreamTls()), server_side=False)
        assert ours.fileno() >= 0  # still the caller's


@pytest.mark.parametrize(
    "ca", ["nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ä"]
)
def test_a_broken_authority_is_refused(ca: str) -> None:
    with pytest.raises(TlsSetupError, match=r"tls\.ca"):
        client_context(UpstreamTls(ca=ca))
