"""One direction of a tunnel: the hottest loop of the product.

A chunk costs one recv into the worker's relay buffer and one send out of it; nothing is allocated and
nothing is kept, unless the reader is slow: then the rest of the one chunk is kept, and its writer is read
again when it is gone. What of that must outlive the worker is on the ledger (`workers.contract.ledger`):
before a chunk is received its position is marked, and what is kept lies on a shelf.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, cast

from workers.contract.cells import RouteCell
from workers.contract.entries import POSITION, POSITION_BITS
from workers.core.frames import MEDIUM, MESSAGE, WHOLE, FrameTracker
from workers.io.endpoint import has_failed
from workers.io.tls import Stream, TlsStream, TlsTruncated

if TYPE_CHECKING:
    from workers.io.tunnel import Tunnel

# So many beginnings of the relay buffer are made once, and not anew for each short message.
PIECES: Final = 512
_CLIENT_BYTES: Final = int(RouteCell.CLIENT_BYTES)
_SERVER_BYTES: Final = int(RouteCell.SERVER_BYTES)
_FARTHEST: Final = 1 << (POSITION_BITS - 1)
# From the cell of a direction's bytes to that of its messages.
_TO_MESSAGES: Final = int(RouteCell.CLIENT_MESSAGES) - _CLIENT_BYTES


class Pipe:
    """One direction of a tunnel. `out` is what the sink did not take; the source is paused meanwhile.

    `position` counts the bytes that came, with the direction's place on the ledger above them; `shift` is how
    many bytes more than those went on: frames of our own, less pongs that were meant for us. `closed` says
    that a Close was the last to go on, whatever may come after it."""

    __slots__ = (
        "account", "cell", "closed", "ended", "name", "on_chunk", "out", "position", "reading", "shelf",
        "shift", "sink", "sink_fd", "source", "source_fd", "told", "told_bytes", "told_messages", "tracker",
        "tunnel", "worker",
    )  # fmt: skip
    __deletable__: ClassVar = ["tunnel"]

    def __init__(self, tunnel: Tunnel, name: str, source: Stream, sink: Stream) -> None:
        self.tunnel = tunnel
        self.worker = tunnel.worker
        self.name = name  # whose words these are: "client" or "server"
        self.source = source
        self.sink = sink
        self.source_fd = source.fileno()
        self.sink_fd = sink.fileno()
        self.tracker = FrameTracker() if tunnel.settings.inspect else None
        self.cell = tunnel.route.base + (_CLIENT_BYTES if name == "client" else _SERVER_BYTES)
        self.position = 0
        self.shift = 0
        self.closed = False
        # What the route's cells have of it. They are brought up to date once a tick: to count in them with
        # each small chunk would cost a tenth of relaying it.
        self.told = True  # all
        self.told_bytes = 0
        self.told_messages = 0
        self.out: bytes | memoryview = b""
        self.account = 0  # index of this direction's cells on the ledger; 0 while it is not there
        self.shelf = -1  # where `out` lies, if it lies on one
        self.on_chunk: Callable[[], None] | None = None  # what reads in place of `on_readable`
        self.reading = False
        self.ended = False  # whether the source has sent its end

    @property
    def total(self) -> int:
        """How many bytes came from the source."""
        return self.position & POSITION

    @property
    def messages(self) -> int:
        """WebSocket messages that passed; 0 where they are not looked at."""
        return self.tracker.messages if self.tracker is not None else 0

    # --- relaying ------------------------------------------------------------------------------------

    def on_readable(self) -> None:
        """Relays one chunk."""
        if self.out:
            self.pause()
            return
        worker = self.worker
        view = worker.relay
        worker.mark[0] = self.position
        try:
            size = self.source.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return
        except TlsTruncated:
            size = 0  # no close_notify: WebSocket's own Close says whether the end was meant
        except OSError:
            self.tunnel.broken(self.name)
            return
        if size == 0:
            self._end()
            return
        self.position += size
        if self.told:
            self.told = False
            worker.untold.append(self)
        tunnel = self.tunnel
        tunnel.seen = worker.now
        tracker = self.tracker
        if tracker is not None:
            second = view[1]
            if tracker.left > size:
                tracker.left -= size  # the middle of a long message
            elif (
                (size == WHOLE[second] or size == (view[2] << 8 | view[3]) + MEDIUM[second])
                and tracker.at_boundary
                and MESSAGE[view[0]]
            ):
                tracker.messages += 1  # nearly always: one message of less than 64 KiB and nothing else
            else:
                self._follow(tracker, view, size)
        try:
            sent = self.sink.send(worker.pieces[size] if size < PIECES else view[:size])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            tunnel.sink_failed(self)
            return
        if sent < size:
            self.keep(view[sent:size])

    def _follow(self, tracker: FrameTracker, data: bytes | memoryview, size: int) -> None:
        tracker.feed(data, 0, size)
        if not tracker.at_boundary and self.account:
            self.worker.keeping.note_frame(self, tracker)
        if tracker.close_code is not None and not self.tunnel.closer:
            self.tunnel.closer = self.name

    def receive(self, most: int) -> int:
        """Receives up to `most` bytes into the worker's relay buffer, for those that read in place of
        `on_readable`, and takes them into the figures. Raises `OSError` as recv does."""
        worker = self.worker
        worker.mark[0] = self.position
        size = self.source.recv_into(worker.relay[:most])
        if size:
            self.count(worker.relay, size)
        return size

    def count(self, data: bytes | memoryview, size: int) -> None:
        """Takes the first `size` bytes of `data` into the figures; `on_readable` has that written out."""
        self.position += size
        if self.told:
            self.told = False
            self.worker.untold.append(self)
        if self.tracker is not None:
            self._follow(self.tracker, data, size)

    def push(self, data: bytes) -> None:
        """Relays bytes that were read before the tunnel began."""
        if data:
            self.count(data, len(data))
            self.keep(data)

    def tell(self) -> None:
        """Brings the route's cells up to date."""
        cells = self.worker.slab.cells
        cell = self.cell
        count = self.position & POSITION
        cells[cell] += count - self.told_bytes
        self.told_bytes = count
        if count >= _FARTHEST and self.account:
            # Its positions would reach into the bits of its place: 32 TiB are enough for a crash-safe tunnel.
            self.worker.keeping.release(self.tunnel)
        messages = self.messages
        if messages != self.told_messages:
            cells[cell + _TO_MESSAGES] += messages - self.told_messages
            self.told_messages = messages
        if self.account:
            self.worker.keeping.note_told(self)
        self.told = True

    # --- what the sink does not take -----------------------------------------------------------------

    def keep(self, rest: bytes | memoryview) -> None:
        """The kernel takes no more: `rest`, behind what waits already, waits for it."""
        self.put(b"".join((self.out, rest)) if self.out else rest)
        self.worker.loop.add_writer(self.sink_fd, self.on_writable)

    def put(self, data: bytes | memoryview) -> None:
        """Makes `data` what waits, on the ledger too. Nothing else may be received before this."""
        self.out = self.worker.keeping.shelves.put(self, data) if self.account else bytes(data)

    def send(self, data: bytes | memoryview) -> None:
        """Sends `data`, which was received, behind what waits."""
        if self.out:
            self.keep(data)
            return
        try:
            sent = self.sink.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.tunnel.sink_failed(self)
            return
        if sent < len(data):
            self.keep(data[sent:])

    def inject(self, data: bytes, *, last: bool = False) -> None:
        """Sends `data`, a frame of our own, behind what waits; with `last` it is the last that goes on. To be
        called between two frames."""
        self.shift += len(data)
        self.closed = last
        if self.out or not self.account:
            self.send(data)
            return
        # On the ledger before any of it is sent.
        self.put(data)
        try:
            sent = self.sink.send(self.out)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.tunnel.sink_failed(self)
            return
        self.out = self.out[sent:]
        if self.out:
            self.worker.loop.add_writer(self.sink_fd, self.on_writable)
        else:
            self.drained()

    def swallow(self, size: int) -> None:
        """Takes `size` bytes that were seen to be there (MSG_PEEK) from the source: they are for us, and go
        no further. To be called while nothing waits. Raises `OSError` as recv does."""
        self.shift -= self.receive(size)
        if self.account:
            self.put(b"")

    def finish(self) -> None:
        """What goes on has ended with the Close that passed last."""
        self.closed = True
        if self.account:
            self.worker.keeping.shelves.restate(self)

    def give_up(self) -> None:
        """The sink is to be sent nothing any more, not even what waits."""
        self.shift -= len(self.out)
        self.closed = True
        self.put(b"")
        self.worker.loop.remove_writer(self.sink_fd)

    def discard(self, most: int) -> int:
        """As `receive`, for what is not to go on."""
        size = self.receive(most)
        self.shift -= size
        return size

    def on_writable(self) -> None:
        """Sends on what waits."""
        try:
            sent = self.sink.send(self.out) if self.out else 0
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.tunnel.sink_failed(self)
            return
        self.out = self.out[sent:]
        self.tunnel.seen = self.worker.now
        if self.out:
            return
        self.drained()
        self.worker.loop.remove_writer(self.sink_fd)
        tunnel = self.tunnel
        if tunnel.closing is not None:
            tunnel.closing.look()
            if not tunnel.open:
                return
        if tunnel.both_ended():
            tunnel.close()
        elif self.ended:
            self._pass_end()
        else:
            self.resume()

    def drained(self) -> None:
        """Nothing waits any more."""
        self.out = b""
        if self.shelf >= 0:
            self.worker.keeping.shelves.clear(self)

    # --- reading, or not -----------------------------------------------------------------------------

    def resume(self) -> None:
        """Reads the source (again)."""
        if not self.reading and not self.ended:
            self.reading = True
            self.worker.loop.add_reader(self.source_fd, self.on_chunk or self.on_readable)

    def pause(self) -> None:
        """Leaves the source alone until the sink has taken what there is, or for good after its end; a reset
        of it is still heard of."""
        if self.reading:
            self.reading = False
            self.worker.loop.mute_reader(self.source_fd, self.on_hangup)

    def read_by(self, on_chunk: Callable[[], None] | None) -> None:
        """Lets `on_chunk` read in place of `on_readable`, which `None` puts back."""
        self.on_chunk = on_chunk
        if self.reading:
            self.worker.loop.add_reader(self.source_fd, on_chunk or self.on_readable)

    def on_hangup(self) -> None:
        """The source, which is not read now, was reset or has ended for good."""
        tunnel = self.tunnel
        if tunnel.open and not self.reading and has_failed(self.source):
            tunnel.failed(self.name)

    def abandon(self) -> None:
        """Ends the tunnel at once."""
        self.tunnel.broken(self.name)

    def _end(self) -> None:
        self.ended = True
        tunnel = self.tunnel
        if not tunnel.closer:
            tunnel.closer = self.name
        if tunnel.both_ended():
            tunnel.close()  # which says it to both
            return
        self.pause()  # a reader left armed after the end spins
        if not self.out:
            self._pass_end()

    def _pass_end(self) -> None:
        """The source said all it has to say: the sink shall know."""
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except BlockingIOError:  # close_notify, sent in part
            self.worker.loop.add_writer(self.sink_fd, self.on_writable)
            return
        except OSError:
            self.tunnel.sink_failed(self)

    def detach(self) -> None:
        """Unregisters what this direction watches."""
        self.reading = False
        self.worker.loop.remove_reader(self.source_fd)
        self.worker.loop.remove_writer(self.sink_fd)

    def attach(self) -> None:
        """Watches again what it has to."""
        loop = self.worker.loop
        if self.out:
            loop.add_writer(self.sink_fd, self.on_writable)
        if self.ended:
            loop.mute_reader(self.source_fd, self.on_hangup)
        else:
            self.resume()


class TlsPipe(Pipe):
    """A direction whose source is TLS: the kernel knows nothing of what OpenSSL holds already."""

    __slots__ = ()

    def on_readable(self) -> None:
        super().on_readable()
        while self.reading and not self.out and self._stream.deferred is not None:
            super().on_readable()

    def resume(self) -> None:
        super().resume()
        if self.reading and self._stream.pending():
            self.worker.loop.call_soon(self._on_held)

    @property
    def _stream(self) -> TlsStream:
        return cast(TlsStream, self.source)

    def _on_held(self) -> None:
        if self.reading and self._stream.pending():
            (self.on_chunk or self.on_readable)()
