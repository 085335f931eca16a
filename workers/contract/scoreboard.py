"""The scoreboard: one memfd, mapped by every process, in which each cell has exactly one writer.

Layout (8-byte cells, native byte order)::

    header   magic, format, capacities, and for each area of a slab its offset and stride
    slab 0   written by worker slot 0 alone
    slab 1   written by worker slot 1 alone
    ...
    grants   written by the master alone: how much of each server's max_connections a worker has
    control  written by the control process alone: its own cells, then a row per server: its state

A slab holds the worker's own cells, one row per listener, route, pool and server, then the series: counters
by labels that are not known before (see `series`). What each cell holds is said in `cells`. Aligned 8-byte
cells do not tear here, so a reader needs no lock; a row is not a transaction. Pages that nobody touches cost
nothing, so the capacities are generous: a configuration beyond them is refused by name. (To read a page that
was never written makes it, so slabs whose HEARTBEAT is 0 are left alone.) The header states the layout, so
that one that this code would misread is refused.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from workers.contract.cells import (
    ControlCell,
    ListenerCell,
    PoolCell,
    RouteCell,
    ServerCell,
    StateCell,
    WorkerCell,
)
from workers.contract.native import quick

MAGIC: Final = 0x6C62_7363_6F72_6531
FORMAT: Final = 3
HEADER_CELLS: Final = 512
CELL: Final = 8


MAX_WORKERS: Final = 64  # that may be configured


class Capacity(NamedTuple):
    """How many rows of each kind a scoreboard has."""

    workers: int = 2 * MAX_WORKERS  # an upgrade has old and new ones at once
    listeners: int = 64
    routes: int = 4096
    pools: int = 4096
    servers: int = 4096
    series: int = 65_536


class _Area(NamedTuple):
    offset: int  # cells from the start of the slab
    stride: int


class _Areas(NamedTuple):
    listeners: _Area
    routes: _Area
    pools: _Area
    servers: _Area
    series: _Area


class ScoreboardError(ValueError):
    """The memory is no scoreboard that this code can read."""


class Slab:
    """One worker's cells. `cells` is the whole slab; the `*_base` methods give a row's first index, so
    that the hot path is `cells[base + ServerCell.ACTIVE] += 1`."""

    __slots__ = ("_listeners", "_pools", "_routes", "_servers", "cells", "series_base")

    def __init__(self, cells: memoryview, areas: _Areas) -> None:
        self.cells: memoryview = quick(cells)
        self._listeners = areas.listeners
        self._routes = areas.routes
        self._pools = areas.pools
        self._servers = areas.servers
        self.series_base: int = areas.series.offset

    @property
    def used(self) -> bool:
        """Whether a worker ever was here."""
        return self.cells[WorkerCell.HEARTBEAT] != 0

    def listener_base(self, slot: int) -> int:
        """Index of the first cell of listener `slot`."""
        return self._listeners.offset + slot * self._listeners.stride

    def route_base(self, slot: int) -> int:
        """Index of the first cell of route `slot`."""
        return self._routes.offset + slot * self._routes.stride

    def pool_base(self, slot: int) -> int:
        """Index of the first cell of pool `slot`."""
        return self._pools.offset + slot * self._pools.stride

    def server_base(self, slot: int) -> int:
        """Index of the first cell of server `slot`."""
        return self._servers.offset + slot * self._servers.stride

    def server_row(self, slot: int) -> memoryview:
        """The cells of server `slot`."""
        base = self.server_base(slot)
        return self.cells[base : base + self._servers.stride]

    def own_listener(self, slot: int, owner: int) -> None:
        """Makes the row of listener `slot` that of `owner`: see `_own`."""
        self._own(self._listeners, slot, owner, ListenerCell.OWNER, _LISTENER_GAUGES)
        self._reach(WorkerCell.LISTENER_ROWS, slot)

    def own_route(self, slot: int, owner: int) -> None:
        """The same for route `slot`."""
        self._own(self._routes, slot, owner, RouteCell.OWNER, _ROUTE_GAUGES)
        self._reach(WorkerCell.ROUTE_ROWS, slot)

    def own_pool(self, slot: int, owner: int) -> None:
        """The same for pool `slot`."""
        self._own(self._pools, slot, owner, PoolCell.OWNER, _POOL_GAUGES)
        self._reach(WorkerCell.POOL_ROWS, slot)

    def own_server(self, slot: int, owner: int) -> None:
        """The same for server `slot`."""
        self._own(self._servers, slot, owner, ServerCell.OWNER, _SERVER_GAUGES)
        self._reach(WorkerCell.SERVER_ROWS, slot)

    def _own(self, area: _Area, slot: int, owner: int, owner_cell: int, gauges: Sequence[int]) -> None:
        """Where the row was somebody else's, its counters start from zero. Its gauges are left: what the
        former owner still has open takes itself off them when it ends."""
        cells = self.cells
        base = area.offset + slot * area.stride
        if cells[base + owner_cell] != owner:
            start = base
            for cell in (*gauges, area.stride):  # in order
                end = base + cell
                cells[start:end] = _ZEROS[: end - start]
                start = end + 1
            cells[base + owner_cell] = owner

    def _reach(self, cell: int, slot: int) -> None:
        self.cells[cell] = max(self.cells[cell], slot + 1)

    def clear_gauges(self) -> None:
        """What a successor does first: its predecessor's connections are gone, its counters stay. (The
        gauges among the series are cleared by `SeriesTable`.) Rows that nobody ever owned are left alone:
        to touch them would make their pages."""
        cells = self.cells
        for gauge in _WORKER_GAUGES:
            cells[gauge] = 0
        for area, count, gauges in (
            (self._listeners, cells[WorkerCell.LISTENER_ROWS], _LISTENER_GAUGES),
            (self._routes, cells[WorkerCell.ROUTE_ROWS], _ROUTE_GAUGES),
            (self._pools, cells[WorkerCell.POOL_ROWS], _POOL_GAUGES),
            (self._servers, cells[WorkerCell.SERVER_ROWS], _SERVER_GAUGES),
        ):
            for row in range(area.offset, area.offset + count * area.stride, area.stride):
                for gauge in gauges:
                    cells[row + gauge] = 0


_ZEROS: Final = memoryview(bytes(CELL * max(RouteCell.WIDTH, ServerCell.WIDTH, PoolCell.WIDTH))).cast("q")
_WORKER_GAUGES: Final[tuple[int, ...]] = (
    WorkerCell.CONNECTIONS,
    WorkerCell.TUNNELS,
    WorkerCell.LISTENERS,
    WorkerCell.MOVABLE,
    WorkerCell.SAFE,
    WorkerCell.PACED,
)
_LISTENER_GAUGES: Final[tuple[int, ...]] = (ListenerCell.CONNECTIONS,)
_ROUTE_GAUGES: Final[tuple[int, ...]] = (RouteCell.IN_FLIGHT, RouteCell.TUNNELS, RouteCell.OTHER_TUNNELS)
_POOL_GAUGES: Final[tuple[int, ...]] = (PoolCell.QUEUED, PoolCell.ADMISSION_QUEUED)
_SERVER_GAUGES: Final[tuple[int, ...]] = (
    ServerCell.ACTIVE,
    ServerCell.TUNNELS,
    ServerCell.CONNECTIONS,
    ServerCell.WAITING,
    ServerCell.BOUND,
    ServerCell.IDLE,
)


class Scoreboard:
    """The mapped scoreboard. Made by the master with `create`, inherited through fork (or found again
    from the memfd with `attach`)."""

    def __init__(self, fd: int, memory: mmap.mmap, capacity: Capacity) -> None:
        self.fd = fd
        self.capacity = capacity
        self._memory = memory
        self._cells = memoryview(memory).cast("q")
        self._areas, self._slab_cells = _areas(capacity)
        grants = HEADER_CELLS + capacity.workers * self._slab_cells
        control = grants + _pages(capacity.workers * capacity.servers)
        self.grants = self._cells[grants:control]
        # What the control process alone writes: its own cells (ControlCell), then a row per server.
        self.control = self._cells[control:]

    @classmethod
    def create(cls, capacity: Capacity | None = None) -> Scoreboard:
        """A new, empty scoreboard in a memfd. Raises `OSError` when memory or descriptors are short."""
        capacity = capacity or Capacity()
        size = _size(capacity)
        fd = os.memfd_create("lb-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        # Every process has it: were one to cut it short, all of them would die of SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        board = cls(fd, mmap.mmap(fd, size), capacity)
        board._write_header()
        return board

    @classmethod
    def attach(cls, fd: int) -> Scoreboard:
        """Maps the scoreboard in `fd`. Raises `ScoreboardError` where it is none that this code reads."""
        size = os.fstat(fd).st_size
        if size < HEADER_CELLS * CELL:
            raise ScoreboardError("too short for a scoreboard")
        memory = mmap.mmap(fd, size)
        header = memoryview(memory).cast("q")[:HEADER_CELLS].tolist()
        if header[0] != MAGIC or header[1] != FORMAT:
            raise ScoreboardError(f"no scoreboard of format {FORMAT}")
        capacity = Capacity(*header[2 : 2 + len(Capacity._fields)])
        expected = _header(capacity)
        if header[: len(expected)] != expected or size != _size(capacity):
            raise ScoreboardError("the scoreboard is laid out otherwise, or cut short")
        return cls(fd, memory, capacity)

    def _write_header(self) -> None:
        for index, value in enumerate(_header(self.capacity)):
            self._cells[index] = value

    def grant_index(self, worker: int, server: int) -> int:
        """Index in `grants` of what worker slot `worker` may have of server `server`."""
        return worker * self.capacity.servers + server

    def slab(self, worker: int) -> Slab:
        """The cells of worker slot `worker`."""
        if not 0 <= worker < self.capacity.workers:
            raise IndexError(f"worker slot {worker} is beyond the capacity of {self.capacity.workers}")
        start = HEADER_CELLS + worker * self._slab_cells
        cells = self._cells[start : start + self._slab_cells]
        return Slab(cells, self._areas)

    @staticmethod
    def state_base(server: int) -> int:
        """Index in `control` of the first cell (StateCell) of server `server`."""
        return int(ControlCell.WIDTH) + server * int(StateCell.WIDTH)

    def slabs(self) -> list[Slab]:
        """All slabs, in the order of the worker slots."""
        return [self.slab(worker) for worker in range(self.capacity.workers)]


def _pages(cells: int) -> int:
    """`cells`, rounded up to whole pages."""
    page = mmap.PAGESIZE // CELL
    return -(-cells // page) * page


def _areas(capacity: Capacity) -> tuple[_Areas, int]:
    """The areas of a slab, and how many cells it has."""
    offset = int(WorkerCell.WIDTH)
    areas: list[_Area] = []
    for count, stride in (
        (capacity.listeners, ListenerCell.WIDTH),
        (capacity.routes, RouteCell.WIDTH),
        (capacity.pools, PoolCell.WIDTH),
        (capacity.servers, ServerCell.WIDTH),
        (capacity.series, 2),
    ):
        areas.append(_Area(offset, int(stride)))
        offset += count * int(stride)
    return _Areas(*areas), _pages(offset)


def _header(capacity: Capacity) -> list[int]:
    areas, slab_cells = _areas(capacity)
    flat = [value for area in areas for value in area]
    return [MAGIC, FORMAT, *capacity, slab_cells, ControlCell.WIDTH, StateCell.WIDTH, len(areas), *flat]


def _size(capacity: Capacity) -> int:
    """Bytes of the whole."""
    cells = HEADER_CELLS + capacity.workers * _areas(capacity)[1]
    cells += _pages(capacity.workers * capacity.servers)
    return (cells + ControlCell.WIDTH + capacity.servers * StateCell.WIDTH) * CELL
