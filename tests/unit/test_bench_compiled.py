"""The bench's load generator and server as machine code."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import compiled, wire
from tests.bench.engine import Options
from tests.bench.generators import Load, LoadError, server
from tests.harness.upstream import Connection, Upstream, reply

CORES = os.sched_getaffinity(0)
needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or importlib.util.find_spec("mypyc") is None, reason="no C compiler or mypyc"
)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What is there is looked for anew by each test, and after them."""
    compiled.folder.cache_clear()
    yield
    compiled.folder.cache_clear()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled form, not optimised, which takes seconds less."""
    made = tmp_path_factory.mktemp("compiled") / "bench"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPYC_OPT_LEVEL", "0")
        compiled.build(made)
    return made


def test_without_a_build_they_are_interpreted(tmp_path: Path) -> None:
    assert compiled.folder(tmp_path / "none") is None


def test_a_build_of_other_sources_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "stamp").write_bytes(b"of something else")
    assert compiled.folder(tmp_path) is None


@needs_compiler
def test_every_load_is_driven_by_what_was_built(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.folder(built) == built
    monkeypatch.setattr(compiled, "folder", lambda: built)
    program = "import tests.bench.engine as e, tests.bench.server as s; print(e.__file__, s.__file__)"
    files = subprocess.check_output([sys.executable, "-c", program], cwd=built, text=True).split()
    assert all(file.startswith(str(built)) and file.endswith(".so") for file in files), files
    loads: dict[str, dict[str, Any]] = {
        "closed": {},
        "echo": {"size": 65_536},
        "rate": {"rate": 500.0},
        "handshake": {},
        "fan": {},
    }
    with server(CORES) as (port,):
        for mode, more in loads.items():
            with Load(Options(mode, port, 4, 0.05, server_port=port, **more), CORES) as load:
                load.begin()
                found = load.result()
            assert found["operations"] > 4 and not found["failed"], (mode, found)


def _answer_and_close(connection: Connection) -> None:
    request = connection.read_request()
    assert request is not None
    connection.send(reply(request.target[: wire.PATH].encode() + b" ok\n"))


@needs_compiler
def test_a_connection_for_each_request_by_what_was_built(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "folder", lambda: built)
    with (
        Upstream(_answer_and_close) as upstream,
        Load(Options("connect", upstream.port, 4, 0.05), CORES) as load,
    ):
        load.begin()
        found = load.result()
    assert found["operations"] > 4 and not found["failed"], found


@needs_compiler
def test_what_is_wrong_is_noticed_by_it(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "folder", lambda: built)

    def wrong(connection: Connection) -> None:
        connection.read_request()
        connection.send(reply(b"x" * 60))

    with (
        Upstream(wrong) as upstream,
        pytest.raises(LoadError, match="not to this request"),
        Load(Options("closed", upstream.port, 1, 0.05), CORES) as load,
    ):
        load.begin()
        load.result()


def test_what_the_compiler_says_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "_MODULES", ("tests/bench/missing.py",))
    with pytest.raises(subprocess.CalledProcessError) as failed:
        compiled.build(tmp_path / "bench")
    assert "missing.py" in failed.value.stdout
    assert compiled.folder(tmp_path / "bench") is None
