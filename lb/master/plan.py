"""What the master needs from a configuration: the only place here that knows `lb.config`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from lb import config as configuration
from lb.config import Compiled, Config, ConfigErrors, State
from lb.control.spec import ControlSpec, Discovery
from workers.contract.scoreboard import MAX_WORKERS
from workers.contract.snapshot import Snapshot

_SHOWN: Final = 8  # addresses of one name in a line

InUse = Callable[[str, int], bool]


@dataclass(frozen=True, slots=True)
class Plan:
    """One configuration, ready to be deployed. `state` is what the next one is compiled with, `discovery`
    what was found when it was compiled."""

    config: Config
    snapshot: Snapshot
    control: ControlSpec
    discovery: Discovery
    certificates: Mapping[tuple[str, str], bytes]
    state: State
    workers: int

    @property
    def listener_names(self) -> dict[str, str]:
        """The listener's name for each address, in file order."""
        return {address: listener.name for listener in self.snapshot.listeners for address in listener.bind}

    @property
    def access_log(self) -> pathlib.Path | None:
        """The file that the access log goes to; `None` for standard output and for no log at all."""
        path = self.snapshot.access_log.path
        return None if path in ("-", "off") else pathlib.Path(path)

    def with_admin(self, address: str | None) -> Plan:
        """The same with the admin API at `address`: the file need not say where it is, nor may a reload
        change it."""
        return replace(self, control=msgspec.structs.replace(self.control, admin=address))

    def again(self, generation: int, workers: int) -> Plan:
        """The same configuration for another number of workers."""
        snapshot = msgspec.structs.replace(self.snapshot, generation=generation)
        control = msgspec.structs.replace(self.control, generation=generation)
        return replace(self, snapshot=snapshot, control=control, workers=workers)


def first(path: pathlib.Path) -> Plan:
    """The first configuration, read from `path`. Raises `ConfigErrors`."""
    return _compiled(configuration.load(path), State(), 1, lambda _kind, _row: False, Discovery())


def read(path: pathlib.Path, before: Plan, generation: int, in_use: InUse) -> Plan:
    """Reads and compiles the file, which follows upon `before`. Raises `ConfigErrors`."""
    config = configuration.load(path)
    return _compiled(config, before.state, generation, in_use, before.discovery).with_admin(
        before.control.admin
    )


def following(
    path: pathlib.Path,
    served: str,
    workers: int,
    state: State,
    discovery: Discovery,
    generation: int,
    in_use: InUse,
) -> Plan:
    """Reads and compiles the file for the successor of a master that serves the text `served` with so many
    `workers`: signals may have asked for them, and they stay as many where the file says what it said.
    Raises `ConfigErrors`, also where the file wants what only a restart can do."""
    config = configuration.load(path)
    try:
        before = configuration.parse(served, path)
        problems = configuration.refuse_live(before, config)
        stay = before.process.workers == config.process.workers
    except ConfigErrors:
        problems, stay = [], False  # this release reads another language: what it needs is in the new file
    if problems:
        raise ConfigErrors(problems)
    plan = _compiled(config, state, generation, in_use, discovery)
    return plan.again(generation, workers) if stay and workers else plan


def found(before: Plan, generation: int, in_use: InUse, discovery: Discovery) -> Plan:
    """The configuration of `before` with the servers of `discovery`, for which no file is read. Raises
    `ConfigErrors`."""
    served = Compiled(
        config=before.config,
        snapshot=before.snapshot,
        control=before.control,
        discovery=before.discovery,
        certificates=before.certificates,
    )
    compiled, following = configuration.recompile(served, before.state, generation, in_use, discovery)
    return _plan(compiled, following, before.workers)


def _compiled(config: Config, state: State, generation: int, in_use: InUse, discovery: Discovery) -> Plan:
    compiled, following = configuration.compile(config, state, generation, in_use, discovery)
    return _plan(compiled, following, config.process.workers or usable_cores())


def _plan(compiled: Compiled, state: State, workers: int) -> Plan:
    return Plan(
        config=compiled.config,
        snapshot=compiled.snapshot,
        control=compiled.control,
        discovery=compiled.discovery,
        certificates=compiled.certificates,
        state=state,
        workers=workers,
    )


def same(before: Plan, after: Plan) -> bool:
    """Whether both serve the same."""
    after = after.again(before.snapshot.generation, before.workers)
    return (after.snapshot, after.control, after.certificates) == (
        before.snapshot,
        before.control,
        before.certificates,
    )


def changes(before: Plan, after: Plan) -> tuple[str, ...]:
    """What differs between the files, one line each. Raises `ConfigErrors` where a reload can't do it."""
    problems = configuration.refuse_live(before.config, after.config)
    if problems:
        raise ConfigErrors(problems)
    return tuple(str(change) for change in configuration.diff(before.config, after.config))


def servers_changed(before: Plan, after: Plan) -> tuple[str, ...]:
    """Which servers came and went, and which names stand for other addresses, one line each."""
    lines = []
    earlier = {pool.name: {server.name for server in pool.servers} for pool in before.snapshot.pools}
    for pool in after.snapshot.pools:
        names = {server.name for server in pool.servers}
        known = earlier.get(pool.name, set())
        lines += [f"{pool.name}: {name} is there" for name in sorted(names - known)]
        lines += [f"{pool.name}: {name} is gone" for name in sorted(known - names)]
    resolved = before.discovery.addresses
    for host, addresses in after.discovery.addresses.items():
        if addresses != resolved.get(host):
            more = len(addresses) - _SHOWN
            shown = ", ".join(addresses[:_SHOWN]) or "no address"
            lines.append(f"{host} is {shown}" + (f" and {more} more" if more > 0 else ""))
    return tuple(lines)


def usable_cores() -> int:
    """Cores that this process may run on, within what the scoreboard has room for."""
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
