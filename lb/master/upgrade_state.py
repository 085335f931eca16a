"""What the master of one release leaves to that of the next: everything that can't be made anew.

It travels in a sealed memfd, with the descriptors that it names, through execve(2). Two releases meet here,
so the struct changes by one rule: a new field has a default, and nothing changes its meaning. What breaks the
rule takes another `FORMAT`, and is refused by the trial before anything was touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from lb.config import State
from lb.config.state import Row, Rows
from lb.control.messages import Event
from lb.control.spec import Discovery
from lb.master.deployment import sealed
from lb.master.report import ReloadReport, UpgradeReport
from workers.contract.messages import MoveTunnels
from workers.contract.scoreboard import Capacity
from workers.contract.snapshot import DECODE_ERRORS

FORMAT: Final = 1
_KINDS: Final = ("listeners", "routes", "pools", "servers")

Phase = Literal["starting", "loading", "serving", "leaving"]
Kind = Literal["listeners", "routes", "pools", "servers"]
Identity = tuple[int, int]  # of a file: device and inode


class StateError(ValueError):
    """The state can't be read by this release; `str()` says why."""


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of these structs. Fields that this release doesn't know are ignored."""


class OwnedRow(Part, frozen=True, kw_only=True):
    """A row of the scoreboard and whose it is. `taken`: by the configuration that is served; otherwise it
    waits for its owner to come again."""

    kind: Kind
    name: tuple[str, ...]  # of a server: its pool's, and its own
    slot: int
    owner: int
    taken: bool


class CompileState(Part, frozen=True, kw_only=True):
    """`lb.config.State`, without what the scoreboard itself says."""

    rows: tuple[OwnedRow, ...] = ()
    sticky_keys: dict[str, bytes] = {}
    servers_files: dict[str, str] = {}


class Deployed(Part, frozen=True, kw_only=True):
    """What is served, as it was compiled: the snapshot and the `ControlSpec`, encoded, and for each
    certificate its listener, its name, and chain and key in PEM."""

    snapshot: bytes = b""
    control: bytes = b""
    certificates: tuple[tuple[str, str, bytes], ...] = ()


class Listening(Part, frozen=True, kw_only=True):
    """One listening socket. `home` is the worker slot it was made for, -1 where it is shared; `file` is the
    identity of a Unix socket's file."""

    address: str
    fd: int
    home: int = -1
    file: Identity = (0, 0)


class Command(Part, frozen=True, kw_only=True):
    """The command socket, and who waits there for the outcome of the upgrade."""

    path: str
    fd: int
    file: Identity
    waiting: tuple[int, ...] = ()


class LockedFile(Part, frozen=True, kw_only=True):
    """The pid file. The lock belongs to the open file that `fd` stands for, so it is never given up."""

    path: str
    fd: int


class Process(Part, frozen=True, kw_only=True):
    """A child that lives on. `fd` is the master's end of its channel, `started` and `leave_by` are monotonic
    seconds; `leave_by` is when one that was told to leave is ended, 0 for one that wasn't."""

    kind: Literal["worker", "keeper", "control"]
    pid: int
    fd: int
    slot: int = -1
    phase: Phase = "serving"
    started: float = 0.0
    leave_by: float = 0.0


class UpgradeState(Part, frozen=True, kw_only=True):
    """The whole. Descriptors are numbers in the process that executes the new release."""

    format: int
    version: str  # of the release that wrote it
    config: str  # the configuration file
    served: str  # its text, as it is served
    workers: int = 0  # how many serve it
    started: float  # monotonic
    began: float = 0.0  # the upgrade; monotonic
    attempt: int  # the last number that a configuration had
    compiled: CompileState
    deployed: Deployed = Deployed()
    discovery: Discovery = Discovery()
    listeners: tuple[Listening, ...]
    command: Command
    pid_file: LockedFile | None = None
    metrics: Listening | None = None
    admin: Listening | None = None
    scoreboard: int
    ledger: int
    bells: tuple[int, int]  # the workers', the control process's
    children: tuple[Process, ...] = ()
    used_slots: tuple[int, ...] = ()
    restarts: dict[str, int] = {}
    control_restarts: dict[str, int] = {}
    keeper_restarts: dict[str, int] = {}
    reloads: ReloadReport = ReloadReport(succeeded=0, failed=0)
    upgrades: UpgradeReport = UpgradeReport()
    events: tuple[Event, ...] = ()
    event_count: int = 0
    moves: tuple[MoveTunnels, ...] = ()
    notify: str = ""  # $NOTIFY_SOCKET
    signal_mask: tuple[int, ...] = ()

    def descriptors(self) -> Iterator[int]:
        """All that go along."""
        yield from (self.scoreboard, self.ledger, *self.bells, self.command.fd, *self.command.waiting)
        yield from (socket.fd for socket in self.listeners)
        yield from (child.fd for child in self.children)
        yield from (held.fd for held in (self.pid_file, self.metrics, self.admin) if held is not None)


def pack(state: UpgradeState) -> int:
    """A sealed memfd with `state`. Raises `OSError`."""
    return sealed("lb-upgrade", msgspec.msgpack.encode(state))


def unpack(fd: int) -> UpgradeState:
    """What `pack` put into `fd`. Raises `StateError`."""
    try:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
    except OSError as error:
        raise StateError(f"the state of the running lb can't be read: {error}") from error
    return decode(data)


class _Head(msgspec.Struct):
    """What every format begins with."""

    format: int = 0
    version: str = "unknown"


def decode(data: bytes) -> UpgradeState:
    """The state in `data`. Raises `StateError`."""
    try:
        head = msgspec.msgpack.decode(data, type=_Head)
        if head.format != FORMAT:
            raise StateError(
                f"the running lb ({head.version}) has a state of format {head.format}, this one reads"
                f" {FORMAT}: upgrade by a restart"
            )
        return msgspec.msgpack.decode(data, type=UpgradeState)
    except DECODE_ERRORS as error:
        raise StateError(f"the state of the running lb can't be read: {error}") from error


# --- the compile state ---------------------------------------------------------------------------------


def compile_state(state: State) -> CompileState:
    """`state` as it travels."""
    rows = tuple(
        OwnedRow(kind=kind, name=_parts(name), slot=row.slot, owner=row.owner, taken=taken)
        for kind in _KINDS
        for taken in (True, False)
        for name, row in _rows(state, kind, taken).items()
    )
    return CompileState(
        rows=rows, sticky_keys=dict(state.sticky_keys), servers_files=dict(state.servers_files)
    )


def restored(compiled: CompileState, capacity: Capacity) -> State:
    """The same as the compiler takes it, for a scoreboard of `capacity`."""
    return State(
        capacity=capacity,
        listeners=_gathered(compiled, "listeners"),
        routes=_gathered(compiled, "routes"),
        pools=_gathered(compiled, "pools"),
        servers=_gathered(compiled, "servers"),
        sticky_keys=compiled.sticky_keys,
        servers_files=compiled.servers_files,
    )


def _rows(state: State, kind: str, taken: bool) -> Mapping[Any, Row]:
    rows: Rows = getattr(state, kind)
    return rows.taken if taken else rows.left


def _gathered(compiled: CompileState, kind: Kind) -> Rows:
    taken: dict[Any, Row] = {}
    left: dict[Any, Row] = {}
    for row in compiled.rows:
        if row.kind == kind:
            name = row.name if len(row.name) > 1 else row.name[0]
            (taken if row.taken else left)[name] = Row(row.slot, row.owner)
    return Rows(taken=taken, left=left)


def _parts(name: str | tuple[str, ...]) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else name
