"""What goes wrong on the way, in one type: which side, which status, whether a retry is safe, and why."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class Retry(enum.Enum):
    """Whether the same request may be sent to another server (design, invariant 2)."""

    NEVER = "never"
    # Nothing of the request reached a server: safe for every method.
    SAFE = "safe"
    # The server may have seen it: safe where the method is idempotent and the body can be sent again.
    IF_IDEMPOTENT = "if-idempotent"


class Refusal(NamedTuple):
    """A stable reason. `reason` is the log field and the metric label; `status` what the client gets;
    `close` says that the framing of what follows is in doubt, so the connection ends with the answer."""

    reason: str
    status: int
    close: bool
    text: str


def _refusal(reason: str, status: int, text: str, *, close: bool = False) -> Refusal:
    return Refusal(reason, status, close, text)


# The client's fault.
BAD_REQUEST_LINE: Final = _refusal("bad_request_line", 400, "The request line is malformed.", close=True)
BAD_HEADER: Final = _refusal("bad_header", 400, "A header field is malformed.", close=True)
BAD_HOST: Final = _refusal("bad_host", 400, "The Host field is missing, repeated or malformed.", close=True)
BAD_FRAMING: Final = _refusal("bad_framing", 400, "The length of the body is ambiguous.", close=True)
BAD_CHUNK: Final = _refusal("bad_chunk", 400, "The chunked body is malformed.", close=True)
BAD_VERSION: Final = _refusal("bad_version", 505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.", close=True)
BAD_TRANSFER_CODING: Final = _refusal(
    "bad_transfer_coding", 501, "The only transfer coding known here is chunked.", close=True
)
BAD_UPGRADE: Final = _refusal("bad_upgrade", 400, "The WebSocket handshake is malformed.")
WEBSOCKET_VERSION: Final = _refusal("websocket_version", 426, "WebSocket version 13 is spoken here.")
METHOD_REFUSED: Final = _refusal("method_refused", 405, "CONNECT and TRACE are not served.", close=True)
NO_ROUTE: Final = _refusal("no_route", 404, "No route matches this host and path.")
MISDIRECTED: Final = _refusal("misdirected", 421, "This name is not served on this connection.")
HEAD_TIMEOUT: Final = _refusal("head_timeout", 408, "The request head took too long.", close=True)
BODY_TIMEOUT: Final = _refusal("body_timeout", 408, "The request body took too long.", close=True)
BODY_TOO_LARGE: Final = _refusal("body_too_large", 413, "The request body is too large.", close=True)
TARGET_TOO_LONG: Final = _refusal("target_too_long", 414, "The request target is too long.", close=True)
HEAD_TOO_LARGE: Final = _refusal("head_too_large", 431, "The request head is too large.", close=True)
PLAIN_ON_TLS: Final = _refusal("plain_on_tls", 400, "This port speaks TLS.", close=True)

# The servers' fault, or ours.
CONNECT_FAILED: Final = _refusal("connect_failed", 502, "The server can't be reached.")
CONNECT_TIMEOUT: Final = _refusal("connect_timeout", 504, "The server did not accept the connection in time.")
RESOLVE_FAILED: Final = _refusal("resolve_failed", 502, "The server's name can't be resolved.")
UPSTREAM_TLS: Final = _refusal("upstream_tls", 502, "The TLS handshake with the server failed.")
UPSTREAM_RESET: Final = _refusal("upstream_reset", 502, "The server closed the connection.")
BAD_RESPONSE: Final = _refusal("bad_response", 502, "The server's answer is malformed.")
RESPONSE_TIMEOUT: Final = _refusal("response_timeout", 504, "The server did not answer in time.")
BAD_ACCEPT: Final = _refusal("bad_accept", 502, "The server's WebSocket handshake is wrong.")
NO_SERVER: Final = _refusal("no_server", 503, "No server is available.")
QUEUE_FULL: Final = _refusal("queue_full", 503, "Too many requests wait for a server.")
QUEUE_TIMEOUT: Final = _refusal("queue_timeout", 503, "No server was free in time.")
SHUTTING_DOWN: Final = _refusal("shutting_down", 503, "The load balancer is shutting down.", close=True)
ADMISSION_FULL: Final = _refusal("admission_full", 503, "Too many clients connect at once.")
ADMISSION_TIMEOUT: Final = _refusal("admission_timeout", 503, "Too many clients connect at once.")


# Not refusals of requests, but reasons all the same.
CONNECTION_LIMIT: Final = _refusal("connection_limit", 503, "Too many connections.", close=True)
REDIRECTED: Final = _refusal("redirect_https", 308, "Use https.")
TRUNCATED: Final = _refusal("truncated", 502, "The server's answer ended early.")
SERVER_BUSY: Final = _refusal("retried_503", 503, "The server answered 503, and another one was asked.")

# Every reason, in an order that never changes: metrics count by the place in it. New ones go to the end.
REASONS: Final = (
    BAD_REQUEST_LINE, BAD_HEADER, BAD_HOST, BAD_FRAMING, BAD_CHUNK, BAD_VERSION, BAD_TRANSFER_CODING,
    BAD_UPGRADE, WEBSOCKET_VERSION, METHOD_REFUSED, NO_ROUTE, MISDIRECTED, HEAD_TIMEOUT, BODY_TIMEOUT,
    BODY_TOO_LARGE, TARGET_TOO_LONG, HEAD_TOO_LARGE, PLAIN_ON_TLS, CONNECT_FAILED, CONNECT_TIMEOUT,
    RESOLVE_FAILED, UPSTREAM_TLS, UPSTREAM_RESET, BAD_RESPONSE, RESPONSE_TIMEOUT, BAD_ACCEPT, NO_SERVER,
    QUEUE_FULL, QUEUE_TIMEOUT, SHUTTING_DOWN, CONNECTION_LIMIT, REDIRECTED, TRUNCATED, SERVER_BUSY,
    ADMISSION_FULL, ADMISSION_TIMEOUT,
)  # fmt: skip
REASON_INDEX: Final = {refusal: index for index, refusal in enumerate(REASONS)}


class ProxyError(Exception):
    """An exchange that can't go on.

    `side` is whose doing it is ("client" or "upstream"), `retry` whether another server may be tried,
    `detail` the cause in a few words for the log (never for the client), `retry_after` the seconds that a 503
    tells the client to wait.
    """

    __slots__ = ("detail", "refusal", "retry", "retry_after", "side")

    def __init__(
        self,
        refusal: Refusal,
        *,
        side: str = "client",
        retry: Retry = Retry.NEVER,
        detail: str = "",
        retry_after: int = 1,
    ) -> None:
        super().__init__(refusal.reason, detail)
        self.refusal = refusal
        self.side = side
        self.retry = retry
        self.detail = detail
        self.retry_after = retry_after
