"""Where the command socket is looked for."""

from __future__ import annotations

import os
import pathlib

import pytest

from lb.cli.client import Unreachable, command_socket
from lb.master import places
from lb.master.failures import StartError


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """A user that is not root, whose folders are under the path returned."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    return tmp_path


def test_root_has_the_system_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert places.default() == pathlib.Path("/run/lb/command.sock")


def test_others_have_a_folder_of_their_own(somebody: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.default() == somebody / "lb-1234" / "command.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert places.default() == pathlib.Path("/run/user/1234/lb/command.sock")


def test_the_private_folder_is_private(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lb-1"
    if os.geteuid() != 0:
        places.make_folder(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
    # Made by somebody else before us, in a temporary folder that anybody writes to.
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    with pytest.raises(StartError, match="only its owner"):
        places.make_folder(folder)


def test_a_link_is_no_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StartError, match="must be a folder"):
        places.make_folder(tmp_path / "link")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('[process]\npid_file = "run/a.pid"\n', "run/a.command.sock"),
        ('process.pid_file = "a.pid"\n', "a.command.sock"),
        ('[process]\npid_file = "a.pid"\nworkers = [\n', "a.command.sock"),
        ("[process]\npid_file = 'a'\nworkers = [\n", "a.command.sock"),
    ],
)
def test_the_pid_file_says_where_even_in_a_broken_file(text: str, name: str, tmp_path: pathlib.Path) -> None:
    config = tmp_path / "lb.toml"
    config.write_text(text)
    assert command_socket(config, None) == tmp_path / name


def test_without_a_pid_file_it_is_the_default(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "folder", lambda: tmp_path)
    config = tmp_path / "lb.toml"
    config.write_text("process = 3\n")
    assert command_socket(config, None) == tmp_path / "command.sock"


def test_an_unreadable_file_is_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Unreachable, match="can't be read"):
        command_socket(tmp_path, None)


def test_one_file_has_many_names(tmp_path: pathlib.Path) -> None:
    (tmp_path / "link.toml").symlink_to(tmp_path / "lb.toml")
    dotted = tmp_path / "x" / ".." / "lb.toml"
    assert places.same_file(tmp_path / "lb.toml", dotted)
    assert places.second(tmp_path / "lb.toml") == places.second(dotted)
    assert not places.same_file(tmp_path / "lb.toml", tmp_path / "link.toml")  # leads nowhere
    (tmp_path / "lb.toml").touch()
    assert places.same_file(tmp_path / "lb.toml", tmp_path / "link.toml")
