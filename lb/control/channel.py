"""The control process's end of the channel to the master, on its event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from lb.control.messages import ToControl, receive_in_control
from workers.contract import messages
from workers.contract.messages import Message

MAX_WAITING: Final = 1024

Took = Callable[[ToControl, list[int]], None]


class Channel:
    """Reads messages and queues what the socket doesn't take, bounded. `took` gets each message, and owns
    its descriptors; `gone` is called once when the master is gone, or can't be trusted any more."""

    def __init__(self, sock: socket.socket, took: Took, gone: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._took = took
        self._gone = gone
        self._waiting: deque[tuple[Message, tuple[int, ...]]] = deque()
        self._closed = False
        self._loop.add_reader(sock, self._read)

    def send(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Sends or queues `message`; false where there is no room or nobody to hear it. The descriptors stay
        the caller's, who may close them at once."""
        if self._closed:
            return False
        if not self._waiting and self._try(message, fds):
            return True
        if self._closed or len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append((message, tuple(map(os.dup, fds))))
        self._loop.add_writer(self._socket, self._flush)
        return True

    def close(self) -> None:
        """Lets go of the master."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        while self._waiting:
            _close(self._waiting.popleft()[1])

    def _try(self, message: Message, fds: Sequence[int]) -> bool:
        try:
            messages.send(self._socket, message, fds)
        except BlockingIOError:
            return False
        except messages.ChannelError:
            raise  # too large: a fault of the caller, not of the channel
        except OSError as error:
            self._lose(str(error))
            return False
        return True

    def _flush(self) -> None:
        while self._waiting and not self._closed:
            message, fds = self._waiting[0]
            if not self._try(message, fds):
                return
            self._waiting.popleft()
            _close(fds)
        if not self._closed:
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            received = receive_in_control(self._socket)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(str(error))
            return
        if received is None:
            self._lose("the master is gone")
            return
        self._took(*received)

    def _lose(self, why: str) -> None:
        self.close()
        self._gone(why)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
