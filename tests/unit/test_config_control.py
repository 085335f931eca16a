"""What the control process gets, what it finds, and the addresses that it listens on."""

from __future__ import annotations

import pathlib
import re
import stat

import pytest

from lb.config import Compiled, ConfigErrors, State, check, compile, diff, parse, refuse_live
from lb.config.controlspec import admin_token
from lb.config.files import create_secret
from lb.control.spec import ControlSpec, DiscoverSpec, Discovery, FoundServer
from tests.unit.pem import certify, new_key, pem_key

HEAD = '[listen.main]\nbind = [":8080"]\n[[route]]\npool = "app"\n'
VALID = HEAD + '[pool.app]\nservers = ["127.0.0.1:9000"]\n'
FILE_POOL = HEAD + '[pool.app]\ndiscover.file = "servers.json"\n'
TOKEN = "0123456789abcdef"


def build(
    text: str, folder: pathlib.Path, discovery: Discovery | None = None, state: State | None = None
) -> tuple[Compiled, State]:
    config = parse(text, folder / "lb.toml")
    return compile(config, state or State(), 3, lambda _kind, _row: False, discovery)


def refusal(text: str, folder: pathlib.Path) -> str:
    with pytest.raises(ConfigErrors) as caught:
        build(text, folder)
    return str(caught.value).replace(str(folder), "DIR")


def warnings(compiled: Compiled, folder: pathlib.Path) -> list[str]:
    return [str(warning).replace(str(folder), "DIR") for warning in compiled.config.warnings]


def names(compiled: Compiled) -> list[str]:
    return [server.name for server in compiled.snapshot.pools[0].servers]


def write_token(folder: pathlib.Path, content: str = TOKEN + "\n", mode: int = 0o600) -> None:
    file = folder / "token"
    file.write_text(content)
    file.chmod(mode)


def with_token(listen: str) -> str:
    return VALID + f'[admin]\nlisten = "{listen}"\ntoken_file = "token"\n'


# --- the spec --------------------------------------------------------------------------------------------


def test_without_any_of_it(tmp_path: pathlib.Path) -> None:
    compiled, _ = build(VALID, tmp_path)
    assert compiled.control == ControlSpec(
        generation=3, config_path=str(tmp_path / "lb.toml"), config_text=VALID
    )


def test_everything_arrives(tmp_path: pathlib.Path) -> None:
    write_token(tmp_path)
    (tmp_path / "servers.yml").write_text("- targets: [c.internal:1]\n")
    text = HEAD + (
        '[pool.app]\nservers = ["srv://_ws._tcp.a", "b.internal:1", "127.0.0.1:1", "[::1]:1", "unix:/a"]\n'
        'discover = { file = "./servers.yml", refresh = "5s" }\n'
        '[pool.srv]\nservers = ["srv://x", "srv://y"]\n'
        '[metrics]\nlisten = ":9180"\n[admin]\nlisten = "localhost:9181"\ntoken_file = "token"\n'
        '[dns]\nnameservers = ["10.0.0.2"]\n'
    )
    compiled, _ = build(text, tmp_path)
    assert compiled.control == ControlSpec(
        generation=3,
        config_path=str(tmp_path / "lb.toml"),
        config_text=text,
        metrics="[::]:9180",
        admin="127.0.0.1:9181",
        admin_token=TOKEN,
        nameservers=("10.0.0.2:53",),
        names=("b.internal", "c.internal"),
        discover=(
            DiscoverSpec(pool="app", file=str(tmp_path / "servers.yml"), refresh=5.0, srv=("_ws._tcp.a",)),
            DiscoverSpec(pool="srv", srv=("x", "y")),
        ),
    )


def test_where_the_admin_api_is(tmp_path: pathlib.Path) -> None:
    default = "unix:/run/lb/admin.sock"
    for listen, expected in (("", default), ('listen = "off"', None), ('listen = "unix:/a"', "unix:/a")):
        config = parse(f"{VALID}[admin]\n{listen}\n", tmp_path / "lb.toml")
        assert config.admin_address(default) == expected
    off, _ = build(VALID + '[admin]\nlisten = "off"\n', tmp_path)
    assert off.control.admin is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('admin.listen = ":9181"', "admin.listen: a TCP address needs a token_file (add token_file = "),
        ('admin.token_file = "a"', "admin.token_file: is for TCP addresses only (remove it)"),
        ('admin = { listen = "off", token_file = "a" }', "admin.token_file: is for TCP addresses only"),
        ('admin.listen = "example.com:1"', "a listener binds to an IP address of this machine"),
        ("metrics = 1", "metrics = 1: expected a table"),
        ('metrics.listen = ":8080"', 'metrics.listen = "[::]:8080": [::]:8080 is bound by listen.main'),
        (
            'metrics.listen = "0.0.0.0:9180"\nadmin = { listen = ":9180", token_file = "a" }',
            'admin.listen = "[::]:9180": 0.0.0.0:9180 is bound by metrics already',
        ),
        ('dns.nameservers = ["a.example"]', 'dns.nameservers[0] = "a.example": expected the IP address'),
    ],
)
def test_each_error(lines: str, expected: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(f"{lines}\n{VALID}", tmp_path / "lb.toml")
    assert len(caught.value.problems) == 1
    assert expected in str(caught.value)


# --- the token -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "x" * 15, "x" * 4097, "x" * 16 + "\ny" * 16, "x" * 16 + "\u00fc"])
def test_a_token_that_is_none(content: str, tmp_path: pathlib.Path) -> None:
    write_token(tmp_path, content)
    assert refusal(with_token("127.0.0.1:9181"), tmp_path) == (
        "DIR/lb.toml:9: admin.token_file: DIR/token: a token has 16 to 4096 visible ASCII characters, and no "
        "space (remove it, and one is made)"
    )


def test_a_token_that_is_not_there_is_made_at_the_start(tmp_path: pathlib.Path) -> None:
    text = with_token("127.0.0.1:9181")
    file, token = tmp_path / "lb.toml", tmp_path / "token"
    file.write_text(text)
    assert check(file).warnings == ()
    assert not token.exists(), "a check makes nothing"
    compiled, _ = build(text, tmp_path)
    assert re.fullmatch("[0-9a-f]{64}", compiled.control.admin_token)
    assert token.read_text() == compiled.control.admin_token + "\n"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert warnings(compiled, tmp_path) == []
    again, _ = build(text, tmp_path)
    assert again.control.admin_token == admin_token(again.config) == compiled.control.admin_token
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lb.toml", "token"]


def test_a_token_that_is_there_stays_as_it_is(tmp_path: pathlib.Path) -> None:
    write_token(tmp_path)
    create_secret(tmp_path / "token", b"another")
    compiled, _ = build(with_token("127.0.0.1:9181"), tmp_path)
    assert compiled.control.admin_token == TOKEN
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_a_token_that_can_not_be_made(tmp_path: pathlib.Path) -> None:
    text = with_token("127.0.0.1:9181").replace('"token"', '"nowhere/token"')
    expected = "admin.token_file: DIR/nowhere/token: can't be made: No such file or directory"
    assert expected in refusal(text, tmp_path)
    with pytest.raises(ConfigErrors, match="can't be made"):
        admin_token(parse(text, tmp_path / "lb.toml"))


def test_a_token_that_can_not_be_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "token").symlink_to(tmp_path / "nowhere")
    text = with_token("127.0.0.1:9181")
    expected = "admin.token_file: DIR/token: can't be read: No such file or directory"
    assert expected in refusal(text, tmp_path)
    file = tmp_path / "lb.toml"
    file.write_text(text + "unknown = 1\n")
    with pytest.raises(ConfigErrors) as caught:
        check(file)
    assert [problem.path for problem in caught.value.problems] == ["admin.token_file", "admin.unknown"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_token_that_others_can_read(mode: int, tmp_path: pathlib.Path) -> None:
    write_token(tmp_path, mode=mode)
    compiled, _ = build(with_token("127.0.0.1:9181"), tmp_path)
    assert compiled.control.admin_token == TOKEN
    assert warnings(compiled, tmp_path) == [
        "DIR/lb.toml:9: admin.token_file: DIR/token: others than its owner can read or write it "
        "(chmod 600 DIR/token)"
    ]


def test_an_admin_api_that_others_can_reach(tmp_path: pathlib.Path) -> None:
    write_token(tmp_path)
    compiled, _ = build(with_token("[::1]:9181"), tmp_path)
    assert warnings(compiled, tmp_path) == []
    compiled, _ = build(with_token(":9181"), tmp_path)
    (warning,) = warnings(compiled, tmp_path)
    assert "other machines reach it, and the token travels unencrypted" in warning


# --- what was found --------------------------------------------------------------------------------------


def test_found_servers_follow_the_configured_ones(tmp_path: pathlib.Path) -> None:
    text = HEAD + '[pool.app]\nservers = ["a.internal:1", "srv://x"]\nhealth = {}\n'
    found = FoundServer(name="b", address="b.internal:2", weight=5, backup=True)
    discovery = Discovery(servers={"app": (found,)}, addresses={"b.internal": ("10.0.0.1", "10.0.0.2")})
    compiled, _ = build(text, tmp_path, discovery)
    (pool,) = compiled.snapshot.pools
    one, two = pool.servers
    assert (one.name, one.addresses) == ("a.internal:1", ())
    assert (two.name, two.host, two.port, two.weight, two.backup) == ("b", "b.internal", 2, 5, True)
    assert two.addresses == ("10.0.0.1", "10.0.0.2")
    assert one.slot != two.slot
    assert len(pool.checks) == 2
    assert compiled.control.names == ("a.internal", "b.internal")


def test_a_pool_may_be_without_servers(tmp_path: pathlib.Path) -> None:
    compiled, _ = build(HEAD + '[pool.app]\nservers = ["srv://x"]\nhealth = {}\n', tmp_path)
    (pool,) = compiled.snapshot.pools
    assert (pool.servers, pool.checks) == ((), ())


def test_what_was_found_and_can_not_be_used_is_a_warning(tmp_path: pathlib.Path) -> None:
    text = HEAD + '[pool.app]\nservers = ["a:1", "srv://x"]\n'
    found = (
        FoundServer(name="a:1", address="b:1"),
        FoundServer(name="c", address="nothing"),
        FoundServer(name="d", address="d:1"),
        FoundServer(name="d", address="e:1"),
    )
    compiled, _ = build(text, tmp_path, Discovery(servers={"app": found}))
    assert names(compiled) == ["a:1", "d"]
    place = "DIR/lb.toml:6: pool.app.servers"
    taken = "as another one of the pool: it is not used"
    assert warnings(compiled, tmp_path) == [
        f"{place}: a server that was found is called a:1, {taken}",
        f'{place} = "nothing": a server that was found is not used: the port is missing',
        f"{place}: a server that was found is called d, {taken}",
    ]
    # The same again has the same warnings, not twice as many.
    again, _ = compile(compiled.config, State(), 4, lambda _kind, _row: False, Discovery())
    assert again.config.warnings == ()


def test_servers_of_a_pool_that_discovers_nothing_any_more(tmp_path: pathlib.Path) -> None:
    discovery = Discovery(servers={"app": (FoundServer(name="x", address="x:1"),)})
    compiled, _ = build(VALID, tmp_path, discovery)
    assert names(compiled) == ["127.0.0.1:9000"]


def test_the_first_start_has_the_servers_of_the_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "servers.json"
    at = "DIR/lb.toml:6: pool.app.discover.file: DIR/servers.json: "
    assert (
        refusal(FILE_POOL, tmp_path)
        == at + "there is no such file: write [] into it to start without servers"
    )
    file.write_text("{}")
    assert refusal(FILE_POOL, tmp_path).startswith(at + "holds no list")
    file.write_text('[{"targets": ["a:1", "b:1"]}]')
    compiled, state = build(FILE_POOL, tmp_path)
    assert names(compiled) == ["a:1", "b:1"]
    # From then on it is the control process that looks.
    discovery = Discovery(servers={"app": (FoundServer(name="c:1", address="c:1"),)})
    file.unlink()
    compiled, state = build(FILE_POOL, tmp_path, discovery, state)
    assert names(compiled) == ["c:1"]
    # What was found in another file says nothing about this one.
    other = FILE_POOL.replace("servers.json", "other.yaml")
    (tmp_path / "other.yaml").write_text("- targets: [d:1]")
    compiled, _ = build(other, tmp_path, discovery, state)
    assert names(compiled) == ["d:1"]


def test_a_check_reads_the_file_with_servers(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "lb.toml"
    file.write_text(FILE_POOL)
    with pytest.raises(ConfigErrors, match="there is no such file"):
        check(file)
    file.write_text(FILE_POOL + "unknown = 1\n")
    with pytest.raises(ConfigErrors) as caught:
        check(file)
    assert len(caught.value.problems) == 2
    file.write_text(FILE_POOL.replace(".json", ".csv"))
    with pytest.raises(ConfigErrors) as caught:
        check(file)
    assert len(caught.value.problems) == 1
    file.write_text(FILE_POOL)
    (tmp_path / "servers.json").write_text("[]")
    assert check(file).warnings == ()


# --- warnings about files --------------------------------------------------------------------------------


def test_a_certificate_that_has_expired(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    (tmp_path / "a.pem").write_bytes(certify(key) + pem_key(key))
    file = tmp_path / "lb.toml"
    file.write_text(VALID.replace('[":8080"]', '[":8443"]\ntls.certs = ["a.pem"]'))
    assert check(file).warnings == ()
    monkeypatch.setattr("time.time", lambda: 5e9)
    (warning,) = check(file).warnings
    assert str(warning).startswith(
        f"{file}:3: listen.main.tls.certs: a.pem: the certificate expired at 2126-"
    )
    config = parse(file.read_text(), file)
    compiled, _ = compile(config, State(), 1, lambda _kind, _row: False)
    assert compiled.config.warnings == (warning,)


# --- reloads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "change", "refused"),
    [
        (
            "",
            "[metrics]\n",
            "metrics: + {} (needs a restart)",
            "lb.toml:1: metrics = {}: can't be added in a reload (restart to change it)",
        ),
        (
            '[metrics]\nlisten = ":1"\n',
            "",
            'metrics: - { listen = "[::]:1" } (needs a restart)',
            "lb.toml: metrics: can't be removed in a reload (restart to change it)",
        ),
        (
            '[metrics]\nlisten = ":1"\n',
            '[metrics]\nlisten = ":2"\n',
            'metrics.listen: "[::]:1" -> "[::]:2" (needs a restart)',
            'lb.toml:2: metrics.listen = "[::]:2": can\'t change from "[::]:1" in a reload',
        ),
        (
            "",
            '[admin]\nlisten = "off"\n',
            'admin.listen: none -> "off" (needs a restart)',
            'lb.toml:2: admin.listen = "off": can\'t change from none in a reload',
        ),
        (
            '[admin]\nlisten = "127.0.0.1:1"\ntoken_file = "a"\n',
            '[admin]\nlisten = "127.0.0.1:1"\ntoken_file = "b"\n',
            'admin.token_file: "a" -> "b"',
            "",
        ),
        ("", '[dns]\nnameservers = ["10.0.0.2"]\n', 'dns.nameservers: + "10.0.0.2:53"', ""),
    ],
)
def test_what_a_reload_can_change(
    old: str, new: str, change: str, refused: str, tmp_path: pathlib.Path
) -> None:
    file = pathlib.Path("lb.toml")
    before, after = parse(old + VALID, file), parse(new + VALID, file)
    assert [str(one) for one in diff(before, after)] == [change]
    assert "\n".join(map(str, refuse_live(before, after))).startswith(refused)
    assert bool(refuse_live(before, after)) == bool(refused)
