"""The files that come with the configuration: the default, the examples, the starter, the reference."""

from __future__ import annotations

import pathlib
import re
import shutil

import pytest

from lb.config import State, check, compile, load, parse, verify
from lb.config.reference import TARGET, reference
from lb.config.starter import starter
from tests.unit.test_config_compile import write_certificate

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.toml"))


def test_the_default_runs_as_it_is(tmp_path: pathlib.Path) -> None:
    config = load(pathlib.Path(shutil.copy(ROOT / "config" / "lb.toml", tmp_path)))
    assert config.warnings == ()
    compiled, _ = compile(config, State(), 1, lambda _kind, _row: False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["admin.token", "lb.toml"]
    snapshot = compiled.snapshot
    assert [listener.bind for listener in snapshot.listeners] == [("127.0.0.1:8080",)]
    assert snapshot.access_log.path == "-"
    assert [server.name for server in snapshot.pools[0].servers] == ["127.0.0.1:9001", "127.0.0.1:9002"]
    assert snapshot.pools[0].sticky is not None
    assert [route.path for route in snapshot.routes] == ["/ws/*", None]
    assert [checks.path for checks in snapshot.pools[0].checks if checks] == ["/", "/"]
    assert (compiled.control.metrics, compiled.control.admin) == ("127.0.0.1:9180", "127.0.0.1:9181")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples(example: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = pathlib.Path(shutil.copy(example, tmp_path))
    (tmp_path / "certs").mkdir()
    for host in ("chat.example.com", "www.example.com"):
        write_certificate(tmp_path / "certs", host)
    authority = (tmp_path / "certs" / "www.example.com.pem").read_text()
    certificate = authority[: authority.index("-----BEGIN PRIVATE")]
    (tmp_path / "certs" / "internal-ca.crt").write_text(certificate)
    shutil.copy(EXAMPLES[0].with_name("servers.json"), tmp_path)
    token = tmp_path / "admin.token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    assert check(file).warnings == ()


def test_there_are_the_examples_that_the_documentation_names() -> None:
    names = {example.stem for example in EXAMPLES}
    assert {
        "two-websocket-servers",
        "socketio-sticky",
        "tls",
        "unix-sockets",
        "api-and-ws-same-path",
        "health-checks",
        "discovery",
        "admin-over-tcp",
        "moving-websockets",
    } <= names
    five_lines = (ROOT / "config" / "examples" / "two-websocket-servers.toml").read_text().splitlines()
    assert len(five_lines) == 5


def test_the_starter_is_valid() -> None:
    config = parse(starter(), pathlib.Path("lb.toml"))
    assert config.warnings == ()
    verify(config)


def test_every_setting_of_the_starter_can_be_uncommented() -> None:
    text = re.sub(r"(?m)^#(?=[^ \n])", "", starter())
    assert text != starter()
    config = parse(text, pathlib.Path("lb.toml"))
    assert config.warnings == ()
    assert len(config.listen) == len(config.route) == len(config.pool) == 2


def test_the_reference_is_current() -> None:
    written = (ROOT / TARGET).read_text()
    assert written == reference(), "run python -m lb.config.reference"


def test_the_reference_names_every_key_once_in_its_table() -> None:
    text = reference()
    for heading in (
        "[process]",
        "[listen.NAME.limits]",
        "[[route]]",
        "[route.retry]",
        "[process.rebalance]",
        "[pool.NAME.admission]",
        "[[pool.NAME.server]]",
        "[pool.NAME.health]",
        "[pool.NAME.eject]",
        "[metrics]",
        "[admin]",
        "[dns]",
    ):
        assert text.count(f"## `{heading}`\n") == 1
    assert '| `wedged_after` | duration, 1s to 1h | `"10s"` | yes |' in text
    assert "| `close_code` | integer, 1000 to 1014 or 3000 to 4999 | `1012` | yes |" in text
    assert "| `user` | name of a user |  | restart |" in text
    assert "| `bind` |" in text
    assert '| `for` | duration, 100ms to 24h | `"30s"` | yes |' in text
    assert "*Not supported yet.*" not in text
