"""TLS at the listener and to the servers: names, reloads, redirects, WebSockets over it, bad handshakes."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, LoadBalancer, RawClient, eventually, fetch, processes
from tests.harness import websocket as ws
from tests.harness.certificates import Authority, server_context
from tests.harness.client import request_bytes
from tests.harness.ports import free_port
from tests.harness.settings import Tables, settings
from tests.harness.upstream import answer

pytestmark = pytest.mark.scenario


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that has issued certificates for a.example and *.wild.example."""
    made = Authority(tmp_path)
    made.issue("10-a.pem", "a.example", "127.0.0.1")
    made.issue("20-wild.pem", "*.wild.example")
    return made


def tables(servers: list[str], folder: Path, workers: int = 2, **listen: Any) -> Tables:
    """A TLS listener with every certificate in `folder`."""
    return settings(servers, workers=workers, listen={"tls": {"certs": [f"{folder}/[0-9]*.pem"]}, **listen})


def open_tls(lb: LoadBalancer, authority: Authority, name: str = "a.example") -> RawClient:
    """A TLS connection whose certificate must be valid for `name`."""
    return RawClient(lb.address, tls=authority.client_context(), server_name=name)


def presented(client: RawClient) -> set[str]:
    """The DNS names of the certificate that the load balancer showed."""
    assert isinstance(client.socket, ssl.SSLSocket)
    certificate: Any = client.socket.getpeercert()
    return {value for kind, value in certificate["subjectAltName"] if kind == "DNS"}


def serial(client: RawClient) -> str:
    """The serial number of the certificate that the load balancer showed."""
    assert isinstance(client.socket, ssl.SSLSocket)
    certificate: Any = client.socket.getpeercert()
    return str(certificate["serialNumber"])


def test_the_name_chooses_the_certificate(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    server = upstream()
    lb = balancer(tables([server.address], tmp_path))
    for name, shown in {"a.example": "a.example", "x.wild.example": "*.wild.example"}.items():
        with open_tls(lb, authority, name) as client:
            assert presented(client) == {shown}
            assert isinstance(client.socket, ssl.SSLSocket)
            assert client.socket.selected_alpn_protocol() == "http/1.1"
            assert client.request("/", host=name).status == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        open_tls(lb, authority, "x.y.wild.example")
    with open_tls(lb, authority, "127.0.0.1") as client:  # no name in the handshake: the default
        assert presented(client) == {"a.example"}
    assert server.requests[0].head.get("x-forwarded-proto") == "https"
    assert "proto=https" in (server.requests[0].head.get("forwarded") or "")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_large_bodies_in_both_versions(
    version: ssl.TLSVersion,
    balancer: StartBalancer,
    upstream: StartUpstream,
    authority: Authority,
    tmp_path: Path,
) -> None:
    body = hashlib.shake_128(b"tls").digest(2_000_000)
    lb = balancer(tables([upstream().address], tmp_path, workers=1))
    context = authority.client_context()
    context.minimum_version = context.maximum_version = version
    with RawClient(lb.address, tls=context, server_name="a.example") as client:
        for _ in range(2):
            client.send(request_bytes("/", method="POST", body=body, host="a.example"))
            assert client.read_response().body == b"up POST / " + body


def test_older_versions_are_refused(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    lb = balancer(tables([upstream().address], tmp_path))
    with socket.create_connection(("127.0.0.1", lb.port), 5) as client:
        # A TLS 1.1 client: record and hello version 3.2, no extensions, one cipher of its time.
        hello = b"\x03\x02" + bytes(32) + b"\x00" + b"\x00\x02\xc0\x13" + b"\x01\x00"
        shake = b"\x01" + len(hello).to_bytes(3, "big") + hello
        client.sendall(b"\x16\x03\x01" + len(shake).to_bytes(2, "big") + shake)
        assert client.recv(100)[:1] in (b"\x15", b"")


def test_websockets_over_tls(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    lb = balancer(tables([upstream(ws.serve_echo).address], tmp_path, workers=1))
    with open_tls(lb, authority) as client:
        request, key = ws.handshake_bytes("/", host="a.example")
        client.send(request + ws.frame(b"early", masked=True))
        assert client.read_response().header("sec-websocket-accept") == ws.accept_token(key)
        assert ws.read_frame(client).payload == b"early"
        for size in (1, 16_384, 16_385, 300_000):
            payload = hashlib.shake_128(b"wss").digest(size)
            client.send(ws.frame(payload, masked=True))
            assert ws.read_frame(client).payload == payload
        client.send(ws.close_frame(1000, masked=True))
        assert ws.read_frame(client).close_code == 1000
        assert client.read_to_end() == b""  # a close_notify, not a bare FIN: that would raise


def test_certificates_are_reloaded_without_touching_a_connection(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    lb = balancer(tables([upstream(ws.serve_echo).address], tmp_path))
    with open_tls(lb, authority) as http, open_tls(lb, authority) as tunnel:
        request, _ = ws.handshake_bytes("/", host="a.example")
        tunnel.send(request)
        assert tunnel.read_response().status == 101
        old = serial(http)
        authority.issue("10-a.pem", "a.example", "new.example")
        lb.reload()
        with open_tls(lb, authority, "new.example") as client:
            assert serial(client) != old
        assert http.request("/", host="a.example").status == 200
        tunnel.send(ws.frame(b"still here", masked=True))
        assert ws.read_frame(tunnel).payload == b"still here"


def test_a_broken_certificate_never_replaces_a_good_one(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    lb = balancer(tables([upstream().address], tmp_path))
    (tmp_path / "10-a.pem").write_text("no certificate\n")
    outcome = lb.reload(check=False)
    assert "10-a.pem" in outcome["error"]
    with open_tls(lb, authority) as client:
        assert client.request("/", host="a.example").status == 200


def test_redirect_https(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    server = upstream()
    configuration = tables([server.address], tmp_path)
    plain = free_port()
    configuration["listen"]["plain"] = {"bind": [f"127.0.0.1:{plain}"], "redirect_https": True}
    lb = balancer(configuration)
    for _ in range(2):
        response = fetch(("127.0.0.1", plain), "/path?q=1", host=f"a.example:{plain}")
        assert response.status in (301, 308)
        assert response.header("location") == f"https://a.example:{lb.port}/path?q=1"
    assert not server.requests


def test_a_host_that_another_certificate_is_for_is_misdirected(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    """RFC 9110 section 15.5.20: the client has reused a connection that was not made for this host."""
    server = upstream()
    lb = balancer(tables([server.address], tmp_path))
    with open_tls(lb, authority, "a.example") as client:
        assert client.request("/", host="a.example").status == 200
        assert client.request("/", host="x.wild.example").status == 421
        assert client.request("/", host="a.example").status == 200
    assert len(server.requests) == 2
    lb.wait_access(status=421, reason="misdirected")


def test_plain_http_to_a_tls_port_is_told_so(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    lb = balancer(tables([upstream().address], tmp_path))
    with RawClient(lb.address) as client:
        client.send(request_bytes("/"))
        assert client.read_until_closed().startswith(b"HTTP/1.1 400 ")
    with open_tls(lb, authority) as client:
        assert client.request("/", host="a.example").status == 200


def test_a_client_that_does_not_finish_its_handshake_is_dropped(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    lb = balancer(tables([upstream().address], tmp_path, timeouts={"tls_handshake": "300ms"}))
    with RawClient(lb.address) as silent, RawClient(lb.address) as halfway, RawClient(lb.address) as garbage:
        halfway.send(b"\x16\x03\x01\x02\x00\x01")
        garbage.send(b"\x16\x03\x01\x00\x05aaaaa")
        for client in (silent, halfway, garbage):
            client.read_until_closed()
    with open_tls(lb, authority) as client:
        assert client.request("/", host="a.example").status == 200


def test_a_cookie_is_secure_under_tls(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    configuration = tables([upstream().address], tmp_path)
    configuration["pool"]["main"]["sticky"] = {"cookie": "lb"}
    lb = balancer(configuration)
    with open_tls(lb, authority) as client:
        cookie = client.request("/", host="a.example").header("set-cookie") or ""
    assert "secure" in [part.strip().lower() for part in cookie.split(";")]


def test_a_truncated_response_is_no_clean_end_under_tls(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    def cut(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        connection.reset()

    lb = balancer(tables([upstream(cut).address], tmp_path))
    with open_tls(lb, authority) as client:
        client.send(request_bytes("/", host="a.example"))
        with pytest.raises((AssertionError, ConnectionResetError, ssl.SSLEOFError)):
            client.read_response()


def test_a_slow_tls_reader_pauses_the_server(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    total = 40_000_000
    sent = [0]

    def large(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        piece = b"x" * 50_000
        while sent[0] < total:
            connection.send(piece)
            sent[0] += len(piece)
        connection.wait_closed()

    lb = balancer(tables([upstream(large).address], tmp_path, workers=1))
    (worker,) = lb.worker_pids()
    before = processes.resident_bytes(worker)
    context = authority.client_context()
    with RawClient(lb.address, tls=context, server_name="a.example", receive_buffer=65536) as client:
        client.send(request_bytes("/", host="a.example"))
        client.read_head()
        seen = [-1]

        def stalled() -> bool:
            still, seen[0] = sent[0] == seen[0], sent[0]
            return still

        eventually(stalled, "the server is paused")
        assert sent[0] < total // 2
        assert processes.resident_bytes(worker) - before < 8_000_000
        assert client.read_exactly(total) == b"x" * total


def tls_upstream(context: ssl.SSLContext, names: list[str | None]) -> Any:
    """A handler that speaks TLS and then answers; the names that were asked for go into `names`."""

    def note(_socket: object, name: str | None, _context: object) -> None:
        names.append(name)

    context.sni_callback = note

    def handler(connection: Connection) -> None:
        with context.wrap_socket(connection.socket, server_side=True) as secured:
            connection.socket = secured
            answer(connection)

    return handler


def test_tls_to_the_server_is_verified(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    names: list[str | None] = []
    context = server_context(authority.issue("server.pem", "backend.internal"))
    server = upstream(tls_upstream(context, names))

    def status(**tls: object) -> int:
        configuration = settings(
            [server.address], workers=1, pool={"tls": tls}, route={"retry": {"attempts": 1}}
        )
        lb = balancer(configuration)
        with RawClient(lb.address) as client:
            answers = {client.request("/", method="POST", body=b"x" * 100_000).status for _ in range(2)}
        return answers.pop()

    assert status(ca=str(authority.file), sni="backend.internal") == 200
    assert names[-1] == "backend.internal"
    assert status(ca=str(authority.file), sni="other.internal") == 502
    assert status(ca=str(authority.file)) == 502
    assert status(sni="backend.internal") == 502
    assert status(verify=False) == 200


def test_a_server_that_speaks_no_tls_is_refused(balancer: StartBalancer, upstream: StartUpstream) -> None:
    def plain(connection: Connection) -> None:
        connection.receive()
        connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    lb = balancer(settings([upstream(plain).address], pool={"tls": {"verify": False}}))
    assert fetch(lb.address).status == 502
    lb.wait_access(reason="upstream_tls", status=502)


def test_many_handshakes_at_once(
    balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    lb = balancer(tables([upstream().address], tmp_path))
    statuses: list[int] = []

    def one() -> None:
        with open_tls(lb, authority) as client:
            statuses.append(client.request("/", host="a.example").status)

    threads = [threading.Thread(target=one) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 40
