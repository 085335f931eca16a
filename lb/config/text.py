"""What the strings of a configuration may hold. Each function returns the canonical form, or raises
`Wrong` with what is expected instead."""

from __future__ import annotations

import difflib
import ipaddress
import re
from typing import Final

from workers.core.routing import normalise_for_match

_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
# RFC 9110, 5.6.2
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
# RFC 9110, 5.5 without obs-text: other bytes mean different things to different servers.
_FIELD_VALUE: Final = re.compile(r"[\t -~]*\Z")
_VISIBLE: Final = re.compile(r"[!-~]+\Z")
_STATUSES: Final = re.compile(r"\s*([1-5][0-9]{2})(?:\s*-\s*([1-5][0-9]{2}))?\s*\Z", re.ASCII)
# Far more than tells one answer from another.
_BODY_BYTES: Final = 1024
# sun_path is 108 bytes with its final NUL.
_UNIX_PATH_BYTES: Final = 107
# These are the proxy's own: they frame the message or belong to one hop (RFC 9110, 7.6.1).
_HOP_HEADERS: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class Wrong(ValueError):
    """A value that can't be used: what is expected, and perhaps what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def name(text: str) -> str:
    """A listener, route or pool: it becomes a label of metrics and a part of commands."""
    if not _NAME.match(text):
        raise Wrong("a name has 1 to 64 letters, digits, '_', '-' and '.', and starts with no '-' or '.'")
    return text


def server_name(text: str) -> str:
    """A server's name; its address is one too."""
    if not _VISIBLE.match(text) or len(text) > 255:
        raise Wrong("a server's name has 1 to 255 visible ASCII characters")
    return text


def user(text: str) -> str:
    """A user of the system."""
    if not _NAME.match(text):
        raise Wrong("expected the name of a user of this system")
    return text


def file_path(text: str) -> str:
    """A file; relative to the folder of the configuration file."""
    if not text or "\0" in text:
        raise Wrong("expected the path of a file")
    return text


def host_name(text: str) -> str:
    """A DNS name in lower case."""
    lower = text.lower()
    if not lower.isascii():
        raise Wrong("a host name is ASCII", _punycode_hint(lower))
    if len(lower) > 253 or not all(_LABEL.match(label) for label in lower.split(".")):
        raise Wrong('expected a host name such as "www.example.com"')
    return lower


def _punycode_hint(text: str) -> str:
    try:
        return f'write "{text.encode("idna").decode()}"'
    except UnicodeError:
        return ""


def route_host(text: str) -> str:
    """The host that a route matches: a name, an address, or "*." and a name."""
    if text == "*":
        raise Wrong("every host is matched where host is left out", "remove host")
    if text.startswith("["):
        return f"[{_ipv6(text[1:-1])}]" if text.endswith("]") else _wrong_port(text)
    if ":" in text:
        return _wrong_port(text)
    if text.startswith("*."):
        return f"*.{host_name(text[2:])}"
    if "*" in text:
        raise Wrong('a "*" stands at the start alone: "*.example.com"')
    return host_name(text)


def _wrong_port(text: str) -> str:
    host = text.rpartition(":")[0]
    raise Wrong("a route's host has no port", f'write "{host}"' if host else "")


def _ipv6(text: str) -> str:
    try:
        if "%" in text:
            raise ValueError("zone")
        return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise Wrong(f'"{text}" is no IPv6 address') from error


def route_path(text: str) -> str:
    """The path that a route matches: exact, or a prefix that ends in "/*"."""
    if not text.startswith("/"):
        raise Wrong('a path starts with "/"', f'write "/{text}"' if _VISIBLE.match(text) else "")
    if not _VISIBLE.match(text):
        raise Wrong("a path is visible ASCII; other characters are percent-encoded")
    if "?" in text or "#" in text:
        raise Wrong("a path has no query and no fragment")
    if "*" in text.removesuffix("/*"):
        raise Wrong('a "*" stands at the end alone, after a "/": "/api/*"')
    if any(segment in (".", "..") for segment in text.split("/")):
        raise Wrong('a path has no "." and ".." segments')
    if normalise_for_match(text.encode()) is None or "%2a" in text.lower():
        raise Wrong("servers would not agree on what this path is; write it without % escapes")
    return text


def check_path(text: str) -> str:
    """What a health check asks for: path and query."""
    if not text.startswith("/"):
        raise Wrong('a path starts with "/"', f'write "/{text}"' if _VISIBLE.match(text) else "")
    if not _VISIBLE.match(text) or "#" in text:
        raise Wrong("a path is visible ASCII without #; other characters are percent-encoded")
    return text


def check_body(text: str) -> str:
    """What a body must hold."""
    if not 1 <= len(text.encode()) <= _BODY_BYTES:
        raise Wrong(f"expected 1 to {_BODY_BYTES} bytes of text")
    return text


def statuses(text: str) -> str:
    """Status codes and ranges of them: "200-299" or "200,204,300-399"."""
    return ",".join(f"{low}-{high}" if low != high else f"{low}" for low, high in status_ranges(text))


def status_ranges(text: str) -> list[tuple[int, int]]:
    """The inclusive ranges in `text`. Raises `Wrong`."""
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        match = _STATUSES.match(part)
        if match is None:
            raise Wrong('expected status codes from 100 to 599, such as "200-299" or "200,204,300-399"')
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise Wrong("a range goes from the lower to the higher code", f'write "{high}-{low}"')
        ranges.append((low, high))
    return ranges


def servers_file(text: str) -> str:
    """A file with servers, whose ending says its format."""
    if not file_path(text).lower().endswith((".json", ".yaml", ".yml")):
        raise Wrong("the name of a file with servers ends in .json, .yaml or .yml")
    return text


def network(text: str) -> str:
    """A network in CIDR form; a bare address is a network of one."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        try:
            wider = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise Wrong('expected a network such as "10.0.0.0/8" or "fd00::/8"') from error
        raise Wrong("the address has bits outside of its network", f'write "{wider}"') from error


def bind_address(text: str) -> str:
    """Where a listener listens: "0.0.0.0:80", "[::]:80" (":80" means this: IPv6 and IPv4) or "unix:/path"."""
    if text.startswith("unix:"):
        return f"unix:{_unix_path(text[5:])}"
    host, port = _host_port(text)
    if not host:
        return f"[::]:{port}"
    if host.startswith("["):
        return f"{host}:{port}"
    if host == "localhost":
        return f"127.0.0.1:{port}"
    try:
        return f"{ipaddress.IPv4Address(host)}:{port}"
    except ValueError as error:
        raise Wrong(
            "a listener binds to an IP address of this machine", f'write ":{port}" for all'
        ) from error


def server_address(text: str) -> str:
    """Where a server is reached: "host:port", "[v6]:port" or "unix:/path"."""
    if text.startswith("unix:"):
        return f"unix:{_unix_path(text[5:])}"
    if text.startswith("srv://"):
        raise Wrong("an srv:// name stands for any number of servers", f'write servers = ["{text}"]')
    scheme, separator, rest = text.partition("://")
    if separator:
        tls = "; TLS to the servers is the pool's tls key" if scheme in ("https", "wss") else ""
        raise Wrong('an address has no scheme: "host:port"', f'write "{rest.partition("/")[0]}"{tls}')
    host, port = _host_port(text)
    if not host:
        raise Wrong("the host is missing", f'write "127.0.0.1:{port}"')
    return f"{host}:{port}" if host.startswith("[") else f"{_address_host(host)}:{port}"


def srv_name(text: str) -> str:
    """A name that has SRV records (RFC 2782), written "srv://NAME"; the name alone."""
    rest = text.removeprefix("srv://")
    if ":" in rest or "/" in rest:
        raise Wrong(
            'expected "srv://" and a name, such as "srv://_ws._tcp.example.com"; the records hold ports'
        )
    return host_name(rest)


def nameserver(text: str) -> str:
    """A DNS server: an IP address, and its port where that isn't 53."""
    whole = text
    if text.count(":") > 1 and not text.startswith("["):
        whole = f"[{text}]:53"
    elif ":" not in text or text.endswith("]"):
        whole = f"{text}:53"
    host, port = _host_port(whole)
    try:
        return f"{host if host.startswith('[') else ipaddress.IPv4Address(host)}:{port}"
    except ValueError as error:
        raise Wrong(
            'expected the IP address of a DNS server, such as "10.0.0.2" or "10.0.0.2:5353"'
        ) from error


def admin_address(text: str) -> str:
    """Where the admin API listens: as a listener does, or "off"."""
    return text if text == "off" else bind_address(text)


def _address_host(host: str) -> str:
    if not re.fullmatch(r"[0-9.]+", host):
        return host_name(host)
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError as error:
        raise Wrong(f'"{host}" is no IPv4 address') from error


def _host_port(text: str) -> tuple[str, int]:
    """Host (IPv6 in brackets and canonical, else as written, perhaps empty) and port of `text`."""
    host, separator, digits = text.rpartition(":")
    if not separator or digits.endswith("]"):
        whole = f":{text}" if text.isdigit() else f"{text}:8080"
        raise Wrong("the port is missing", f'write "{whole}"' if _VISIBLE.match(text) else "")
    if not re.fullmatch(r"[0-9]{1,5}", digits) or not 1 <= int(digits) <= 65535:
        raise Wrong("the port must be a number from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        return f"[{_ipv6(host[1:-1])}]", int(digits)
    if set(host) & set(":[]"):
        bare = host.strip("[]")
        raise Wrong("an IPv6 address stands in brackets", f'write "[{bare}]:{digits}"' if ":" in bare else "")
    return host, int(digits)


def _unix_path(path: str) -> str:
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise Wrong('expected "unix:" and an absolute path, such as "unix:/run/app.sock"')
    if len(path.encode()) > _UNIX_PATH_BYTES:
        raise Wrong(f"the path of a Unix socket has at most {_UNIX_PATH_BYTES} bytes")
    return path


def header_name(text: str) -> str:
    """A field name (RFC 9110, 5.1)."""
    if not _TOKEN.match(text):
        raise Wrong('expected a header name such as "X-Request-Source"')
    return text


def ruled_header_name(text: str) -> str:
    """A header that a rule may set or remove."""
    lower = header_name(text).lower()
    if lower in _HOP_HEADERS:
        raise Wrong(f"{text} frames the message or belongs to one connection: the load balancer sets it")
    if lower.startswith("sec-websocket-"):
        raise Wrong(f"{text} is part of the WebSocket handshake, which both ends check")
    return text


def header_value(text: str) -> str:
    """A field value (RFC 9110, 5.5)."""
    if not _FIELD_VALUE.match(text):
        raise Wrong("a header value is printable ASCII without line ends")
    if text != text.strip(" \t"):
        raise Wrong("a header value has no space at its ends", f'write "{text.strip()}"')
    return text


def cookie_name(text: str) -> str:
    """A cookie's name (RFC 6265, 4.1.1)."""
    if not _TOKEN.match(text):
        raise Wrong("a cookie's name has letters, digits and !#$%&'*+-.^_`|~")
    return text


def query_name(text: str) -> str:
    """The name of a query parameter, as it stands in the URL."""
    if not _VISIBLE.match(text) or any(character in "&=#;?" for character in text):
        raise Wrong('expected the name of a query parameter such as "session"')
    return text


def hash_key(text: str) -> str:
    """What `balance = "hash"` hashes: "ip", "path", "header:NAME", "query:NAME" or "cookie:NAME"."""
    if text in ("ip", "path"):
        return text
    checks = {"header": header_name, "query": query_name, "cookie": cookie_name}
    kind, separator, argument = text.partition(":")
    if not separator or kind not in checks:
        near = difflib.get_close_matches(kind.lower(), ("ip", "path", *checks), n=1)
        name = f":{argument or 'NAME'}" if near and near[0] in checks else ""
        hint = f'did you mean "{near[0]}{name}"?' if near else ""
        raise Wrong('expected "ip", "path", "header:NAME", "query:NAME" or "cookie:NAME"', hint)
    return f"{kind}:{checks[kind](argument)}"
