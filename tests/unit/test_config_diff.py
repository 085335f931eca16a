"""What a reload would change, and what it can't."""

from __future__ import annotations

import pathlib

import pytest

from lb.config import diff, parse, refuse_live

BASE = """\
[listen.public]
bind = [":8080"]
[[route]]
name = "chat"
path = "/ws/*"
pool = "chat"
[[route]]
name = "web"
pool = "chat"
[pool.chat]
servers = ["10.0.0.11:9000", "10.0.0.12:9000"]
"""


def lines(old: str, new: str) -> list[str]:
    one = parse(old, pathlib.Path("/old/lb.toml"))
    two = parse(new, pathlib.Path("/new/lb.toml"))
    return [str(change) for change in diff(one, two)]


def changed(find: str, replace: str) -> list[str]:
    assert find in BASE
    return lines(BASE, BASE.replace(find, replace))


def test_nothing_changed() -> None:
    assert lines(BASE, BASE) == []
    # The same in other words.
    assert changed('bind = [":8080"]', 'bind = ["[::]:8080"]\nlimits.headers = 100\n# comment') == []


@pytest.mark.parametrize(
    ("find", "replace", "expected"),
    [
        ('12:9000"]', '12:9000", "10.0.0.13:9000"]', ["pool.chat.servers: + 10.0.0.13:9000"]),
        (
            '11:9000", "',
            '13:9000", "',
            ["pool.chat.servers: - 10.0.0.11:9000", "pool.chat.servers: + 10.0.0.13:9000"],
        ),
        ('bind = [":8080"]', 'bind = [":8080", "unix:/a"]', ['listen.public.bind: + "unix:/a"']),
        (
            'bind = [":8080"]',
            'bind = [":8080"]\nlimits.connections = 60000\ntimeouts.send = "90s"',
            [
                'listen.public.timeouts.send: "30s" -> "90s"',
                "listen.public.limits.connections: 50000 -> 60000",
            ],
        ),
        (
            'bind = [":8080"]',
            'bind = [":8080"]\ntls.certs = ["a.pem"]',
            ['listen.public.tls: + { certs = ["a.pem"] }'],
        ),
        ("[pool.chat]", '[pool.chat]\nbalance = "p2c"', ['pool.chat.balance: "round-robin" -> "p2c"']),
        (
            "[pool.chat]",
            '[pool.chat]\nsticky = { cookie = "lb" }',
            ['pool.chat.sticky: + { cookie = "lb" }'],
        ),
        (
            "[pool.chat]",
            '[listen.b]\nbind = [":1"]\nlimits.headers = 7\n[pool.chat]',
            ['listen.b: + { bind = ["[::]:1"], limits = { headers = 7 } }'],
        ),
        (
            "[pool.chat]",
            '[pool.x]\nserver = [{ address = "a:1", weight = 2 }]\n[pool.chat]',
            ['pool.x: + { server = [{ address = "a:1", weight = 2 }] }'],
        ),
        ('path = "/ws/*"', "", ['route.chat.path: "/ws/*" -> none']),
        (
            'path = "/ws/*"',
            'websocket.idle = "off"\npath = "/ws/*"',
            ['route.chat.websocket.idle: "1h" -> "off"'],
        ),
        (
            'path = "/ws/*"',
            'path = "/ws/*"\nheaders.request_set = { X = "1" }',
            ['route.chat.headers.request_set: + X = "1"'],
        ),
        (
            'name = "web"',
            'name = "web"\npool = "chat"\npath = "/"\n[[route]]\nname = "rest"',
            ['route.rest: + { name = "rest", pool = "chat" }', 'route.web.path: none -> "/"'],
        ),
        ("[listen.public]", "process.workers = 2\n[listen.public]", ['process.workers: "auto" -> 2']),
        (
            "[listen.public]",
            'process.rebalance = "off"\n[listen.public]',
            ['process.rebalance: { tunnels = 50, percent = 10, pace = 200 } -> "off"'],
        ),
        (
            "[listen.public]",
            "process.rebalance.pace = 20\ndrain.close_code = 1001\n[listen.public]",
            ["process.rebalance.pace: 200 -> 20", "drain.close_code: 1012 -> 1001"],
        ),
        (
            'path = "/ws/*"',
            'path = "/ws/*"\nwebsocket = { ping = "25s", crash_safe = false }',
            ['route.chat.websocket.ping: "off" -> "25s"', "route.chat.websocket.crash_safe: true -> false"],
        ),
        (
            "[pool.chat]",
            '[pool.chat]\non_removed = "paced-close"\nadmission = { rate = 9 }',
            ["pool.chat.admission: + { rate = 9 }", 'pool.chat.on_removed: "keep" -> "paced-close"'],
        ),
        (
            "[listen.public]",
            'process.user = "lb"\n[listen.public]',
            ['process.user: none -> "lb" (needs a restart)'],
        ),
    ],
)
def test_each_change(find: str, replace: str, expected: list[str]) -> None:
    assert sorted(changed(find, replace)) == sorted(expected)


def test_what_is_switched_on_again() -> None:
    off = 'process.rebalance = "off"\n' + BASE
    assert lines(off, BASE) == ['process.rebalance: "off" -> { tunnels = 50, percent = 10, pace = 200 }']
    old, new = parse(off, pathlib.Path("lb.toml")), parse(BASE, pathlib.Path("lb.toml"))
    assert refuse_live(old, new) == []


def test_what_is_removed() -> None:
    more = BASE + 'sticky = { cookie = "lb" }\n[pool.x]\nservers = ["a:1"]\n'
    assert lines(more, BASE) == [
        'pool.x: - { servers = ["a:1"] }',
        'pool.chat.sticky: - { cookie = "lb" }',
    ]


def test_elements_that_are_removed() -> None:
    more = BASE.replace('[":8080"]', '[":8080", "unix:/a"]')
    assert lines(more, BASE) == ['listen.public.bind: - "unix:/a"']


def test_servers_as_tables() -> None:
    tables = BASE[: BASE.index("servers =")] + (
        '[[pool.chat.server]]\naddress = "10.0.0.11:9000"\n'
        '[[pool.chat.server]]\naddress = "10.0.0.12:9000"\nweight = 5\nmax_connections = 9\n'
        '[[pool.chat.server]]\nname = "blue"\naddress = "10.0.0.13:9000"\nbackup = true\n'
    )
    assert lines(BASE, tables) == [
        'pool.chat.servers."10.0.0.12:9000".weight: 1 -> 5',
        'pool.chat.servers."10.0.0.12:9000".max_connections: "off" -> 9',
        'pool.chat.servers: + { name = "blue", address = "10.0.0.13:9000", backup = true }',
    ]
    assert lines(tables, BASE)[0].startswith('pool.chat.servers: - { name = "blue", ')


def test_the_order_of_routes_matters() -> None:
    swapped = (
        BASE.replace('name = "chat"\npath = "/ws/*"', 'name = "x"')
        .replace('name = "web"', 'name = "chat"\npath = "/ws/*"')
        .replace('name = "x"', 'name = "web"')
    )
    assert lines(BASE, swapped) == ["route.order: chat, web -> web, chat"]


def test_the_order_of_certificates_matters() -> None:
    tls = BASE.replace('bind = [":8080"]', 'bind = [":8080"]\ntls.certs = ["a", "b"]')
    assert lines(tls, tls.replace('"a", "b"', '"b", "a"')) == [
        'listen.public.tls.certs: ["a", "b"] -> ["b", "a"]'
    ]


def test_what_cannot_change_live_is_refused_by_name() -> None:
    old = parse(BASE, pathlib.Path("lb.toml"))
    new = parse(
        'process.workers = 2\nprocess.pid_file = "b"\nprocess.user = "lb"\n' + BASE, pathlib.Path("lb.toml")
    )
    assert [str(problem) for problem in refuse_live(old, new)] == [
        'lb.toml:3: process.user = "lb": can\'t change from none in a reload (restart to change it)',
        'lb.toml:2: process.pid_file = "b": can\'t change from none in a reload (restart to change it)',
    ]
    assert refuse_live(old, old) == []
