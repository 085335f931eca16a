"""A keeper: holds duplicates of its worker's tunnels, so that they outlive the worker, and does nothing else.

It reads no byte of them. When the master says that the worker is gone for good, it brings the ledger into a
state that needs the dead worker's buffer no more, and gives the sockets to the successor that asks for them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from _socket import socket as RawSocket
from collections import deque
from itertools import islice
from typing import Final, NamedTuple

from workers.contract import messages, tunnels
from workers.contract.entries import State
from workers.contract.errorlog import ErrorLog
from workers.contract.ledger import Ledger
from workers.core.recovery import Unproved
from workers.io.endpoint import sever
from workers.io.estate import Estate

_SWEEP: Final = 1.0  # seconds between two looks at what is held
_PER_SWEEP: Final = 4096
_PAUSE: Final = 0.05  # seconds before the next attempt to send what the kernel had no room for
_SHORTAGE: Final = frozenset((errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM))
_IN: Final = select.POLLIN | select.POLLHUP | select.POLLERR


class _Held(NamedTuple):
    """Duplicates of one tunnel's sockets, as which the entry had it then."""

    serial: int
    client: RawSocket
    server: RawSocket

    def sever(self) -> None:
        """Resets both connections, in every process that has them."""
        sever(self.client, failed=True)
        sever(self.server, failed=True)

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Keeper:
    """See the module."""

    def __init__(self, slot: int, channel: socket.socket, ledger: Ledger) -> None:
        self.log = ErrorLog(f"keeper {slot}")
        self._master = channel
        self._worker: socket.socket | None = None
        self._ledger = ledger
        self._area = ledger.area(slot)
        self._estate = Estate(self._area)
        self._held: dict[int, _Held] = {}  # by entry
        self._unsent: deque[tuple[messages.Message, list[int]]] = deque()  # for the worker
        self._short = False  # whether the kernel has no room for those, and doesn't tell when it has
        self._closed = 0  # tunnels that could not be proved, since a successor was last told
        self._swept = 0
        self._sweep_at = 0.0
        self.running = True  # until the master says otherwise, or is gone

    # --- the loop ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves."""
        messages.send(self._master, tunnels.KeeperReady(pid=os.getpid()))
        while self.running:
            self.turn(_SWEEP)

    def turn(self, patience: float) -> None:
        """Does what there is to do, or waits for it for `patience` seconds."""
        poll = select.poll()
        poll.register(self._master.fileno(), _IN)
        worker = -1
        if self._worker is not None:
            worker = self._worker.fileno()
            poll.register(worker, _IN | (select.POLLOUT if self._unsent and not self._short else 0))
        happened = dict(poll.poll(1000 * (min(patience, _PAUSE) if self._short else patience)))
        if self._short or happened.get(worker, 0) & select.POLLOUT:
            self._flush()
        if happened.get(worker, 0) & _IN:
            self._hear_worker()
        if self._master.fileno() in happened:
            self._hear_master()
        now = time.monotonic()
        if not happened or now >= self._sweep_at:
            self._sweep_at = now + _SWEEP
            self._sweep()

    def close(self) -> None:
        """Lets go of everything. Tunnels that have no worker any more must not look like ended in order."""
        while self._hear_worker():
            pass  # maybe it is gone
        for entry, held in self._held.items():
            if self._worker is None and self._is(entry, held, State.HELD):
                held.sever()
            held.close()
        self._held.clear()
        self._drop_worker()
        self._master.close()
        self.log.flush()

    # --- the master ----------------------------------------------------------------------------------

    def _hear_master(self) -> None:
        try:
            received = tunnels.receive_in_keeper(self._master)
        except BlockingIOError:
            return
        except OSError as error:
            self.log.error("the master can't be heard", error=error)
            received = None
        if received is None:
            # Whoever might take the tunnels over is gone with it; the worker has its own descriptors.
            self.running = False
            return
        message, fds = received
        match message:
            case tunnels.Attend():
                self._drop_worker()
                self._worker = socket.socket(fileno=fds[0])
            case tunnels.Settle():
                self._settle()
            case tunnels.Leave():
                self.running = False
            case tunnels.Ping():
                with contextlib.suppress(OSError):  # it is gone: reading says so
                    messages.send(self._master, tunnels.Pong())

    def _settle(self) -> None:
        while self._hear_worker():
            pass  # to the last word that it said
        self._drop_worker()
        before = self._closed
        for entry, held in list(self._held.items()):
            if not self._is_ours(entry, held):
                self._let_go(entry)
        self._estate.forget_coming()  # givers wait for that
        entry = self._estate.marked()
        if entry in self._held:
            held = self._held[entry]
            try:
                self._estate.settle(entry, held.client, held.server)
            except (Unproved, OSError) as error:
                self._give_up(entry, error)
        self._estate.clear_mark()
        if not self._held:
            self._area.clear()  # maybe nobody follows
        answer = tunnels.Settled(held=len(self._held), closed=self._closed - before)
        messages.send(self._master, answer)

    def _is_ours(self, entry: int, held: _Held) -> bool:
        """Whether the dead worker had the tunnel, or was about to have it and its giver had let go."""
        if self._is(entry, held, State.COMING):
            slot, theirs, serial = self._estate.giver(entry)
            states = self._ledger.states(slot)
            if (states[2 * theirs], states[2 * theirs + 1]) != (State.GONE, serial):
                return False
            self._area.cells[2 * entry] = State.HELD
        return self._is(entry, held, State.HELD)

    def _is(self, entry: int, held: _Held, state: State) -> bool:
        return self._area.state(entry) == state and self._area.serial(entry) == held.serial

    def _give_up(self, entry: int, error: Exception) -> None:
        self.log.error("a tunnel is closed: which bytes were in flight can't be proved", error=error)
        self._area.cells[2 * entry] = State.FREE
        self._closed += 1
        self._let_go(entry, reset=True)

    def _let_go(self, entry: int, *, reset: bool = False) -> None:
        """Closes the duplicates, of which nobody notices anything while somebody else has the sockets."""
        held = self._held.pop(entry, None)
        if held is not None:
            if reset:
                held.sever()
            held.close()

    # --- the worker ----------------------------------------------------------------------------------

    def _hear_worker(self) -> bool:
        """One message, if there is one; whether there may be more."""
        if self._worker is None:
            return False
        try:
            received = tunnels.receive_keeping(self._worker)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            # It died and had not read all that it was told. The error comes once, before what it said itself.
            return True
        except OSError as error:
            # Descriptors may have been lost with it. The worker sees the end, and asks for another keeper.
            self.log.error("the worker can't be heard, its tunnels are not kept", error=error)
            self.running = False
            return False
        if received is None:
            self._drop_worker()
            return False
        message, fds = received
        match message:
            case tunnels.Hold(tunnels=some):
                self._hold(some, fds)
            case tunnels.Drop(entries=entries, reset=reset):
                for entry in entries:
                    self._let_go(entry, reset=reset)
            case tunnels.Reclaim():
                self._give_back()
            case _:
                self.log.error("message that a keeper does not know", message=type(message).__name__)
                for fd in fds:
                    os.close(fd)
        return True

    def _hold(self, some: tuple[tuple[int, int], ...], fds: list[int]) -> None:
        pairs = iter(fds)
        for (entry, serial), client, server in zip(some, pairs, pairs, strict=False):
            self._let_go(entry)
            self._held[entry] = _Held(serial, RawSocket(fileno=client), RawSocket(fileno=server))

    def _drop_worker(self) -> None:
        worker, self._worker = self._worker, None
        self._unsent.clear()
        if worker is not None:
            worker.close()

    # --- giving back ---------------------------------------------------------------------------------

    def _give_back(self) -> None:
        left = iter(list(self._held.items()))
        while some := list(islice(left, tunnels.BATCH)):
            fds = [sock.fileno() for _, held in some for sock in (held.client, held.server)]
            self._unsent.append((tunnels.Back(entries=tuple(entry for entry, _ in some)), fds))
        closed, self._closed = self._closed, 0
        self._unsent.append((tunnels.BackEnd(lost=closed), []))
        self._flush()

    def _flush(self) -> None:
        self._short = False
        while self._unsent and self._worker is not None:
            try:
                messages.send(self._worker, *self._unsent[0])
            except BlockingIOError:
                return
            except OSError as error:
                self._short = error.errno in _SHORTAGE
                return  # otherwise it is gone: reading says so
            self._unsent.popleft()

    # --- what nobody told ----------------------------------------------------------------------------

    def _sweep(self) -> None:
        """A duplicate keeps a connection open, so what the ledger has no more is let go of even where the
        worker's word about it was lost."""
        entries = list(islice(self._held, self._swept, self._swept + _PER_SWEEP))
        self._swept = self._swept + _PER_SWEEP if len(entries) == _PER_SWEEP else 0
        for entry in entries:
            held = self._held[entry]
            if self._area.state(entry) == State.FREE or self._area.serial(entry) != held.serial:
                self._let_go(entry)


def run(slot: int, channel: socket.socket, ledger: Ledger) -> int:
    """What the launcher calls in a forked child; returns the exit status. Signals, descriptors and rights
    are in order already."""
    keeper = Keeper(slot, channel, ledger)
    try:
        keeper.run()
    finally:
        keeper.close()
    return 0
