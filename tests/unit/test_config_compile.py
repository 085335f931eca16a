"""Compilation: rows, sticky keys, certificates, and what the workers get."""

from __future__ import annotations

import datetime
import os
import pathlib
import threading

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from lb.config import Compiled, ConfigErrors, State, check, compile, parse, recompile, verify
from lb.config.state import Rows, assign
from lb.config.stickykeys import KeyFileError, create_key, random_key, read_key
from lb.control.spec import Discovery, FoundServer
from workers.contract import snapshot as spec
from workers.contract.scoreboard import Capacity

HEAD = '[listen.main]\nbind = [":8080"]\n[[route]]\npool = "app"\n'
VALID = HEAD + '[pool.app]\nservers = ["127.0.0.1:9000"]\n'


def free(_kind: str, _row: int) -> bool:
    return False


def build(
    text: str, folder: pathlib.Path, state: State | None = None, generation: int = 1
) -> tuple[Compiled, State]:
    return compile(parse(text, folder / "lb.toml"), state or State(), generation, free)


def refusal(text: str, folder: pathlib.Path, state: State | None = None) -> str:
    with pytest.raises(ConfigErrors) as caught:
        build(text, folder, state)
    return str(caught.value).replace(str(folder), "DIR")


def write_certificate(folder: pathlib.Path, host: str) -> pathlib.Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{host}.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return file


def test_a_bare_configuration_has_the_defaults_of_the_snapshot(tmp_path: pathlib.Path) -> None:
    """The schema and the contract state each default; they must not drift apart."""
    compiled, _ = build(VALID, tmp_path)
    server = spec.ServerSpec(slot=0, owner=1, name="127.0.0.1:9000", host="127.0.0.1", port=9000)
    assert compiled.snapshot == spec.Snapshot(
        generation=1,
        listeners=(spec.ListenerSpec(slot=0, owner=1, name="main", bind=("[::]:8080",)),),
        routes=(spec.RouteSpec(slot=0, owner=1, name="app", pool="app"),),
        pools=(spec.PoolSpec(slot=0, owner=1, name="app", servers=(server,)),),
    )
    bare, _ = build(VALID + "tls = {}\nhealth = {}\neject = {}\nadmission.rate = 9\n", tmp_path)
    pool = bare.snapshot.pools[0]
    assert pool.tls == spec.UpstreamTls()
    assert pool.checks == (spec.HealthSpec(),)
    assert pool.eject == spec.EjectSpec()
    assert pool.admission == spec.AdmissionSpec(rate=9.0)


def test_everything_arrives(tmp_path: pathlib.Path) -> None:
    compiled, _ = build(
        """
        [listen.public]
        bind = ["127.0.0.1:80"]
        trusted_proxies = ["10.0.0.0/8"]
        redirect_https = true
        timeouts.tls_handshake = "1s"
        timeouts.request_head = "2s"
        timeouts.body_idle = "3s"
        timeouts.keep_alive = "4s"
        timeouts.send = "5s"
        limits = { head_bytes = "16KiB", headers = 50, body_bytes = "1MiB", connections = 10 }
        [[route]]
        host = "*.example.com"
        path = "/ws/*"
        pool = "chat"
        strip_prefix = true
        headers = { request_set = { X-Edge = "1" }, response_remove = ["B"] }
        websocket = { idle = "off", max_age = "24h", ping = "25s", crash_safe = false }
        retry = { attempts = 3, on = ["503"] }
        [pool.chat]
        balance = "hash"
        hash_on = "cookie:user"
        sticky = { query = "sid" }
        queue = { length = 0, timeout = "1s" }
        timeouts = { connect = "1s", response_head = "2s", body_idle = "3s" }
        keep_alive = { max_idle = 0, idle = "9s" }
        tls = { verify = false, sni = "b.internal" }
        slow_start = "15s"
        admission = { rate = 5, burst = 6, queue = 7 }
        on_removed = "paced-close"
        health.type = "http"
        health.path = "/alive?deep"
        health.every = "5s"
        health.timeout = "2s"
        health.fall = 5
        health.rise = 4
        health.host = "b.internal"
        health.status = "200-299, 304"
        health.body = "OK"
        health.tls = false
        eject.consecutive_errors = 7
        eject.gateway_failures = 6
        eject.connect_failures = 5
        eject.for = "4s"
        eject.max_for = "40s"
        eject.max_percent = 30
        eject.panic_percent = 20
        server = [
          { name = "blue", address = "[::1]:9000", weight = 3, max_connections = 7, health.port = 9001 },
          { address = "unix:/run/app.sock", backup = true, health = "off" },
        ]
        [drain]
        close_code = 4001
        spread = "0s"
        hard_stop = "1h"
        [access_log]
        path = "access.log"
        format = "combined"
        sample = 0.5
        """,
        tmp_path,
    )
    snapshot = compiled.snapshot
    assert snapshot.listeners == (
        spec.ListenerSpec(
            slot=0,
            owner=1,
            name="public",
            bind=("127.0.0.1:80",),
            trusted_proxies=("10.0.0.0/8",),
            redirect_https=True,
            timeouts=spec.ListenTimeouts(
                tls_handshake=1.0, request_head=2.0, body_idle=3.0, keep_alive=4.0, send=5.0
            ),
            limits=spec.ListenLimits(head_bytes=16384, headers=50, body_bytes=1 << 20, connections=10),
        ),
    )
    assert snapshot.routes == (
        spec.RouteSpec(
            slot=0,
            owner=1,
            name="chat",
            host="*.example.com",
            path="/ws/*",
            pool="chat",
            strip_prefix=True,
            headers=spec.HeaderRules(request_set=(("X-Edge", "1"),), response_remove=("B",)),
            websocket=spec.WebSocketSpec(idle=None, max_age=86400.0, ping=25.0, crash_safe=False),
            retry=spec.RetrySpec(attempts=3, on=("503",)),
        ),
    )
    assert snapshot.pools == (
        spec.PoolSpec(
            slot=0,
            owner=1,
            name="chat",
            servers=(
                spec.ServerSpec(
                    slot=0, owner=1, name="blue", host="::1", port=9000, weight=3, max_connections=7
                ),
                spec.ServerSpec(
                    slot=1, owner=1, name="unix:/run/app.sock", path="/run/app.sock", backup=True
                ),
            ),
            checks=(
                spec.HealthSpec(
                    type="http",
                    path="/alive?deep",
                    every=5.0,
                    timeout=2.0,
                    fall=5,
                    rise=4,
                    port=9001,
                    host="b.internal",
                    status=((200, 299), (304, 304)),
                    body="OK",
                    tls=False,
                ),
                None,
            ),
            eject=spec.EjectSpec(
                consecutive_errors=7,
                gateway_failures=6,
                connect_failures=5,
                duration=4.0,
                max_duration=40.0,
                max_percent=30,
                panic_percent=20,
            ),
            slow_start=15.0,
            balance="hash",
            hash_on=spec.HashSpec(kind="cookie", name="user"),
            sticky=spec.StickySpec(kind="query", name="sid"),
            queue=spec.QueueSpec(length=0, timeout=1.0),
            timeouts=spec.UpstreamTimeouts(connect=1.0, response_head=2.0, body_idle=3.0),
            keep_alive=spec.KeepAliveSpec(max_idle=0, idle=9.0),
            tls=spec.UpstreamTls(verify=False, sni="b.internal"),
            admission=spec.AdmissionSpec(rate=5.0, burst=6, queue=7),
            on_removed="paced-close",
        ),
    )
    assert snapshot.drain == spec.DrainSpec(close_code=4001, spread=0.0, hard_stop=3600.0)
    log = spec.AccessLogSpec(path=str(tmp_path / "access.log"), format="combined", sample=0.5)
    assert snapshot.access_log == log
    assert spec.decode(spec.encode(snapshot)) == snapshot


@pytest.mark.parametrize("kind", ["header", "ip"])
def test_the_other_sticky_kinds(kind: str, tmp_path: pathlib.Path) -> None:
    value = "true" if kind == "ip" else '"X"'
    compiled, state = build(VALID + f"sticky.{kind} = {value}\n", tmp_path)
    sticky = compiled.snapshot.pools[0].sticky
    assert sticky is not None
    assert (sticky.kind, sticky.name, sticky.key) == (kind, "" if kind == "ip" else "X", b"")
    assert not state.sticky_keys


# --- rows ------------------------------------------------------------------------------------------------


def pools(*names: str) -> str:
    servers = ", ".join(f'"{name}:1"' for name in names)
    return HEAD + f"[pool.app]\nservers = [{servers}]\n"


def rows(compiled: Compiled) -> dict[str, int]:
    return {server.name: server.slot for server in compiled.snapshot.pools[0].servers}


def test_a_server_keeps_its_row(tmp_path: pathlib.Path) -> None:
    first, state = build(pools("a", "b"), tmp_path)
    second, state = build(pools("b", "c"), tmp_path, state)
    third, state = build(pools("a", "b", "d"), tmp_path, state)
    assert rows(first) == {"a:1": 0, "b:1": 1}
    assert rows(second) == {"b:1": 1, "c:1": 2}
    # "a" comes back to its own row; "d" gets one that nobody had.
    assert rows(third) == {"a:1": 0, "b:1": 1, "d:1": 3}


def test_an_owner_is_who_got_the_row_first(tmp_path: pathlib.Path) -> None:
    def owners(compiled: Compiled) -> dict[str, int]:
        return {server.name: server.owner for server in compiled.snapshot.pools[0].servers}

    _, state = build(pools("a", "b"), tmp_path, generation=1)
    second, state = build(pools("b", "c"), tmp_path, state, generation=2)
    third, state = build(pools("a", "b"), tmp_path, state, generation=3)
    assert owners(second) == {"b:1": 1, "c:1": 2}
    # Its figures are its own again: nobody else had its row.
    assert owners(third) == {"a:1": 1, "b:1": 1}
    assert [part[0].owner for part in (third.snapshot.listeners, third.snapshot.routes)] == [1, 1]
    assert third.snapshot.pools[0].owner == 1


def test_a_row_that_is_given_away_has_a_new_owner(tmp_path: pathlib.Path) -> None:
    state = State(capacity=Capacity(servers=1))
    _, state = build(pools("a"), tmp_path, state, generation=1)
    with_none = HEAD + '[pool.app]\nservers = ["srv://a"]\n'
    _, state = build(with_none, tmp_path, state, generation=2)
    compiled, state = build(pools("b"), tmp_path, state, generation=3)
    (server,) = compiled.snapshot.pools[0].servers
    assert (server.slot, server.owner) == (0, 3)
    assert compiled.snapshot.retired_servers == ()
    assert not state.servers.left


def test_pools_have_rows(tmp_path: pathlib.Path) -> None:
    _, state = build(VALID, tmp_path)
    compiled, state = build(
        HEAD + '[pool.more]\nservers = ["b:1"]\n[pool.app]\nservers = ["a:1"]\n', tmp_path, state, 2
    )
    assert [(pool.name, pool.slot, pool.owner) for pool in compiled.snapshot.pools] == [
        ("more", 1, 2),
        ("app", 0, 1),
    ]


def test_what_is_gone_and_still_alive_is_retired(tmp_path: pathlib.Path) -> None:
    alive = {("server", 0), ("route", 1)}

    def make(text: str, state: State, generation: int) -> tuple[Compiled, State]:
        config = parse(text, tmp_path / "lb.toml")
        return compile(config, state, generation, lambda kind, row: (kind, row) in alive)

    more = pools("a", "b", "c") + '[[route]]\nname = "x"\npool = "app"\npath = "/x"\n'
    alive, before = set(), alive
    first, state = make(more, State(), 1)
    alive = before
    assert first.snapshot.retired_servers == first.snapshot.retired_routes == ()
    # What is freed now can get a tunnel until the commit, so it counts whether it is in use or not.
    second, state = make(pools("c"), state, 2)
    assert second.snapshot.retired_servers == (
        spec.RetiredRow(slot=0, owner=1, name="a:1", pool="app"),
        spec.RetiredRow(slot=1, owner=1, name="b:1", pool="app"),
    )
    assert second.snapshot.retired_routes == (spec.RetiredRow(slot=1, owner=1, name="x"),)
    third, state = make(pools("c"), state, 3)
    assert [row.name for row in third.snapshot.retired_servers] == ["a:1"]
    assert [row.name for row in third.snapshot.retired_routes] == ["x"]
    alive.clear()
    fourth, state = make(pools("c"), state, 4)
    assert fourth.snapshot.retired_servers == fourth.snapshot.retired_routes == ()


def test_routes_and_listeners_keep_their_rows(tmp_path: pathlib.Path) -> None:
    _, state = build(VALID, tmp_path)
    more = '[listen.first]\nbind = [":1"]\n[[route]]\nname = "x"\npath = "/x"\npool = "app"\n' + VALID
    compiled, _ = build(more, tmp_path, state)
    assert [(listener.name, listener.slot) for listener in compiled.snapshot.listeners] == [
        ("first", 1),
        ("main", 0),
    ]
    assert [(route.name, route.slot) for route in compiled.snapshot.routes] == [("x", 1), ("app", 0)]


def test_servers_of_different_pools_are_different(tmp_path: pathlib.Path) -> None:
    compiled, _ = build(pools("a") + '[pool.two]\nservers = ["a:1"]\n', tmp_path)
    assert [pool.servers[0].slot for pool in compiled.snapshot.pools] == [0, 1]


def test_rows_are_given_away_when_their_cells_are_zero(tmp_path: pathlib.Path) -> None:
    state = State(capacity=Capacity(servers=2))
    busy = False

    def in_use(kind: str, row: int) -> bool:
        return kind == "server" and row == 0 and busy

    config = [parse(pools(*names), tmp_path / "lb.toml") for names in (("a", "b"), ("b",), ("b", "c"))]
    _, state = compile(config[0], state, 1, in_use)
    busy = True
    # Freed and given away in one step: the old configuration still counts in it.
    with pytest.raises(ConfigErrors, match="beyond the capacity of 2 servers"):
        compile(config[2], state, 2, in_use)
    _, state = compile(config[1], state, 2, in_use)
    with pytest.raises(ConfigErrors, match=r'servers = "c:1": is beyond'):
        compile(config[2], state, 3, in_use)
    busy = False
    compiled, _ = compile(config[2], state, 3, in_use)
    assert rows(compiled) == {"b:1": 1, "c:1": 0}


def test_what_is_beyond_the_capacity_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    state = State(capacity=Capacity(listeners=1, routes=1, pools=1, servers=1))
    text = (
        pools("a", "b") + '[[route]]\nname = "x"\npool = "app"\npath = "/x"\n[listen.two]\nbind = [":81"]\n'
    ) + '[pool.two]\nservers = ["srv://a"]\n'
    report = refusal(text, tmp_path, state)
    assert report.replace(" (those just removed still count)", "").splitlines() == [
        'DIR/lb.toml:6: pool.app.servers = "b:1": is beyond the capacity of 1 servers',
        "DIR/lb.toml:7: route[1]: is beyond the capacity of 1 routes",
        "DIR/lb.toml:11: listen.two: is beyond the capacity of 1 listeners",
        "DIR/lb.toml:13: pool.two: is beyond the capacity of 1 pools",
    ]


@given(st.lists(st.sets(st.integers(0, 12), max_size=6), max_size=12), st.sets(st.integers(0, 7)))
def test_rows_are_never_shared(steps: list[set[int]], busy: set[int]) -> None:
    state = Rows()
    owners: dict[tuple[int, int], int] = {}
    for generation, names in enumerate(steps):
        before = dict(state.taken)
        assigned, following, without = assign(state, sorted(names), 8, busy.__contains__, generation)
        assert len({row.slot for row in assigned.values()}) == len(assigned)
        assert set(assigned) | set(without) == names
        for name, row in assigned.items():
            assert 0 <= row.slot < 8
            assert before.get(name, row) == row
            # A row of the configuration before is never handed to another name.
            taken = {one.slot for one in before.values()}
            assert row.slot not in taken or before.get(name) == row
            # No two names ever have the same slot and owner.
            assert owners.setdefault((row.slot, row.owner), name) == name
        left = {row.slot for row in following.left.values()}
        assert not left & {row.slot for row in following.taken.values()}
        state = following


# --- keys of sticky cookies ------------------------------------------------------------------------------

STICKY = VALID + 'sticky = { cookie = "lb" }\n'
STICKY_FILE = VALID + 'sticky = { cookie = "lb", key_file = "sticky.key" }\n'


def sticky_key(compiled: Compiled) -> bytes:
    sticky = compiled.snapshot.pools[0].sticky
    assert sticky is not None
    return sticky.key


def test_a_key_without_file_is_kept_across_reloads(tmp_path: pathlib.Path) -> None:
    first, state = build(STICKY, tmp_path)
    second, _ = build(STICKY, tmp_path, state)
    other, _ = build(STICKY, tmp_path)
    assert len(sticky_key(first)) == 32
    assert sticky_key(first) == sticky_key(second) != sticky_key(other)


def test_a_key_file_is_made_once(tmp_path: pathlib.Path) -> None:
    first, _ = build(STICKY_FILE, tmp_path)
    file = tmp_path / "sticky.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_size == 32
    second, _ = build(STICKY_FILE, tmp_path)
    assert sticky_key(first) == sticky_key(second)
    assert [entry.name for entry in tmp_path.iterdir()] == ["sticky.key"]


def test_verify_makes_nothing(tmp_path: pathlib.Path) -> None:
    verify(parse(STICKY_FILE, tmp_path / "lb.toml"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 4097])
def test_a_key_file_of_the_wrong_size(content: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "sticky.key").write_bytes(content)
    assert refusal(STICKY_FILE, tmp_path) == (
        "DIR/lb.toml:7: pool.app.sticky.key_file: DIR/sticky.key: "
        "a key file has 32 to 4096 bytes: remove it, and one is made"
    )


def test_key_files_that_cannot_be_read_or_made(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sticky.key").mkdir()
    assert "DIR/sticky.key: can't be read: Is a directory" in refusal(STICKY_FILE, tmp_path)
    text = STICKY_FILE.replace("sticky.key", "absent/sticky.key")
    assert "DIR/absent/sticky.key: can't be made: No such file or directory" in refusal(text, tmp_path)


def test_any_text_of_32_bytes_is_a_key(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "key"
    file.write_text("a" * 64 + "\n")
    one = read_key(file)
    file.write_text("a" * 63 + "b\n")
    assert one is not None
    assert len(one) == 32
    assert one != read_key(file)
    assert read_key(tmp_path / "absent") is None
    assert len(random_key()) == 32


def test_keys_made_at_the_same_time_are_one(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "key"
    barrier = threading.Barrier(8)
    keys: list[bytes] = []

    def make() -> None:
        barrier.wait(10)
        keys.append(create_key(file))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_dangling_link_is_no_key_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "key"
    file.symlink_to(tmp_path / "absent")
    with pytest.raises(KeyFileError, match="removed while it was made"):
        create_key(file)


# --- certificates and authorities ------------------------------------------------------------------------


def test_certificates_travel_beside_the_snapshot(tmp_path: pathlib.Path) -> None:
    pem = write_certificate(tmp_path, "www.example.com").read_bytes()
    text = VALID.replace('[":8080"]', '[":8443"]\ntls.certs = ["*.pem"]')
    text += '[listen.plain]\nbind = [":80"]\nredirect_https = true\n'
    compiled, _ = build(text, tmp_path)
    tls = compiled.snapshot.listeners[0].tls
    assert tls is not None
    (certificate,) = tls.certificates
    assert certificate.hosts == ("www.example.com",)
    assert certificate.not_after > 0
    assert list(compiled.certificates) == [("main", certificate.name)]
    assert b"PRIVATE KEY" in compiled.certificates["main", certificate.name]
    assert pem[:100] in compiled.certificates["main", certificate.name]
    assert b"PRIVATE KEY" not in spec.encode(compiled.snapshot)
    assert compiled.snapshot.listeners[1].redirect_port == 8443


def test_a_certificate_that_is_not_there(tmp_path: pathlib.Path) -> None:
    text = VALID.replace('[":8080"]', '[":8443"]\ntls.certs = ["absent.pem"]')
    report = refusal(text, tmp_path)
    assert report.startswith("DIR/lb.toml:3: listen.main.tls.certs: ")
    assert "absent.pem" in report


def test_authorities(tmp_path: pathlib.Path) -> None:
    text = VALID + 'tls = { ca = "ca.pem" }\n'
    file = tmp_path / "ca.pem"
    place = "DIR/lb.toml:7: pool.app.tls.ca: DIR/ca.pem: "
    assert refusal(text, tmp_path) == place + "can't be read: No such file or directory"
    file.write_text("nothing")
    assert refusal(text, tmp_path).startswith(place + "holds no PEM certificates")
    file.write_bytes(b"\x30\x82\xff")
    assert refusal(text, tmp_path).startswith(place + "is not PEM (convert DER")
    file.write_bytes(b" " * (1024 * 1024 + 1))
    assert refusal(text, tmp_path) == place + "is larger than 1MiB"
    pem = write_certificate(tmp_path, "ca.example.com").read_text()
    file.write_text(pem[: pem.index("-----BEGIN PRIVATE")])
    compiled, _ = build(text, tmp_path)
    tls = compiled.snapshot.pools[0].tls
    assert tls is not None
    assert tls.ca == file.read_text()


def test_every_missing_file_is_reported_at_once(tmp_path: pathlib.Path) -> None:
    text = VALID.replace('[":8080"]', '[":8443"]\ntls.certs = ["absent.pem"]')
    text += 'tls = { ca = "ca.pem" }\nsticky = { cookie = "lb", key_file = "no/key" }\n'
    assert len(refusal(text, tmp_path).splitlines()) == 3
    with pytest.raises(ConfigErrors) as caught:
        verify(parse(text, tmp_path / "lb.toml"))
    assert len(caught.value.problems) == 2  # verify makes no key file


def test_a_check_finds_errors_in_the_file_and_in_those_that_it_names(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "lb.toml"
    text = VALID.replace('[":8080"]', '[":8443"]\ntls.certs = ["absent.pem"]')
    file.write_text(
        text + 'balanse = "p2c"\ntls = { ca = "ca.pem", sni = "" }\nsticky = { cookie = 1, key_file = "k" }\n'
    )
    (tmp_path / "k").write_text("short")
    with pytest.raises(ConfigErrors) as caught:
        check(file)
    assert [problem.path for problem in caught.value.problems] == [
        "listen.main.tls.certs",
        "pool.app.balanse",
        "pool.app.tls.sni",
        "pool.app.tls.ca",
        "pool.app.sticky.cookie",
    ]
    file.write_text(text)
    with pytest.raises(ConfigErrors, match=r"absent\.pem"):
        check(file)
    file.write_text(STICKY_FILE)
    (tmp_path / "k").unlink()
    assert check(file).warnings == ()
    assert list(tmp_path.iterdir()) == [file]


def test_a_check_bears_whatever_is_missing(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "lb.toml"
    file.write_text("[listen.main]\ntls = {}\n[[route]]\n[pool.app]\nserver = [{}]\nsticky = {}\ntls = {}\n")
    with pytest.raises(ConfigErrors) as caught:
        check(file)
    assert len(caught.value.problems) == 5


def test_the_results_are_immutable(tmp_path: pathlib.Path) -> None:
    compiled, state = build(STICKY, tmp_path)
    with pytest.raises(AttributeError):
        state.listeners = Rows()  # type: ignore[misc]
    with pytest.raises(TypeError):
        state.sticky_keys["app"] = b""  # type: ignore[index]
    assert isinstance(compiled, msgspec.Struct)
    assert os.listdir(tmp_path) == []


# --- files that would be waited for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "text"),
    [
        ("admin.token_file", VALID + '[admin]\nlisten = "127.0.0.1:9"\ntoken_file = "pipe"\n'),
        ("pool.app.sticky.key_file", VALID + 'sticky = { cookie = "c", key_file = "pipe" }\n'),
        ("pool.app.tls.ca", VALID + 'tls.ca = "pipe"\n'),
        ("listen.main.tls.certs", VALID.replace("[[", '[listen.main.tls]\ncerts = ["pipe"]\n[[')),
    ],
)
def test_a_named_pipe_is_refused(at: str, text: str, tmp_path: pathlib.Path) -> None:
    """The master reads these files, and must not wait for whoever has the other end."""
    os.mkfifo(tmp_path / "pipe")
    assert f"{at}: DIR/pipe: can't be read: it is no regular file" in refusal(text, tmp_path)


# --- other servers for the same configuration ------------------------------------------------------------


def test_other_servers_take_no_file_along(tmp_path: pathlib.Path) -> None:
    """A DNS answer deploys no certificate that waits for a reload, and does not fail because of one."""
    pem = write_certificate(tmp_path, "www.example.com")
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "servers.json").write_text('[{"targets": ["a.internal:1"]}]')
    text = VALID.replace("[[", f'[listen.main.tls]\ncerts = ["{pem.name}"]\n[[')
    text += f'sticky = {{ cookie = "c", key_file = "key" }}\ntls.ca = "{pem.name}"\n'
    text += 'discover.file = "servers.json"\n[pool.spare]\nservers = ["b.internal:2"]\nsticky.cookie = "d"\n'
    text += '[admin]\nlisten = "127.0.0.1:9"\ntoken_file = "token"\n'
    before, state = build(text, tmp_path)
    names = [server.name for server in before.snapshot.pools[0].servers]
    assert names == ["127.0.0.1:9000", "a.internal:1"]
    for file in (pem, tmp_path / "token", tmp_path / "servers.json", tmp_path / "key"):
        file.write_text("half wr")
    discovery = Discovery(servers=before.discovery.servers, addresses={"a.internal": ("10.0.0.7",)})
    after, following = recompile(before, state, 2, free, discovery)
    assert after.snapshot.pools[0].servers[1].addresses == ("10.0.0.7",)
    assert (after.certificates, after.control.admin_token) == (before.certificates, "0123456789abcdef")
    same = [
        msgspec.structs.replace(pool, servers=(), checks=())
        for compiled in (before, after)
        for pool in compiled.snapshot.pools
    ]
    assert same[:2] == same[2:]
    assert (following.sticky_keys, following.servers_files) == (state.sticky_keys, state.servers_files)
    # And one that comes has a row of its own, one that goes leaves its row.
    discovery = Discovery(servers={"app": (FoundServer(name="n", address="n.internal:3"),)})
    third, _ = recompile(after, following, 3, free, discovery)
    assert [server.name for server in third.snapshot.pools[0].servers] == ["127.0.0.1:9000", "n"]
    assert third.snapshot.pools[0].servers[1].owner == 3
    assert [row.name for row in third.snapshot.retired_servers] == ["a.internal:1"]
    assert third.control.names == ("b.internal", "n.internal")
    assert (third.control.generation, third.snapshot.generation) == (3, 3)


def test_a_pool_has_its_row_as_long_as_its_servers_are_in_use(tmp_path: pathlib.Path) -> None:
    """What goes on at a server of a pool that was removed is counted for the pool, too."""
    capacity = Capacity(pools=3)
    busy: set[tuple[str, int]] = set()

    def in_use(kind: str, row: int) -> bool:
        return (kind, row) in busy

    def step(pools: str, state: State, generation: int) -> tuple[Compiled, State]:
        text = VALID + "".join(f'[pool.{name}]\nservers = ["b:1"]\n' for name in pools)
        return compile(parse(text, tmp_path / "lb.toml"), state, generation, in_use)

    _, state = step("x", State(capacity=capacity), 1)
    _, state = step("", state, 2)
    busy.add(("server", 1))
    compiled, state = step("y", state, 3)
    assert [pool.slot for pool in compiled.snapshot.pools] == [0, 2]
    with pytest.raises(ConfigErrors, match="beyond the capacity of 3 pools"):
        step("yz", state, 4)
    busy.clear()
    compiled, _ = step("yz", state, 5)
    assert [pool.slot for pool in compiled.snapshot.pools] == [0, 2, 1]


def test_what_is_beyond_the_capacity_is_named_up_to_a_point(tmp_path: pathlib.Path) -> None:
    state = State(capacity=Capacity(servers=10))
    found = tuple(FoundServer(name=f"s{i}", address=f"s{i}:1") for i in range(1000))
    text = HEAD + '[pool.app]\nservers = ["srv://_app._tcp.internal"]\n'
    with pytest.raises(ConfigErrors) as caught:
        config = parse(text, tmp_path / "lb.toml")
        compile(config, state, 1, free, Discovery(servers={"app": found}))
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert "970 more servers are beyond the capacity of 10" in str(caught.value)
