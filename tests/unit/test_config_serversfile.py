"""Files with servers: what is read, and what is refused."""

from __future__ import annotations

import json
import os
import pathlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lb.config.serversfile import MAX_BYTES, ServersFileError, parse_servers, read_servers_file
from lb.control.spec import FoundServer

GROUPS = [
    {"targets": ["10.0.0.1:9000", "App.internal:9000"], "labels": {"weight": "2", "zone": "a"}},
    {"targets": ["[FD00::1]:9000"], "labels": {"name": "blue", "backup": "true"}},
    {"targets": []},
]
SERVERS = (
    FoundServer(name="10.0.0.1:9000", address="10.0.0.1:9000", weight=2),
    FoundServer(name="app.internal:9000", address="app.internal:9000", weight=2),
    FoundServer(name="blue", address="[fd00::1]:9000", backup=True),
)
YAML = """\
# written by hand
- targets:
    - 10.0.0.1:9000
    - App.internal:9000
  labels:
    weight: 2
    zone: a
- targets: ["[FD00::1]:9000"]
  labels: {name: blue, backup: true}
- targets: []
  labels:
"""


def test_json(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "servers.JSON"
    file.write_text(json.dumps(GROUPS), encoding="utf-8-sig")
    assert read_servers_file(file) == SERVERS


@pytest.mark.parametrize("name", ["servers.yaml", "servers.yml"])
def test_yaml(name: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / name
    file.write_text(YAML)
    assert read_servers_file(file) == SERVERS
    file.write_text("[]")
    assert read_servers_file(file) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no valid JSON: Expecting value"),
        (b"[", "is no valid JSON"),
        (b"\xff", "is not UTF-8"),
        (b"[" * 100_000, "is nested too deep"),
        (b"null", "holds no list"),
        (b"{}", 'holds no list: expected [{"targets": ["10.0.0.1:9000"]}]'),
        (b"[1]", '[0]: expected an object with a list "targets"'),
        (b'[{"target": []}]', '[0]: expected an object with a list "targets"'),
        (b'[{"targets": [], "label": {}}]', '[0]: unknown key "label"'),
        (b'[{"targets": [], "labels": 1}]', '[0]: "labels" is no object'),
        (b'[{"targets": []}, {"targets": [9000]}]', '[1]: a target is a string such as "10.0.0.1:9000"'),
        (b'[{"targets": ["10.0.0.1"]}]', "target '10.0.0.1': the port is missing (write \"10.0.0.1:8080\")"),
        (b'[{"targets": ["http://a:1"]}]', "target 'http://a:1': an address has no scheme"),
        (b'[{"targets": ["unix:/a"]}]', "a Unix socket stands in the configuration itself"),
        (b'[{"targets": ["a:1", "A:1"]}]', "two servers are called a:1"),
        (b'[{"targets": ["a:1", "b:1"], "labels": {"name": "x"}}]', '"name" is for a single target'),
        (b'[{"targets": ["a:1"], "labels": {"name": "x y"}}]', "a server's name has 1 to 255 visible ASCII"),
        (b'[{"targets": ["a:1"], "labels": {"weight": "0"}}]', "\"weight\" is '0': expected a number from 1"),
        (b'[{"targets": ["a:1"], "labels": {"weight": 1.5}}]', '"weight" is 1.5: expected a number'),
        (b'[{"targets": ["a:1"], "labels": {"weight": "9999"}}]', "expected a number from 1 to 1000"),
        (b'[{"targets": ["a:1"], "labels": {"backup": "yes"}}]', '"backup" is \'yes\': expected "true" or'),
    ],
)
def test_what_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ServersFileError) as caught:
        parse_servers(content, as_json=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no list"),
        (b"- targets: [a:1\n", "is no valid YAML: while parsing"),
        (b"- targets: a:1\n", 'a list "targets"'),
        (b"- targets: [{a: 1}]\n", "a target is a string"),
        (b"- {[]: 1}\n", "is no valid YAML"),
        (b"!!python/object/apply:os.system [echo]\n", "[0]: expected an object"),
        (b"- targets: [!!bool x]\n", "target 'x': the port is missing"),
        (b"[" * 50_000, "is nested too deep"),
        (b"- " * 50_000 + b"a", "is nested too deep"),
        (b"- a\n" * 600_000, "has too many parts"),
    ],
)
def test_what_is_refused_of_yaml(content: bytes, message: str) -> None:
    with pytest.raises(ServersFileError) as caught:
        parse_servers(content, as_json=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_do_not_multiply() -> None:
    """A few lines of YAML can stand for more than any memory holds."""
    lists = ["    x0: &a0 [a, a, a, a, a, a, a, a, a, a]"]
    lists += [f"    x{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    content = "\n".join(["- labels:", *lists, "    weight: *a11", "  targets: [a:1]"])
    with pytest.raises(ServersFileError, match=r"has an alias, \*a0: write out what it stands for"):
        parse_servers(content.encode(), as_json=False)


@pytest.mark.parametrize("label", ["name", "weight", "backup"])
def test_labels_are_text(label: str) -> None:
    """Also where turning it into text would take long."""
    for value, shown in (([1], "a list"), ({"a": 1}, "an object"), (None, "None")):
        if label == "name" and value is None:
            continue
        content = json.dumps([{"targets": ["a:1"], "labels": {label: value}}]).encode()
        with pytest.raises(ServersFileError) as caught:
            parse_servers(content, as_json=True)
        assert f'the label "{label}" is {shown}: expected a text' in str(caught.value)


@pytest.mark.parametrize(
    "group",
    [
        {"targets": [], "K" * 100_000: 1},
        {"targets": ["a" * 100_000]},
        {"targets": ["a:1"], "labels": {"weight": "9" * 100_000}},
        {"targets": ["a:1"], "labels": {"name": "n" * 100_000}},
        {"targets": [["a" * 100_000]]},
    ],
)
def test_messages_are_short_whatever_the_file_holds(group: object) -> None:
    for content, as_json in ((json.dumps([group]), True), (yaml.dump([group]), False)):
        with pytest.raises(ServersFileError) as caught:
            parse_servers(content.encode(), as_json=as_json)
        assert len(str(caught.value)) < 500


def test_a_named_pipe_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    """Opening one waits until somebody writes to it, and so would the master."""
    os.mkfifo(tmp_path / "servers.json")
    with pytest.raises(ServersFileError, match="can't be read: it is no regular file"):
        read_servers_file(tmp_path / "servers.json")


def test_what_is_too_large(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "servers.json"
    file.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(ServersFileError, match="is larger than 4 MiB"):
        read_servers_file(file)
    targets = [f"10.0.{number >> 8}.{number & 255}:80" for number in range(4097)]
    parse_servers(json.dumps([{"targets": targets[:4096]}]).encode(), as_json=True)
    with pytest.raises(ServersFileError, match="has more than 4096 servers"):
        parse_servers(json.dumps([{"targets": targets}]).encode(), as_json=True)


def test_what_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ServersFileError, match=r"there is no such file: write \[\] into it"):
        read_servers_file(tmp_path / "absent.json")
    with pytest.raises(ServersFileError, match="can't be read: Is a directory"):
        read_servers_file(tmp_path)


@given(content=st.binary(max_size=60) | st.text('[]{}:,-&*!"# \ntargets', max_size=60).map(str.encode))
@pytest.mark.parametrize("as_json", [True, False])
def test_whatever_it_holds(as_json: bool, content: bytes) -> None:
    try:
        servers = parse_servers(content, as_json=as_json)
    except ServersFileError as error:
        assert str(error)
    else:
        assert all(server.address for server in servers)
