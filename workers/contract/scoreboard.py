"""The scoreboard: one memfd, mapped by every process, in which each cell has exactly one writer.

Layout (8-byte cells, native byte order)::

    header  magic, format, capacities, and for each area of a slab its offset and stride
    slab 0  written by worker slot 0 alone
    slab 1  written by worker slot 1 alone
    ...
    grants  written by the master alone: how much of each server's max_connections a worker has

A slab holds the worker's own cells, then one row per listener, route and server. Aligned 8-byte cells do
not tear here, so a reader needs no lock; a row is not a transaction. Pages that nobody touches cost
nothing, so the capacities are generous: a configuration beyond them is refused by name. The header states the
layout, so that one that this code would misread is refused.

Gauges go up and down and are signed; counters only grow.
"""

from __future__ import annotations

import enum
import mmap
import os
from typing import Final, NamedTuple

MAGIC: Final = 0x6C62_7363_6F72_6531
FORMAT: Final = 1
HEADER_CELLS: Final = 512
CELL: Final = 8


class WorkerCell(enum.IntEnum):
    """The worker's own cells."""

    HEARTBEAT = 0  # monotonic nanoseconds of the last turn of the event loop's tick
    GENERATION = 1  # of the configuration that is served
    PID = 2
    CONNECTIONS = 3  # gauge: client connections
    TUNNELS = 4  # gauge: WebSocket tunnels
    ACCEPTED = 5  # counter: client connections
    REQUESTS = 6  # counter: exchanges that ended, upgrades among them
    LOG_DROPPED = 7  # counter: access log lines that were lost
    ACCEPT_PAUSED = 8  # counter: accept failed for want of fds or memory
    LAG = 9  # nanoseconds that the last tick came late
    UPSTREAM_IDLE = 10  # gauge: idle upstream connections
    LISTENERS = 11  # gauge: listening sockets served
    WIDTH = 64


class ListenerCell(enum.IntEnum):
    """A row per listener."""

    CONNECTIONS = 0  # gauge
    ACCEPTED = 1
    REJECTED = 2  # counter: over limits.connections
    WIDTH = 16


class RouteCell(enum.IntEnum):
    """A row per route."""

    IN_FLIGHT = 0  # gauge: exchanges
    REQUESTS = 1
    TUNNELS = 2  # gauge
    WIDTH = 32


class ServerCell(enum.IntEnum):
    """A row per server."""

    ACTIVE = 0  # gauge: exchanges in flight plus tunnels; what least-conn and p2c compare
    TUNNELS = 1  # gauge
    CONNECTIONS = 2  # gauge: open upstream connections, idle ones too
    REQUESTS = 3
    ERRORS = 4
    RETRIES = 5
    WAITING = 6  # gauge: queued requests that this server could serve
    BOUND = 7  # gauge: exchanges that this worker may have on the server, or has, whichever is more
    WIDTH = 32


class Capacity(NamedTuple):
    """How many rows of each kind a scoreboard has."""

    workers: int = 64
    listeners: int = 64
    routes: int = 4096
    servers: int = 4096


class _Area(NamedTuple):
    offset: int  # cells from the start of the slab
    stride: int


class ScoreboardError(ValueError):
    """The memory is no scoreboard that this code can read."""


class Slab:
    """One worker's cells. `cells` is the whole slab; the `*_base` methods give a row's first index, so
    that the hot path is `cells[base + ServerCell.ACTIVE] += 1`."""

    __slots__ = ("_listeners", "_routes", "_servers", "cells")

    def __init__(self, cells: memoryview, listeners: _Area, routes: _Area, servers: _Area) -> None:
        self.cells: memoryview = cells
        self._listeners = listeners
        self._routes = routes
        self._servers = servers

    def listener_base(self, slot: int) -> int:
        """Index of the first cell of listener `slot`."""
        return self._listeners.offset + slot * self._listeners.stride

    def route_base(self, slot: int) -> int:
        """Index of the first cell of route `slot`."""
        return self._routes.offset + slot * self._routes.stride

    def server_base(self, slot: int) -> int:
        """Index of the first cell of server `slot`."""
        return self._servers.offset + slot * self._servers.stride

    def server_row(self, slot: int) -> memoryview:
        """The cells of server `slot`."""
        base = self.server_base(slot)
        return self.cells[base : base + self._servers.stride]

    def clear_gauges(self, capacity: Capacity) -> None:
        """What a successor does first: its predecessor's connections are gone, its counters stay."""
        cells = self.cells
        for cell in (
            WorkerCell.CONNECTIONS,
            WorkerCell.TUNNELS,
            WorkerCell.UPSTREAM_IDLE,
            WorkerCell.LISTENERS,
        ):
            cells[cell] = 0
        for slot in range(capacity.listeners):
            cells[self.listener_base(slot) + ListenerCell.CONNECTIONS] = 0
        for slot in range(capacity.routes):
            base = self.route_base(slot)
            cells[base + RouteCell.IN_FLIGHT] = 0
            cells[base + RouteCell.TUNNELS] = 0
        for slot in range(capacity.servers):
            base = self.server_base(slot)
            cells[base + ServerCell.ACTIVE] = 0
            cells[base + ServerCell.TUNNELS] = 0
            cells[base + ServerCell.CONNECTIONS] = 0
            cells[base + ServerCell.WAITING] = 0
            cells[base + ServerCell.BOUND] = 0


class Scoreboard:
    """The mapped scoreboard. Made by the master with `create`, inherited through fork (or found again
    from the memfd with `attach`)."""

    def __init__(self, fd: int, memory: mmap.mmap, capacity: Capacity) -> None:
        self.fd = fd
        self.capacity = capacity
        self._memory = memory
        self._cells = memoryview(memory).cast("q")
        self._listeners, self._routes, self._servers, self._slab_cells = _areas(capacity)
        self.grants = self._cells[HEADER_CELLS + capacity.workers * self._slab_cells :]

    @classmethod
    def create(cls, capacity: Capacity | None = None) -> Scoreboard:
        """A new, empty scoreboard in a memfd. Raises `OSError` when memory or descriptors are short."""
        capacity = capacity or Capacity()
        size = _size(capacity)
        fd = os.memfd_create("lb-scoreboard", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
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
        capacity = Capacity(*header[2:6])
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
        return Slab(cells, self._listeners, self._routes, self._servers)

    def slabs(self) -> list[Slab]:
        """All slabs, in the order of the worker slots."""
        return [self.slab(worker) for worker in range(self.capacity.workers)]


def _areas(capacity: Capacity) -> tuple[_Area, _Area, _Area, int]:
    listeners = _Area(WorkerCell.WIDTH, ListenerCell.WIDTH)
    routes = _Area(listeners.offset + capacity.listeners * listeners.stride, RouteCell.WIDTH)
    servers = _Area(routes.offset + capacity.routes * routes.stride, ServerCell.WIDTH)
    cells = servers.offset + capacity.servers * servers.stride
    page = mmap.PAGESIZE // CELL
    return listeners, routes, servers, -(-cells // page) * page


def _header(capacity: Capacity) -> list[int]:
    *areas, slab_cells = _areas(capacity)
    return [MAGIC, FORMAT, *capacity, slab_cells, len(areas), *(value for area in areas for value in area)]


def _size(capacity: Capacity) -> int:
    """Bytes of the whole."""
    grants = capacity.workers * capacity.servers
    return (HEADER_CELLS + capacity.workers * _areas(capacity)[3] + grants) * CELL
