"""nginx as the server: keep-alive, static files, ranges, compression, errors, a closing pool."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartBalancer
from tests.harness import RawClient, eventually, fetch
from tests.harness.ports import free_port
from tests.harness.settings import settings
from tests.interop.conftest import program

pytestmark = pytest.mark.interop

LARGE = hashlib.shake_128(b"nginx").digest(4_000_000)

CONFIGURATION = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    keepalive_requests 7;
    gzip on;
    gzip_min_length 10;
    gzip_types text/plain;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ root {folder}/www; default_type text/plain; }}
        location /host {{ return 200 "$host $http_x_forwarded_for $http_x_forwarded_proto $request_uri\\n"; }}
        location /moved {{ return 301 https://elsewhere.example/; }}
        location /empty {{ return 204; }}
        location /drop {{ return 444; }}
    }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[str]:
    """A running nginx; its address."""
    path = program("nginx")
    port = free_port()
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "large").write_bytes(LARGE)
    (tmp_path / "www" / "text").write_text("hello " * 1000)
    user = "user root;" if os.geteuid() == 0 else ""
    file = tmp_path / "nginx.conf"
    file.write_text(CONFIGURATION.format(user=user, folder=tmp_path, port=port))
    process = subprocess.Popen(
        [path, "-c", str(file), "-p", str(tmp_path), "-e", str(tmp_path / "error.log")]
    )
    try:

        def answers() -> bool:
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            try:
                return fetch(("127.0.0.1", port), "/host").status == 200
            except ConnectionRefusedError:
                return False

        eventually(answers, "nginx answers")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def test_nginx(balancer: StartBalancer, nginx: str) -> None:
    lb = balancer(settings([nginx], workers=1))
    with RawClient(lb.address) as client:
        assert client.request("/host?q", host="www.example").text == "www.example 127.0.0.1 http /host?q\n"
        assert client.request("/large").body == LARGE
        part = client.request("/large", headers={"Range": "bytes=1000-1999"})
        assert (part.status, part.body) == (206, LARGE[1000:2000])
        packed = client.request("/text", headers={"Accept-Encoding": "gzip"})
        assert packed.header("transfer-encoding") == "chunked"
        assert gzip.decompress(packed.body) == b"hello " * 1000
        tag = client.request("/text").header("etag") or ""
        assert client.request("/text", headers={"If-None-Match": tag}).status == 304
        assert client.request("/moved").header("location") == "https://elsewhere.example/"
        assert client.request("/empty").status == 204
        assert client.request("/absent").status == 404
        assert client.request("/text", method="HEAD").header("content-length") == "6000"
        assert client.request("/host", method="POST", body=b"x" * 100_000).status == 200
        assert client.request("/drop").status == 502


def test_nginx_that_closes_every_seventh_connection_is_never_noticed(
    balancer: StartBalancer, nginx: str
) -> None:
    lb = balancer(settings([nginx], workers=1))
    with RawClient(lb.address) as client:
        for number in range(200):
            method = ("GET", "POST")[number % 2]
            assert client.request("/host", method=method, body=b"x" * (number % 3)).status == 200, number
