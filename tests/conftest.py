"""Fixtures that every kind of test may use."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from tests.harness.balancer import LoadBalancer
from tests.harness.settings import Tables
from tests.harness.upstream import Handler, Upstream, answer
from workers.contract.form import COMPILED, form

StartBalancer = Callable[..., LoadBalancer]
StartUpstream = Callable[..., Upstream]

# Several tests run at a time: how long an example takes says nothing.
hypothesis_settings.register_profile("ours", deadline=None)
hypothesis_settings.load_profile("ours")


def pytest_configure() -> None:
    """A shell's `make test &` ignores SIGINT for all that it starts, and some tests are about that signal."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what only the interpreted form of the hot modules lets a test do."""
    if form() == COMPILED:
        skip = pytest.mark.skip(reason="counts byte codes, or replaces what the compiled form calls directly")
        for item in items:
            if item.get_closest_marker("interpreted"):
                item.add_marker(skip)


@pytest.fixture
def upstream() -> Iterator[StartUpstream]:
    """Starts raw upstream servers; each is closed, and its handler's errors raised, at the end."""
    started: list[Upstream] = []

    def start(handler: Handler = answer, **options: Any) -> Upstream:
        started.append(Upstream(handler, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def balancer(tmp_path: Path, upstream: StartUpstream) -> Iterator[StartBalancer]:
    """Starts load balancers; each is stopped, and its orderly end asserted, before the upstreams end."""
    started: list[LoadBalancer] = []

    def start(tables: Tables, **options: Any) -> LoadBalancer:
        folder = tmp_path / f"lb{len(started)}"
        folder.mkdir()
        started.append(LoadBalancer(folder, tables, **options))
        return started[-1].start()

    yield start
    for running in started:
        try:
            running.stop()
        finally:
            running.remove_sockets()


@pytest.fixture
def socket_folder() -> Iterator[str]:
    """A folder with a path short enough for Unix sockets, readable by other users."""
    with tempfile.TemporaryDirectory(prefix="lb-") as folder:
        Path(folder).chmod(0o755)
        yield folder
