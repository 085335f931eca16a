"""How a process finds what it is to execute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lb.master.upgrade_launch import VARIABLE, Launch, LaunchError, Order, take_order

PYTHON = "#!/usr/bin/env python3\n"


def script(path: Path, text: str = PYTHON, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def launch(name: str, folder: Path, program: str = "/usr/bin/python3") -> Launch:
    """`name run`, started in `folder`."""
    return Launch((program, name, "run"), name, ("run",), str(folder))


def test_a_script_is_executed_itself(tmp_path: Path) -> None:
    """So that another interpreter in its first line counts."""
    path = str(script(tmp_path / "lb"))
    assert launch(path, Path("/")).command() == (path, [path, "run"])


def test_links_are_left_to_the_kernel(tmp_path: Path) -> None:
    for version in ("1", "2"):
        script(tmp_path / version / "lb")
    (tmp_path / "current").symlink_to("1")
    started = launch("current/lb", tmp_path)
    assert started.command()[0] == str(tmp_path / "current" / "lb")
    (tmp_path / "current").unlink()
    with pytest.raises(LaunchError, match=r"current/lb is not there any more"):
        started.command()
    (tmp_path / "current").symlink_to("2")
    assert started.command()[0] == str(tmp_path / "current" / "lb")


@pytest.mark.parametrize(("text", "mode"), [("import lb\n", 0o755), ("import lb\n", 0o644)])
def test_what_the_kernel_does_not_run_is_run_by_the_interpreter(tmp_path: Path, text: str, mode: int) -> None:
    path = str(script(tmp_path / "lb.py", text, mode))
    assert launch(path, tmp_path).command() == ("/usr/bin/python3", ["/usr/bin/python3", path, "run"])


def test_an_interpreter_without_a_path_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Launch(("python9", "-m", "lb", "run"), "", ("run",), "/")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"python9 is not in \$PATH any more"):
        started.command()
    path = str(script(tmp_path / "python9"))
    assert started.command() == (path, ["python9", "-m", "lb", "run"])


def test_the_folder_is_called_as_the_shell_does(tmp_path: Path) -> None:
    """A shell's `cd current` shall mean what `current` is then."""
    (tmp_path / "one").mkdir()
    (tmp_path / "current").symlink_to("one")
    code = (
        "import sys; sys.argv = ['/x/lb/__main__.py', 'run'];"
        "from lb.master.upgrade_launch import Launch; print(Launch.of_this_process().folder)"
    )
    for named, expected in ((tmp_path / "current", "current"), (tmp_path / "other", "one")):
        environment = {**os.environ, "PWD": str(named), "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path / "current",
            env=environment,
            capture_output=True,
            check=True,
            timeout=30,
        )
        assert done.stdout.decode().strip() == str(tmp_path / expected)


def test_only_what_is_named_is_inherited(tmp_path: Path) -> None:
    """In a child, since what is executed doesn't come back."""
    program = script(
        tmp_path / "lb",
        f"#!{sys.executable}\nimport os\n"
        "fds = sorted(map(int, os.listdir('/proc/self/fd')))[3:-1]\n"
        f"print(os.environ['{VARIABLE}'], fds, os.getcwd())\n",
    )
    code = (
        "import os; from lb.master.upgrade_launch import Launch, Order\n"
        "fds = [os.open('/dev/null', os.O_RDONLY) for _ in range(3)]\n"
        f"launch = Launch(('python',), {str(program)!r}, (), {str(tmp_path)!r})\n"
        "launch.execute(Order('resume', fds[0]), fds[:2])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == f"resume:3:-1 [3, 4] {tmp_path}"


def test_a_failure_leaves_everything_as_it_was(tmp_path: Path) -> None:
    program = script(tmp_path / "lb", "#!/nowhere/python\n")
    reading, writing = os.pipe()
    before = os.getcwd()
    try:
        with pytest.raises(
            LaunchError, match="lb can't be executed: the interpreter that its first line names"
        ):
            launch(str(program), tmp_path).execute(Order("resume", reading), [writing])
        assert not os.get_inheritable(writing)
        assert os.getcwd() == before
        assert VARIABLE not in os.environ
    finally:
        os.close(reading)
        os.close(writing)


def test_the_folder_it_was_started_in_may_be_gone(tmp_path: Path) -> None:
    """A deployment swaps the link and removes the release before."""
    for version in ("1", "2"):
        script(tmp_path / version / "lb", f"#!{sys.executable}\nimport os\nprint(os.getcwd())\n")
    (tmp_path / "current").symlink_to("1")
    folder = str(tmp_path / "current")
    code = (
        "import os, shutil; from lb.master.upgrade_launch import Launch, Order\n"
        f"os.chdir({folder!r})\n"
        f"os.unlink({folder!r}); os.symlink('2', {folder!r}); shutil.rmtree({str(tmp_path / '1')!r})\n"
        f"Launch(('python',), 'lb', (), {folder!r}).execute(Order('resume', 0), ())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == str(tmp_path / "2")


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    program = script(tmp_path / "lb", "#!/bin/true\n")
    with pytest.raises(LaunchError, match=f"{tmp_path}/gone, where lb was started: No such file"):
        launch(str(program), tmp_path / "gone").execute(Order("resume", 0), ())


@pytest.mark.parametrize("order", [Order("resume", 7), Order("trial", 3, 4)])
def test_an_order_is_taken_once(order: Order) -> None:
    environment = {VARIABLE: str(order), "HOME": "/"}
    assert take_order(environment) == order
    assert environment == {"HOME": "/"}
    assert take_order(environment) is None


@pytest.mark.parametrize("text", ["", "1", "resume", "resume:x", "trial:3", "trial:3:", "other:1:2"])
def test_what_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(LaunchError, match="unset it"):
        take_order({VARIABLE: text})
