"""Hosts, paths, addresses, header names and the other strings of a configuration."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.config import text as checks
from lb.config.text import Wrong


@pytest.mark.parametrize(
    ("check", "given_text", "canonical"),
    [
        (checks.route_host, "WWW.Example.com", "www.example.com"),
        (checks.route_host, "*.Example.com", "*.example.com"),
        (checks.route_host, "127.0.0.1", "127.0.0.1"),
        (checks.route_host, "[0:0::1]", "[::1]"),
        (checks.route_host, "xn--bcher-kva.example", "xn--bcher-kva.example"),
        (checks.route_path, "/ws/*", "/ws/*"),
        (checks.route_path, "/*", "/*"),
        (checks.route_path, "/a%20b", "/a%20b"),
        (checks.network, "10.0.0.0/8", "10.0.0.0/8"),
        (checks.network, "10.0.0.1", "10.0.0.1/32"),
        (checks.network, "FD00::/8", "fd00::/8"),
        (checks.bind_address, ":8080", "[::]:8080"),
        (checks.bind_address, "0.0.0.0:80", "0.0.0.0:80"),
        (checks.bind_address, "localhost:080", "127.0.0.1:80"),
        (checks.bind_address, "[0::1]:80", "[::1]:80"),
        (checks.bind_address, "unix:/run/lb.sock", "unix:/run/lb.sock"),
        (checks.server_address, "Backend-1.internal:9000", "backend-1.internal:9000"),
        (checks.server_address, "10.0.0.11:9000", "10.0.0.11:9000"),
        (checks.server_address, "[FD00::1]:9000", "[fd00::1]:9000"),
        (checks.server_address, "unix:/run/app.sock", "unix:/run/app.sock"),
        (checks.header_value, "", ""),
        (checks.header_value, "a\tb", "a\tb"),
        (checks.ruled_header_name, "Host", "Host"),
        (checks.hash_key, "header:X-Session", "header:X-Session"),
        (checks.hash_key, "path", "path"),
        (checks.cookie_name, "__Host-lb", "__Host-lb"),
        (checks.query_name, "sid", "sid"),
        (checks.server_name, "blue/1", "blue/1"),
        (checks.srv_name, "srv://_WS._tcp.example.com", "_ws._tcp.example.com"),
        (checks.nameserver, "10.0.0.1", "10.0.0.1:53"),
        (checks.nameserver, "10.0.0.1:5353", "10.0.0.1:5353"),
        (checks.nameserver, "fd00::1", "[fd00::1]:53"),
        (checks.nameserver, "[fd00::1]", "[fd00::1]:53"),
        (checks.nameserver, "[FD00::1]:5353", "[fd00::1]:5353"),
        (checks.admin_address, "off", "off"),
        (checks.admin_address, ":9181", "[::]:9181"),
        (checks.check_path, "/alive?deep=1", "/alive?deep=1"),
        (checks.check_body, "all well", "all well"),
        (checks.statuses, "200 - 299, 304", "200-299,304"),
        (checks.statuses, "204-204", "204"),
        (checks.servers_file, "Servers.YAML", "Servers.YAML"),
    ],
)
def test_canonical_forms(check: Callable[[str], str], given_text: str, canonical: str) -> None:
    assert check(given_text) == canonical


@pytest.mark.parametrize(
    ("check", "given_text", "message", "hint"),
    [
        (checks.name, "a b", "1 to 64 letters", ""),
        (checks.name, "-a", "1 to 64 letters", ""),
        (checks.name, "a\n", "1 to 64 letters", ""),
        (checks.server_name, "a b", "1 to 255 visible", ""),
        (checks.user, "root:x", "name of a user", ""),
        (checks.file_path, "", "path of a file", ""),
        (checks.file_path, "a\0b", "path of a file", ""),
        (checks.route_host, "*", "where host is left out", "remove host"),
        (checks.route_host, "a.example.com:80", "has no port", 'write "a.example.com"'),
        (checks.route_host, "[::1]:80", "has no port", 'write "[::1]"'),
        (checks.route_host, "[::g]", "no IPv6 address", ""),
        (checks.route_host, "a.*.com", "at the start alone", ""),
        (checks.route_host, "*.*.com", "expected a host name", ""),
        (checks.route_host, "b\u00fccher.example", "is ASCII", 'write "xn--bcher-kva.example"'),
        (checks.route_host, "b\u00fccher..example", "is ASCII", ""),
        (checks.route_host, "a..b", "expected a host name", ""),
        (checks.route_host, "a.example.", "expected a host name", ""),
        (checks.route_host, "-a.example", "expected a host name", ""),
        (checks.route_host, "a" * 64, "expected a host name", ""),
        (checks.route_host, "", "expected a host name", ""),
        (checks.route_path, "ws/*", 'starts with "/"', 'write "/ws/*"'),
        (checks.route_path, "", 'starts with "/"', ""),
        (checks.route_path, "/a b", "visible ASCII", ""),
        (checks.route_path, "/a?b", "no query", ""),
        (checks.route_path, "/a*", "at the end alone", ""),
        (checks.route_path, "/*/a", "at the end alone", ""),
        (checks.route_path, "/a/../b", '"." and ".." segments', ""),
        (checks.route_path, "/a%zz", "would not agree", ""),
        (checks.route_path, "/a/%2A", "would not agree", ""),
        (checks.network, "10.0.0.1/8", "bits outside", 'write "10.0.0.0/8"'),
        (checks.network, "ten", "expected a network", ""),
        (checks.bind_address, "8080", "port is missing", 'write ":8080"'),
        (checks.bind_address, "[::1]", "port is missing", 'write "[::1]:8080"'),
        (checks.bind_address, ":0", "from 1 to 65535", ""),
        (checks.bind_address, ":65536", "from 1 to 65535", ""),
        (checks.bind_address, ":http", "from 1 to 65535", ""),
        (checks.bind_address, "::1:80", "in brackets", 'write "[::1]:80"'),
        (checks.bind_address, "example.com:80", "IP address of this machine", 'write ":80" for all'),
        (checks.bind_address, "[fe80::1%eth0]:80", "no IPv6 address", ""),
        (checks.bind_address, "unix:lb.sock", "absolute path", ""),
        (checks.bind_address, "unix:/" + "a" * 107, "at most 107 bytes", ""),
        (checks.server_address, "10.0.0.12", "port is missing", 'write "10.0.0.12:8080"'),
        (checks.server_address, ":9000", "host is missing", 'write "127.0.0.1:9000"'),
        (checks.server_address, "10.0.0.300:9000", "no IPv4 address", ""),
        (checks.server_address, "http://a:9000/x", "has no scheme", 'write "a:9000"'),
        (checks.server_address, "https://a:9000", "has no scheme", "the pool's tls key"),
        (
            checks.server_address,
            "srv://_ws._tcp.a",
            "an srv:// name stands for any number of servers",
            "write servers",
        ),
        (checks.srv_name, "srv://_ws._tcp.a:80", "the records hold ports", ""),
        (checks.srv_name, "srv://a/b", 'expected "srv://" and a name', ""),
        (checks.srv_name, "srv://", "expected a host name", ""),
        (checks.nameserver, "ns.example.com", "expected the IP address of a DNS server", ""),
        (checks.nameserver, "10.0.0.1:0", "from 1 to 65535", ""),
        (checks.nameserver, "[10.0.0.1]", "no IPv6 address", ""),
        (checks.bind_address, "[::1:80", "in brackets", 'write "[::1]:80"'),
        (checks.server_address, "[a:80", "in brackets", ""),
        (checks.check_path, "alive", 'starts with "/"', 'write "/alive"'),
        (checks.check_path, "/a b", "visible ASCII", ""),
        (checks.check_path, "/a\r\nX: y", "visible ASCII", ""),
        (checks.check_path, "/#a", "visible ASCII", ""),
        (checks.check_body, "", "1 to 1024 bytes", ""),
        (checks.check_body, "\u00fc" * 513, "1 to 1024 bytes", ""),
        (checks.statuses, "", "from 100 to 599", ""),
        (checks.statuses, "2xx", "from 100 to 599", ""),
        (checks.statuses, "200,", "from 100 to 599", ""),
        (checks.statuses, "99-200", "from 100 to 599", ""),
        (checks.statuses, "600", "from 100 to 599", ""),
        (checks.statuses, "300-200", "from the lower to the higher", 'write "200-300"'),
        (checks.servers_file, "servers.txt", "ends in .json, .yaml or .yml", ""),
        (checks.servers_file, "", "expected the path of a file", ""),
        (checks.admin_address, "on", "the port is missing", 'write "on:8080"'),
        (checks.server_address, "unix:/run/", "absolute path", ""),
        (checks.ruled_header_name, "X Edge", "expected a header name", ""),
        (checks.ruled_header_name, "", "expected a header name", ""),
        (checks.ruled_header_name, "content-LENGTH", "frames the message", ""),
        (checks.ruled_header_name, "Connection", "frames the message", ""),
        (checks.ruled_header_name, "Transfer-Encoding", "frames the message", ""),
        (checks.ruled_header_name, "Upgrade", "frames the message", ""),
        (checks.ruled_header_name, "Sec-WebSocket-Key", "WebSocket handshake", ""),
        (checks.header_value, "a\r\nX: y", "without line ends", ""),
        (checks.header_value, "a\0", "without line ends", ""),
        (checks.header_value, "\u00fc", "printable ASCII", ""),
        (checks.header_value, " a", "no space at its ends", 'write "a"'),
        (checks.cookie_name, "a=b", "cookie's name", ""),
        (checks.query_name, "a&b", "query parameter", ""),
        (checks.hash_key, "address", 'expected "ip", "path"', ""),
        (checks.hash_key, "header:", "expected a header name", ""),
        (checks.hash_key, "headr:X-User", 'expected "ip", "path"', 'did you mean "header:X-User"?'),
        (checks.hash_key, "cookies", 'expected "ip", "path"', 'did you mean "cookie:NAME"?'),
        (checks.hash_key, "paht", 'expected "ip", "path"', 'did you mean "path"?'),
        (checks.hash_key, "path:x", 'expected "ip", "path"', 'did you mean "path"?'),
    ],
)
def test_wrong_texts(check: Callable[[str], str], given_text: str, message: str, hint: str) -> None:
    with pytest.raises(Wrong) as caught:
        check(given_text)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)


_ALL = [
    checks.route_host,
    checks.route_path,
    checks.network,
    checks.bind_address,
    checks.admin_address,
    checks.nameserver,
    checks.srv_name,
    checks.check_path,
    checks.statuses,
    checks.server_address,
    checks.ruled_header_name,
    checks.header_value,
    checks.hash_key,
    checks.cookie_name,
    checks.query_name,
]


@pytest.mark.parametrize("check", _ALL)
@given(text=st.text(max_size=20) | st.text("a.:/*[]%1-", max_size=12))
def test_what_is_accepted_is_canonical(check: Callable[[str], str], text: str) -> None:
    try:
        canonical = check(text)
    except Wrong as wrong:
        assert wrong.message
    else:
        assert check(canonical) == canonical
        assert canonical.isascii() or canonical.startswith("unix:")
        assert not set(canonical) & set("\r\n\0") or canonical.startswith("unix:")
