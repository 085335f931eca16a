"""A load generator: `python -m tests.bench.load OPTIONS`, with `tests.bench.engine.Options` as JSON.

Opens its connections, prints READY, waits for a line, drives the load, prints what it measured as a line of
JSON, waits for another line, and closes the connections. It ends when stdin does.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from pathlib import Path
from typing import Final

from tests.bench.engine import Engine, Options, summary
from tests.bench.exchanges import ClosedLoop, OpenLoop
from tests.bench.limits import raise_file_limit
from tests.bench.openings import Connecting, Handshakes
from tests.bench.tunnels import Fan, Tunnels

MODES: Final[dict[str, type[Engine]]] = {
    "closed": ClosedLoop,
    "rate": OpenLoop,
    "connect": Connecting,
    "handshake": Handshakes,
    "echo": Tunnels,
    "fan": Fan,
}


def main() -> None:
    """See the module."""
    raise_file_limit()
    with contextlib.suppress(OSError):  # exact timers, for the fixed rate
        Path("/proc/self/timerslack_ns").write_text("1000", encoding="ascii")
    options = Options(**json.loads(sys.argv[1]))
    engine = MODES[options.mode](options)
    try:
        engine.prepare()
    except (OSError, ConnectionError) as error:
        print(f"can't connect: {error}", flush=True)
        return
    gc.collect()
    gc.disable()
    print("READY", flush=True)
    while sys.stdin.readline().strip() == "go":
        engine.reset()
        engine.start()
        seconds = engine.run(options.seconds)
        print(json.dumps(summary(engine, seconds)), flush=True)


if __name__ == "__main__":
    main()
