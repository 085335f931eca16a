"""Reads the corpus: pairs of `.http` and `.toml` files, see README.md."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

_ESCAPE = re.compile(rb"\\(?:([rnt\\])|x([0-9a-f]{2}))")
_CONTROLS = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}


def unescape(text: str) -> bytes:
    """The bytes that `text` spells: line ends mean nothing, `\\r`, `\\n`, `\\t`, `\\\\` and `\\xNN` do."""

    def replace(match: re.Match[bytes]) -> bytes:
        return _CONTROLS[match[1]] if match[1] else bytes.fromhex(match[2].decode())

    return _ESCAPE.sub(replace, text.replace("\n", "").encode("ascii"))


@dataclass(frozen=True)
class RequestCase:
    """What a client sends, and what must come of it."""

    name: str
    sent: bytes
    why: str
    status: list[int]
    reason: str = ""
    forwarded: list[bytes] = field(default_factory=list)
    partial: bool = False
    closed: bool = False


@dataclass(frozen=True)
class ResponseCase:
    """What a server answers, and what the client must see of it. `None` means that it does not matter."""

    name: str
    sent: bytes
    why: str
    status: int
    request: bytes = b"GET / HTTP/1.1\r\nHost: test.example\r\n\r\n"
    then: str = "close"
    whole: bool = False
    body: str | None = None
    reason: str = ""
    complete: bool = True
    interim: list[int] | None = None
    fields: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)


def _pairs(folder: str) -> list[tuple[str, bytes, dict[str, Any]]]:
    found = []
    for file in sorted((HERE / folder).glob("*.http")):
        expected = tomllib.loads(file.with_name(f"{file.stem}.toml").read_text(encoding="utf-8"))
        found.append((file.stem, unescape(file.read_text(encoding="ascii")), expected))
    return found


def request_cases() -> list[RequestCase]:
    """Every case in `requests/`, in the order of their numbers."""
    cases = []
    for name, sent, expected in _pairs("requests"):
        expected["forwarded"] = [unescape(text) for text in expected.get("forwarded", [])]
        expected.setdefault("closed", "reason" in expected)
        cases.append(RequestCase(name, sent, **expected))
    return cases


def response_cases() -> list[ResponseCase]:
    """Every case in `responses/`, in the order of their numbers."""
    cases = []
    for name, sent, expected in _pairs("responses"):
        if "request" in expected:
            expected["request"] = unescape(expected["request"])
        cases.append(ResponseCase(name, sent, **expected))
    return cases
