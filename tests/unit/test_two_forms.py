"""The compiled modules do what their source says: both forms of the pure ones are given the same, and must
give the same back. (The other hot modules are held to it by the scenario tests, which run in both forms.)"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.harness.balancer import ROOT
from workers.contract import errors
from workers.contract.errors import ProxyError
from workers.contract.form import INTERPRETED, form
from workers.contract.snapshot import HeaderRules, RouteSpec, ServerSpec

MANY = settings(max_examples=300)

pytestmark = pytest.mark.skipif(form() == INTERPRETED, reason="there is one form of the modules here")

NAMES = (
    "forwarded",
    "frames",
    "framing",
    "heads",
    "responses",
    "rewrite",
    "routing",
    "sticky",
    "upgrade",
)
NATIVE = "workers.contract.native"
PACKAGE = "workers.core"


class Form:
    """The pure hot modules in one of their forms."""

    def __init__(self) -> None:
        modules = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in NAMES}
        self.files = [str(module.__file__) for module in modules.values()]
        self.forwarded: Any = modules["forwarded"]
        self.frames: Any = modules["frames"]
        self.framing: Any = modules["framing"]
        self.heads: Any = modules["heads"]
        self.responses: Any = modules["responses"]
        self.rewrite: Any = modules["rewrite"]
        self.routing: Any = modules["routing"]
        self.sticky: Any = modules["sticky"]
        self.upgrade: Any = modules["upgrade"]


class _Sources:
    """Finds the sources of the pure modules where their compiled form would be found before them."""

    @staticmethod
    def find_spec(name: str, _path: object, _target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, module = name.rpartition(".")
        if package != PACKAGE:
            return None
        return importlib.util.spec_from_file_location(name, ROOT / "workers" / "core" / f"{module}.py")


def sources() -> Form:
    """The modules once more, interpreted; for the rest of the process nothing changes."""
    package = importlib.import_module(PACKAGE)
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(f"{PACKAGE}.")}
    before[NATIVE] = sys.modules[NATIVE]
    sys.modules[NATIVE] = ModuleType(NATIVE)
    sys.modules[NATIVE].native = None  # type: ignore[attr-defined]
    attributes = dict(vars(package))
    sys.meta_path.insert(0, _Sources)
    try:
        return Form()
    finally:
        sys.meta_path.remove(_Sources)
        for name in [name for name in sys.modules if name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
        sys.modules.update(before)
        vars(package).clear()
        vars(package).update(attributes)


COMPILED_FORM = Form()
SOURCE_FORM = sources()


def outcome(call: Callable[[Form], object], modules: Form) -> object:
    try:
        return call(modules)
    except ProxyError as error:
        return error.refusal, error.side, error.retry, error.detail
    except ValueError as error:
        return str(error)


def same(call: Callable[[Form], object]) -> None:
    """Whatever `call` does with the modules, it comes to the same in both forms."""
    assert outcome(call, COMPILED_FORM) == outcome(call, SOURCE_FORM)


def contents(item: object) -> dict[str, object]:
    """The attributes of an object of ours; enum members, of which each form has its own, by name."""
    if item is None:
        return {}
    names = [name for name in dir(item) if not name.startswith("__")]
    values = {name: getattr(item, name) for name in names}
    return {name: getattr(value, "name", value) for name, value in values.items() if not callable(value)}


def test_there_are_two() -> None:
    assert not any(file.endswith(".py") for file in COMPILED_FORM.files)
    assert all(file.endswith(".py") for file in SOURCE_FORM.files)


def joined(*pieces: bytes, most: int = 12) -> st.SearchStrategy[bytes]:
    """Any sequence of `pieces`, and now and then bytes that nobody thought of."""
    known = st.sampled_from(pieces)
    return st.lists(st.one_of(known, known, known, known, known, st.binary(max_size=2)), max_size=most).map(
        b"".join
    )


FIELDS = joined(
    b"\r\nHost: a.example",
    b"\r\nhost:[::1]:80 ",
    b"\r\nConnection: keep-alive",
    b"\r\nConnection: Upgrade",
    b"\r\nConnection: close, x-a",
    b"\r\nUpgrade: websocket",
    b"\r\nContent-Length: 12",
    b"\r\nX-A: 1",
    b"\r\nContent-Length: 0\t",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nTE: trailers",
    b"\r\nExpect: 100-continue",
    b"\r\nX-Forwarded-For: 10.0.0.1",
    b"\r\nX_Forwarded_Host: a",
    b"\r\nKeep-Alive: 5",
    b"\r\n",
    b"\n",
    b" ",
    b"\xff",
)
REQUESTS = st.tuples(
    st.sampled_from((b"GET ", b"GET ", b"GET ", b"OPTIONS ", b"CONNECT ", b"PO ST ", b"\x16\x03")),
    st.sampled_from((b"/", b"/", b"/a", b"*", b"http://")),
    joined(b"/", b"a", b"?", b"http://", b"*", b"b.example:80", b"#", b"%2f", most=3),
    st.sampled_from((b" HTTP/1.1", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b"")),
    FIELDS,
    st.sampled_from((b"\r\n\r\n", b"\r\n\r\nbody", b"\r\n")),
).map(b"".join)
RULES = HeaderRules(request_set=(("X-A", "set"),), request_remove=("te",), response_set=(("X-A", "set"),))


@MANY
@given(REQUESTS, st.integers(0, 3), st.booleans())
@example(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n", 0, False)
@example(b"GET http://a?b HTTP/1.1\r\nHost: a.example\r\nX-A: 1\r\n\r\n", 0, True)
def test_requests(raw: bytes, start: int, changeable: bool) -> None:
    def call(modules: Form) -> object:
        whole = b"x" * start + raw
        head = modules.heads.parse_request(bytearray(whole) if changeable else whole, start, len(whole))
        if head is None:
            return None
        rewrite, forwarded = modules.rewrite, b"X-Forwarded-For: 192.0.2.1\r\n"
        written = [
            rewrite.upstream_head(head, head.target, forwarded, rules)
            for rules in (None, rewrite.request_rules(RULES))
        ]
        return contents(head), written, rewrite.upstream_head(head, b"/", b"", None)

    same(call)


@MANY
@given(
    st.sampled_from(
        (b"HTTP/1.1 200 OK", b"HTTP/1.0 404 ", b"HTTP/1.1 101", b"HTTP/1.1 204 x", b"HTTP/1.", b"junk")
    ),
    FIELDS,
    st.sampled_from((b"\r\n\r\n", b"\r\n\r\nbody", b"")),
)
def test_responses(line: bytes, fields: bytes, end: bytes) -> None:
    def call(modules: Form) -> object:
        raw = line + fields + end
        head = modules.heads.parse_response(raw, 0, len(raw))
        if head is None:
            return None
        read = contents(head)
        written = modules.rewrite.client_head(
            head, b"\r\nSet-Cookie: a", modules.rewrite.response_rules(RULES)
        )
        modules.rewrite.unchunked(head)
        return read, written, contents(head)

    same(call)


def feed(target: Any, raw: bytes, cuts: Sequence[int], kind: Callable[[bytes], Any]) -> list[object]:
    """What `target` says of `raw`, given in pieces."""
    told: list[object] = []
    left = b""
    edges = [min(cut, len(raw)) for cut in cuts]
    for start, end in zip([0, *edges], [*edges, len(raw)], strict=True):
        piece = left + raw[start:end]
        consumed = target.feed(kind(piece), 0, len(piece))
        left = b"" if consumed is None else piece[consumed:]
        told.append((consumed, repr(contents(target))))
    return told


CUTS = st.lists(st.integers(0, 40), max_size=4).map(sorted)


@MANY
@given(
    joined(
        b"5\r\nhello\r\n",
        b"1;a=b\r\nx\r\n",
        b"0\r\n",
        b"Host: a\r\n",
        b"X-T: 1\r\n",
        b"\r\n",
        b"ff\r\n",
        b"\n",
    ),
    CUTS,
    st.booleans(),
    st.sampled_from((bytes, bytearray)),
)
def test_chunked_bodies(
    raw: bytes, cuts: list[int], payload_only: bool, kind: Callable[[bytes], Any]
) -> None:
    def call(modules: Form) -> object:
        return feed(modules.framing.ChunkedBody(side="client", payload_only=payload_only), raw, cuts, kind)

    same(call)


@MANY
@given(
    joined(
        b"\x81\x02hi",
        b"\x82\x7e\x00\x80" + bytes(128),
        b"\x81\x85abcd12345",
        b"\x88\x02\x03\xe8",
        b"\x88\x00",
        b"\x88\x82abcd\x62\x8a",
        b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00",
        b"\x82\x7f\xff" + bytes(7),
        b"\x01\x01a",
        bytes(300),
        b"\x89\x00",
    ),
    CUTS,
    st.sampled_from((bytes, bytearray, memoryview)),
)
def test_frames(raw: bytes, cuts: list[int], kind: Callable[[bytes], Any]) -> None:
    same(lambda modules: feed(modules.frames.FrameTracker(), raw, cuts, kind))


@MANY
@given(st.integers(1000, 4999), st.text(max_size=20), st.sampled_from((b"", b"abcd")))
def test_close_frames(code: int, reason: str, mask: bytes) -> None:
    same(lambda modules: modules.frames.close_frame(code, reason, mask))


NODES = joined(
    b"10.0.0.1",
    b"192.0.2.7",
    b", ",
    b"[2001:db8::1]:80",
    b"::ffff:10.0.0.1",
    b'"',
    b"for=",
    b";",
    b"proto=https",
    b'host="a.example"',
    b"\\",
    b":",
    b"8",
    b"unknown",
)


@MANY
@given(NODES, NODES, NODES, st.sampled_from(("10.0.0.1", "2001:db8::1", "", "192.0.2.7")))
def test_forwarded(one: bytes, two: bytes, three: bytes, peer: str) -> None:
    def call(modules: Form) -> object:
        forwarded = modules.forwarded
        received = forwarded.Received(one, two, three, two, three, one)
        prefix = forwarded.ForwardedPrefix(peer, b"http", 8080)
        trusted = forwarded.TrustedProxies(["10.0.0.0/8", "2001:db8::/32"])
        return (
            prefix.lines(two, b"id"),
            prefix.believed_lines(two, b"id", received),
            trusted.client_ip(peer, one, two),
            forwarded.plain_address(one.decode("latin-1")),
        )

    same(call)


PATHS = joined(b"/", b"a", b"%61", b"%2f", b"..", b".", b";", b"%25", b"%", b"//", b"ws", most=8)
PATTERNS = st.lists(
    st.tuples(
        st.sampled_from((None, "a.example", "*.example", "*.b.example", "*")),
        st.sampled_from((None, "/*", "/a", "/a/*", "/%61%61/*", "/a//ws/*", "/ws/a/*", "/%61/*")),
    ),
    max_size=6,
)


@MANY
@given(PATTERNS, st.sampled_from((b"", b"a.example", b"x.b.example", b"x.example.", b".", b"." * 300)), PATHS)
@example([(None, "/%61%61%61/*")], b"", b"/a")
def test_routes(patterns: list[tuple[str | None, str | None]], host: bytes, path: bytes) -> None:
    routes = [
        RouteSpec(slot=0, name=str(index), host=host_pattern, path=pattern, pool="p")
        for index, (host_pattern, pattern) in enumerate(patterns)
    ]
    same(lambda modules: modules.routing.Router(routes).find(host, path))
    for _, pattern in patterns:
        if pattern is not None:
            same(lambda modules, pattern=pattern: modules.routing.strip_prefix(pattern, path))  # type: ignore[misc]


SERVERS = [ServerSpec(slot=at, name=f"10.0.0.{at}:9000", host=f"10.0.0.{at}", port=9000) for at in range(3)]
TOKENS = [
    SOURCE_FORM.sticky.StickyCookie("lb", b"k" * 32, "p", SERVERS).set_cookie(at, False).partition(b";")[0]
    for at in range(3)
]


@MANY
@given(
    joined(*TOKENS, b"lb=", b"; ", b";", b"x", b'"', b"a=b", b"sid=", b"&", b"?", b"lb"), st.integers(0, 3)
)
def test_keys(raw: bytes, servers: int) -> None:
    def call(modules: Form) -> object:
        sticky = modules.sticky
        cookie = sticky.StickyCookie("lb", b"k" * 32, "p", SERVERS[:servers])
        names = (b"lb", b"a", b"sid", b"x&")
        values = [(sticky.cookie_value(raw, name), sticky.query_value(raw, name)) for name in names]
        return cookie.lookup(raw), values

    same(call)


@MANY
@given(
    joined(b"websocket", b"WebSocket", b",", b" ", b"x", most=4),
    joined(b"Upgrade", b"upgrade", b",", b" ", b"x", most=4),
    st.sampled_from((b"", b"13", b"8", b"x" * 100)),
    st.sampled_from((b"", b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZR==", b"x")),
)
def test_handshakes(protocol: bytes, connection: bytes, version: bytes, key: bytes) -> None:
    fields = {b"sec-websocket-version": version, b"sec-websocket-key": key}
    same(lambda modules: modules.upgrade.is_upgrade(1, protocol, connection))
    same(lambda modules: modules.upgrade.check_request(b"GET", 1, fields))
    accept = SOURCE_FORM.upgrade.accept_token(b"dGhlIHNhbXBsZSBub25jZQ==")
    same(lambda modules: modules.upgrade.check_response(key, protocol, connection, accept))


@MANY
@given(st.sampled_from(errors.REASONS), st.booleans(), st.booleans(), st.integers(0, 9))
def test_refusals(refusal: errors.Refusal, close: bool, without_body: bool, seconds: int) -> None:
    def call(modules: Form) -> object:
        return modules.responses.refusal_response(
            refusal, date="now", close=close, without_body=without_body, retry_after=seconds
        )

    same(call)
