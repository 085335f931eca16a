"""What a successor serves where the configuration file can't be served any more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lb.master import plan as plans
from lb.master.upgrade_plan import deployed, served_plan
from lb.master.upgrade_state import Deployed, StateError, compile_state
from tests.unit.test_upgrade_state import least
from workers.contract.scoreboard import Scoreboard

TEXT = """
[listen.public]
bind = ["127.0.0.1:8080"]
[[route]]
name = "all"
pool = "web"
[pool.web]
servers = ["127.0.0.1:9"]
"""


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    made = Scoreboard.create()
    yield made
    os.close(made.fd)


def test_what_was_served_is_served_without_a_look_at_any_file(tmp_path: Path, board: Scoreboard) -> None:
    file = tmp_path / "lb.toml"
    file.write_text(TEXT)
    before = plans.first(file)
    state = msgspec.structs.replace(
        least(),
        config=str(file),
        served=TEXT,
        workers=5,
        attempt=3,
        compiled=compile_state(before.state),
        deployed=deployed(before),
    )
    file.unlink()
    after = served_plan(state, board)
    assert (after.snapshot.generation, after.control.generation, after.workers) == (4, 4, 5)
    assert plans.same(before, after)
    assert after.config.listen == before.config.listen
    assert after.state == before.state


@pytest.mark.parametrize(
    ("served", "given"),
    [("[surprise]", Deployed()), (TEXT, Deployed()), (TEXT, Deployed(snapshot=b"\xc1"))],
)
def test_what_this_release_does_not_understand_is_said(
    served: str, given: Deployed, board: Scoreboard
) -> None:
    """Another language, a predecessor that does not say it, a damaged snapshot."""
    state = msgspec.structs.replace(least(), served=served, deployed=given)
    with pytest.raises(StateError, match="what was served can't be served by this release"):
        served_plan(state, board)
