"""Files that list servers, looked at every second or so.

A look is a stat, and a read where that differs. It is done in a thread of its own, so a disk that hangs
stops nothing else, not even the end of this process.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from lb.config.serversfile import read_servers_file
from lb.control.discovery.source import Answer, Failed
from lb.control.spec import FoundServer

# A file that was written just now may be written again without a new time stamp (a tick of the kernel is up
# to 10 ms; network file systems are coarser).
_SETTLED: Final = 1_000_000_000
MAX_HANGING: Final = 4


class Signature(NamedTuple):
    """What differs when a file, or where a symbolic link leads, was changed."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


class Look(NamedTuple):
    """What one look found. `signature` is `None` where the next one has to read again."""

    servers: tuple[FoundServer, ...]
    signature: Signature | None


def look(path: Path, last: Look | None) -> Look:
    """Reads the file, unless it is as it was at the `last` look. Blocks. Raises OSError, ValueError."""
    # Before the read: what is changed between the two is seen the next time.
    status = path.stat()
    signature = Signature(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )
    if last is not None and last.signature == signature:
        return last
    fresh = time.time_ns() - status.st_mtime_ns < _SETTLED
    return Look(read_servers_file(path), None if fresh else signature)


class ServersFile:
    """Looks at one file."""

    def __init__(self, path: str, refresh: float) -> None:
        self._path = Path(path)
        self._refresh = refresh
        self._last: Look | None = None
        self._hanging: list[threading.Thread] = []  # looks that were given up, or go on

    async def ask(self) -> Answer[tuple[FoundServer, ...]]:
        """Its servers. Raises `Failed`; what could not be read is read again the next time."""
        last, self._last = self._last, None
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        if len(self._hanging) >= MAX_HANGING:
            raise Failed(f"{MAX_HANGING} looks at it hang: is its file system there?")
        try:
            self._last = await in_thread(
                lambda: look(self._path, last), f"look at {self._path}", self._hanging
            )
        except OSError as error:
            raise Failed(error.strerror or str(error)) from error
        except MemoryError as error:
            raise Failed("takes more memory than there is") from error
        except ValueError as error:
            raise Failed(str(error)) from error
        return Answer(self._last.servers, self._refresh)


async def in_thread(function: Callable[[], Look], name: str, threads: list[threading.Thread]) -> Look:
    """What `function` returns or raises. `threads` gets the thread that it runs in: a daemon, which those of
    `asyncio.to_thread` are not: one that hangs would be waited for at the end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Look] = loop.create_future()

    def tell(result: Look | Exception) -> None:
        if future.done():  # nobody waits any more
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    def work() -> None:
        result: Look | Exception
        try:
            result = function()
        except Exception as error:  # whatever it is: somebody waits for it
            result = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result)

    thread = threading.Thread(target=work, name=name, daemon=True)
    threads.append(thread)
    thread.start()
    return await future
