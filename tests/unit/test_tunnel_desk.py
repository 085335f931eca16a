"""Pages of tunnels: each fits into one message, and no tunnel is missing or there twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from workers.contract.messages import MAX_BYTES, ListTunnels, TunnelFilter
from workers.io.tunnel import Tunnel
from workers.io.tunnel_desk import page

NUMBER = 2500


def tunnel(number: int, length: int) -> Tunnel:
    """What a page reads of a tunnel; every text of it is `length` long."""
    pipe = SimpleNamespace(total=2**62, tracker=None)
    text = "n" * length
    spec = SimpleNamespace(name=text)
    server = SimpleNamespace(spec=spec, pool=SimpleNamespace(spec=spec))
    data = b"\xff" * length
    found = SimpleNamespace(
        number=number, route=spec, server=server, address=text, host=data, target=data, request_id=data,
        started=1.0, seen=2.0, from_client=pipe, from_server=pipe, client=None,
        crash_safe=True,
    )  # fmt: skip
    return cast(Tunnel, found)


@pytest.mark.parametrize("length", [1, 120, 4000])
def test_every_tunnel_is_on_one_page(length: int) -> None:
    tunnels = {number: tunnel(number, length) for number in range(1, NUMBER + 1)}
    found: list[int] = []
    more = True
    while more:
        after = found[-1] if found else 0
        answer = page(tunnels, ListTunnels(request=2**63, where=TunnelFilter(), after=after, limit=1000), 3.0)
        assert len(msgspec.msgpack.encode(answer)) < MAX_BYTES - 1024
        assert answer.total == NUMBER
        assert answer.tunnels
        found += [report.number for report in answer.tunnels]
        more = answer.more
    assert found == list(range(1, NUMBER + 1))


def test_a_limit_of_nothing_counts_alone() -> None:
    answer = page({1: tunnel(1, 5)}, ListTunnels(request=1, where=TunnelFilter(), after=0, limit=0), 3.0)
    assert (answer.tunnels, answer.total, answer.more) == ((), 1, True)
