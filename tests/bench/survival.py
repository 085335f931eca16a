"""Tunnels through everything: `python -m tests.bench.survival [kills|everything|drain] [--tunnels 1000]`.

`kills` kills workers at random with SIGKILL. `everything` upgrades in place (once to a release that does not
work), scales between one and four workers, and reloads, all at once with HTTP requests. `drain` takes a
server out and prints when its tunnels were closed. Each tunnel has numbered messages of 32 bytes to 200 KiB
both ways, every byte is compared, and a quarter is compressed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from lb.demo.load import TRAFFIC, Account, Load
from lb.demo.messages import Terms
from tests.harness import LoadBalancer, eventually
from tests.harness.chaos import Ordeal, broken_release, http_load, release, tables

RATE: Final = 1500.0  # messages a second, both ways, of all tunnels
LIBRARY: Final = "tests.harness.library_traffic"
SECONDS: Final = 30  # of a drain
_BAR: Final = 50


class Bench:
    """One load balancer with its load, as the options say."""

    def __init__(self, options: argparse.Namespace, folder: pathlib.Path, load: Load) -> None:
        self.options = options
        self.load = load
        more = {"drain": {"hard_stop": "60s", "spread": f"{SECONDS}s", "close_code": 1012}}
        configured = tables(load, workers=options.workers, access_log={"path": "off"}, **more)
        self.lb = LoadBalancer(folder, configured, code=release(folder / "release")).start()
        self.ordeal = Ordeal(self.lb, options.seed)
        self.longest: list[float] = []

    def open(self) -> None:
        """All tunnels, a quarter of them compressed."""
        tunnels = self.options.tunnels
        rate = min(5.0, RATE / 2 / tunnels)
        began = time.monotonic()
        self.load.open(self.lb.port, tunnels - tunnels // 4, Terms(rate=rate), within=120)
        self.load.open(self.lb.port, tunnels // 4, Terms(rate=rate, deflate=True), within=120)
        self.ordeal.wait_held(tunnels)
        took = time.monotonic() - began
        print(f"{tunnels:,} tunnels, {rate:.2g} messages/s each way; open after {took:.1f} s")

    def look(self, what: str, began: float) -> None:
        """Prints a line about what was done. Raises `AssertionError` where something was lost."""
        account = self.load.account()
        self.longest.append(account.longest)
        print(f"{what:40} {time.monotonic() - began:6.2f} s   longest pause {account.longest * 1000:5.0f} ms")
        assert account.whole, account

    def end(self) -> Account:
        """The exact end, and what must be as at the start."""
        account = self.load.stop(120)
        print(account)
        if self.longest:
            print(f"longest pause {max(self.longest) * 1000:.0f} ms; done: {dict(self.ordeal.done)}")
        assert account.whole, account
        self.ordeal.assert_nothing_is_left()
        print("gauges, ledger, descriptors and memory are as at the start")
        return account

    # --- what is done ----------------------------------------------------------------------------

    def kills(self) -> None:
        """SIGKILL of random workers, one after the other."""
        for number in range(self.options.kills):
            began = time.monotonic()
            pid = self.ordeal.kill()
            self.ordeal.wait_held(self.options.tunnels)
            self.look(f"kill -9 {number + 1}: {pid}", began)

    def everything(self) -> None:
        """Upgrades, scalings and reloads, under HTTP load."""
        options, random = self.options, self.ordeal.random
        deeds = ["upgrade"] * options.upgrades + ["scale"] * options.scalings + ["reload"] * options.reloads
        random.shuffle(deeds)
        broken = deeds.index("upgrade") if options.upgrades else -1
        acts: dict[str, Callable[[], object]] = {
            "upgrade": self.ordeal.upgrade,
            "scale": lambda: self.ordeal.scale(random.randint(1, 4)),
            "reload": self.ordeal.reload,
        }
        with http_load(self.lb.port) as http:
            for number, deed in enumerate(deeds):
                began = time.monotonic()
                if number == broken:
                    with broken_release(self.lb):
                        self.ordeal.upgrade(works=False)
                else:
                    acts[deed]()
                self.look(f"{deed} {number + 1} of {len(deeds)}", began)
        print(f"{http.done:,} HTTP requests, {len(http.lost)} failed, {http.crossed} sent again")
        assert not http.lost, http.lost[:5]

    def drain(self) -> None:
        """A server is drained: when were its tunnels closed, and how?"""
        server = self.load.addresses[0]
        done = self.lb.command("server", f"main/{server}", "drain", "-c", str(self.lb.file))
        assert done.returncode == 0, done.stderr
        began = time.time()

        def drained() -> bool:
            pools = self.lb.admin("pools")
            return not any(
                one["tunnels"] for pool in pools for one in pool["servers"] if one["name"] == server
            )

        eventually(drained, "the server has no tunnels", SECONDS * 2)
        account, closes = self.load.account(), self.load.closes()
        print(account)
        assert set(account.closed) == {"1012"}, account
        print(f"closes by code: {dict(Counter(code for _, code in closes))}")
        seconds = Counter(int(at - began) for at, _ in closes)
        most = max(seconds.values(), default=1)
        for second in range(max(seconds, default=0) + 1):
            print(f"{second:3} s {seconds[second]:5} {'#' * round(seconds[second] / most * _BAR)}")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="kills", choices=("kills", "everything", "drain"))
    parser.add_argument("--tunnels", type=int, help="default: 1000, half of them to a server; drain: 4000")
    for name, default in (("kills", 50), ("upgrades", 20), ("scalings", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("reloads", 100), ("workers", 2), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--library", action="store_true", help="the library websockets at both ends")
    options = parser.parse_args()
    options.tunnels = options.tunnels or (4000 if options.what == "drain" else 1000)
    module = LIBRARY if options.library else TRAFFIC
    print(f"{os.cpu_count()} cores, {options.workers} workers", flush=True)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder, Load(clients=module, serving=module) as load:
        bench = Bench(options, pathlib.Path(folder), load)
        try:
            bench.open()
            getattr(bench, options.what)()
            if options.what != "drain":
                bench.end()
        finally:
            bench.load.close()
            bench.lb.stop(within=90)
            bench.lb.remove_sockets()
    return 0


if __name__ == "__main__":
    sys.exit(main())
