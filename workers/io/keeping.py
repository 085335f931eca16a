"""What of this worker's tunnels outlives it: their places on the ledger, and the keeper's duplicates.

A tunnel comes onto the ledger when it is about a second old, so that short-lived ones cost nothing, and
leaves it when it ends or is handed over. The keeper is told once a tick, in batches; what its queue does not
take waits for the next tick. An entry is used again only after the keeper was told to drop what it had of it.
"""

from __future__ import annotations

import errno
import socket
import time
from array import array
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, cast

from workers.contract import messages
from workers.contract.cells import WorkerCell
from workers.contract.entries import (
    FRAME_LOST,
    MAX_RECORD,
    POSITION_BITS,
    DirectionCell,
    EntryCell,
    HeadCell,
    State,
    place,
)
from workers.contract.native import quick
from workers.contract.tunnels import Drop, Hold
from workers.core.frames import FrameTracker
from workers.core.wheel import NEVER
from workers.io import records, tcpinfo
from workers.io.estate import put_frame
from workers.io.shelves import Shelves
from workers.io.sockets import Socket

if TYPE_CHECKING:
    from workers.io.pipe import Pipe
    from workers.io.tunnel import Tunnel
    from workers.io.worker import Worker

YOUNG: Final = 1.0  # seconds that a tunnel is not worth keeping
# Failures to tell the keeper anything: it is gone, or there is a shortage.
_EXPECTED: Final = (errno.EPIPE, errno.ECONNRESET, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
_BATCH: Final = 120  # tunnels in a message: two descriptors each, and the kernel takes 253
_AGAIN: Final = 5.0  # seconds before another attempt to put tunnels onto the ledger
_AT_ONCE: Final = 16  # such messages; a keeper that does not read must not use up what all processes share
_PER_TICK: Final = 512  # tunnels that come onto the ledger in one tick, about 20 ms of work
_FRAME: Final = int(DirectionCell.FRAME)
_SAFE: Final = int(WorkerCell.SAFE)


class Keeping:
    """One worker's side of it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.area = area = worker.ledger.area(worker.slot)
        self.cells = area.cells
        self.relay = memoryview(area.buffer)
        self.mark = quick(area.cells[area.head : area.head + 1])
        self.channel: socket.socket | None = None  # to the keeper
        self._young: deque[Tunnel] = deque()
        self._again_at = NEVER  # when those are looked for that found no place
        self._unheld: dict[int, Tunnel] = {}  # by entry: on the ledger, and not with the keeper yet
        self._held: set[int] = set()  # entries that the keeper has
        self._undropped: deque[int] = deque()
        self._used = int(area.cells[area.head + HeadCell.USED])
        # Entries of a predecessor, until the keeper has said which are given back.
        self.inherited = {index for index in range(self._used) if area.state(index) != State.FREE}
        self._free = [index for index in range(self._used - 1, -1, -1) if index not in self.inherited]
        self.shelves = Shelves(area, self.inherited)

    # --- the keeper ----------------------------------------------------------------------------------

    def use(self, channel: socket.socket) -> None:
        """Lets the keeper behind `channel` hold the tunnels from now on. (An earlier one is gone.)"""
        self.lose()
        channel.setblocking(False)
        self.channel = channel
        self._young = self._waiting()

    def _waiting(self) -> deque[Tunnel]:
        """The tunnels that could come onto the ledger."""
        tunnels = self.worker.tunnels.values()
        return deque(tunnel for tunnel in tunnels if tunnel.entry < 0 and tunnel.movable)

    def _try_again(self) -> None:
        """What found no place gets another turn, all of it together."""
        self._again_at = min(self._again_at, time.monotonic() + _AGAIN)

    def lose(self) -> None:
        """The keeper is gone: what it held waits for the next one, what it was to drop is dropped."""
        channel, self.channel = self.channel, None
        if channel is not None:
            self.worker.loop.remove_reader(channel.fileno())
            channel.close()
        self._free.extend(self._undropped)
        self._undropped.clear()
        self._held.clear()
        self.worker.slab.cells[_SAFE] = 0
        self._unheld = {tunnel.entry: tunnel for tunnel in self.worker.tunnels.values() if tunnel.entry >= 0}

    def close(self) -> None:
        """The worker leaves, with no tunnel."""
        self.lose()
        self.shelves.close()

    def opened(self, tunnel: Tunnel) -> None:
        """`tunnel` began: it is put onto the ledger when it is old enough."""
        if tunnel.movable and self.channel is not None:
            self._young.append(tunnel)

    def tick(self) -> None:
        """Puts onto the ledger what is old enough, and tells the keeper."""
        if self.channel is None:
            return
        now = time.monotonic()
        if now >= self._again_at:
            self._again_at = NEVER
            self._young = self._waiting()
        young = self._young
        ripe = now - YOUNG
        for _ in range(_PER_TICK):
            if not young or young[0].started > ripe:
                break
            tunnel = young.popleft()
            if tunnel.open and tunnel.movable and tunnel.entry < 0:
                self.hold(tunnel)
        if self._undropped or self._unheld:
            self.tell()

    def tell(self) -> None:
        """Tells the keeper what to drop, then what to hold, as far as its queue takes it."""
        for _ in range(_AT_ONCE):
            if not (self._drop_some() if self._undropped else self._hold_some()):
                return

    def _drop_some(self) -> bool:
        """One message; whether it went."""
        entries = tuple(islice(self._undropped, _BATCH))
        if not self._send(Drop(entries=entries)):
            return False
        for entry in entries:
            self._undropped.popleft()
            self._free.append(entry)
        return True

    def _hold_some(self) -> bool:
        """One message; whether there was something to say, and it went."""
        some = list(islice(self._unheld.values(), _BATCH))
        fds = [stream.fileno() for tunnel in some for stream in (tunnel.client, tunnel.server_sock)]
        tunnels = tuple((tunnel.entry, self.area.serial(tunnel.entry)) for tunnel in some)
        if not some or not self._send(Hold(tunnels=tunnels), fds):
            return False
        for tunnel in some:
            del self._unheld[tunnel.entry]
            self._told(tunnel)
        return True

    def _send(self, message: messages.Message, fds: list[int] | None = None) -> bool:
        if self.channel is None:
            return False
        try:
            messages.send(self.channel, message, fds or ())
        except BlockingIOError:
            return False
        except OSError as error:
            # Where it is gone, reading says so, behind what it may have given back. Anything else is a
            # shortage of the moment: the descriptors on their way are counted for all processes of a user.
            if error.errno not in _EXPECTED:
                self.worker.log.warning("the keeper can't be told about tunnels", error=error)
            return False
        return True

    # --- entries -------------------------------------------------------------------------------------

    def hold(self, tunnel: Tunnel) -> bool:
        """Puts a tunnel onto the ledger, where it can be; whether it is there."""
        client, server_sock = cast(Socket, tunnel.client), cast(Socket, tunnel.server_sock)
        if not (tcpinfo.is_counted(client) and tcpinfo.is_counted(server_sock)):
            return False
        try:
            for sock in (client, server_sock):
                # Urgent data would be counted and not be delivered (RFC 6093 says what it is worth).
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            client_counts, server_counts = tcpinfo.counts(client), tcpinfo.counts(server_sock)
        except tcpinfo.NotCounted:
            self._try_again()
            return False
        except OSError:
            return False  # it is failing; its own callbacks find out
        up, down = tunnel.from_client, tunnel.from_server
        bases = (
            client_counts.read - up.total,
            client_counts.written - (down.total + down.shift - len(down.out)),
            server_counts.read - down.total,
            server_counts.written - (up.total + up.shift - len(up.out)),
        )
        return self.enter(tunnel, bases)

    def enter(
        self,
        tunnel: Tunnel,
        bases: tuple[int, int, int, int],
        giver: tuple[int, int, int] | None = None,
    ) -> bool:
        """Puts a tunnel onto the ledger whose streams began at `bases`; `False` where it is full. With
        `giver` (slot, entry and serial there) it is on its way from there: COMING until `confirm`."""
        try:
            record = records.short(tunnel, MAX_RECORD)
        except ValueError as error:
            self.worker.log.warning("a tunnel can't be made crash-safe", route=tunnel.route.name, error=error)
            return False
        entry = self._take_entry()
        if entry < 0:
            return False
        area, cells = self.area, self.cells
        base = area.entry(entry)
        area.put_record(entry, record)
        cells[base + EntryCell.CLIENT_READ : base + EntryCell.SERVER_WRITTEN + 1] = array("q", bases)
        cells[base + EntryCell.GIVER : base + EntryCell.GIVER_SERIAL + 1] = array("q", giver or (0, 0, 0))
        cells[base + EntryCell.CLOSING] = 0
        cells[2 * entry + 1] = time.monotonic_ns()
        self._begin(tunnel, entry)
        for pipe in (tunnel.from_client, tunnel.from_server):
            pipe.put(pipe.out)
        self.worker.pacer.note_order(tunnel)
        cells[2 * entry] = State.HELD if giver is None else State.COMING
        self._unheld[entry] = tunnel
        return True

    def confirm(self, tunnel: Tunnel) -> None:
        """What was COMING has come."""
        self.cells[2 * tunnel.entry] = State.HELD
        if tunnel.entry not in self._held:
            self._unheld[tunnel.entry] = tunnel

    def holds(self, tunnel: Tunnel) -> bool:
        """Whether the keeper has it."""
        return tunnel.entry in self._held

    def _told(self, tunnel: Tunnel) -> None:
        """The keeper has it now."""
        self._held.add(tunnel.entry)
        self.worker.slab.cells[_SAFE] += tunnel.settings.crash_safe

    def _begin(self, tunnel: Tunnel, entry: int) -> None:
        """Gives the directions of `tunnel` their places on `entry`."""
        tunnel.shared = True
        base = self.area.entry(entry)
        for direction, (pipe, at) in enumerate(
            ((tunnel.from_client, EntryCell.CLIENT), (tunnel.from_server, EntryCell.SERVER))
        ):
            pipe.account = base + at
            self.note_told(pipe)
            if tunnel.settings.crash_safe:
                pipe.position = pipe.total | place(entry, direction) << POSITION_BITS
            if pipe.tracker is None:
                self.cells[pipe.account + _FRAME] = FRAME_LOST
            else:
                self.note_frame(pipe, pipe.tracker)
        tunnel.entry = entry

    def release(self, tunnel: Tunnel, state: State = State.FREE) -> None:
        """Takes a tunnel off the ledger: it ended, or (GONE) another worker has it. The entry of the latter
        is used again only after `free`."""
        entry = tunnel.entry
        if entry < 0:
            return
        self.cells[2 * entry] = state
        tunnel.entry = -1
        told = entry in self._held
        if told:
            self._held.discard(entry)
            self.worker.slab.cells[_SAFE] -= tunnel.settings.crash_safe
        self._unheld.pop(entry, None)
        for pipe in (tunnel.from_client, tunnel.from_server):
            if pipe.shelf >= 0:
                pipe.out = bytes(pipe.out)
                self.shelves.clear(pipe)
            pipe.account = 0
            pipe.position = pipe.total
        if state is State.FREE:
            self.free(entry, told=told)

    def free(self, entry: int, *, told: bool = True) -> None:
        """Makes `entry` one that may be used again, once the keeper was told (where it was `told` of it)."""
        self.cells[2 * entry] = State.FREE
        if told and self.channel is not None:
            self._undropped.append(entry)
        else:
            self._free.append(entry)

    def _take_entry(self) -> int:
        if self._free:
            return self._free.pop()
        if self._used >= self.area.entries:
            self._try_again()
            return -1
        self._used += 1
        self.cells[self.area.head + HeadCell.USED] = self._used
        return self._used - 1

    # --- what a direction writes down ----------------------------------------------------------------

    def note_frame(self, pipe: Pipe, tracker: FrameTracker) -> None:
        """Where the frame ends that the stream is in; nothing has to be said between two frames."""
        put_frame(self.area, pipe.account, pipe.total, tracker)

    def note_told(self, pipe: Pipe) -> None:
        """What of the stream the scoreboard has."""
        self.cells[pipe.account + DirectionCell.TOLD] = pipe.told_bytes
        self.cells[pipe.account + DirectionCell.MESSAGES] = pipe.messages

    def note_closing(self, tunnel: Tunnel, code: int) -> None:
        """`tunnel` is being closed with `code`, to which CLOSE_SEEN_* is added where the answer has come."""
        if tunnel.entry >= 0:
            self.cells[self.area.entry(tunnel.entry) + EntryCell.CLOSING] = code

    # --- what a predecessor left ---------------------------------------------------------------------

    def take_back(self, tunnel: Tunnel, entry: int) -> None:
        """`tunnel` goes on where the predecessor's at `entry` stood; the keeper has it already."""
        self._begin(tunnel, entry)
        for pipe in (tunnel.from_client, tunnel.from_server):
            self.shelves.take_back(pipe)
        self._told(tunnel)
        self.inherited.discard(entry)

    def disinherit(self, entry: int) -> None:
        """What the predecessor had at `entry` is over."""
        if entry in self.inherited:
            self.inherited.remove(entry)
            self.free(entry)

    def end_inheritance(self) -> int:
        """Whatever the keeper did not give back is nobody's: its entries and shelves may be used. Returns how
        many tunnels that are."""
        left = sum(self.cells[2 * entry] == State.HELD for entry in self.inherited)
        for entry in self.inherited:
            self.cells[2 * entry] = State.FREE
            self._free.append(entry)
        self.inherited = set()
        self.shelves.end_inheritance()
        return left
