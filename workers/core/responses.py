"""Responses that the load balancer writes itself: refusals, redirects."""

from __future__ import annotations

from typing import Final

from workers.contract.errors import Refusal

_PHRASES: Final = {
    301: "Moved Permanently",
    308: "Permanent Redirect",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    421: "Misdirected Request",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}
# What some statuses owe the client: RFC 9110 sections 15.5.6, 15.5.22 and 15.6.4.
_EXTRA: Final = {
    405: "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n",
    426: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    503: "Retry-After: {retry_after}\r\n",
}


def refusal_response(
    refusal: Refusal, *, date: str, close: bool, without_body: bool, retry_after: int = 1
) -> bytes:
    """A refusal for the client: a short plain text that says what is wrong, and nothing about the inside.

    `date` is an IMF-fixdate (RFC 9110 section 5.6.7); `close` says that the connection ends after it;
    `without_body` is for HEAD; `retry_after` are the seconds that a 503 tells.
    """
    body = f"{refusal.status} {_PHRASES[refusal.status]}: {refusal.text}\n"
    options = ["close"] if close else []
    if refusal.status == 426:
        options.append("upgrade")
    connection = f"Connection: {', '.join(options)}\r\n" if options else ""
    head = (
        f"HTTP/1.1 {refusal.status} {_PHRASES[refusal.status]}\r\n"
        f"Date: {date}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        f"{_EXTRA.get(refusal.status, '').format(retry_after=retry_after)}{connection}\r\n"
    )
    return (head if without_body else head + body).encode("ascii")


def redirect_response(location: bytes, *, date: str, close: bool) -> bytes:
    """308 to `location`: the method and the body of what was sent are kept (RFC 9110 section 15.4.9)."""
    connection = b"Connection: close\r\n" if close else b""
    return b"".join(
        (
            b"HTTP/1.1 308 Permanent Redirect\r\nDate: ",
            date.encode("ascii"),
            b"\r\nLocation: ",
            location,
            b"\r\nContent-Length: 0\r\n",
            connection,
            b"\r\n",
        )
    )
