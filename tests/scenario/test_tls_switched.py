"""A connection is what it is: TLS that a reload switches on or off is for connections that come later. And
servers that speak TLS get their time for the handshake wherever they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import RawClient, Upstream
from tests.harness.certificates import Authority
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

HOST = "a.example"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that has issued a certificate for a.example."""
    made = Authority(tmp_path)
    made.issue("a.pem", HOST)
    return made


def said(server: Upstream) -> str:
    """The scheme that the server was told last."""
    return server.requests[-1].head.get("x-forwarded-proto") or ""


@pytest.mark.parametrize("before", ["plain", "tls"])
def test_connections_are_described_as_they_are(
    before: str, balancer: StartBalancer, upstream: StartUpstream, authority: Authority, tmp_path: Path
) -> None:
    tls = {"certs": [f"{tmp_path}/a.pem"]}
    server = upstream()
    lb = balancer(
        settings(
            [server.address],
            workers=1,
            listen={"tls": tls} if before == "tls" else {},
            pool={"sticky": {"cookie": "lb"}},
        )
    )
    after = "tls" if before == "plain" else "plain"

    def connect(kind: str) -> RawClient:
        context = authority.client_context() if kind == "tls" else None
        return RawClient(lb.address, tls=context, server_name=HOST)

    def assert_described(client: RawClient, kind: str) -> None:
        response = client.request("/", host=HOST)
        assert (response.status, said(server)) == (200, "https" if kind == "tls" else "http")
        assert ("; secure" in (response.header("set-cookie") or "").lower()) is (kind == "tls")

    with connect(before) as old:
        assert_described(old, before)
        if after == "tls":
            lb.tables["listen"]["public"]["tls"] = tls
        else:
            del lb.tables["listen"]["public"]["tls"]
        lb.reload()
        assert_described(old, before)
        with connect(after) as new:
            assert_described(new, after)
        assert_described(old, before)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_server_that_never_shakes_hands_is_a_timeout(
    transport: str, balancer: StartBalancer, upstream: StartUpstream, socket_folder: str
) -> None:
    path = f"{socket_folder}/server" if transport == "unix" else None
    server = upstream(lambda connection: connection.wait_closed(), path=path)
    pool = {"tls": {"verify": False}, "timeouts": {"connect": "500ms", "response_head": "1h"}}
    lb = balancer(settings([server.address], workers=1, route={"retry": {"attempts": 1}}, pool=pool))
    with RawClient(lb.address) as client:
        assert client.request("/").status == 504
    lb.wait_access(status=504, reason="connect_timeout")
