"""curl as the client."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import Connection, reply
from tests.harness.certificates import Authority
from tests.harness.settings import settings
from tests.interop.conftest import program

pytestmark = pytest.mark.interop


def curl(*arguments: str, data: bytes | None = None) -> bytes:
    """What curl prints; asserts that it is content."""
    command = [program("curl"), "--silent", "--show-error", "--max-time", "20", *arguments]
    done = subprocess.run(command, input=data, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_get_and_head(balancer: StartBalancer, upstream: StartUpstream) -> None:
    url = f"http://127.0.0.1:{balancer(settings([upstream().address])).port}"
    assert curl(f"{url}/a", f"{url}/b") == b"up GET /a up GET /b "
    assert curl("--head", f"{url}/a").startswith(b"HTTP/1.1 200 OK\r\n")
    assert curl("--http1.0", f"{url}/old") == b"up GET /old "
    assert curl("--include", "--http2", f"{url}/h2c").startswith(b"HTTP/1.1 200 OK\r\n")


def test_uploads(balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path) -> None:
    def digest(connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            connection.send(reply(hashlib.sha256(request.body).hexdigest().encode()))

    url = f"http://127.0.0.1:{balancer(settings([upstream(digest).address])).port}/"
    body = hashlib.shake_128(b"curl").digest(5_000_000)
    file = tmp_path / "body"
    file.write_bytes(body)
    expected = hashlib.sha256(body).hexdigest().encode()
    assert curl("--data-binary", f"@{file}", url) == expected
    assert curl("--header", "Expect: 100-continue", "--data-binary", f"@{file}", url) == expected
    assert curl("--upload-file", "-", url, data=body) == expected  # chunked
    assert curl("--http1.0", "--data-binary", f"@{file}", url) == expected


def test_https(balancer: StartBalancer, upstream: StartUpstream, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = authority.issue("a.pem", "a.example")
    listen = {"tls": {"certs": [str(certificate)]}}
    lb = balancer(settings([upstream().address], listen=listen))
    trust = ["--cacert", str(authority.file), "--resolve", f"a.example:{lb.port}:127.0.0.1"]
    url = f"https://a.example:{lb.port}"
    assert curl(*trust, f"{url}/tls") == b"up GET /tls "
    assert curl(*trust, "--tls-max", "1.2", f"{url}/1.2") == b"up GET /1.2 "
    body = b"x" * 1_000_000
    assert curl(*trust, "--data-binary", "@-", url, data=body) == b"up POST / " + body
