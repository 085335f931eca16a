"""The listening sockets: made by the master before it forks, and kept by it for as long as their address
is configured.

A TCP address has one SO_REUSEPORT socket per worker slot, its *home*. The kernel hashes each connection
onto one socket's queue, so a socket with a queue is never closed: the home of a retired or missing worker
is served by a sibling. A Unix address can't be split like that (SO_REUSEPORT gives ENOTSUP there) and has one
socket that all workers share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from socket import SO_ACCEPTCONN, SOL_SOCKET, socket
from typing import Final, NamedTuple

from lb.master import sockets
from lb.master.failures import BindError, reason

# The kernel cuts this to net.core.somaxconn.
BACKLOG: Final = 4096
SHARED: Final = -1  # the "home" of a Unix address's only socket

Sockets = dict[int, socket]  # by home
Layout = dict[str, Sockets]  # by canonical address


class Served(NamedTuple):
    """One socket that a worker serves."""

    address: str
    home: int
    socket: socket


class Kept(NamedTuple):
    """One socket that the master holds; `file` is the identity of a Unix socket's file."""

    address: str
    home: int
    socket: socket
    file: tuple[int, int]


class Staged(NamedTuple):
    """The sockets of the next configuration: bound, but the new ones not listened on yet."""

    layout: Layout
    fresh: tuple[socket, ...]


def share_out(homes: Iterable[int], active: Sequence[int]) -> dict[int, int]:
    """Which slot of `active` serves which home: its own slot, where that is active; else a slot that has
    none of its own, else the siblings in turn. Every home is served by exactly one slot."""
    owners = {home: home for home in homes if home in active}
    orphans = sorted(set(homes) - set(owners))
    hungry = [slot for slot in active if slot not in owners]
    turn = [*hungry, *active]
    for index, home in enumerate(orphans):
        place = index if index < len(hungry) else len(hungry) + (index - len(hungry)) % len(active)
        owners[home] = turn[place]
    return owners


class Listeners:
    """All listening sockets. `stage` binds what a configuration adds, then `commit` or `abort`."""

    def __init__(self) -> None:
        self._layout: Layout = {}
        self._files: dict[str, tuple[int, int]] = {}  # Unix address -> device and inode of our file

    @classmethod
    def inherited(cls, listening: Iterable[Kept]) -> Listeners:
        """Those that a predecessor has left, listening already."""
        listeners = cls()
        for kept in listening:
            listeners._layout.setdefault(kept.address, {})[kept.home] = kept.socket
            if kept.home == SHARED:
                listeners._files[kept.address] = kept.file
        return listeners

    def all(self) -> list[Kept]:
        """Every socket that is kept."""
        return [
            Kept(address, home, kept, self._files.get(address, (0, 0)))
            for address, homes in self._layout.items()
            for home, kept in homes.items()
        ]

    @property
    def addresses(self) -> tuple[str, ...]:
        """What is listened on."""
        return tuple(self._layout)

    def stage(self, addresses: Sequence[str], active: Sequence[int]) -> Staged:
        """Binds what is missing for `addresses` served by the worker slots `active`.

        Raises `BindError` with one line for the operator; nothing is left bound then.
        """
        layout: Layout = {}
        fresh: list[socket] = []
        try:
            self._probe([address for address in addresses if address not in self._layout])
            for address in addresses:
                layout[address] = self._stage_one(address, active, fresh)
        except BindError:
            self._discard(fresh)
            raise
        return Staged(layout, tuple(fresh))

    def listen(self, staged: Staged, slot: int, active: Sequence[int]) -> None:
        """Starts listening on what `slot` serves. Raises `BindError`."""
        for served in self.served_by(slot, active, staged.layout):
            if served.socket.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
                continue
            try:
                served.socket.listen(BACKLOG)
            except OSError as error:
                raise BindError(f"can't listen on {served.address}: {reason(error)}") from error

    def commit(self, staged: Staged) -> None:
        """Makes `staged` the sockets that are kept. What is not among them is closed here; the workers
        that still hold it accept what is queued and close it then."""
        before, self._layout = self._layout, staged.layout
        for address, kept in before.items():
            if address not in staged.layout:
                self._remove_file(address)
                for removed in kept.values():
                    removed.close()

    def abort(self, staged: Staged) -> None:
        """Closes what `stage` bound; nobody listened on it."""
        self._discard(staged.fresh)
        for address in staged.layout:
            if address not in self._layout:
                self._remove_file(address)

    def current(self) -> Staged:
        """What is kept now, as `listen` takes it."""
        return Staged(self._layout, ())

    def served_by(self, slot: int, active: Sequence[int], layout: Layout | None = None) -> list[Served]:
        """What worker `slot` serves when the slots `active` share everything."""
        served = []
        for address, kept in (self._layout if layout is None else layout).items():
            if SHARED in kept:
                served.append(Served(address, slot, kept[SHARED]))
                continue
            owners = share_out(kept, active)
            served.extend(Served(address, home, kept[home]) for home in sorted(kept) if owners[home] == slot)
        return served

    def close(self) -> None:
        """Stops listening: closes the master's sockets and removes the socket files."""
        self.commit(Staged({}, ()))

    def _probe(self, added: Sequence[str]) -> None:
        ports = {sockets.parse(address).port for address in self._layout}
        for text in added:
            address = sockets.parse(text)
            # An address of ours on the same port would answer for whoever else is there.
            if address.path is None and address.port not in ports:
                sockets.probe(address)

    def _stage_one(self, text: str, active: Sequence[int], fresh: list[socket]) -> Sockets:
        address = sockets.parse(text)
        kept = dict(self._layout.get(text, {}))
        if address.path is not None:
            if not kept:
                kept[SHARED], self._files[text] = sockets.bind_unix(address.path)
                fresh.append(kept[SHARED])
            return kept
        spare = max(0, len(active) - len(kept))
        for home in [slot for slot in active if slot not in kept][:spare]:
            kept[home] = sockets.bind_tcp(address)
            fresh.append(kept[home])
        return kept

    def _discard(self, fresh: Iterable[socket]) -> None:
        for unused in fresh:
            unused.close()

    def _remove_file(self, address: str) -> None:
        identity = self._files.pop(address, None)
        path = sockets.parse(address).path
        if path is not None and identity is not None:
            sockets.unlink_if_ours(path, identity)
