"""The corpus of requests through the real load balancer: what is refused, what passes, nothing smuggled."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus.cases import RequestCase, request_cases
from tests.harness import LoadBalancer, RawClient, Upstream, fetch
from tests.harness.settings import settings
from tests.harness.upstream import Request

pytestmark = pytest.mark.scenario

CASES = request_cases()
_LIMITS = {"head_bytes": "4KiB", "headers": 32, "body_bytes": "64KiB"}
_OURS = re.compile(rb"\r\n(?:x-forwarded-[a-z]+|forwarded|x-request-id):[^\r]*", re.IGNORECASE)
_PROBES = re.compile(r"/alive|/barrier-\d+")


class Proxy:
    """One load balancer with one worker over one server, for all cases."""

    def __init__(self, balancer: LoadBalancer, upstream: Upstream) -> None:
        self.balancer = balancer
        self.upstream = upstream
        self._clean = True
        self._barriers = 0
        self._logged = 0

    def begin(self) -> None:
        """Forgets what came before."""
        if not self._clean:  # the case before this one failed: its lines are not this one's
            self.barrier()
        self._clean = False
        self.upstream.requests.clear()
        self.upstream.malformed.clear()

    def forwarded(self) -> list[bytes]:
        """The requests of the case that reached the server, as the corpus writes them."""
        return [
            canonical(request) for request in self.upstream.requests if not _PROBES.fullmatch(request.target)
        ]

    def barrier(self) -> list[str]:
        """A last request: when it has its answer, what was on its way to the server has arrived. Returns
        the reasons that the log has for the requests of the case."""
        self._barriers += 1
        target = f"/barrier-{self._barriers}"
        assert fetch(self.balancer.address, target).status == 200
        self.balancer.wait_access(target=target)
        lines = self.balancer.access_lines()
        self._clean = True
        fresh, self._logged = lines[self._logged :], len(lines)
        return [line["reason"] for line in fresh if line["reason"]]


def canonical(request: Request) -> bytes:
    """The request without the fields that the load balancer adds, and with its body in one chunk."""
    head = _OURS.sub(b"", request.head.raw)
    if request.head.get("transfer-encoding") is None:
        return head + request.body
    trailers = request.raw[request.raw.rindex(b"0\r\n") + 3 :]
    size = b"%x\r\n%b\r\n" % (len(request.body), request.body) if request.body else b""
    return head + size + b"0\r\n" + trailers


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder: Path = tmp_path_factory.mktemp("corpus")
    with Upstream() as upstream:
        tables = settings([upstream.address], workers=1, listen={"limits": _LIMITS})
        with LoadBalancer(folder, tables).running() as balancer:
            yield Proxy(balancer, upstream)


def exchange(case: RequestCase, proxy: Proxy, pieces: int) -> None:
    """Sends the case, `pieces` bytes at a time, and compares everything that comes of it."""
    proxy.begin()
    with RawClient(proxy.balancer.address) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A refusal may come, and the connection end, before the last byte.
            for at in range(0, len(case.sent), pieces):
                client.send(case.sent[at : at + pieces])
        method = "HEAD" if case.sent.startswith(b"HEAD ") else "GET"
        answers = [client.read_response(method) for _ in case.status]
        assert [answer.status for answer in answers] == case.status
        if case.closed:
            assert client.read_until_closed() == b""
        else:
            assert client.request("/alive").status == 200
    assert proxy.barrier() == ([case.reason] if case.reason else [])
    assert proxy.forwarded() == case.forwarded
    assert case.partial or not proxy.upstream.malformed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_request(case: RequestCase, proxy: Proxy) -> None:
    exchange(case, proxy, pieces=1024 * 1024)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_request_in_pieces(case: RequestCase, proxy: Proxy) -> None:
    """How the bytes are cut into packets must not matter."""
    exchange(case, proxy, pieces=1 if len(case.sent) < 2000 else 700)
