"""Starts that can't be: one clear line or more, an exit code, and nothing forked."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.balancer import ROOT
from tests.harness.ports import free_port
from tests.harness.settings import Tables, settings
from tests.harness.toml import dumps

pytestmark = pytest.mark.scenario


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """`lb run` on a configuration that can't be served."""
    file = folder / "lb.toml"
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "lb", "run", "-c", str(file)],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode not in (0, -9), done
    assert "Traceback" not in done.stderr
    assert "ready" not in done.stderr
    return done


def tables(folder: Path) -> Tables:
    """A good configuration."""
    return settings(["127.0.0.1:1"], process={"pid_file": str(folder / "lb.pid")})


def test_broken_toml(tmp_path: Path) -> None:
    done = run(tmp_path, dumps(tables(tmp_path)) + "\n[pool.main\n")
    assert "lb.toml" in done.stderr
    assert "line" in done.stderr or ":" in done.stderr


def test_every_wrong_key_and_value_at_once(tmp_path: Path) -> None:
    wrong = tables(tmp_path)
    wrong["pool"]["main"]["balence"] = "random"
    wrong["listen"]["public"]["bind"] = ["nonsense"]
    wrong["route"][0]["pool"] = "mian"
    done = run(tmp_path, dumps(wrong))
    for word in ("balence", "balance", "nonsense", "mian", "main"):
        assert word in done.stderr, word


def test_a_feature_that_is_not_built_yet(tmp_path: Path) -> None:
    planned = tables(tmp_path)
    planned["listen"]["public"]["proxy_protocol"] = True
    assert "proxy_protocol = true: is not supported yet" in run(tmp_path, dumps(planned)).stderr


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = tables(tmp_path)
        busy["listen"]["public"]["bind"] = [f"127.0.0.1:{port}"]
        assert f"127.0.0.1:{port}" in run(tmp_path, dumps(busy)).stderr


def test_certificates_that_are_missing_or_no_certificates(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate\n")
    (tmp_path / "folder.pem").mkdir()
    for file in ("absent.pem", "bad.pem", "folder.pem"):
        wrong = tables(tmp_path)
        wrong["listen"]["public"]["tls"] = {"certs": [str(tmp_path / file)]}
        assert file in run(tmp_path, dumps(wrong)).stderr


def test_an_unreadable_certificate(tmp_path: Path) -> None:
    """Root reads everything: the refusal needs another user."""
    if os.geteuid() == 0 and not _nobody_can_run(tmp_path):
        pytest.skip("the checkout can't be read by another user, and root may read every file")
    secret = tmp_path / "secret.pem"
    secret.write_text("secret")
    secret.chmod(0)
    file = tmp_path / "lb.toml"
    wrong = settings(["127.0.0.1:1"], port=free_port())
    wrong["listen"]["public"]["tls"] = {"certs": [str(secret)]}
    file.write_text(dumps(wrong))
    done = _as_nobody(["-m", "lb", "run", "-c", str(file)])
    assert done.returncode not in (0, -9)
    assert "secret.pem" in done.stderr
    assert "Traceback" not in done.stderr


def _as_nobody(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs Python as the user nobody, where we are root."""
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        user=user,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )


def _nobody_can_run(folder: Path) -> bool:
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o005:
            return False
    try:
        return _as_nobody(["-c", "import lb.cli, msgspec"]).returncode == 0
    except PermissionError:
        return False
