"""Who may ask: the kernel's word, the token, and what a browser must not be made to do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from lb.admin.auth import FAILURES, FAILURES_RATE, MAX_ADDRESSES, Connection, Failures, host_name, is_ours
from tests.harness.admin import AdminServer, Answer
from tests.harness.control import StandInControl
from workers.contract.snapshot import PoolSpec, ServerSpec, Snapshot

TOKEN = "correct horse battery staple"
SERVER = ServerSpec(slot=0, owner=1, name="a", host="10.0.0.1", port=80)
SNAPSHOT = Snapshot(generation=1, pools=(PoolSpec(name="web", owner=1, servers=(SERVER,)),))


@pytest.fixture
def admin(socket_folder: str) -> Iterator[AdminServer]:
    with StandInControl(SNAPSHOT) as control:
        control.spec = msgspec.structs.replace(control.spec, admin="127.0.0.1:9181", admin_token=TOKEN)
        with AdminServer(control, socket_folder) as server:
            yield server


def over_tcp(admin: AdminServer, path: str = "status", method: str = "GET", **headers: str | None) -> Answer:
    headers.setdefault("Authorization", f"Bearer {TOKEN}")
    return admin.ask(method, path, {} if method != "GET" else None, tcp=True, **headers)


# --- the token -----------------------------------------------------------------------------------------


def test_the_token_lets_in_over_tcp(admin: AdminServer) -> None:
    assert over_tcp(admin).status == 200
    assert over_tcp(admin, Authorization=f"bearer {TOKEN}").status == 200


@pytest.mark.parametrize("path", ["status", "config", "nothing", "/elsewhere", "events", "openapi.json"])
@pytest.mark.parametrize(
    "shown", [None, "Bearer wrong", "Bearer", "Basic abc", f"Basic {TOKEN}", TOKEN, "Bearer \xff"]
)
def test_without_the_token_nothing_is_told(admin: AdminServer, path: str, shown: str | None) -> None:
    answer = over_tcp(admin, path, Authorization=shown)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="lb"')
    assert answer.body["status"] == 401
    assert TOKEN not in str(answer)


@pytest.mark.parametrize("method", ["PATCH", "POST", "PUT", "DELETE", "OPTIONS"])
def test_every_method_needs_the_token(admin: AdminServer, method: str) -> None:
    assert over_tcp(admin, method=method, Authorization=None).status == 401


def test_the_page_alone_needs_no_token(admin: AdminServer) -> None:
    answer = over_tcp(admin, "/", Authorization=None)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_no_token_configured_means_nobody_gets_in_over_tcp(admin: AdminServer) -> None:
    admin.control.spec = msgspec.structs.replace(admin.control.spec, admin_token="")
    for shown in ("Bearer ", "Bearer", "", None):
        assert over_tcp(admin, Authorization=shown).status == 401


def test_a_reload_can_change_the_token(admin: AdminServer) -> None:
    admin.control.spec = msgspec.structs.replace(admin.control.spec, admin_token="another")
    assert over_tcp(admin).status == 401
    assert over_tcp(admin, Authorization="Bearer another").status == 200


def test_tokens_cannot_be_tried_at_will(admin: AdminServer) -> None:
    tried = [over_tcp(admin, Authorization=f"Bearer {number}").status for number in range(FAILURES + 3)]
    assert tried[:FAILURES] == [401] * FAILURES
    assert 429 in tried[FAILURES:]
    blocked = over_tcp(admin, Authorization="Bearer wrong")
    assert (blocked.status, blocked.headers["retry-after"]) == (429, "5")
    assert over_tcp(admin).status == 200  # the right one passes, whoever else tries from the same address
    assert admin.get("status").status == 200  # who comes over the Unix socket is not concerned
    log = admin.control.log_text()
    assert log.count("admin request refused") >= FAILURES
    assert "peer=127.0.0.1" in log and "Bearer" not in log


def over_one_connection(admin: AdminServer, *paths: str, token: str = "wrong") -> int:
    """How many of these requests, sent at once, are answered before the connection ends."""
    head = f"Host: 127.0.0.1:{admin.port}\r\nAuthorization: Bearer {token}\r\n"
    with socket.create_connection(("127.0.0.1", admin.port), timeout=20) as client:
        client.sendall("".join(f"GET {path} HTTP/1.1\r\n{head}\r\n" for path in paths).encode())
        received = bytearray()
        while received.count(b"HTTP/1.1 ") < len(paths) and (part := client.recv(65536)):
            received += part
    return received.count(b"HTTP/1.1 ")


@pytest.mark.parametrize("path", ["/", "/api/v1/status", "/api/v1/nothing"])
def test_who_shows_no_token_gets_one_answer_and_keeps_no_connection(admin: AdminServer, path: str) -> None:
    assert over_one_connection(admin, path, path, path) == 1
    assert over_one_connection(admin, "/api/v1/status", "/api/v1/status", token=TOKEN) == 2


def test_a_missing_token_is_no_attempt(admin: AdminServer) -> None:
    for _ in range(FAILURES + 3):
        assert over_tcp(admin, Authorization=None).status == 401
    assert over_tcp(admin).status == 200


def test_failures_are_forgiven_with_time_and_bounded_in_number() -> None:
    failures = Failures()
    for _ in range(FAILURES):
        assert not failures.blocked("10.0.0.1", 100.0)
        failures.add("10.0.0.1", 100.0)
    assert failures.blocked("10.0.0.1", 100.0)
    assert not failures.blocked("10.0.0.2", 100.0)
    assert not failures.blocked("10.0.0.1", 100.0 + 1 / FAILURES_RATE)
    for number in range(MAX_ADDRESSES):
        failures.add(f"10.1.{number // 256}.{number % 256}", 100.0)
    assert not failures.blocked("10.0.0.1", 100.0)
    assert len(failures) == MAX_ADDRESSES


def test_an_ipv6_neighbour_is_the_same_machine() -> None:
    failures = Failures()
    for number in range(FAILURES):
        failures.add(f"2001:db8::{number}", 0.0)
    assert failures.blocked("2001:db8::ffff", 0.0)
    assert not failures.blocked("2001:db8:0:1::1", 0.0)
    for _ in range(FAILURES):
        failures.add("::ffff:10.0.0.1", 0.0)
    assert failures.blocked("10.0.0.1", 0.0)


# --- the kernel's word ---------------------------------------------------------------------------------


def test_our_own_user_is_served_on_the_unix_socket(admin: AdminServer) -> None:
    assert admin.get("status").status == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_not_even_where_the_file_lets_them(admin: AdminServer) -> None:
    os.chmod(admin.path, 0o666)
    curl = shutil.which("curl")
    assert curl is not None
    command = [curl, "-s", "-m", "10", "--unix-socket", admin.path, "http://localhost/api/v1/config"]
    done = subprocess.run(command, user=65534, capture_output=True, text=True, timeout=20, check=True)
    assert msgspec.json.decode(done.stdout)["status"] == 403
    assert "65534" in admin.control.log_text()


# --- browsers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:9181", "[::1]:80"])
@pytest.mark.parametrize("tcp", [False, True])
def test_our_own_hosts_are_served(admin: AdminServer, host: str, tcp: bool) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": host}
    assert admin.ask("GET", "status", tcp=tcp, **headers).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "10.9.8.7", "127.0.0.1.evil.example", "", ":80", "a b"]
)
@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("path", ["status", "/"])
def test_a_name_that_somebody_made_to_mean_us_is_refused(
    admin: AdminServer, host: str, tcp: bool, path: str
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": host}
    answer = admin.ask("GET", path, tcp=tcp, **headers)
    assert answer.status == 421
    assert answer.body["title"] == "Misdirected Request"
    assert "by its IP address" in answer.body["detail"]


@pytest.mark.parametrize(
    ("host", "listen", "local", "ours"),
    [
        ("10.0.0.5", "10.0.0.5:9181", "10.0.0.5", True),
        ("10.0.0.6", "10.0.0.5:9181", "10.0.0.5", False),
        ("admin.internal", "admin.internal:9181", "10.0.0.5", True),
        ("203.0.113.9", "0.0.0.0:9181", "10.0.0.5", True),  # an address is no name, and there is NAT
        ("2001:db8::1", "[::]:9181", "10.0.0.5", True),
        ("2001:db8:0::1", "[2001:db8::1]:9181", "2001:db8::1", True),
        ("evil.example", "0.0.0.0:9181", "10.0.0.5", False),
        ("evil.example", ":9181", "10.0.0.5", False),
        ("lb1", "0.0.0.0:9181", "10.0.0.5", True),
        ("lb1", ":9181", "10.0.0.5", True),
        ("lb1", "[::]:9181", "10.0.0.5", True),
        ("lb1", "10.0.0.5:9181", "10.0.0.5", False),
        ("127.1.2.3", "10.0.0.5:9181", "10.0.0.5", True),
    ],
)
def test_hosts_of_addresses(
    host: str, listen: str, local: str, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "LB1")
    assert is_ours(host, Connection(unix=False, peer="10.0.0.9", local=local), listen) is ours


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("Example.com", "example.com"),
        ("example.com:80", "example.com"),
        ("[::1]", "::1"),
        ("[::1]:80", "::1"),
        ("::1", None),
        ("[::1", None),
        ("[::1]x", None),
        ("a:b", None),
        ("a:", None),
        ("", None),
    ],
)
def test_the_name_in_a_host_field(field: str, name: str | None) -> None:
    assert host_name(field) == name


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:9000", 200),
        ("https://LOCALHOST:9000", 200),
        ("http://localhost", 403),
        ("http://localhost:9001", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("tcp", [False, True])
def test_another_sites_page_is_refused(
    admin: AdminServer, origin: str | None, status: int, tcp: bool
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "localhost:9000", "Origin": origin}
    path = "pools/web/servers/a"
    assert admin.ask("PATCH", path, {"admin": "drain"}, tcp=tcp, **headers).status == status
    assert admin.ask("GET", path, tcp=tcp, **headers).status == status
    assert ("is set to drain" in str(admin.control.events.after(0))) is (status == 200)


@pytest.mark.parametrize(("site", "status"), [("none", 200), ("same-origin", 200), ("cross-site", 403)])
def test_what_a_browser_says_of_the_asking_page_counts(admin: AdminServer, site: str, status: int) -> None:
    assert admin.get("status", Sec_Fetch_Site=site).status == status
    assert admin.get("/", Sec_Fetch_Site=site).status == 200  # a link to the dashboard is harmless


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("PATCH", "pools/web/servers/a"), ("POST", "reload"), ("POST", "tunnels/close")],
)
def test_what_a_form_can_send_changes_nothing(
    admin: AdminServer, method: str, path: str, content_type: str | None
) -> None:
    answer = admin.ask(method, path, b'{"all": true, "admin": "maint"}', Content_Type=content_type)
    assert answer.status == 415
    assert not admin.control.asked and not admin.control.reloads and not admin.control.kinds()


def test_two_hosts_are_no_host(admin: AdminServer) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(admin.path)
        client.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")
        assert client.recv(65536).split()[1] in (b"400", b"421")
