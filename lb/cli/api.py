"""A client of the admin API: one request at a time, over a Unix socket or TCP, each with a deadline for the
whole of it."""

from __future__ import annotations

import http.client
import socket
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from lb.admin.views import Problem
from lb.cli.address import Address
from lb.cli.client import Unreachable
from lb.cli.text import one_line
from lb.master.failures import reason

Answer = TypeVar("Answer")
Query = Mapping[str, str | int | float]

TIMEOUT: Final = 10.0
# A reload waits for one that is under way, then has its own deadlines.
RELOAD_TIMEOUT: Final = 60.0
_PREFIX: Final = "/api/v1/"
_MAX_ANSWER: Final = 64 * 1024 * 1024


class Refused(Exception):
    """The API answered that it won't or can't; `str()` is one line for people."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Socket(socket.socket):
    """A socket whose operations end at `deadline` (monotonic), however many there are. Http.client reads by
    `recv_into` and sends by `sendall`."""

    deadline = 0.0

    def left(self) -> float:
        """Seconds. Raises `TimeoutError` where there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        """Receives within what is left."""
        self.settimeout(self.left())
        return super().recv_into(*arguments, **named)

    def sendall(self, *arguments: Any, **named: Any) -> None:
        """Sends within what is left."""
        self.settimeout(self.left())
        super().sendall(*arguments, **named)


class _Connection(http.client.HTTPConnection):
    """HTTP to an address, over a Unix socket where it is one."""

    def __init__(self, address: Address, timeout: float) -> None:
        super().__init__(address.host or "localhost", address.port or None)
        self._path = address.path
        self._deadline = time.monotonic() + timeout

    def connect(self) -> None:
        """Connects; `http.client` calls it before the request."""
        if self._path:
            self._connect(socket.AF_UNIX, self._path)
            return
        # The first address that answers, of all of them in turn.
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for index, (family, _, _, _, place) in enumerate(found):
            try:
                self._connect(family, place)
                return
            except TimeoutError:
                raise
            except OSError:
                if index == len(found) - 1:
                    raise

    def _connect(self, family: int, place: Any) -> None:
        sock = _Socket(family, socket.SOCK_STREAM)
        sock.deadline = self._deadline
        try:
            sock.settimeout(sock.left())
            sock.connect(place)
        except OSError:
            sock.close()
            raise
        self.sock = sock


class Api:
    """The admin API at `address`. Each call is a connection of its own, so nothing is left over when the
    control process is replaced.

    Calls raise `Unreachable` where nobody answers, and `Refused` where the answer is no.
    """

    def __init__(self, address: Address, timeout: float = TIMEOUT) -> None:
        self.address = address
        self._timeout = timeout

    def get(self, path: str, kind: type[Answer], query: Query | None = None) -> Answer:
        """What is at `path` ("status", "pools/web"); its parts are percent-encoded by the caller."""
        target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        return self._decode(self._exchange("GET", target, None, self._timeout), kind)

    def send(
        self, method: str, path: str, body: object, kind: type[Answer], timeout: float | None = None
    ) -> Answer:
        """Sends `body` as JSON (`None`: no body) and returns the answer."""
        encoded = None if body is None else msgspec.json.encode(body)
        return self._decode(self._exchange(method, path, encoded, timeout or self._timeout), kind)

    def _exchange(self, method: str, target: str, body: bytes | None, timeout: float) -> bytes:
        connection = _Connection(self.address, timeout)
        headers = {"Accept": "application/json", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.address.token:
            headers["Authorization"] = f"Bearer {self.address.token}"
        try:
            connection.request(method, _PREFIX + target, body, headers)
            response = connection.getresponse()
            answer = response.read(_MAX_ANSWER + 1)
        except TimeoutError:
            why = f"does not answer within {timeout:g}s"
            raise Unreachable(f"the admin API at {self.address} {why}") from None
        except OSError as error:
            raise Unreachable(f"no admin API answers at {self.address}: {reason(error)}") from error
        except http.client.HTTPException as error:
            why = str(error) or type(error).__name__
            raise Unreachable(f"what answers at {self.address} is no admin API: {why}") from error
        finally:
            connection.close()
        if len(answer) > _MAX_ANSWER:
            raise Unreachable(f"the admin API at {self.address} answered more than {_MAX_ANSWER} bytes")
        if not 200 <= response.status < 300:
            raise self._refusal(response, answer)
        return answer

    def _refusal(self, response: http.client.HTTPResponse, answer: bytes) -> Refused:
        kind = response.headers.get_content_type()
        if kind != "application/problem+json":
            said = one_line(f"{response.status} {response.reason}")
            return Refused(response.status, f"{self.address} answered {said}: is it lb's admin API?")
        try:
            problem = msgspec.json.decode(answer, type=Problem)
        except msgspec.MsgspecError as error:
            return Refused(response.status, f"{self.address} answered {response.status} and {error}")
        text = problem.detail or problem.title
        if response.status == 401:
            text += "; the token comes from --token-file or $LB_ADMIN_TOKEN_FILE"
        return Refused(response.status, one_line(text))

    def _decode(self, answer: bytes, kind: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.MsgspecError as error:
            raise Unreachable(f"the admin API at {self.address} gave no usable answer: {error}") from error


def quoted(name: str) -> str:
    """A pool's or server's name as a part of a path."""
    return urllib.parse.quote(name, safe="")
