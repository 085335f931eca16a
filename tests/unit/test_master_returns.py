"""Moves that still go on are told to workers that come meanwhile."""

from __future__ import annotations

import time

from lb.master.returns import MAX_KEPT, Returns
from workers.contract.messages import MoveTunnels, TunnelFilter


def move(server: str, until: float, count: int = 0, request: int = 0) -> MoveTunnels:
    where = TunnelFilter(pool="chat", server=server)
    return MoveTunnels(
        request=request, where=where, count=count, code=1012, spread=1.0, until=until, pool="chat", total=9
    )


def test_what_all_workers_were_told_is_kept_once_and_without_closes() -> None:
    returns = Returns()
    soon = time.monotonic() + 100
    for request, count in ((5, 2), (6, 7)):
        returns.note(move("a", soon, count, request))
        returns.note(move("b", soon, count, request))
    assert returns.current() == (move("a", soon), move("b", soon))


def test_what_is_over_is_forgotten_and_too_much_as_well() -> None:
    returns = Returns()
    now = time.monotonic()
    returns.note(move("a", now - 0.1))
    assert returns.current() == ()
    for number in range(MAX_KEPT + 3):
        returns.note(move("a", now + 100 + number))
    assert returns.current() == tuple(move("a", now + 103 + number) for number in range(MAX_KEPT))


def test_a_successor_goes_on_with_them() -> None:
    returns, successor = Returns(), Returns()
    returns.note(move("a", time.monotonic() + 100, count=3))
    successor.restore(returns.current())
    assert successor.current() == returns.current() != ()
