"""Loading: every error at once, each with its line, path, value and what would be right."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.config import Config, ConfigErrors, load, parse
from lb.config.pool import Admission
from lb.config.problems import did_you_mean
from lb.config.route import WebSocket
from lb.config.schema import Drain, Listen, Rebalance
from lb.config.tables import NamedTables, entries

FILE = pathlib.Path("/etc/lb/lb.toml")
LISTEN = '[listen.main]\nbind = [":8080"]\n'
ROUTE = '[[route]]\npool = "app"\n'
POOL = '[pool.app]\nservers = ["127.0.0.1:9000"]\n'
VALID = LISTEN + ROUTE + POOL


def problems(text: str) -> list[str]:
    """The report on `text`, without the name of the file."""
    with pytest.raises(ConfigErrors) as caught:
        parse(text, FILE)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem).removeprefix(str(FILE)) for problem in caught.value.problems]


def warnings(text: str) -> list[str]:
    return [str(problem).removeprefix(str(FILE)) for problem in parse(text, FILE).warnings]


def test_the_least_that_is_valid() -> None:
    config = parse(VALID, FILE)
    assert config.listen[0].bind == ("[::]:8080",)
    assert config.route[0].name == "app"
    assert config.pool[0].every_server[0].label == "127.0.0.1:9000"
    assert config.warnings == ()
    assert config.resolve("certs/a.pem") == pathlib.Path("/etc/lb/certs/a.pem")
    assert config.resolve("/a.pem") == pathlib.Path("/a.pem")


def test_everything_that_the_design_names_and_is_built() -> None:
    config = parse(
        """
        [process]
        workers = 4
        user = "lb"
        pid_file = "/run/lb/lb.pid"
        shutdown_timeout = "0s"
        wedged_after = "10s"
        rebalance = { tunnels = 40, percent = 20, pace = 100 }
        [listen.public]
        bind = [":8080", "unix:/run/lb.sock"]
        trusted_proxies = ["10.0.0.0/8"]
        proxy_protocol = false
        tls = { certs = ["certs/*.pem"] }
        redirect_https = false
        timeouts.tls_handshake = "1s"
        timeouts.request_head = "2s"
        timeouts.body_idle = "3s"
        timeouts.keep_alive = "4s"
        timeouts.send = "5s"
        limits = { head_bytes = "16KiB", headers = 50, body_bytes = "1MiB", connections = 10 }
        [[route]]
        name = "chat"
        host = "chat.example.com"
        path = "/ws/*"
        pool = "chat"
        strip_prefix = true
        headers.request_set = { X-Edge = "1" }
        headers.request_remove = ["A"]
        headers.response_set = {}
        headers.response_remove = ["B"]
        websocket = { idle = "off", max_age = "24h", ping = "25s", inspect = true, crash_safe = false }
        retry = { attempts = 3, on = ["connect", "reset", "503"] }
        [pool.chat]
        balance = "hash"
        hash_on = "header:X-User"
        sticky = { cookie = "lb", key_file = "sticky.key" }
        slow_start = "off"
        admission = { rate = 500, burst = 100, queue = 0 }
        queue = { length = 0, timeout = "5s" }
        timeouts = { connect = "2s", response_head = "60s", body_idle = "60s" }
        keep_alive = { max_idle = 0, idle = "60s" }
        tls = { verify = true, sni = "backend.internal", ca = "ca.pem" }
        on_removed = "paced-close"
        [[pool.chat.server]]
        name = "blue"
        address = "10.0.0.11:9000"
        weight = 3
        backup = true
        max_connections = 7
        [[pool.chat.server]]
        address = "10.0.0.12:9000"
        max_connections = "off"
        [drain]
        close_code = 4000
        spread = "1m"
        hard_stop = "1h"
        [access_log]
        path = "off"
        format = "combined"
        sample = 0.5
        """,
        FILE,
    )
    assert config.process.workers == 4
    assert config.listen[0].limits.head_bytes == 16384
    assert config.listen[0].timeouts.send == 5.0
    assert config.route[0].headers.request_set == (("X-Edge", "1"),)
    assert config.process.rebalance == Rebalance(tunnels=40, percent=20, pace=100)
    websocket = WebSocket(idle=None, max_age=86400.0, ping=25.0, inspect=True, crash_safe=False)
    assert config.route[0].websocket == websocket
    assert config.route[0].retry.on == ("connect", "reset", "503")
    server = config.pool[0].server[0]
    assert (server.label, server.weight, server.backup, server.max_connections) == ("blue", 3, True, 7)
    assert config.pool[0].server[1].max_connections is None
    assert config.pool[0].admission == Admission(rate=500, burst=100, queue=0)
    assert config.pool[0].on_removed == "paced-close"
    assert config.drain == Drain(close_code=4000, spread=60.0, hard_stop=3600.0)
    assert config.access_log.sample == 0.5


def test_what_can_be_off_is_none() -> None:
    """`rebalance` alone is on without being named."""
    assert parse(VALID, FILE).process.rebalance == Rebalance()
    assert parse("process.rebalance = {}\n" + VALID, FILE).process.rebalance == Rebalance()
    off = 'process.rebalance = "off"\n' + LISTEN + ROUTE + 'websocket.ping = "off"\n' + POOL
    config = parse(off + 'admission = "off"\n', FILE)
    assert (config.process.rebalance, config.pool[0].admission) == (None, None)
    assert config.route[0].websocket.ping is None


def test_every_error_at_once_in_file_order() -> None:
    text = """\
[process]
workers = "aut"
[listen.public]
bind = [":8080", "localhost:99999"]
timeouts = { head = "1s", send = 3 }
[[route]]
pool = "chta"
websocket = { ping = "20ms" }
[pool.chat]
servers = ["10.0.0.1:9000", "10.0.0.2"]
balance = "least-con"
ballance = "hash"
[metrics]
listen = "127.0.0.1"
"""
    known = "known: body_idle, keep_alive, request_head, send, tls_handshake"
    balances = '"round-robin" or "least-conn" or "p2c" or "random" or "hash"'
    assert problems(text) == [
        ':2: process.workers = "aut": expected "auto" or a whole number (did you mean "auto"?)',
        ':4: listen.public.bind[1] = "localhost:99999": the port must be a number from 1 to 65535',
        f':5: listen.public.timeouts.head = "1s": unknown key ({known})',
        ':5: listen.public.timeouts.send = 3: expected a duration such as "250ms" or "10s" (write "3s")',
        ':7: route[0].pool = "chta": there is no such pool (did you mean "chat"?)',
        ':8: route[0].websocket.ping = "20ms": must be from 1s to 365d',
        ':10: pool.chat.servers[1] = "10.0.0.2": the port is missing (write "10.0.0.2:8080")',
        f':11: pool.chat.balance = "least-con": expected {balances} (did you mean "least-conn"?)',
        ':12: pool.chat.ballance = "hash": unknown key (did you mean "balance"?)',
        ':14: metrics.listen = "127.0.0.1": the port is missing (write "127.0.0.1:8080")',
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Tables
        ("process = 1\n" + VALID, ":1: process = 1: expected a table"),
        ('listen = "x"\n' + ROUTE + POOL, ':1: listen = "x": expected tables [listen.NAME]'),
        (
            '[listen]\nbind = [":80"]\n' + ROUTE + POOL,
            ':2: listen.bind = [":80"]: belongs into a named table, such as [listen.main]',
        ),
        ('[listen."a b"]\nbind = [":80"]\n' + ROUTE + POOL, ':1: listen."a b": a name has 1 to 64 letters'),
        ("listen.main = 1\n" + ROUTE + POOL, ":1: listen.main = 1: expected a table"),
        (
            LISTEN + '[route]\npool = "app"\n' + POOL,
            ":3: route: expected an array of tables (write [[route]] with double brackets)",
        ),
        ("route = 1\n" + LISTEN + POOL, ":1: route: expected an array of tables"),
        ("route = [1]\n" + LISTEN + POOL, ":1: route[0] = 1: expected a table"),
        ("routes = 1\n" + VALID, ':1: routes = 1: unknown key (did you mean "route"?)'),
        # What is missing
        (ROUTE + POOL, ': listen: a configuration needs a listen (add [listen.main] with bind = [":8080"])'),
        (LISTEN + POOL, ': route: a configuration needs a route (add [[route]] with pool = "main")'),
        (LISTEN, ": pool: a configuration needs a pool (add [pool.main] with servers"),
        ("[listen.main]\n" + ROUTE + POOL, ":1: listen.main.bind: is missing: Addresses."),
        (LISTEN + "[[route]]\n" + POOL, ":3: route[0].pool: is missing: The pool"),
        (LISTEN + ROUTE + "[pool.app]\n", ":5: pool.app.servers: a pool needs a server (add servers = "),
        (
            LISTEN + ROUTE + "[[pool.app.server]]\nweight = 2\n",
            ":5: pool.app.server[0].address: is missing: Where the server is reached.",
        ),
        # Kinds
        ("process.workers = true\n" + VALID, ':1: process.workers = true: expected "auto" or a whole number'),
        ("process.workers = 65\n" + VALID, ":1: process.workers = 65: must be from 1 to 64"),
        ('process.wedged_after = "10"\n' + VALID, ':1: process.wedged_after = "10": a duration needs a unit'),
        ('process.wedged_after = "1ms"\n' + VALID, "must be from 1s to 1h"),
        ("process.user = 0\n" + VALID, ":1: process.user = 0: expected a string: name of a user"),
        ("access_log.sample = 1.5\n" + VALID, ":1: access_log.sample = 1.5: expected a number from 0 to 1"),
        ("access_log.sample = nan\n" + VALID, ":1: access_log.sample = nan: expected a number from 0 to 1"),
        ("access_log.sample = true\n" + VALID, "expected a number from 0 to 1"),
        ('access_log.format = "clf"\n' + VALID, 'access_log.format = "clf": expected "json" or "combined"'),
        (VALID.replace('[":8080"]', '":8080"'), 'expected an array (write [":8080"])'),
        (VALID.replace('[":8080"]', "[]"), ":2: listen.main.bind = []: needs 1 or more"),
        (
            VALID.replace('[":8080"]', '[":80", "[::]:80"]'),
            'bind[1] = "[::]:80": stands in this array already',
        ),
        (
            LISTEN + 'limits.head_bytes = "1B"\n' + ROUTE + POOL,
            'head_bytes = "1B": must be from 1KiB to 1MiB',
        ),
        (LISTEN + "limits.head_bytes = 4096\n" + ROUTE + POOL, '(write "4096B")'),
        (LISTEN + 'limits.head_bytes = "4kb"\n' + ROUTE + POOL, "unknown unit 'kb'"),
        (LISTEN + 'redirect_https = "no"\n' + ROUTE + POOL, 'redirect_https = "no": expected true or false'),
        (VALID + "weight = 0\n", "pool.app.weight = 0: unknown key"),
        # Listeners
        (
            LISTEN + '[listen.two]\nbind = [":8080"]\n' + ROUTE + POOL,
            ':4: listen.two.bind[0] = "[::]:8080": [::]:8080 is bound by listen.main already',
        ),
        (
            LISTEN + '[listen.two]\nbind = ["0.0.0.0:8080"]\n' + ROUTE + POOL,
            ':4: listen.two.bind[0] = "0.0.0.0:8080": [::]:8080 is bound by listen.main already',
        ),
        (
            '[listen.two]\nbind = ["0.0.0.0:8080"]\n' + LISTEN + ROUTE + POOL,
            ':4: listen.main.bind[0] = "[::]:8080": 0.0.0.0:8080 is bound by listen.two already',
        ),
        (
            LISTEN + 'redirect_https = true\ntls = { certs = ["a"] }\n' + ROUTE + POOL,
            ":3: listen.main.redirect_https: this listener speaks TLS itself",
        ),
        (
            LISTEN + ROUTE + '[[pool.app.servers]]\naddress = "a:1"\n',
            '"srv://name" (tables are written [[pool.NAME.server]])',
        ),
        # Routes
        (LISTEN + ROUTE + "strip_prefix = true\n" + POOL, ":5: route[0].strip_prefix: needs a path"),
        (
            LISTEN + ROUTE + 'name = "a"\n' + ROUTE + 'name = "a"\n' + POOL,
            ':8: route[1].name: the name "a" is taken by route[0]',
        ),
        (LISTEN + ROUTE + "headers.request_set = 1\n" + POOL, 'expected a table such as { X-Edge = "1" }'),
        (LISTEN + ROUTE + "headers.request_set.Upgrade = 1\n" + POOL, "request_set.Upgrade"),
        (
            LISTEN + ROUTE + 'headers.request_set = { A = "1", a = "2" }\n' + POOL,
            "request_set.a: is set twice",
        ),
        (
            LISTEN + ROUTE + 'headers = { request_set = { A = "1" }, request_remove = ["a"] }\n' + POOL,
            ":5: route[0].headers.request_remove: A is set as well",
        ),
        (LISTEN + ROUTE + 'headers.request_remove = ["host"]\n' + POOL, "Host can't be removed"),
        (
            LISTEN + ROUTE + 'websocket = { ping = "25s", inspect = false }\n' + POOL,
            ":5: route[0].websocket.ping: needs inspect = true: without it nobody knows where a frame ends",
        ),
        (LISTEN + ROUTE + 'websocket.ping = "999ms"\n' + POOL, 'ping = "999ms": must be from 1s to 365d'),
        (LISTEN + ROUTE + "websocket.crash_safe = 0\n" + POOL, "crash_safe = 0: expected true or false"),
        (LISTEN + ROUTE + "retry.attempts = 11\n" + POOL, "retry.attempts = 11: must be from 1 to 10"),
        (LISTEN + ROUTE + 'retry.on = ["conect"]\n' + POOL, 'retry.on[0] = "conect": expected'),
        # Moving tunnels
        ("process.rebalance = true\n" + VALID, ":1: process.rebalance = true: expected a table"),
        ("process.rebalance.tunnels = 0\n" + VALID, "rebalance.tunnels = 0: must be from 1 to 1000000"),
        ("process.rebalance.percent = 101\n" + VALID, "rebalance.percent = 101: must be from 1 to 100"),
        ("process.rebalance.pace = 0\n" + VALID, "rebalance.pace = 0: must be from 1 to 100000"),
        ("drain.close_code = 1006\n" + VALID, "close_code = 1006: is a code that no Close frame carries"),
        ("drain.close_code = 1015\n" + VALID, "close_code = 1015: is a code that no Close frame carries"),
        ("drain.close_code = 1016\n" + VALID, "must be from 1000 to 1014 or from 3000 to 4999"),
        ("drain.close_code = 2999\n" + VALID, "must be from 1000 to 1014 or from 3000 to 4999"),
        ("drain.close_code = 5000\n" + VALID, "close_code = 5000: must be from 1000 to 4999"),
        ('drain.spread = "25h"\n' + VALID, 'drain.spread = "25h": must be from 0s to 1d'),
        (VALID + "admission = {}\n", ":7: pool.app.admission.rate: is missing: Handshakes a second."),
        (VALID + "admission = { rate = 0 }\n", "admission.rate = 0: must be from 1 to 1000000"),
        (VALID + "admission = { rate = 0.5 }\n", "admission.rate = 0.5: expected a whole number"),
        (VALID + "admission = { rate = 1, burst = 0 }\n", "admission.burst = 0: must be from 1 to 1000000"),
        (VALID + 'on_removed = "close"\n', 'on_removed = "close": expected "keep" or "paced-close"'),
        # Pools
        (VALID + "sticky = {}\n", ":7: pool.app.sticky.cookie: sticky needs one of"),
        (VALID + 'sticky = { cookie = "a", ip = true }\n', "sticky.cookie: only one of cookie, ip can be"),
        (VALID + 'sticky = { ip = true, key_file = "a" }\n', "sticky.key_file: is for sticky cookies only"),
        (VALID + 'hash_on = "path"\n', ':7: pool.app.hash_on: is used with balance = "hash" only'),
        (
            VALID + '[[pool.app.server]]\naddress = "a:1"\n',
            "servers and [[server]] tables exclude each other",
        ),
        (VALID + 'tls = { verify = false, ca = "a" }\n', "tls.ca: is not used where verify = false"),
        (
            LISTEN + ROUTE + '[pool.app]\nservers = ["unix:/a"]\ntls = {}\n',
            ":7: pool.app.tls: unix:/a has no name to verify (add sni",
        ),
        (
            LISTEN
            + ROUTE
            + "[pool.app]\nserver = ["
            + ", ".join(['{ name = "x", address = "a:1" }'] * 2)
            + "]\n",
            ":6: pool.app.server: two servers are called x",
        ),
        (
            LISTEN + ROUTE + '[[pool.app.server]]\naddress = "a:1"\nweight = 0\n',
            ":7: pool.app.server[0].weight = 0: must be from 1 to 1000",
        ),
    ],
)
def test_each_error(text: str, expected: str) -> None:
    assert any(expected in line for line in problems(text)), problems(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen.main.proxy_protocol = true", "proxy_protocol = true: is not supported yet; only false is"),
        ("listen.main.proxy_protocol = 1", "proxy_protocol = 1: is not supported yet; only false is"),
    ],
)
def test_what_is_not_built_is_refused_by_name(text: str, expected: str) -> None:
    assert any(expected in line for line in problems(text)), problems(text)


def test_an_error_is_said_once() -> None:
    """A pool whose only server is wrong has no second problem for having none."""
    assert len(problems(LISTEN + ROUTE + '[pool.app]\nservers = ["a"]\n')) == 1
    assert len(problems(VALID + 'sticky = { cokie = "lb" }\n')) == 2
    assert len(problems(LISTEN + '[[route]]\npool = "a b"\n' + POOL)) == 1


def test_rules_hold_beside_errors_elsewhere() -> None:
    text = LISTEN + "limits.headers = 0\n[[route]]\nstrip_prefix = true\n[pool.app]\nservers = [1]\n"
    assert len(problems(text)) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = \n", ":1:5: no valid TOML: Invalid value"),
        ("a = 1\na = 2\n", ":2:6: no valid TOML: Cannot overwrite a value"),
        ('a = "x', ":1:7: no valid TOML: "),
        ("[listen.main\n", ":1:13: no valid TOML: "),
        ("a = [1,\n", ":2:1: no valid TOML: "),
        ("a = " + "9" * 5000, ": no valid TOML: Exceeds the limit"),
        ("a = " + "[" * 100_000, ": values are nested too deep"),
    ],
)
def test_broken_toml_is_one_problem(text: str, expected: str) -> None:
    (line,) = problems(text)
    assert line.startswith(expected)


def test_files_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    def report(path: pathlib.Path) -> str:
        with pytest.raises(ConfigErrors) as caught:
            load(path)
        return str(caught.value)

    absent = tmp_path / "lb.toml"
    assert report(absent) == f"{absent}: there is no such file (lb init writes a starter file)"
    assert "can't be read: Is a directory" in report(tmp_path)
    assert "can't be read: embedded null byte" in report(pathlib.Path("a\0b"))
    absent.write_bytes(b"a = 1\nb = '\xff'\n")
    assert report(absent) == f"{absent}:2: is not UTF-8"
    absent.write_bytes(b" " * (16 * 1024 * 1024 + 1))
    assert report(absent) == f"{absent}: is larger than 16 MiB"


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "lb.toml"
    file.write_bytes(b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode())
    assert load(file).route[0].pool == "app"


def test_a_long_value_is_cut() -> None:
    (line,) = problems(VALID + f'balance = "{"x" * 500}"\n')
    assert "xxx..." in line
    assert len(line) < 300


def test_names_of_routes() -> None:
    def names(*routes: str) -> list[str]:
        body = "".join(f"[[route]]\n{route}\n" for route in routes)
        config = parse(LISTEN + body + POOL + '[pool.b]\nservers = ["b:1"]\n', FILE)
        return [route.name for route in config.route]

    assert names('pool = "app"', 'pool = "b"') == ["app", "b"]
    assert names('pool = "app"\npath = "/a"', 'pool = "app"', 'pool = "b"') == ["route-1", "route-2", "b"]
    assert names('pool = "app"', 'pool = "b"\nname = "app"') == ["route-1", "app"]


@pytest.mark.parametrize(
    ("first", "second", "reached"),
    [
        ("", "", False),
        ("", 'host = "a.b.c"', False),
        ("", 'path = "/a"', False),
        ('path = "/*"', 'path = "/a"', False),
        ('path = "/a/*"', 'path = "/a/b"', False),
        ('path = "/a/*"', 'path = "/a/b/*"', False),
        ('path = "/a/*"', 'path = "/a/"', False),
        ('path = "/a/*"', 'path = "/a"', True),
        ('path = "/a/*"', 'path = "/ab"', True),
        ('path = "/a"', 'path = "/a/*"', True),
        ('path = "/a"', "", True),
        ('host = "*.b.c"', 'host = "a.b.c"', False),
        ('host = "*.c"', 'host = "*.b.c"', False),
        ('host = "*.b.c"', 'host = "b.c"', True),
        ('host = "a.b.c"', 'host = "*.b.c"', True),
        ('host = "a.b.c"', "", True),
        ('host = "*.b.c"\npath = "/a/*"', 'host = "a.b.c"\npath = "/a/b"', False),
        ('host = "*.b.c"\npath = "/a/*"', 'host = "a.b.c"\npath = "/b"', True),
    ],
)
def test_a_route_that_is_never_reached(first: str, second: str, reached: bool) -> None:
    routes = f'[[route]]\nname = "one"\npool = "app"\n{first}\n[[route]]\npool = "app"\n{second}\n'
    found = warnings(LISTEN + routes + POOL)
    if reached:
        assert found == []
    else:
        message = 'route[1]: is never reached: route "one" before it takes all of its requests'
        assert len(found) == 1
        assert message in found[0]


def test_moves_without_frames_are_hard_closes() -> None:
    blind = LISTEN + ROUTE + 'name = "raw"\nwebsocket.inspect = false\n' + POOL
    assert warnings(blind) == []
    assert warnings(blind + 'on_removed = "paced-close"\n') == [
        ':9: pool.app.on_removed = "paced-close": route "raw" has inspect = false: its WebSockets get no '
        "Close frame, moves become hard closes (inspect = true lets them be asked to move)"
    ]
    assert warnings(VALID + 'on_removed = "paced-close"\n') == []


def test_other_warnings() -> None:
    assert warnings(VALID + '[pool.spare]\nservers = ["a:1"]\n') == [
        ":7: pool.spare: no route uses this pool"
    ]
    text = LISTEN + "redirect_https = true\n" + ROUTE + POOL
    assert "no listener has tls" in warnings(text)[0]


@pytest.mark.parametrize(
    ("one", "other", "cookie", "warned"),
    [
        ("", "", "lb", True),
        ('host = "a.b"', "", "lb", True),
        ('host = "a.b"', 'host = "*.b"', "lb", True),
        ('host = "*.b"', 'host = "a.b"', "lb", True),
        ('host = "a.b"', 'host = "c.b"', "lb", False),
        ("", "", "other", False),
    ],
)
def test_two_pools_that_overwrite_each_others_cookie(one: str, other: str, cookie: str, warned: bool) -> None:
    routes = f'[[route]]\npath = "/a"\npool = "app"\n{one}\n[[route]]\npool = "two"\n{other}\n'
    two = f'[pool.two]\nservers = ["a:1"]\nsticky = {{ cookie = "{cookie}" }}\n'
    found = warnings(LISTEN + routes + POOL + 'sticky = { cookie = "lb" }\n' + two)
    if warned:
        assert len(found) == 1
        assert 'pool.two.sticky.cookie = "lb": pool.app sets the same cookie on the same host' in found[0]
    else:
        assert found == []


def test_did_you_mean() -> None:
    assert did_you_mean("Balance", ["balance", "queue"]) == 'did you mean "balance"?'
    assert did_you_mean("x", ["b", "a"]) == "known: a, b"
    assert did_you_mean("x", [f"name-{index:02}" for index in range(30)]).endswith("name-19, ...")
    assert did_you_mean("x", []) == ""


def test_hundreds_of_routes_and_servers_load_quickly() -> None:
    routes = "".join(
        f'[[route]]\nname = "r{index}"\npath = "/{index}/*"\npool = "p{index}"\n' for index in range(500)
    )
    pools = "".join(f'[pool.p{index}]\nservers = ["10.0.0.1:1", "10.0.0.2:1"]\n' for index in range(500))
    config = parse(LISTEN + routes + pools, FILE)
    assert len(config.route) == 500
    assert config.warnings == ()


_KEYS = st.sampled_from(
    sorted(
        {name for name in entries(Config)}
        | {
            name
            for entry in entries(Config).values()
            for name in entries(getattr(entry.key.kind, "table", Listen))
        }
        | {"main", "app", "cookie", "certs", "address", "x y", ""}
    )
)
_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-3, 100_000),
    st.floats(),
    st.sampled_from(
        ["", "10s", "32KiB", ":80", "a:1", "unix:/a", "app", "*.a.b", "/a/*", "off", "ip", "auto"]
    ),
    st.text("ab:/*.[]%\u00fc", max_size=6),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=20,
)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return str(value).replace("e", ".0e") if "e" in str(value) and "." not in str(value) else str(value)
    return json.dumps(value)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_KEYS, _VALUES, max_size=6))
def test_any_file_loads_or_says_why_not(data: dict[str, Any]) -> None:
    text = "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in data.items())
    try:
        config = parse(text, FILE)
    except ConfigErrors as errors:
        assert errors.problems
        assert all(problem.message and problem.file for problem in errors.problems)
    else:
        assert config.listen


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_loads_or_says_why_not(text: str) -> None:
    with pytest.raises(ConfigErrors):
        parse(text, FILE)


def test_every_table_is_documented() -> None:
    for name, entry in entries(Config).items():
        assert entry.key.doc, name
    assert isinstance(entries(Config)["listen"].key.kind, NamedTables)
