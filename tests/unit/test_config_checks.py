"""Health checks, ejection, slow start and discovery: what the file may say, and what it comes to."""

from __future__ import annotations

import pathlib

import pytest

from lb.config import Config, ConfigErrors, diff, parse
from lb.config.checks import Health, checks_of

FILE = pathlib.Path("/etc/lb/lb.toml")
HEAD = '[listen.main]\nbind = [":8080"]\n[[route]]\npool = "app"\n[pool.app]\n'
VALID = HEAD + 'servers = ["127.0.0.1:9000"]\n'
SERVER = '[[pool.app.server]]\naddress = "127.0.0.1:9000"\n'


def problems(text: str) -> list[str]:
    """The report on `text`, without the name of the file."""
    with pytest.raises(ConfigErrors) as caught:
        parse(text, FILE)
    return [str(problem).removeprefix(str(FILE)) for problem in caught.value.problems]


def pool_checks(text: str) -> list[Health | None]:
    (pool,) = parse(text, FILE).pool
    return [checks_of(pool.health, server.health) for server in pool.every_server]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("health = 1", ":7: pool.app.health = 1: expected a table"),
        ('health.type = "https"', ':7: pool.app.health.type = "https": expected "http" or "tcp" or "websoc'),
        ("health.evry = 1", 'unknown key (did you mean "every"?)'),
        ("health.given = []", "pool.app.health.given = []: unknown key"),
        (
            'health.timeout = "3s"',
            ':7: pool.app.health.timeout: 3s is longer than every = "2s" (a check ends',
        ),
        ('health.every = "500ms"', 'pool.app.health.timeout: 1s is longer than every = "500ms"'),
        ('health = { type = "tcp", path = "/a" }', 'health.path: is not used by type = "tcp" (remove path)'),
        ('health = { type = "tcp", status = "204" }', 'health.status: is not used by type = "tcp"'),
        ('health = { type = "tcp", body = "a" }', 'health.body: is not used by type = "tcp"'),
        ('health = { type = "websocket", status = "204" }', 'status: is not used by type = "websocket"'),
        ('health = { type = "websocket", body = "a" }', 'health.body: is not used by type = "websocket"'),
        ("health.status = 200", "health.status = 200: expected a string: such as"),
        ("health.fall = 0", "health.fall = 0: must be from 1 to 100"),
        ("health.port = 0", "health.port = 0: must be from 1 to 65535"),
        ('eject = { for = "off" }', 'eject.for = "off": expected a duration'),
        ('eject = { for = "1m", max_for = "30s" }', ":7: pool.app.eject.max_for: is shorter than for"),
        (
            'eject.consecutive_errors = "off"',
            "consecutive_errors: one of consecutive_errors, gateway_failures, connect_failures is needed"
            ' (write eject = "off" to eject no server)',
        ),
        ("eject.connect_failures = 0", "connect_failures = 0: must be from 1 to 10000"),
        ("eject.max_percent = 0", "max_percent = 0: must be from 1 to 100"),
        ("eject.panic_percent = 101", "panic_percent = 101: must be from 0 to 100"),
        ("eject.for_ = 1", 'eject.for_ = 1: unknown key (did you mean "for"?)'),
        ("slow_start = 30", 'slow_start = 30: expected a duration such as "250ms" or "10s", or "off" (write'),
        ("discover = {}", ":7: pool.app.discover.file: is missing"),
        ('discover = "a.json"', 'discover = "a.json": expected a table'),
        (
            'discover.file = "a.txt"',
            'file = "a.txt": the name of a file with servers ends in .json, .yaml or',
        ),
        ('discover = { file = "a.json", refresh = "1ms" }', "must be from 100ms to 1h"),
    ],
)
def test_each_error(lines: str, expected: str) -> None:
    report = problems(f"{VALID}{lines}\n")
    assert len(report) == 1
    assert expected in report[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            HEAD + SERVER + 'health.timeout = "3s"\n',
            ':8: pool.app.server[0].health.timeout: 3s is longer than every = "2s"',
        ),
        (
            HEAD + 'health.path = "/a"\n' + SERVER + 'health.type = "tcp"\n',
            ':9: pool.app.server[0].health.path: is not used by type = "tcp" (remove path)',
        ),
        (HEAD + SERVER + "health.pth = 1\n", ":8: pool.app.server[0].health.pth = 1: unknown key"),
        (HEAD + SERVER + 'health = "on"\n', ':8: pool.app.server[0].health = "on": expected a table'),
        (
            HEAD + '[[pool.app.server]]\naddress = "unix:/a"\nhealth.port = 80\n',
            ':8: pool.app.server[0].health.port: unix:/a has no ports (give that server health = "off")',
        ),
        (
            HEAD + 'health.port = 80\n[[pool.app.server]]\naddress = "unix:/a"\n',
            ":6: pool.app.health.port: unix:/a has no ports",
        ),
        (
            HEAD + 'health.port = 80\nservers = ["unix:/a"]\n',
            ":6: pool.app.health.port: unix:/a has no ports",
        ),
        (
            HEAD + 'servers = ["srv://a:80"]\n',
            ':6: pool.app.servers[0] = "srv://a:80": expected "srv://" and',
        ),
        (HEAD + 'servers = ["srv://a", "srv://A"]\n', 'servers[1] = "srv://A": stands in this array already'),
        (
            HEAD + '[[pool.app.server]]\naddress = "srv://_ws._tcp.a"\n',
            'stands for any number of servers (write servers = ["srv://_ws._tcp.a"])',
        ),
    ],
)
def test_each_error_of_servers(text: str, expected: str) -> None:
    report = problems(text)
    assert len(report) == 1
    assert expected in report[0]


def test_a_server_overrides_key_by_key() -> None:
    text = HEAD + 'health = { path = "/alive", every = "10s", timeout = "5s" }\n'
    text += SERVER + 'health = { path = "/deep", timeout = "8s" }\n'
    text += SERVER.replace("9000", "9001") + 'health = "off"\n'
    text += SERVER.replace("9000", "9002")
    text += SERVER.replace("9000", "9003") + "health = {}\n"
    own, off, pools, empty = pool_checks(text)
    assert own == Health(path="/deep", every=10.0, timeout=8.0)
    assert off is None
    assert pools == empty == Health(path="/alive", every=10.0, timeout=5.0)


def test_a_server_may_go_back_to_the_default() -> None:
    text = HEAD + 'health.path = "/alive"\n' + SERVER + 'health.path = "/"\n'
    assert pool_checks(text) == [Health(path="/")]


def test_a_server_alone_may_be_checked() -> None:
    text = HEAD + SERVER + 'health.type = "tcp"\n' + SERVER.replace("9000", "9001")
    assert pool_checks(text) == [Health(type="tcp"), None]


@pytest.mark.parametrize("key", ["health", "eject", "slow_start"])
def test_off_is_the_default(key: str) -> None:
    (pool,) = parse(f'{VALID}{key} = "off"\n', FILE).pool
    assert getattr(pool, key) is None
    assert pool == parse(VALID, FILE).pool[0]


def test_a_pool_that_discovers_needs_no_server() -> None:
    (pool,) = parse(HEAD + 'servers = ["srv://_ws._tcp.A.example", "a:1"]\n', FILE).pool
    assert pool.srv == ("_ws._tcp.a.example",)
    assert [server.label for server in pool.every_server] == ["a:1"]
    (pool,) = parse(HEAD + 'discover.file = "servers.yml"\n', FILE).pool
    assert pool.discovers
    assert (pool.every_server, pool.srv) == ((), ())


# --- what a reload would change --------------------------------------------------------------------------


def changes(old: str, new: str) -> list[str]:
    def config(text: str) -> Config:
        return parse(text, FILE)

    return [str(change) for change in diff(config(old), config(new))]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (VALID, VALID + 'health.path = "/a"\n', 'pool.app.health: + { path = "/a" }'),
        (VALID + "health = {}\n", VALID, "pool.app.health: - {}"),
        (VALID + "health = {}\n", VALID + "health.fall = 9\n", "pool.app.health.fall: 3 -> 9"),
        (VALID + "eject = {}\n", VALID + 'eject.for = "9s"\n', 'pool.app.eject.for: "30s" -> "9s"'),
        (VALID, VALID + 'eject.for = "9s"\n', 'pool.app.eject: + { for = "9s" }'),
        (VALID, VALID + 'slow_start = "9s"\n', 'pool.app.slow_start: "off" -> "9s"'),
        (VALID, VALID + 'discover.file = "a.json"\n', 'pool.app.discover: + { file = "a.json" }'),
        (
            VALID,
            HEAD + 'servers = ["127.0.0.1:9000", "srv://a"]\n',
            "pool.app.servers: + srv://a",
        ),
        (
            HEAD + SERVER,
            HEAD + SERVER + 'health = "off"\n',
            'pool.app.servers."127.0.0.1:9000".health: none -> "off"',
        ),
        (
            HEAD + SERVER + 'health = "off"\n',
            HEAD + SERVER + 'health = { path = "/", fall = 9 }\n',
            'pool.app.servers."127.0.0.1:9000".health: "off" -> { fall = 9, path = "/" }',
        ),
        (
            HEAD + SERVER,
            HEAD + SERVER + SERVER.replace("9000", "9001") + 'health = "off"\n',
            'pool.app.servers: + { address = "127.0.0.1:9001", health = "off" }',
        ),
    ],
)
def test_each_change(old: str, new: str, expected: str) -> None:
    assert changes(old, new) == [expected]
