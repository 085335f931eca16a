"""Keeps one source for each name and file that the configuration asks for, and tells what they found."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from lb.control.control import Control
from lb.control.discovery import picture
from lb.control.discovery.files import ServersFile
from lb.control.discovery.hosts import HostName
from lb.control.discovery.resolver import Resolver
from lb.control.discovery.services import ServiceName
from lb.control.discovery.source import Source, Value
from lb.control.spec import DiscoverSpec, Discovery, FoundServer

GATHER: Final = 0.05  # seconds in which changes are told together

Key = tuple[str, str, float]  # kind, name, refresh time
Servers = tuple[FoundServer, ...]


class Discoverer:
    """Finds what `control.spec` asks for, and tells `control.discovered` after every change."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._resolver = Resolver(())
        self._nameservers: tuple[str, ...] = ()
        self._hosts: dict[str, Source[tuple[str, ...]]] = {}
        self._lists: dict[Key, Source[Servers]] = {}
        self._running: dict[Source[Any], asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._released: dict[str, Servers] = {}  # by pool: what may be told
        self._told = Discovery()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def adopt(self) -> None:
        """`control.spec` was replaced. What stays asked for keeps its answer, and is not asked for anew,
        unless the name servers are others."""
        if self._control.spec.nameservers != self._nameservers:
            self._change_resolver()
        self._gather()
        self._start_and_stop()

    async def close(self) -> None:
        """Stops asking."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._running.values(), *self._ending]
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._resolver.close()

    # --- for those who look ------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What fails now, and what is left out of answers, a line for each."""
        found = ((source.what, source.problem or source.warning) for source in self._sources())
        return [f"{what}: {problem}" for what, problem in found if problem]

    def lookups(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Answers and failures so far by kind ("host", "srv", "file") and name."""
        found = {("host", name): (one.answers, one.failures) for name, one in self._hosts.items()}
        for (kind, name, _), one in self._lists.items():
            found[kind, name] = (one.answers, one.failures)
        return found

    def _sources(self) -> list[Source[Any]]:
        return [*self._hosts.values(), *self._lists.values()]

    # --- which sources there are -------------------------------------------------------------------------

    def _change_resolver(self) -> None:
        self._nameservers = self._control.spec.nameservers
        old, self._resolver = self._resolver, Resolver(self._nameservers)
        for name, host in self._hosts.items():
            self._stop(host)
            self._hosts[name] = self._start(self._host(name), host.value)
        for key, found in self._lists.items():
            if key[0] == "srv":
                self._stop(found)
                self._lists[key] = self._start(self._list(key), found.value)
        self._let_end(old.close())

    def _start_and_stop(self) -> None:
        """Brings the sources in line with what is asked for: by the specification, and by the servers that
        were found."""
        spec = self._control.spec
        keys = {key for one in spec.discover for key in picture.sources_of(one)}
        for key in self._lists.keys() - keys:
            self._stop(self._lists.pop(key))
        for key in keys - self._lists.keys():
            self._lists[key] = self._start(self._list(key), None)
        pools = {one.pool for one in spec.discover}
        self._released = {pool: servers for pool, servers in self._released.items() if pool in pools}
        found = [servers for one in spec.discover if (servers := self._merged(one)) is not None]
        names = picture.hosts_of(spec, [*found, *self._released.values()])
        for name in self._hosts.keys() - names:
            self._stop(self._hosts.pop(name))
        for name in names - self._hosts.keys():
            self._hosts[name] = self._start(self._host(name), None)

    def _host(self, name: str) -> Source[tuple[str, ...]]:
        last = self._hosts[name].value if name in self._hosts else None
        asks = HostName(self._resolver, name, last or ())
        return Source(f"host {name}", asks.ask, self._changed, self._control.log, self._control.events)

    def _list(self, key: Key) -> Source[Servers]:
        kind, name, refresh = key
        control = self._control
        if kind == "srv":
            service = ServiceName(self._resolver, name)
            return Source(f"srv://{name}", service.ask, self._changed, control.log, control.events)
        file = ServersFile(name, refresh)
        return Source(
            f"file {name}", file.ask, self._changed, control.log, control.events, looks_every=refresh
        )

    def _start(self, source: Source[Value], value: Value | None) -> Source[Value]:
        source.value = value
        task = asyncio.get_running_loop().create_task(source.run(), name=source.what)
        task.add_done_callback(self._ended)
        self._running[source] = task
        return source

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._control.log.error("discovery broke down", source=task.get_name(), error=error)

    def _stop(self, source: Source[Any]) -> None:
        task = self._running.pop(source)
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _let_end(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    # --- what is told ------------------------------------------------------------------------------------

    def _changed(self) -> None:
        if not self._closed:
            self._gather()

    def _gather(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._start_and_stop()
        for one in self._control.spec.discover:
            servers = self._merged(one)
            if servers is not None and self._resolved(servers):
                self._released[one.pool] = servers
        now = Discovery(
            servers=dict(self._released),
            addresses={name: host.value for name, host in self._hosts.items() if host.value is not None},
        )
        self._start_and_stop()  # nobody needs the names of servers that went away
        if picture.is_news(self._told, now):
            self._control.discovered(now)
        self._told = now

    def _merged(self, spec: DiscoverSpec) -> Servers | None:
        """What the sources of a pool found; `None` before each was asked once and one has answered: half a
        pool is not told as if it were the whole."""
        sources = [self._lists[key] for key in picture.sources_of(spec) if key in self._lists]
        answers = [source.value for source in sources if source.value is not None]
        if not answers or not all(source.settled for source in sources):
            return None
        return picture.merged(answers)

    def _resolved(self, servers: Servers) -> bool:
        """Whether each host name of `servers` was asked for once, so that its addresses go with it."""
        names = filter(None, map(picture.host_to_resolve, servers))
        return all(name in self._hosts and self._hosts[name].settled for name in names)
