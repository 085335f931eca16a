"""Taking over what a dead predecessor left: its keeper gives the sockets back, the ledger says the rest."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

import msgspec

from workers.contract import messages
from workers.contract.cells import MigrationReason, MigrationResult, WorkerCell
from workers.contract.entries import CLOSE_CODE, EntryCell
from workers.contract.messages import DescriptorsLost, Message, Reclaimed
from workers.contract.snapshot import DECODE_ERRORS
from workers.contract.tunnels import Back, BackEnd, Drop, Reclaim, decode_record, receive_keeping
from workers.core.recovery import Unproved
from workers.io import adoption, tcpinfo
from workers.io.closing import close_on
from workers.io.endpoint import sever
from workers.io.estate import Estate
from workers.io.sockets import Socket, adopted

if TYPE_CHECKING:
    from workers.io.tunnel import Tunnel
    from workers.io.worker import Worker

_CRASH: Final = int(WorkerCell.MIGRATIONS) + MigrationReason.CRASH * MigrationResult.WIDTH


class Reclaiming:
    """The way to the keeper, as far as it is read: what comes back, and its end."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._estate = Estate(worker.keeping.area)
        self._restored = 0
        self._closed = 0
        self._serves = False
        self._open = False  # whether the keeper has, or has said, what comes back
        self._owes = False  # whether the master is to be told how that went

    def attend(self, channel: socket.socket, *, reclaim: bool) -> None:
        """Uses the keeper behind `channel`; with `reclaim` it has what the predecessor left. A former keeper
        is gone: what it gave back is here already, maybe unread."""
        while self._open and self._hear():
            pass
        if self._open:
            self._lost()
        self._worker.keeping.use(channel)
        self._worker.loop.add_reader(channel.fileno(), self._hear)
        self._open = reclaim
        self._owes = self._owes or reclaim
        if not reclaim:
            self._give_up_rest()
        elif self._serves:
            self._ask()

    def serve(self) -> None:
        """The configuration is served: what the predecessor left can be taken over."""
        if self._serves:
            return
        self._serves = True
        if self._open:
            self._ask()
        else:
            self._report()

    def _ask(self) -> None:
        channel = self._worker.keeping.channel
        assert channel is not None
        try:
            messages.send(channel, Reclaim())
        except OSError as error:
            self._worker.log.error("the predecessor's tunnels can't be asked for", error=error)
            self._lost()

    def _hear(self) -> bool:
        """Takes in one message, if there is one; whether there may be more."""
        channel = self._worker.keeping.channel
        assert channel is not None
        try:
            received = receive_keeping(channel)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            # It died before it had read all. That is told once, before what it had said itself (unix(7)).
            return True
        except DescriptorsLost as error:
            if isinstance(error.message, Back):
                self._did_not_come(error.message.entries, error)
            return True
        except OSError as error:
            self._worker.log.error("the keeper can't be heard", error=error)
            received = None
        if received is None:
            self._lost()
            return False
        self._obey(*received)
        return True

    def _obey(self, message: Message, fds: list[int]) -> None:
        match message:
            case Back(entries=entries):
                pairs = iter(fds)
                for entry, client, server in zip(entries, pairs, pairs, strict=False):
                    self._take(entry, adopted(client), adopted(server))
            case BackEnd(lost=lost):
                self._worker.slab.cells[_CRASH + MigrationResult.UNPROVED] += lost
                self._closed += lost
                self._worker.keeping.end_inheritance()
                self._open = False
                self._report()
            case _:
                self._worker.log.error(
                    "the keeper says what is not its to say", message=type(message).__name__
                )

    def _did_not_come(self, entries: tuple[int, ...], error: OSError) -> None:
        """There was no room for these, so they end."""
        worker = self._worker
        worker.log.error("tunnels are closed: they can't be taken over", tunnels=len(entries), error=error)
        worker.slab.cells[_CRASH + MigrationResult.UNPROVED] += len(entries)
        self._closed += len(entries)
        channel = worker.keeping.channel
        assert channel is not None
        # Where this does not go through, the keeper closes them when it is told that they are over.
        with contextlib.suppress(OSError):
            messages.send(channel, Drop(entries=entries, reset=True))
        for entry in entries:
            worker.keeping.disinherit(entry)

    def _lost(self) -> None:
        """The keeper is gone, and with it what it had not given back yet."""
        self._worker.keeping.lose()
        self._open = False
        self._give_up_rest()

    def _give_up_rest(self) -> None:
        """Nobody has the sockets of what the ledger has still of the predecessor."""
        lost = self._worker.keeping.end_inheritance()
        if lost:
            self._worker.log.error("tunnels are lost with the keeper that held them", tunnels=lost)
            self._worker.slab.cells[_CRASH + MigrationResult.UNPROVED] += lost
            self._closed += lost
        self._report()

    def _report(self) -> None:
        if self._owes and self._serves and not self._open:
            self._owes = False
            self._worker.say(Reclaimed(restored=self._restored, closed=self._closed))

    # --- one tunnel ----------------------------------------------------------------------------------

    def _take(self, entry: int, client: Socket, server: Socket) -> None:
        worker = self._worker
        cells = worker.slab.cells
        try:
            tunnel = self._restore(entry, client, server)
        except (Unproved, adoption.NotAdopted, OSError, *DECODE_ERRORS) as error:
            # Where an end has failed there is nothing to prove and nobody to go on.
            gone = any(_is_closed(sock) for sock in (client, server))
            cells[_CRASH + (MigrationResult.GONE if gone else MigrationResult.UNPROVED)] += 1
            if not gone:
                worker.log.error("a tunnel is closed: it can't go on exactly", entry=entry, error=error)
            self._closed += 1
            for sock in (client, server):
                sever(sock, failed=True)
                sock.close()
            worker.keeping.disinherit(entry)
            return
        cells[_CRASH + MigrationResult.OK] += 1
        self._restored += 1
        code = int(worker.keeping.cells[worker.keeping.area.entry(entry) + EntryCell.CLOSING])
        worker.keeping.take_back(tunnel, entry)
        adoption.enter(tunnel)
        if code and tunnel.open:
            close_on(tunnel, code & CLOSE_CODE, code & ~CLOSE_CODE)
        elif tunnel.open:
            worker.pacer.go_on(tunnel)

    def _restore(self, entry: int, client: Socket, server: Socket) -> Tunnel:
        up, down = self._estate.streams(entry, client, server)
        record = decode_record(self._worker.keeping.area.record(entry))
        record = msgspec.structs.replace(record, client=up.record, server=down.record, seen=self._worker.now)
        waiting = up.unsent, down.unsent
        tunnel = adoption.adopt(self._worker, record, client.fileno(), server.fileno(), waiting)
        tunnel.from_client.closed, tunnel.from_server.closed = up.last, down.last
        client.detach()
        server.detach()
        return tunnel


def _is_closed(sock: Socket) -> bool:
    try:
        return tcpinfo.counts(sock).state == tcpinfo.CLOSE
    except OSError:
        return True
