"""Releases of either form follow each other: what they leave to one another is the same."""

from __future__ import annotations

import pytest

from tests.conftest import StartBalancer, StartUpstream
from tests.harness import websocket
from tests.harness.releases import Releases, interpret
from tests.harness.settings import settings
from tests.scenario.test_upgrade import assert_echo, close, open_tunnels, start, upgrade, wait_settled
from workers.contract.form import COMPILED, INTERPRETED, form

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.skipif(form() == INTERPRETED, reason="there is one form of the modules here"),
]


def test_a_compiled_release_and_an_interpreted_one_take_over_from_each_other(
    balancer: StartBalancer, upstream: StartUpstream, releases: Releases
) -> None:
    lb = start(balancer, releases, settings([upstream(websocket.serve_echo).address], workers=2))
    assert lb.status()["form"] == COMPILED
    tunnels = open_tunnels(lb)
    interpret(releases.install("2.0"))
    upgrade(lb)
    wait_settled(lb)
    assert lb.status()["form"] == INTERPRETED
    assert_echo(tunnels, "interpreted")
    releases.install("3.0")
    upgrade(lb)
    wait_settled(lb)
    assert lb.status()["form"] == COMPILED
    assert_echo(tunnels, "compiled")
    assert sum(worker["tunnels"] for worker in lb.status()["workers"]) == len(tunnels)
    close(tunnels)
