"""The corpus of responses through the real load balancer: what a client may see of a bad server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus.cases import ResponseCase, response_cases
from tests.harness import Connection, LoadBalancer, RawClient, Response, Upstream, reply
from tests.harness.client import ProtocolError, request_bytes
from tests.harness.settings import settings

pytestmark = pytest.mark.scenario

_ABORTED = (ProtocolError, ConnectionResetError, BrokenPipeError)


class Script:
    """A server that answers the first request of a case with its bytes, and all others properly."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._case: ResponseCase | None = None
        self._pieces = 1
        self.connections: list[int] = []
        self.upstream = Upstream(self._serve)

    def arm(self, case: ResponseCase, pieces: int) -> None:
        """The next request, `/next` apart, is answered with the bytes of `case`, `pieces` at a time."""
        with self._lock:
            self._case = case
            self._pieces = pieces
            self.connections.clear()

    def _serve(self, connection: Connection) -> None:
        while (request := connection.read_request()) is not None:
            self.connections.append(connection.number)
            with self._lock:
                case = self._case if request.target != "/next" else None
                self._case = None if case else self._case
            if case is None:
                # Closing makes the next case begin on a fresh connection: nothing is retried silently then.
                connection.send(reply(b"next", headers={"Connection": "close"}))
                return
            for at in range(0, len(case.sent), self._pieces):
                connection.send(case.sent[at : at + self._pieces])
            if case.then == "reset":
                connection.reset()
            if case.then != "keep":
                return


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Script, LoadBalancer]]:
    folder: Path = tmp_path_factory.mktemp("corpus")
    scripted = Script()
    with scripted.upstream:
        tables = settings([scripted.upstream.address], workers=1, route={"retry": {"attempts": 1}})
        with LoadBalancer(folder, tables).running() as balancer:
            yield scripted, balancer


def check(case: ResponseCase, response: Response) -> None:
    """Compares a complete response with what the case expects."""
    assert response.status == case.status
    if case.body is not None:
        assert response.text == case.body
    if case.interim is not None:
        assert [int(head.first_line.split()[1]) for head in response.interim] == case.interim
    for name, value in case.fields.items():
        assert response.header(name) == value
    for name in case.absent:
        values = response.head.all(name)
        assert not [value for value in values if value.lower() not in ("close", "keep-alive")], name
    assert dict(response.trailers) == case.trailers


def assert_cut(case: ResponseCase, client: RawClient, method: str) -> None:
    """The client sees that the response is not whole; a RST may even overtake the head."""
    try:
        response = client.read_response(method)
    except _ABORTED:
        return
    assert case.then == "reset", response
    assert response.status == 502, response


@pytest.mark.parametrize("pieces", [1024 * 1024, 1], ids=["whole", "in pieces"])
@pytest.mark.parametrize("case", response_cases(), ids=lambda case: case.name)
def test_response(case: ResponseCase, pieces: int, script: tuple[Script, LoadBalancer]) -> None:
    """How the bytes are cut into packets must not matter."""
    scripted, balancer = script
    if case.whole:
        pieces = len(case.sent)
    scripted.arm(case, pieces if len(case.sent) < 2000 else max(pieces, 700))
    method = case.request.split(b" ")[0].decode()
    with RawClient(balancer.address) as client:
        client.send(case.request)
        if case.complete:
            response = client.read_response(method)
            check(case, response)
        else:
            assert_cut(case, client, method)
        alive = case.complete and b"HTTP/1.0" not in case.request
        if alive and "close" not in (response.header("connection") or ""):
            client.send(request_bytes("/next"))
            assert client.read_response().body == b"next"
    with RawClient(balancer.address) as client:
        assert client.request("/next").body == b"next"
    if case.whole:  # such a connection is not used again
        assert scripted.connections[0] not in scripted.connections[1:]
    if case.reason:
        balancer.wait_access(reason=case.reason, status=case.status)
