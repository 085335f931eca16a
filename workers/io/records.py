"""Who a tunnel is, as a record for another process: cut down to what its figures and limits need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from workers.contract.snapshot import ListenerSpec, PoolSpec, RouteSpec
from workers.contract.tunnels import TunnelRecord, encode_record

if TYPE_CHECKING:
    from workers.io.tunnel import Tunnel

_SHORT: Final = 64  # bytes of a text that a client chose, where there is no room for all


def identity(tunnel: Tunnel) -> TunnelRecord:
    """The record of `tunnel` without its streams."""
    listener, route, server = tunnel.listener.spec, tunnel.route.spec, tunnel.server
    pool = server.pool.spec
    return TunnelRecord(
        listener=ListenerSpec(slot=listener.slot, owner=listener.owner, name=listener.name, bind=()),
        route=RouteSpec(slot=route.slot, owner=route.owner, name=route.name, pool=pool.name),
        pool=PoolSpec(
            slot=pool.slot,
            owner=pool.owner,
            name=pool.name,
            servers=(msgspec.structs.replace(server.spec, addresses=()),),
            on_removed=pool.on_removed,
        ),
        settings=tunnel.settings,
        address=tunnel.address,
        host=tunnel.host,
        target=tunnel.target,
        request_id=tunnel.request_id,
        started=tunnel.started,
        seen=tunnel.seen,
        closer=tunnel.closer,
        logged=tunnel.logged,
    )


def short(tunnel: Tunnel, most: int) -> bytes:
    """That record in at most `most` bytes, for the ledger: texts that the client chose are cut where they
    must be. Raises `ValueError` where even then it is too long (names of hundreds of characters)."""
    record = identity(tunnel)
    data = encode_record(record)
    over = len(data) - most
    for name in ("target", "host", "request_id"):
        if over <= 0:
            return data
        text: bytes = getattr(record, name)
        kept = max(_SHORT, len(text) - over)
        record = msgspec.structs.replace(record, **{name: text[:kept]})
        data = encode_record(record)
        over = len(data) - most
    if over > 0:
        raise ValueError(f"a record of {len(data)} bytes, and there is room for {most}")
    return data
