"""Releases of this program side by side, as a package manager or a deployment leaves them: a folder each, and
a symbolic link to the one that is current."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.harness.balancer import ROOT

_SCRIPT = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from lb.cli import main
sys.exit(main())
"""


class Releases:
    """Copies of the working tree below `folder`. `script` is what is started: it leads through the link."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current = folder / "current"
        self.script = str(self._current / "bin" / "lb")

    def install(self, version: str) -> Path:
        """Makes the release `version` and makes it current. Returns its folder."""
        release = self._folder / version
        for package in ("lb", "workers"):
            # With what is compiled already: the modules have the same times.
            shutil.copytree(ROOT / package, release / package)
        information = release / f"shardlb-{version}.dist-info"
        information.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: shardlb\nVersion: {version}\n"
        (information / "METADATA").write_text(metadata, encoding="utf-8")
        script = release / "bin" / "lb"
        script.parent.mkdir()
        script.write_text(_SCRIPT, encoding="utf-8")
        script.chmod(0o755)
        self.switch(version)
        return release

    def switch(self, version: str) -> None:
        """Makes `version` current, at once."""
        fresh = self._folder / "next"
        fresh.symlink_to(version)
        os.replace(fresh, self._current)


def interpret(release: Path) -> None:
    """Takes the machine code out of `release`, so that it runs its sources."""
    for compiled in (release / "workers").rglob("*.so"):
        compiled.unlink()


def patch(file: Path, old: str, new: str) -> None:
    """Replaces the only `old` in `file`. Where that is of the workers, the release runs its sources then."""
    for parent in file.parents:
        if parent.name == "workers":
            interpret(parent.parent)
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
    file.write_text(text.replace(old, new), encoding="utf-8")
