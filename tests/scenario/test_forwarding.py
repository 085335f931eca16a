"""X-Forwarded-*, Forwarded and X-Request-ID: what the server is told, and who is believed."""

from __future__ import annotations

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import fetch
from tests.harness.client import Head
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

FORGED = {
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "forged.example",
    "X-Forwarded-Port": "4443",
    "Forwarded": "for=203.0.113.7;proto=https;host=forged.example",
    "X-Request-ID": "forged-id",
}


def received(
    balancer: StartBalancer, upstream: StartUpstream, headers: dict[str, str], **listen: object
) -> tuple[Head, int]:
    """The head that the server gets for a request with `headers`, and the listener's port."""
    server = upstream()
    lb = balancer(settings([server.address], listen=listen))
    assert fetch(lb.address, "/", headers=headers).status == 200
    return server.requests[0].head, lb.port


def test_the_server_learns_about_the_client(balancer: StartBalancer, upstream: StartUpstream) -> None:
    head, port = received(balancer, upstream, {})
    assert head.get("host") == "test.example"
    assert head.get("x-forwarded-for") == "127.0.0.1"
    assert head.get("x-forwarded-proto") == "http"
    assert head.get("x-forwarded-host") == "test.example"
    assert head.get("x-forwarded-port") == str(port)
    parts = dict(part.split("=", 1) for part in (head.get("forwarded") or "").split(";"))
    assert parts["for"].strip('"') == "127.0.0.1"
    assert parts["proto"] == "http"
    assert parts["host"].strip('"') == "test.example"
    assert len(head.get("x-request-id") or "") >= 16


def test_a_stranger_is_not_believed(balancer: StartBalancer, upstream: StartUpstream) -> None:
    forged = {**FORGED, "X_Forwarded_For": "203.0.113.9"}
    head, port = received(balancer, upstream, forged, trusted_proxies=["10.0.0.0/8"])
    assert head.get("x-forwarded-for") == "127.0.0.1"
    assert head.get("x-forwarded-proto") == "http"
    assert head.get("x-forwarded-host") == "test.example"
    assert head.get("x-forwarded-port") == str(port)
    assert head.get("x-request-id") != "forged-id"
    assert b"203.0.113" not in head.raw
    assert b"forged" not in head.raw


def test_a_trusted_proxy_is_believed_and_appended_to(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    head, _ = received(balancer, upstream, FORGED, trusted_proxies=["127.0.0.0/8"])
    assert head.get("x-forwarded-for") == "203.0.113.7, 127.0.0.1"
    assert head.get("x-forwarded-proto") == "https"
    assert head.get("x-forwarded-host") == "forged.example"
    assert head.get("x-forwarded-port") == "4443"
    assert head.get("x-request-id") == "forged-id"
    forwarded = head.get("forwarded") or ""
    assert forwarded.startswith("for=203.0.113.7;proto=https;host=forged.example, ")
    assert "for=127.0.0.1" in forwarded


def test_request_ids_differ(balancer: StartBalancer, upstream: StartUpstream) -> None:
    server = upstream()
    lb = balancer(settings([server.address], workers=2))
    for _ in range(20):
        fetch(lb.address, "/")
    assert len({request.head.get("x-request-id") for request in server.requests}) == 20


def test_the_log_has_the_client_that_a_trusted_proxy_names(
    balancer: StartBalancer, upstream: StartUpstream
) -> None:
    server = upstream()
    lb = balancer(settings([server.address], listen={"trusted_proxies": ["127.0.0.1/32"]}))
    fetch(lb.address, "/", headers={"X-Forwarded-For": "198.51.100.1, 203.0.113.7"})
    # The rightmost address that is no trusted proxy: what stands left of it anybody may have written.
    assert lb.wait_access()[0]["client"] == "203.0.113.7"
