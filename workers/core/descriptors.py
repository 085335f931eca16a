"""How many connections fit into a limit of open files."""

from __future__ import annotations

from typing import Final

# What belongs to no connection: listeners, channels, logs, idle connections to servers, and tunnels that are
# on their way to or from another worker.
SPARE: Final = 256


def connection_cap(open_files: int) -> int:
    """How many client connections a worker may have whose process may have `open_files` descriptors: each
    costs two, its own and its server's. With a low limit a quarter is spared, not SPARE."""
    return max(1, (open_files - min(SPARE, open_files // 4)) // 2)
