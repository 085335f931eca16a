"""Configurations for the tests, as nested dictionaries that a test can change before it reloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.harness.ports import free_port

Tables = dict[str, Any]


def settings(
    servers: Sequence[str | Mapping[str, Any]],
    *,
    port: int | None = None,
    workers: int = 2,
    listen: Mapping[str, Any] | None = None,
    route: Mapping[str, Any] | None = None,
    pool: Mapping[str, Any] | None = None,
    **tables: Any,
) -> Tables:
    """One listener, one route and one pool over `servers`; `listen`, `route` and `pool` add keys.

    A server is an address, or a whole `[[pool.NAME.server]]` table. Further top-level tables go as
    keywords and replace the defaults.
    """
    members: Tables = (
        {"servers": list(servers)}
        if all(isinstance(server, str) for server in servers)
        else {"server": [dict(server) for server in servers if isinstance(server, Mapping)]}
    )
    result: Tables = {
        "process": {"workers": workers, "shutdown_timeout": "5s"},
        "listen": {"public": {"bind": [f"127.0.0.1:{port or free_port()}"], **(listen or {})}},
        "route": [{"name": "all", "pool": "main", **(route or {})}],
        "pool": {"main": {**members, **(pool or {})}},
        "drain": {"hard_stop": "5s"},
        "metrics": {"listen": f"127.0.0.1:{free_port()}"},
    }
    process = tables.pop("process", {})
    result["process"].update(process)
    result.update(tables)
    return result
