"""The figures of the scoreboard, summed over the workers: for the metrics and the admin API alike.

No worker is asked, and none needs to be alive. Slabs that no worker ever used are left alone (to read them
would make their pages), and rows and series of another owner than the snapshot's are left out, so what was
counted for somebody else is never shown. Slabs of workers that are gone are included: counters never go back.

`Figures` is a view of one moment: make one, read it, drop it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final, NamedTuple, TypeVar

from lb.control.rows import (
    ListenerFigures,
    PoolFigures,
    RouteFigures,
    ServerFigures,
    WorkerFigures,
    histogram,
    worker_figures,
)
from workers.contract.cells import (
    CONNECT_SECONDS,
    HANDSHAKE_SECONDS,
    HTTP_SECONDS,
    PING_SECONDS,
    TUNNEL_SECONDS,
    CheckResult,
    EjectReason,
    HandshakeResult,
    ListenerCell,
    PoolCell,
    RouteCell,
    ServerCell,
    StateCell,
    StickyResult,
    WorkerCell,
)
from workers.contract.errors import REASONS
from workers.contract.scoreboard import Scoreboard, Slab
from workers.contract.series import INITIATORS, METHODS, Kind, pack
from workers.contract.snapshot import ListenerSpec, PoolSpec, RetiredRow, RouteSpec, ServerSpec, Snapshot

OTHER: Final = "other"  # the label of what found no series of its own
_Key = TypeVar("_Key")
_DETAIL: Final = 0xFFFF << 31  # where a series' key has its labels


class Figures:
    """The scoreboard as it is now, by the rows of `snapshot`."""

    def __init__(self, board: Scoreboard, snapshot: Snapshot) -> None:
        self._board = board
        self._snapshot = snapshot
        self._slabs: list[tuple[int, Slab]] = [
            (slot, slab) for slot, slab in enumerate(board.slabs()) if slab.used
        ]

    def workers(self) -> list[WorkerFigures]:
        """Every slot that was ever used, also those whose worker is gone."""
        return [worker_figures(slot, slab.cells[: WorkerCell.WIDTH].tolist()) for slot, slab in self._slabs]

    @cached_property
    def migrations(self) -> dict[tuple[str, str], int]:
        """Tunnels that changed hands, by (reason, result), over all workers that ever were."""
        found: dict[tuple[str, str], int] = {}
        for worker in self.workers():
            for key, count in worker.migrations.items():
                _put(found, key, count)
        return found

    def listener(self, spec: ListenerSpec) -> ListenerFigures:
        """The figures of `spec`."""
        rows = [_row(slab, slab.listener_base(spec.slot), ListenerCell.WIDTH) for _, slab in self._slabs]
        row = _total(rows, ListenerCell.OWNER, spec.owner, ListenerCell.WIDTH)
        reasons = self._reasons(Kind.REJECTED, spec.slot, spec.owner, row[ListenerCell.OTHER_REJECTED])
        return ListenerFigures(
            connections=row[ListenerCell.CONNECTIONS],
            accepted=row[ListenerCell.ACCEPTED],
            rejected=row[ListenerCell.REJECTED],
            rejected_by=reasons,
        )

    def route(self, spec: RouteSpec) -> RouteFigures:
        """The figures of `spec`."""
        row = self._route_row(spec)
        requests = self._requests(spec, row[RouteCell.OTHER_REQUESTS])
        return RouteFigures(
            in_flight=row[RouteCell.IN_FLIGHT],
            requests=sum(requests.values()),
            requests_by=requests,
            tunnels=row[RouteCell.TUNNELS],
            client_bytes=row[RouteCell.CLIENT_BYTES],
            server_bytes=row[RouteCell.SERVER_BYTES],
            client_messages=row[RouteCell.CLIENT_MESSAGES],
            server_messages=row[RouteCell.SERVER_MESSAGES],
            handshakes={
                result.name.lower(): row[RouteCell.HANDSHAKES + result] for result in HandshakeResult
            },
            closes=self._closes(spec, row[RouteCell.OTHER_CLOSES]),
            seconds=histogram(row, RouteCell.SECONDS_SUM, RouteCell.SECONDS, HTTP_SECONDS),
            handshake=histogram(row, RouteCell.HANDSHAKE_SUM, RouteCell.HANDSHAKE, HANDSHAKE_SECONDS),
            tunnel=histogram(row, RouteCell.TUNNEL_SUM, RouteCell.TUNNEL, TUNNEL_SECONDS),
            ping=histogram(row, RouteCell.PING_SUM, RouteCell.PING, PING_SECONDS),
            ping_timeouts=row[RouteCell.PING_TIMEOUTS],
        )

    def in_flight(self, spec: RouteSpec | RetiredRow) -> int:
        """Exchanges of the route that have not ended."""
        return self._route_row(spec)[RouteCell.IN_FLIGHT]

    def pool(self, spec: PoolSpec) -> PoolFigures:
        """The figures of `spec`."""
        rows = [_row(slab, slab.pool_base(spec.slot), PoolCell.WIDTH) for _, slab in self._slabs]
        row = _total(rows, PoolCell.OWNER, spec.owner, PoolCell.WIDTH)
        return PoolFigures(
            retries=row[PoolCell.RETRIES],
            queued=row[PoolCell.QUEUED],
            sticky={result.name.lower(): row[PoolCell.STICKY + result] for result in StickyResult},
            connect=histogram(row, PoolCell.CONNECT_SUM, PoolCell.CONNECT, CONNECT_SECONDS),
            admitted=row[PoolCell.ADMITTED],
            admission_refused=row[PoolCell.ADMISSION_REFUSED],
            admission_queued=row[PoolCell.ADMISSION_QUEUED],
        )

    def server(self, pool: PoolSpec, spec: ServerSpec | RetiredRow) -> ServerFigures:
        """The figures of `spec`, a server of `pool`."""
        return self.server_row(spec)

    def server_row(self, spec: ServerSpec | RetiredRow) -> ServerFigures:
        """The figures of a server's row; those by label are empty for a retired one."""
        rows = [_row(slab, slab.server_base(spec.slot), ServerCell.WIDTH) for _, slab in self._slabs]
        row = _total(rows, ServerCell.OWNER, spec.owner, ServerCell.WIDTH)
        responses = dict(self._labels(Kind.RESPONSES, spec.slot, spec.owner))
        _add(responses, 0, row[ServerCell.OTHER_REQUESTS])
        return ServerFigures(
            active=row[ServerCell.ACTIVE],
            tunnels=row[ServerCell.TUNNELS],
            connections=row[ServerCell.CONNECTIONS],
            idle=row[ServerCell.IDLE],
            requests=sum(responses.values()),
            errors=row[ServerCell.ERRORS],
            retries=row[ServerCell.RETRIES],
            waiting=row[ServerCell.WAITING],
            errors_in_a_row=row[ServerCell.ERRORS_IN_A_ROW],
            gateway_failures=row[ServerCell.GATEWAY_FAILURES],
            connect_failures=row[ServerCell.CONNECT_FAILURES],
            responses=responses,
            errors_by=self._reasons(Kind.ERRORS, spec.slot, spec.owner, row[ServerCell.OTHER_ERRORS]),
        )

    def tunnels(self) -> dict[tuple[str, str, str], int]:
        """Tunnels by (route, pool, server), wherever there ever was one; rows that a reload took away only
        while they have tunnels. What found no series is under the server "other"."""
        pools = {route.name: route.pool for route in self._snapshot.routes}
        found: dict[tuple[str, str, str], int] = {}
        routes: tuple[RouteSpec | RetiredRow, ...] = self._snapshot.routes + self._snapshot.retired_routes
        for route in routes:
            gone = isinstance(route, RetiredRow)
            for row, count in self._labels(Kind.TUNNELS, route.slot, route.owner).items():
                server = self._servers.get(row)
                if server is not None and (count or not (gone or server.gone)):
                    _put(found, (route.name, server.pool, server.name), count)
            other = self._route_row(route)[RouteCell.OTHER_TUNNELS]
            if other:
                _put(found, (route.name, pools.get(route.name, ""), OTHER), other)
        return found

    def tunnels_by_worker(self, spec: ServerSpec) -> dict[int, int]:
        """Tunnels on the server `spec` by worker slot; slots without any are left out."""
        found = {}
        for slot, slab in self._slabs:
            row = slab.server_row(spec.slot)
            if row[ServerCell.OWNER] == spec.owner and row[ServerCell.TUNNELS]:
                found[slot] = row[ServerCell.TUNNELS]
        return found

    def checks(self, spec: ServerSpec) -> dict[str, int]:
        """Active checks of `spec` by result."""
        return {result.name.lower(): self._state(spec, StateCell.CHECKS + result) for result in CheckResult}

    def ejections(self, spec: ServerSpec) -> dict[str, int]:
        """Ejections of `spec` by reason."""
        return {
            reason.name.lower(): self._state(spec, StateCell.EJECTIONS + reason) for reason in EjectReason
        }

    # --- reading -----------------------------------------------------------------------------------------

    def _state(self, spec: ServerSpec, cell: int) -> int:
        base = self._board.state_base(spec.slot)
        cells = self._board.control
        return int(cells[base + cell]) if cells[base + StateCell.OWNER] == spec.owner else 0

    def _route_row(self, spec: RouteSpec | RetiredRow) -> list[int]:
        rows = [_row(slab, slab.route_base(spec.slot), RouteCell.WIDTH) for _, slab in self._slabs]
        return _total(rows, RouteCell.OWNER, spec.owner, RouteCell.WIDTH)

    def _requests(self, spec: RouteSpec, other: int) -> dict[tuple[str, int], int]:
        found: dict[tuple[str, int], int] = {}
        for detail, count in self._labels(Kind.REQUESTS, spec.slot, spec.owner).items():
            _put(found, (_name(METHODS, detail >> 10), detail & 0x3FF), count)
        _add(found, (OTHER, 0), other)
        return found

    def _closes(self, spec: RouteSpec, other: int) -> dict[tuple[str, int], int]:
        found: dict[tuple[str, int], int] = {}
        for detail, count in self._labels(Kind.CLOSES, spec.slot, spec.owner).items():
            _put(found, (_name(INITIATORS, detail >> 13), detail & 0x1FFF), count)
        _add(found, (OTHER, 0), other)
        return found

    def _reasons(self, kind: Kind, row: int, owner: int, other: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for detail, count in self._labels(kind, row, owner).items():
            _put(found, REASONS[detail].reason if detail < len(REASONS) else OTHER, count)
        _add(found, OTHER, other)
        return found

    def _labels(self, kind: Kind, row: int, owner: int) -> Mapping[int, int]:
        return self._series.get(pack(kind, row, 0, owner), {})

    @cached_property
    def _series(self) -> dict[int, dict[int, int]]:
        """By kind, row and owner (a key without its labels), then by labels: what all workers counted."""
        series: dict[int, dict[int, int]] = {key: {} for key in _wanted(self._snapshot)}
        for _, slab in self._slabs:
            taken = min(slab.cells[WorkerCell.SERIES], self._board.capacity.series)
            entries = slab.cells[slab.series_base : slab.series_base + 2 * taken].tolist()
            for key, value in zip(entries[::2], entries[1::2], strict=True):
                labels = series.get(key & ~_DETAIL)
                if labels is not None:
                    detail = key >> 31 & 0xFFFF
                    labels[detail] = labels.get(detail, 0) + value
        return series

    @cached_property
    def _servers(self) -> dict[int, _Server]:
        """Who has which server row: those of the configuration, else those that it took away."""
        retired = {row.slot: _Server(row.pool, row.name, gone=True) for row in self._snapshot.retired_servers}
        current = {
            server.slot: _Server(pool.name, server.name, gone=False)
            for pool in self._snapshot.pools
            for server in pool.servers
        }
        return retired | current


class _Server(NamedTuple):
    pool: str
    name: str
    gone: bool


def _wanted(snapshot: Snapshot) -> list[int]:
    """The keys, without labels, of all series that belong to `snapshot`."""
    return [
        *(pack(Kind.REJECTED, spec.slot, 0, spec.owner) for spec in snapshot.listeners),
        *(
            pack(kind, spec.slot, 0, spec.owner)
            for spec in snapshot.routes
            for kind in (Kind.REQUESTS, Kind.CLOSES, Kind.TUNNELS)
        ),
        *(pack(Kind.TUNNELS, row.slot, 0, row.owner) for row in snapshot.retired_routes),
        *(
            pack(kind, spec.slot, 0, spec.owner)
            for pool in snapshot.pools
            for spec in pool.servers
            for kind in (Kind.RESPONSES, Kind.ERRORS)
        ),
    ]


def _row(slab: Slab, base: int, width: int) -> list[int]:
    return slab.cells[base : base + width].tolist()


def _total(rows: Sequence[Sequence[int]], owner_cell: int, owner: int, width: int) -> list[int]:
    """Cell by cell the sum of the rows that belong to `owner`."""
    ours = [row for row in rows if row[owner_cell] == owner]
    return [sum(column) for column in zip(*ours, strict=True)] if ours else [0] * width


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else OTHER


def _put(found: dict[_Key, int], key: _Key, count: int) -> None:
    found[key] = found.get(key, 0) + count


def _add(found: dict[_Key, int], key: _Key, count: int) -> None:
    """Like `_put`, but what never happened gets no entry."""
    if count:
        _put(found, key, count)
