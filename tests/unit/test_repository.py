"""What the repository as a whole promises: its documents are there, and true where that can be checked."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
    "Makefile",
    ".ci/run",
    "docs/quickstart.md",
    "docs/operations.md",
    "docs/principles.md",
    "docs/threat-model.md",
    "docs/dependencies.md",
    "docs/reference.md",
)
BINARY = {".png", ".ico", ".woff2", ".gz"}


def tracked() -> list[Path]:
    """The files of the repository; of its tree, where it is no checkout."""
    if (ROOT / ".git").exists():
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        names = [name for name in done.stdout.decode().split("\0") if name]
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    skipped = {".venv", "node_modules", "build", "__pycache__", ".git"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.parts)]


TEXTS = {path: path.read_bytes() for path in tracked() if path.suffix not in BINARY}


def project() -> dict[str, object]:
    value = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("name", DOCUMENTS)
def test_it_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 200


def test_the_licence_is_the_whole_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert project()["license"] == {"file": "LICENSE"}


def test_the_change_log_begins_with_the_version_of_the_package() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert project()["version"] in headings[:2]


def test_no_file_names_a_place_on_one_machine() -> None:
    # In pieces, so that this file is clean too.
    places = [b"/" + name + b"/" for name in (b"work", b"root")] + [b"/opt/" + b"wheels"]
    found = [
        f"{path.relative_to(ROOT)}: {place.decode()}"
        for path, data in TEXTS.items()
        for place in places
        if place in data
    ]
    assert not found


def test_texts_are_utf8_with_unix_line_ends() -> None:
    for path, data in TEXTS.items():
        if "corpus" in path.parts:  # raw requests are what they are
            continue
        data.decode()
        assert b"\r" not in data, path
        assert not data or data.endswith(b"\n"), f"{path} has no line feed at its end"


@pytest.mark.parametrize(
    "path", [path for path in TEXTS if path.suffix == ".md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXTS[path].decode()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def test_the_readme_names_targets_and_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", readme, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert {"run", "test"} <= set(re.findall(r"^make (\w+)", readme, re.MULTILINE))
    # Imported here, so that the rest of this file says its piece even where the command is broken.
    from lb.cli.main import COMMANDS

    named = set(re.findall(r"\blb ([a-z]+)(?: |`|$)", "\n".join(re.findall(r"`(lb [^`]+)`", readme))))
    assert named <= set(COMMANDS)


def test_the_readme_configuration_is_valid(tmp_path: Path) -> None:
    from lb.config import load

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        path = tmp_path / "lb.toml"
        path.write_text(block)
        load(path)


def test_packages_only_re_export() -> None:
    for path in TEXTS:
        if path.name != "__init__.py" or path.is_relative_to(ROOT / "tests"):
            continue
        for node in ast.parse(TEXTS[path]).body:
            plain = isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr)
            assert plain, f"{path.relative_to(ROOT)}:{node.lineno} does more than re-export"
