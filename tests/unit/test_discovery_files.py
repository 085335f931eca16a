"""When a file is read again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lb.control.discovery import files
from lb.control.discovery.files import Look, look

TEXT = '[{"targets": ["10.0.0.%d:80"]}]'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "servers.json"
    path.write_text(TEXT % 1, encoding="utf-8")
    os.utime(path, (1_000_000, 1_000_000))
    return path


def names(found: Look) -> list[str]:
    return [server.name for server in found.servers]


def test_what_did_not_change_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = look(file, None)
    monkeypatch.setattr(files, "read_servers_file", None)
    assert look(file, first) is first


def test_an_equal_time_and_size_hide_no_change(file: Path) -> None:
    first = look(file, None)
    file.write_text(TEXT % 2, encoding="utf-8")
    os.utime(file, (1_000_000, 1_000_000))
    assert names(look(file, first)) == ["10.0.0.2:80"]


def test_a_file_in_its_place_is_read(file: Path) -> None:
    first = look(file, None)
    other = file.with_name("other.json")
    other.write_text(TEXT % 2, encoding="utf-8")
    os.utime(other, (1_000_000, 1_000_000))
    other.replace(file)
    assert names(look(file, first)) == ["10.0.0.2:80"]


def test_what_was_written_just_now_is_read_once_more(file: Path) -> None:
    file.touch()
    assert look(file, None).signature is None
