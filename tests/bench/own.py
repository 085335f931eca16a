"""lb compared with itself: what a feature or a large configuration costs, in rounds that alternate."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.bench import machine, wire
from tests.bench.generators import server
from tests.bench.measure import Setting, compare
from tests.bench.proxies import Lb, Proxy, Site
from tests.bench.workloads import WORKLOADS, Workload
from tests.harness.balancer import ROOT
from tests.harness.figures import probe

Tables = dict[str, Any]
Change = Callable[[Tables], None]


@dataclass(frozen=True)
class Variant:
    """One lb of a comparison, by what its configuration has that the other's does not."""

    name: str
    change: Change
    scraped: bool = False
    code: Path | None = None  # of this lb, where it is not that of the others


def _nothing(tables: Tables) -> None:
    """The default."""


def _routes(tables: Tables) -> None:
    tables["route"] = [
        {"name": f"r{number:03d}", "path": f"/s/r{number:03d}/*", "pool": "main"}
        for number in range(wire.ROUTES)
    ] + tables["route"]


def _log(tables: Tables) -> None:
    tables["access_log"] = {"path": "@FOLDER@/access.log"}


def _no_metrics(tables: Tables) -> None:
    del tables["metrics"]


def _not_crash_safe(tables: Tables) -> None:
    tables["route"][0]["websocket"] = {"crash_safe": False}


def _no_inspection(tables: Tables) -> None:
    tables["route"][0]["websocket"] = {"inspect": False}


_HTTP: Final = WORKLOADS["http-small"]
_WS: Final = WORKLOADS["ws-small"]
# Which load, and the variants; the first is the one that the others are compared with.
COMPARISONS: Final[Mapping[str, tuple[Workload, tuple[Variant, ...]]]] = {
    "form": (
        replace(_HTTP, name="form"),
        (Variant("interpreted", _nothing, code=ROOT), Variant("compiled", _nothing)),
    ),
    "form-ws": (
        replace(_WS, name="form-ws"),
        (Variant("interpreted", _nothing, code=ROOT), Variant("compiled", _nothing)),
    ),
    "routes": (
        replace(_HTTP, name="routes", routes=wire.ROUTES),
        (Variant("one route", _nothing), Variant("500 routes", _routes)),
    ),
    "servers": (replace(_HTTP, name="servers"), (Variant("one server", _nothing),)),
    "log": (
        replace(_HTTP, name="log"),
        (Variant("no access log", _nothing), Variant("access log, JSON", _log)),
    ),
    "metrics": (
        replace(_HTTP, name="metrics"),
        (
            Variant("no metrics", _no_metrics),
            Variant("metrics, scraped every second", _nothing, scraped=True),
        ),
    ),
    "crash-safe": (
        replace(_WS, name="crash-safe"),
        (
            Variant("crash-safe", _nothing),
            Variant("not crash-safe", _not_crash_safe),
            Variant("not inspected", _no_inspection),
        ),
    ),
}
_SERVERS: Final = 200


class Changed(Lb):
    """An lb with a changed configuration."""

    def __init__(self, site: Site, place: str, variant: Variant) -> None:
        super().__init__(replace(site, code=variant.code or site.code), place)
        self.name = variant.name
        self.variant = variant

    def tables(self, workers: int) -> Tables:
        """The configuration."""
        tables = super().tables(workers)
        self.variant.change(tables)
        tables["access_log"] = {
            key: value.replace("@FOLDER@", str(self.folder)) for key, value in tables["access_log"].items()
        }
        return tables


class Scraper:
    """Asks for the metrics every second, as Prometheus does."""

    def __init__(self, proxy: Lb) -> None:
        self._proxy = proxy
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.scrapes = 0

    def _run(self) -> None:
        while not self._ended.wait(1.0):
            if probe(self._proxy.lb, "/metrics").status == 200:
                self.scrapes += 1

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def run(setting: Setting, name: str, site: Site) -> None:
    """Measures one of `COMPARISONS`."""
    if name in ("form", "form-ws") and not machine.is_compiled(site.code):
        setting.note(f"{name}: not measured: lb is not compiled here (make compiled)")
        return
    workload, variants = COMPARISONS[name]
    with contextlib.ExitStack() as stack:
        if name == "servers":
            variants += (Variant(f"{_SERVERS} servers", _servers(stack, setting)),)
        proxies: list[Proxy] = []
        for number, variant in enumerate(variants):
            proxy = Changed(site, f"{name}-{number}", variant)
            stack.callback(proxy.stop)
            proxy.start(setting.cores.proxy)
            if variant.scraped:
                proxy.lb.wait_control()
                stack.enter_context(Scraper(proxy))
            proxies.append(proxy)
        setting = replace(setting, rounds=min(3, setting.rounds))
        if any(variant.scraped for variant in variants):
            # Each round has its whole number of scrapes.
            setting = replace(setting, seconds=max(1.0, round(setting.seconds)))
        compare(setting, workload, proxies)


def _servers(stack: contextlib.ExitStack, setting: Setting) -> Change:
    ports = stack.enter_context(server(setting.cores.load, _SERVERS))

    def change(tables: Tables) -> None:
        tables["pool"]["main"]["servers"] = [f"127.0.0.1:{port}" for port in ports]

    return change
