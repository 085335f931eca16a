"""Fixtures of the scenarios."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.releases import Releases


@pytest.fixture
def full_backlog() -> Iterator[str]:
    """The address of a listener that accepts nothing more: connects to it hang."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        yield f"127.0.0.1:{address[1]}"
        for filler in fillers:
            filler.close()


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    """Release 1.0, which is current."""
    made = Releases(tmp_path)
    made.install("1.0")
    return made
