"""The first route in file order, by host and path; no spelling of a path slips past it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.contract.errors import BAD_REQUEST_LINE, ProxyError
from workers.contract.snapshot import RouteSpec
from workers.core.routing import Router, normalise_for_match, strip_prefix


def route(name: str, host: str | None = None, path: str | None = None) -> RouteSpec:
    return RouteSpec(slot=0, name=name, host=host, path=path, pool="p")


def found(routes: list[RouteSpec], host: bytes, path: bytes) -> str | None:
    chosen = Router(routes).find(host, path)
    return chosen.name if chosen is not None else None


def test_no_routes() -> None:
    assert found([], b"example.com", b"/") is None


def test_a_route_without_host_and_path_takes_all() -> None:
    for path in (b"/", b"/x", b"*", b"", b"/%zz", b"/../.."):
        assert found([route("all")], b"any.example.com", path) == "all"
    assert found([route("all")], b"", b"/") == "all"


def test_the_first_in_file_order_wins_not_the_most_specific() -> None:
    routes = [route("wide", path="/api/*"), route("exact", path="/api/x"), route("deep", path="/api/v1/*")]
    assert found(routes, b"h", b"/api/x") == "wide"
    assert found(routes, b"h", b"/api/v1/y") == "wide"
    assert found(routes[::-1], b"h", b"/api/x") == "exact"
    assert found(routes[::-1], b"h", b"/api/v1/y") == "deep"
    assert found(routes[::-1], b"h", b"/api/v2") == "wide"


def test_first_match_across_host_patterns() -> None:
    routes = [
        route("any-admin", path="/admin/*"),
        route("wild", host="*.example.com"),
        route("exact", host="a.example.com"),
        route("rest"),
    ]
    assert found(routes, b"a.example.com", b"/admin/x") == "any-admin"
    assert found(routes, b"a.example.com", b"/x") == "wild"
    assert found(routes[::-1], b"a.example.com", b"/x") == "rest"
    assert found([routes[2], routes[1]], b"a.example.com", b"/x") == "exact"
    assert found([routes[2], routes[1]], b"b.example.com", b"/x") == "wild"
    assert found(routes, b"other.org", b"/x") == "rest"
    assert found(routes, b"", b"/x") == "rest"


@pytest.mark.parametrize(
    ("host", "matches"),
    [
        (b"a.example.com", True),
        (b"a.b.example.com", True),
        (b"a.example.com.", True),
        (b"example.com", False),
        (b".example.com", False),
        (b"aexample.com", False),
        (b"a.example.com.evil.org", False),
        (b"example.com.evil.org", False),
        (b"", False),
        (b"." * 100_000 + b".example.com", False),
    ],
)
def test_a_wildcard_matches_labels_below_alone(host: bytes, matches: bool) -> None:
    assert (found([route("wild", host="*.example.com")], host, b"/") == "wild") is matches


def test_a_longer_wildcard_does_not_hide_a_shorter_one() -> None:
    routes = [route("long", host="*.b.example.com", path="/x"), route("short", host="*.example.com")]
    assert found(routes, b"a.b.example.com", b"/x") == "long"
    assert found(routes, b"a.b.example.com", b"/y") == "short"
    assert found(routes, b"b.example.com", b"/x") == "short"


def test_an_exact_host_with_the_dot_of_the_root() -> None:
    assert found([route("exact", host="example.com")], b"example.com.", b"/") == "exact"


@pytest.mark.parametrize(
    ("path", "matches"),
    [
        (b"/ws/", True),
        (b"/ws/a", True),
        (b"/ws/a/b/c", True),
        (b"/ws//a", True),
        (b"/%77s/a", True),
        (b"/x/../ws/a", True),
        (b"//ws/a", True),
        (b"/./ws/a", True),
        (b"/ws%2Fa", True),
        (b"/ws", False),
        (b"/wsx/a", False),
        (b"/WS/a", False),
        (b"/a/ws/b", False),
        (b"/ws/../a", False),
        (b"/ws/%2e%2e/a", False),
        (b"*", False),
        (b"", False),
    ],
)
def test_a_prefix(path: bytes, matches: bool) -> None:
    assert (found([route("ws", path="/ws/*")], b"h", path) == "ws") is matches


def test_an_exact_path() -> None:
    routes = [route("exact", path="/a b/é")]
    assert found(routes, b"h", b"/a%20b/%C3%A9") == "exact"
    assert found(routes, b"h", b"/a%20b/%c3%a9/") is None


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        (b"/", b"/"),
        (b"/a/b", b"/a/b"),
        (b"/.well-known/x", b"/.well-known/x"),
        (b"/a/...", b"/a/..."),
        (b"/a/./b/.", b"/a/b/"),
        (b"/a/b/..", b"/a/"),
        (b"/a/b/../../c", b"/c"),
        (b"/a/..", b"/"),
        (b"//a///b//", b"/a/b/"),
        (b"/%61%2D%7e", b"/a-~"),
        (b"/a%2Fb", b"/a/b"),
        (b"/%252e%252e/x", b"/%2e%2e/x"),
        (b"/a%3Fb", b"/a?b"),
        # Refused: two servers would not agree.
        (b"/..", None),
        (b"/a/../../b", None),
        (b"/%2e%2e/b", None),
        (b"/a%2F../b", None),
        (b"/a%2f%2e%2e%2fb", None),
        (b"/a%2Fb/../c", None),
        (b"/a//../b", None),
        (b"/a/..;/b", None),
        (b"/a/..;x=1/b", None),
        (b"/a/%2e%2e%3b/b", None),
        (b"/a%00", None),
        (b"/a%", None),
        (b"/a%2", None),
        (b"/a%zz", None),
    ],
)
def test_normalised(path: bytes, normal: bytes | None) -> None:
    assert normalise_for_match(path) == normal


def test_an_ambiguous_path_is_refused_where_the_path_decides() -> None:
    with pytest.raises(ProxyError) as caught:
        found([route("admin", path="/admin/*"), route("all")], b"h", b"/x/..%2Fadmin/")
    assert caught.value.refusal is BAD_REQUEST_LINE


def test_a_pattern_that_can_not_be_matched_names_its_route() -> None:
    with pytest.raises(ValueError, match="broken"):
        Router([route("broken", path="/../x")])


@pytest.mark.parametrize(
    ("pattern", "path", "sent"),
    [
        ("/ws/*", b"/ws/chat", b"/chat"),
        ("/ws/*", b"/ws/", b"/"),
        ("/ws/*", b"/ws/a%2Fb//c", b"/a%2Fb//c"),
        ("/ws/*", b"/%77s/a b\xff", b"/a%20b%FF"),
        ("/ws/*", b"/x/../ws/%41?", b"/A%3F"),
        ("/ws/*", b"/ws/a/../../ws/b", b"/b"),
        ("/*", b"/a", b"/a"),
        ("/*", b"/a/../..", b"/a/../.."),
        ("/*", b"*", b"*"),
        ("/exact", b"/exact", b"/"),
    ],
)
def test_strip_prefix(pattern: str, path: bytes, sent: bytes) -> None:
    assert strip_prefix(pattern, path) == sent


def test_strip_prefix_of_another_route() -> None:
    with pytest.raises(ValueError, match="does not match"):
        strip_prefix("/ws/*", b"/other")


@given(st.lists(st.sampled_from([b"/", b".", b"..", b"ws", b"%77s", b"%2e", b"%2F", b"x"]), max_size=10))
def test_whatever_a_prefix_route_finds_can_be_stripped(pieces: list[bytes]) -> None:
    path = b"/" + b"".join(pieces)
    for pattern in ("/ws/*", "/*"):
        router = Router([route("ws", path=pattern)])
        try:
            if router.find(b"h", path) is None:
                continue
        except ProxyError:
            continue
        sent = strip_prefix(pattern, path)
        assert sent.startswith(b"/")
        if pattern == "/ws/*":
            # Never above the prefix: what is sent is what was matched.
            normal, stripped = normalise_for_match(path), normalise_for_match(sent)
            assert normal is not None and stripped is not None
            assert normal == b"/ws" + stripped


hosts = st.sampled_from([None, "a.x", "b.a.x", "*.x", "*.a.x", "c"])
paths = st.sampled_from([None, "/*", "/", "/a", "/a/", "/a/*", "/a/b", "/a/b/*", "/a/b/c/*", "/c/*"])


def matches(spec: RouteSpec, host: str, path: str) -> bool:
    """The definition, straight."""
    if spec.host is not None and spec.host != host:
        suffix = spec.host[1:] if spec.host.startswith("*") else None
        if suffix is None or not host.endswith(suffix) or host == suffix:
            return False
    if spec.path is None or spec.path == path:
        return True
    return spec.path.endswith("/*") and path.startswith(spec.path[:-1])


@given(
    st.lists(st.tuples(hosts, paths), max_size=8),
    st.sampled_from(["a.x", "b.a.x", "z.b.a.x", "x", "c", "d", ""]),
    st.sampled_from(["/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c/d", "/c/x", "/d"]),
)
@example([("a.x", "/a/b/*"), (None, "/a/*"), ("*.x", None)], "a.x", "/a/b/c/d")
def test_the_tables_find_what_a_scan_finds(
    specs: list[tuple[str | None, str | None]], host: str, path: str
) -> None:
    routes = [route(str(index), *spec) for index, spec in enumerate(specs)]
    scanned = next((spec.name for spec in routes if matches(spec, host, path)), None)
    assert found(routes, host.encode(), path.encode()) == scanned


@given(st.lists(st.sampled_from([b"/", b".", b"..", b"a", b"%2e", b"%2F", b"%61", b";"]), max_size=10))
def test_normalising_is_idempotent_and_leaves_nothing_to_resolve(pieces: list[bytes]) -> None:
    normal = normalise_for_match(b"/" + b"".join(pieces))
    if normal is not None:
        assert normal.startswith(b"/")
        assert b"//" not in normal
        assert not {b".", b".."} & set(normal.split(b"/"))
        assert normalise_for_match(normal) == normal


def test_memory_and_look_ups_grow_with_the_routes_not_with_their_square() -> None:
    exact = [route(f"h{index}", host=f"h{index}.example.com", path="/x") for index in range(500)]
    anywhere = [route(f"p{index}", path=f"/p{index}/*") for index in range(500)]
    router = Router(exact + anywhere)
    chosen = router.find(b"h499.example.com", b"/p499/x")
    assert chosen is anywhere[499]
    assert router.find(b"h7.example.com", b"/x") is exact[7]
    assert router.find(b"h7.example.com", b"/" * 10_000) is None
