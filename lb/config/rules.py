"""The rules that concern more than one table of a configuration."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from lb.config.checks import checks_of
from lb.config.pool import Pool
from lb.config.positions import Path
from lb.config.problems import Report, did_you_mean
from lb.config.route import Route
from lb.config.schema import Config, Listen

_NEEDED = {
    "listen": 'add [listen.main] with bind = [":8080"]',
    "route": 'add [[route]] with pool = "main"',
    "pool": 'add [pool.main] with servers = ["127.0.0.1:9000"]',
}


def apply_rules(config: Config, data: Mapping[str, Any], errors: Report, warnings: Report) -> Config:
    """Reports what is wrong between the tables of `config`, which was decoded from `data`; returns it
    with every route named."""
    for key, hint in _NEEDED.items():
        if not getattr(config, key) and not errors.broken((key,)):
            errors.add((key,), f"a configuration needs a {key}", hint=hint)
    _check_binds(config, errors)
    for pool in config.pool:
        _check_health(pool, errors)
    names = _check_pools(config, data, errors, warnings)
    routes = _named(config.route, errors)
    if not errors.broken(("route",)):
        _warn_unreachable(routes, warnings)
    if not errors.broken(("listen",)):
        _warn_redirects(config.listen, warnings)
    for pool in config.pool:
        if pool.name not in names:
            warnings.add(("pool", pool.name), "no route uses this pool")
    _warn_hard_closes(routes, config.pool, warnings)
    _warn_shared_cookies(config, warnings)
    _warn_open_admin(config, warnings)
    return msgspec.structs.replace(config, route=routes)


def _check_binds(config: Config, errors: Report) -> None:
    """Two listeners can't share an address; with SO_REUSEPORT the kernel would let them, and share out
    the connections at random."""
    users: dict[str, str] = {}
    for at, user, address in _bound(config):
        if errors.broken(at):
            continue
        for other in _overlapping(address):
            if other in users:
                errors.add(at, f"{other} is bound by {users[other]} already", value=address)
                break
        users.setdefault(address, user)


def _bound(config: Config) -> Iterator[tuple[Path, str, str]]:
    """Every address that is bound: where the file says so, for what, and the address."""
    for listener in config.listen:
        for index, address in enumerate(listener.bind):
            yield ("listen", listener.name, "bind", index), f"listen.{listener.name}", address
    if config.metrics is not None:
        yield ("metrics", "listen"), "metrics", config.metrics.listen
    if config.admin.listen not in (None, "off"):
        yield ("admin", "listen"), "admin", str(config.admin.listen)


def _check_health(pool: Pool, errors: Report) -> None:
    """What a server's own health says is judged together with the pool's."""
    if errors.broken(("pool", pool.name, "health")):
        return
    for index, server in enumerate(pool.servers + pool.server):
        at: Path = ("pool", pool.name, "health")
        if server.health is not None:
            at = ("pool", pool.name, "server", index, "health")
        checks = checks_of(pool.health, server.health)
        if checks is None or errors.broken(at):
            continue
        for conflict in checks.mismatches() if server.health is not None else ():
            errors.add((*at, conflict.keys[0]), conflict.message, hint=conflict.hint)
        if checks.port is not None and server.address.startswith("unix:"):
            hint = 'give that server health = "off"'
            errors.add((*at, "port"), f"{server.address} has no ports", hint=hint)


def _overlapping(address: str) -> Iterator[str]:
    """`address` and what else it covers or is covered by: "[::]:80" takes IPv4 as well."""
    yield address
    for one, other in (("[::]:", "0.0.0.0:"), ("0.0.0.0:", "[::]:")):
        if address.startswith(one):
            yield other + address.removeprefix(one)


def _check_pools(config: Config, data: Mapping[str, Any], errors: Report, warnings: Report) -> set[str]:
    """Reports routes to pools that don't exist; returns the names in use."""
    pools = data.get("pool")
    known = set(pools) if isinstance(pools, dict) else set()
    used: set[str] = set()
    for index, route in enumerate(config.route):
        used.add(route.pool)
        at = ("route", index, "pool")
        if route.pool in known or not known or errors.broken(at):
            continue
        errors.add(at, "there is no such pool", value=route.pool, hint=did_you_mean(route.pool, known))
    return used


def _named(routes: Sequence[Route], errors: Report) -> tuple[Route, ...]:
    """`routes`, each with a name of its own."""
    given = {route.name for route in routes}
    uses = Counter(route.pool for route in routes if not route.name)
    named: list[Route] = []
    taken: dict[str, int] = {}
    for index, route in enumerate(routes):
        name = route.name
        if not name:
            free = uses[route.pool] == 1 and route.pool not in given
            name = route.pool if free else f"route-{index + 1}"
        if name in taken:
            message = f'the name "{name}" is taken by route[{taken[name]}]'
            errors.add(("route", index, "name"), message, hint="give each route a name of its own")
        taken.setdefault(name, index)
        named.append(msgspec.structs.replace(route, name=name))
    return tuple(named)


def _warn_unreachable(routes: Sequence[Route], warnings: Report) -> None:
    """The first match wins: a route whose requests an earlier one takes is never used."""
    first: dict[tuple[str | None, str | None], int] = {}
    for index, route in enumerate(routes):
        path = None if route.path == "/*" else route.path
        for pattern in ((host, over) for host in _hosts_over(route.host) for over in _paths_over(path)):
            if pattern in first:
                name = routes[first[pattern]].name
                message = f'is never reached: route "{name}" before it takes all of its requests'
                warnings.add(("route", index), message, hint=f'move it above "{name}"')
                break
        first.setdefault((route.host, path), index)


def _hosts_over(host: str | None) -> Iterator[str | None]:
    """The host patterns that match all that `host` matches."""
    yield None
    if host is None:
        return
    yield host
    suffix = host.removeprefix("*.")
    while "." in suffix:
        suffix = suffix.partition(".")[2]
        yield f"*.{suffix}"


def _paths_over(path: str | None) -> Iterator[str | None]:
    """The path patterns that match all that `path` matches."""
    yield None
    if path is None:
        return
    yield path
    while "/" in path:
        path = path.rpartition("/")[0]
        yield f"{path}/*"


def _warn_hard_closes(routes: Sequence[Route], pools: Sequence[Pool], warnings: Report) -> None:
    """Where frames are not inspected nobody knows where a Close frame can go."""
    blind: dict[str, str] = {}
    for route in routes:
        if not route.websocket.inspect:
            blind.setdefault(route.pool, route.name)
    for pool in pools:
        if pool.on_removed == "paced-close" and pool.name in blind:
            message = (
                f'route "{blind[pool.name]}" has inspect = false: its WebSockets get no Close frame, '
                "moves become hard closes"
            )
            at = ("pool", pool.name, "on_removed")
            warnings.add(at, message, value=pool.on_removed, hint="inspect = true lets them be asked to move")


def _warn_redirects(listeners: Sequence[Listen], warnings: Report) -> None:
    if any(listener.tls is not None for listener in listeners):
        return
    for listener in listeners:
        if listener.redirect_https:
            at = ("listen", listener.name, "redirect_https")
            warnings.add(at, "no listener has tls: clients are sent to port 443 of this host")


def _warn_open_admin(config: Config, warnings: Report) -> None:
    listen = config.admin.listen
    if listen is None or listen == "off" or listen.startswith("unix:"):
        return
    if not ipaddress.ip_address(listen.rpartition(":")[0].strip("[]")).is_loopback:
        message = "other machines reach it, and the token travels unencrypted"
        hint = "listen on 127.0.0.1 or a Unix socket, behind something that speaks TLS"
        warnings.add(("admin", "listen"), message, value=listen, hint=hint)


def _warn_shared_cookies(config: Config, warnings: Report) -> None:
    """A browser keeps one cookie of a name per host: two pools there would take turns in overwriting it."""
    hosts: dict[str, set[str | None]] = {}
    for route in config.route:
        hosts.setdefault(route.pool, set()).add(route.host)
    exact: dict[tuple[str, str | None], str] = {}  # (cookie, pattern of a route) -> pool
    within: dict[tuple[str, str | None], str] = {}  # (cookie, pattern over that of a route) -> pool
    for pool in config.pool:
        if pool.sticky is None or pool.sticky.cookie is None:
            continue
        cookie = pool.sticky.cookie
        own = [(cookie, host) for host in hosts.get(pool.name, ())]
        over = [(cookie, wider) for _, host in own for wider in _hosts_over(host)]
        other = _first_owner(exact, over) or _first_owner(within, own)
        if other:
            message = f"pool.{other} sets the same cookie on the same host: clients would lose their server"
            at = ("pool", pool.name, "sticky", "cookie")
            warnings.add(at, message, value=cookie, hint="give each pool its own name for it")
        exact.update(dict.fromkeys(own, pool.name))
        within.update(dict.fromkeys(over, pool.name))


def _first_owner(
    owners: Mapping[tuple[str, str | None], str], keys: Sequence[tuple[str, str | None]]
) -> str | None:
    return next((owners[key] for key in keys if key in owners), None)
