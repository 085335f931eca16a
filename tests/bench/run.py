"""A run: starts what is needed, measures workload after workload, and ends all of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import large, machine, own, scenes
from tests.bench.generators import LoadError, server
from tests.bench.measure import Setting, compare
from tests.bench.proxies import KINDS, Proxy, Site
from tests.bench.workloads import WORKLOADS
from tests.harness.certificates import Authority

NAMES: Final = (
    *WORKLOADS,
    *scenes.MEMORY,
    *own.COMPARISONS,
    "start",
    "reload",
    "reload-large",
    "workers",
    "balance",
    "tunnels",
)


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    names: list[str]
    rounds: int
    seconds: float
    quick: bool
    code: Path


class Run:
    """Holds all that a run starts, until it is closed."""

    def __init__(self, plan: Plan, file_limit: int, say: Callable[[str], None]) -> None:
        self.plan = plan
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lb-bench-")))
        self._folder.chmod(0o755)  # nginx's workers may be another user's
        cores = machine.cores()
        (port,) = self._stack.enter_context(server(cores.load))
        self.setting = Setting(cores, port, plan.rounds, plan.seconds, file_limit, say, plan.quick)
        if not cores.apart:
            self.setting.note("one core alone: load and proxies disturb each other")
        certificate = Authority(self._folder).issue("bench.pem", "shop.example.com")
        self.site = Site(self._folder, certificate, port, plan.code)
        self.proxies = self._installed()

    def _installed(self, place: str = "") -> list[Proxy]:
        """A proxy of each kind that is installed, with its files in a folder of that `place`."""
        found: list[Proxy] = []
        for kind in KINDS:
            try:
                proxy = kind(self.site, f"{kind.program}{place}")
            except FileNotFoundError as error:
                if not place:
                    self.setting.note(str(error))
                continue
            self._stack.callback(proxy.stop)
            found.append(proxy)
        return found

    def close(self) -> None:
        """Ends all processes and removes all files."""
        self._stack.close()

    def all(self) -> None:
        """Measures everything that was asked for."""
        for name in self.plan.names:
            try:
                self._one(name)
            except (LoadError, OSError, AssertionError) as error:
                self.setting.failed(name, "lb", error)

    def _one(self, name: str) -> None:
        setting, site = self.setting, self.site
        match name:
            case "start":
                scenes.start(setting, self.proxies)
            case "workers":
                scenes.workers(setting, self._installed)
            case "balance":
                scenes.balance(setting, self.proxies)
            case "tunnels":
                large.tunnels(setting, site)
            case "reload-large":
                large.reload(setting, site)
            case _ if name in own.COMPARISONS:
                own.run(setting, name, site)
            case _ if name in scenes.MEMORY:
                scenes.memory(setting, name, self.proxies)
            case _:
                for proxy in self.proxies:
                    proxy.ensure(setting.cores.proxy)
                if name == "reload":
                    scenes.reload(setting, self.proxies)
                else:
                    compare(setting, WORKLOADS[name], self.proxies)
