"""WebSocket ends by hand that read all the time and answer pings, or don't."""

from __future__ import annotations

import queue
import threading

from tests.harness import websocket as ws
from tests.harness.client import RawClient
from tests.harness.upstream import Connection


class Side:
    """One end by hand: notes what it reads, and answers pings unless it is told not to."""

    def __init__(self, reader: Connection | RawClient, *, masked: bool, answers: bool = True) -> None:
        self.reader = reader
        self.masked = masked
        self.answers = answers
        self.pings: list[bytes] = []
        self.frames: queue.Queue[ws.Frame] = queue.Queue()  # all but pings
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            while True:
                frame = ws.read_frame(self.reader)
                if frame.opcode == ws.PING and len(frame.payload) == 8:
                    self.pings.append(frame.payload)
                    if self.answers:
                        self.send(frame.payload, ws.PONG)
                    continue
                self.frames.put(frame)
                if frame.opcode == ws.CLOSE:
                    self.send(frame.payload, ws.CLOSE)
                    return
        except (OSError, AssertionError, ValueError):
            return
        finally:
            self.over.set()

    def send(self, payload: bytes, opcode: int = ws.BINARY) -> None:
        self.reader.send(ws.frame(payload, opcode, masked=self.masked))

    def next(self) -> ws.Frame:
        return self.frames.get(timeout=20)


class Server:
    """Its WebSockets become `Side`s; `sides` hands them out."""

    def __init__(self, *, answers: bool = True) -> None:
        self.answers = answers
        self.sides: queue.Queue[Side] = queue.Queue()

    def __call__(self, connection: Connection) -> None:
        head = connection.read_head()
        assert head is not None
        ws.accept(connection, head)
        side = Side(connection, masked=False, answers=self.answers)
        self.sides.put(side)
        side.over.wait(30)
        connection.wait_closed()
