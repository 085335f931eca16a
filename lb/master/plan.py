"""What the master needs from a configuration: the only place here that knows `lb.config`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import msgspec

from lb import config as configuration
from lb.config import Config, ConfigErrors, State
from workers.contract.scoreboard import Capacity
from workers.contract.snapshot import Snapshot

InUse = Callable[[str, int], bool]


@dataclass(frozen=True, slots=True)
class Plan:
    """One configuration, ready to be deployed. `state` is what the next one is compiled with."""

    config: Config
    snapshot: Snapshot
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

    def again(self, generation: int, workers: int) -> Plan:
        """The same configuration for another number of workers."""
        snapshot = msgspec.structs.replace(self.snapshot, generation=generation)
        return replace(self, snapshot=snapshot, workers=workers)


def read(path: pathlib.Path, state: State, generation: int, in_use: InUse) -> Plan:
    """Reads and compiles the file. Raises `ConfigErrors`."""
    config = configuration.load(path)
    compiled, following = configuration.compile(config, state, generation, in_use)
    workers = config.process.workers or usable_cores()
    return Plan(config, compiled.snapshot, compiled.certificates, following, workers)


def changes(before: Plan, after: Plan) -> tuple[str, ...]:
    """What differs between the files, one line each. Raises `ConfigErrors` where a reload can't do it."""
    problems = configuration.refuse_live(before.config, after.config)
    if problems:
        raise ConfigErrors(problems)
    return tuple(str(change) for change in configuration.diff(before.config, after.config))


def first_state() -> State:
    """The state before the first configuration."""
    return State()


def usable_cores() -> int:
    """Cores that this process may run on, within what the scoreboard has room for."""
    return min(len(os.sched_getaffinity(0)), Capacity().workers)
