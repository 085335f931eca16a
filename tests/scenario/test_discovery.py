"""Discovery against a real name server (Debian's dnsmasq) and real files, without a load balancer."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lb.config.serversfile import parse_servers
from lb.control.discovery import Discoverer, files
from lb.control.spec import ControlSpec, DiscoverSpec, Discovery, FoundServer
from tests.harness.control import StandInControl
from tests.harness.nameserver import DNSMASQ, NameServer

pytestmark = pytest.mark.scenario
needs_dnsmasq = pytest.mark.skipif(DNSMASQ is None, reason="dnsmasq is not installed")


async def soon(condition: Callable[[], Any], what: str, within: float = 30.0) -> None:
    """Waits until `condition` is true."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        await asyncio.sleep(0.02)


class Bench:
    """A discoverer and the stand-in that it tells."""

    def __init__(self, control: StandInControl) -> None:
        self.control = control
        self.discoverer = Discoverer(control)

    def ask(self, **spec: Any) -> None:
        """Adopts another specification."""
        self.control.spec = ControlSpec(generation=1, config_path="/lb.toml", config_text="", **spec)
        self.discoverer.adopt()

    @property
    def found(self) -> Discovery:
        """What was told last."""
        return self.control.discoveries[-1] if self.control.discoveries else Discovery()

    def addresses(self, name: str) -> tuple[str, ...]:
        return self.found.addresses.get(name, ())

    def names(self, pool: str) -> list[str] | None:
        servers = self.found.servers.get(pool)
        return None if servers is None else [server.name for server in servers]

    def fails(self, what: str) -> bool:
        return any(problem.startswith(f"{what}:") for problem in self.discoverer.problems())


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    """A discoverer that is closed at the end."""
    with StandInControl() as control:
        made = Bench(control)
        try:
            yield made
        finally:
            await made.discoverer.close()


def run(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with bench() as made:
            await asyncio.wait_for(test(made), 60)

    asyncio.run(main())


@pytest.fixture
def names(tmp_path: Path) -> Iterator[NameServer]:
    with NameServer(tmp_path) as server:
        yield server


# --- host names ------------------------------------------------------------------------------------------


@needs_dnsmasq
def test_names_are_asked_for_again_when_their_ttl_is_over_and_not_before(names: NameServer) -> None:
    names.restart("host-record=slow.test,10.0.0.9,600")
    names.set_hosts(quick=["10.0.0.2", "10.0.0.1", "fd00::1"])

    async def test(bench: Bench) -> None:
        bench.ask(nameservers=(names.address,), names=("quick.test", "slow.test"))
        await soon(lambda: bench.addresses("quick.test") and bench.addresses("slow.test"), "both are found")
        assert bench.addresses("quick.test") == ("10.0.0.1", "10.0.0.2", "fd00::1")
        assert bench.addresses("slow.test") == ("10.0.0.9",)
        names.set_hosts(quick="10.0.0.3")
        await soon(lambda: bench.addresses("quick.test") == ("10.0.0.3",), "the change is found")
        told = len(bench.control.discoveries)
        asked = names.queries("A quick.test")
        await soon(lambda: names.queries("A quick.test") > asked + 1, "it is asked for again")
        assert len(bench.control.discoveries) == told  # the same answer is no news
        assert names.queries("A slow.test") == 1

    run(test)


@needs_dnsmasq
def test_a_dead_name_server_costs_nothing_but_news(names: NameServer) -> None:
    names.set_hosts(a="10.0.0.1")

    async def test(bench: Bench) -> None:
        bench.ask(nameservers=(names.address,), names=("a.test",))
        await soon(lambda: bench.addresses("a.test") == ("10.0.0.1",), "a.test is found")
        names.stop()
        await soon(lambda: bench.fails("host a.test"), "the failure is told")
        failures = bench.discoverer.lookups()["host", "a.test"][1]
        await soon(lambda: bench.discoverer.lookups()["host", "a.test"][1] > failures, "it is tried again")
        assert bench.addresses("a.test") == ("10.0.0.1",)
        assert bench.control.kinds() == ["discovery-failed"]
        assert bench.control.log_text().count('event="discovery failed"') == 1
        names.set_hosts(a="10.0.0.2")
        names.start()
        await soon(lambda: bench.addresses("a.test") == ("10.0.0.2",), "the new address is found")
        assert bench.discoverer.problems() == []
        assert 'event="discovery works again"' in bench.control.log_text()
        assert bench.control.kinds() == ["discovery-failed", "discovered"]

    run(test)


@needs_dnsmasq
def test_a_name_that_goes_away_keeps_its_addresses(names: NameServer) -> None:
    names.set_hosts(a="10.0.0.1", b="10.0.0.2")

    async def test(bench: Bench) -> None:
        bench.ask(nameservers=(names.address,), names=("a.test", "b.test", "never.test"))
        await soon(lambda: bench.addresses("a.test") and bench.addresses("b.test"), "both are found")
        names.set_hosts(b="10.0.0.3")
        await soon(lambda: bench.addresses("b.test") == ("10.0.0.3",), "the change is found")
        await soon(lambda: bench.fails("host a.test"), "the failure is told")
        assert bench.addresses("a.test") == ("10.0.0.1",)
        assert "host never.test: no such name" in bench.discoverer.problems()
        assert "never.test" not in bench.found.addresses

    run(test)


def in_hosts_file() -> str:
    """A name that /etc/hosts has with an IPv4 address alone; "localhost", which c-ares knows by itself, where
    there is no other."""
    lines = [line.partition("#")[0].split() for line in Path("/etc/hosts").read_text("utf-8").splitlines()]
    six = {name for address, *names in filter(None, lines) if ":" in address for name in names}
    return next(
        (
            name
            for address, *names in filter(None, lines)
            for name in names
            if name not in {"localhost", *six}
        ),
        "localhost",
    )


def test_the_hosts_file_counts_and_dns_is_not_asked() -> None:
    name = in_hosts_file()

    async def test(bench: Bench) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            nobody.setblocking(False)
            bench.ask(nameservers=(f"127.0.0.1:{nobody.getsockname()[1]}",), names=(name, "10.0.0.1"))
            await soon(lambda: bench.addresses(name), f"{name} is found")
            assert set(bench.found.addresses) == {name}
            with pytest.raises(BlockingIOError):
                nobody.recv(512)

    run(test)


@needs_dnsmasq
def test_another_name_server_is_asked_at_once(names: NameServer, tmp_path: Path) -> None:
    names.restart("host-record=a.test,10.0.0.1,600")

    async def test(bench: Bench) -> None:
        bench.ask(nameservers=(names.address,), names=("a.test",))
        await soon(lambda: bench.addresses("a.test") == ("10.0.0.1",), "a.test is found")
        with NameServer(tmp_path, "host-record=a.test,10.0.0.2,600") as other:
            bench.ask(nameservers=(other.address,), names=("a.test",))
            await soon(lambda: bench.addresses("a.test") == ("10.0.0.2",), "the other answer is found")
        assert bench.control.kinds() == []

    run(test)


def test_a_name_server_that_hangs_stops_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    file.write_text('[{"targets": ["10.0.0.1:80"]}]', encoding="utf-8")

    async def test(bench: Bench) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            bench.ask(
                nameservers=(f"127.0.0.1:{silent.getsockname()[1]}",),
                names=("a.test",),
                discover=(DiscoverSpec(pool="p", file=str(file), refresh=0.05),),
            )
            await soon(lambda: bench.names("p") == ["10.0.0.1:80"], "the file is read")
            file.write_text('[{"targets": ["10.0.0.2:80"]}]', encoding="utf-8")
            await soon(lambda: bench.names("p") == ["10.0.0.2:80"], "the file is read again")
            assert not bench.fails("host a.test")  # it is still waited for
            await soon(lambda: bench.fails("host a.test"), "the failure is told")

    run(test)


# --- services --------------------------------------------------------------------------------------------

SERVICE = "_ws._tcp.test"
POOL = (DiscoverSpec(pool="p", srv=(SERVICE,)),)


@needs_dnsmasq
def test_srv_records_become_servers_and_backups(names: NameServer) -> None:
    names.restart(
        f"srv-host={SERVICE},a.test,9000,10,3",
        f"srv-host={SERVICE},b.test,9001,10,0",
        f"srv-host={SERVICE},c.test,9002,20,5",
    )
    names.set_hosts(a="10.0.0.1", b="10.0.0.2", c="10.0.0.3")

    async def test(bench: Bench) -> None:
        bench.ask(nameservers=(names.address,), discover=POOL)
        await soon(lambda: bench.names("p"), "the servers are found")
        assert bench.control.discoveries == [  # the servers do not come without their addresses
            Discovery(
                servers={
                    "p": (
                        FoundServer(name="a.test:9000", address="a.test:9000", weight=3),
                        FoundServer(name="b.test:9001", address="b.test:9001", weight=1),
                        FoundServer(name="c.test:9002", address="c.test:9002", weight=5, backup=True),
                    )
                },
                addresses={"a.test": ("10.0.0.1",), "b.test": ("10.0.0.2",), "c.test": ("10.0.0.3",)},
            )
        ]

    run(test)


@needs_dnsmasq
def test_services_change_and_fail_and_come_back(names: NameServer) -> None:
    names.restart(f"srv-host={SERVICE},a.test,9000")
    names.set_hosts(a="10.0.0.1", b="10.0.0.2")

    async def test(bench: Bench) -> None:
        bench.ask(nameservers=(names.address,), discover=POOL)
        await soon(lambda: bench.names("p") == ["a.test:9000"], "the server is found")
        names.restart()  # it knows nothing of the service
        await soon(lambda: bench.fails(f"srv://{SERVICE}"), "the failure is told")
        assert bench.names("p") == ["a.test:9000"]
        names.restart(f"srv-host={SERVICE},b.test,9001")
        await soon(lambda: bench.names("p") == ["b.test:9001"], "the other server is found")
        assert bench.addresses("b.test") == ("10.0.0.2",)
        names.restart(f"srv-host={SERVICE}")  # the target ".": decidedly not available
        await soon(lambda: bench.names("p") == [], "there are no servers")
        await soon(lambda: not bench.discoverer.problems(), "nothing fails")

    run(test)


@needs_dnsmasq
def test_what_a_file_has_comes_before_what_a_service_has(names: NameServer, tmp_path: Path) -> None:
    names.restart(f"srv-host={SERVICE},a.test,9000,10,3", f"srv-host={SERVICE},b.test,9001,10,3")
    names.set_hosts(a="10.0.0.1", b="10.0.0.2")
    file = tmp_path / "servers.json"
    file.write_text('[{"targets": ["b.test:9001"], "labels": {"weight": "7"}}]', encoding="utf-8")

    async def test(bench: Bench) -> None:
        bench.ask(
            nameservers=(names.address,),
            discover=(DiscoverSpec(pool="p", file=str(file), srv=(SERVICE,)),),
        )
        await soon(lambda: bench.names("p") == ["b.test:9001", "a.test:9000"], "both are merged")
        assert [server.weight for server in bench.found.servers["p"]] == [7, 3]
        assert len(bench.control.discoveries) == 1

    run(test)


# --- files -----------------------------------------------------------------------------------------------


def test_files_are_followed_through_all_that_happens_to_them(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"v{number}").mkdir()
        (tmp_path / f"v{number}" / "servers.json").write_text(
            f'[{{"targets": ["10.0.0.{number}:80"]}}]', encoding="utf-8"
        )
    data, file = tmp_path / "data", tmp_path / "data" / "servers.json"
    data.symlink_to("v1")

    async def test(bench: Bench) -> None:
        def fails() -> bool:
            return bench.fails(f"file {file}")

        bench.ask(discover=(DiscoverSpec(pool="p", file=str(file), refresh=0.05),))
        await soon(lambda: bench.names("p") == ["10.0.0.1:80"], "the file is read")
        (tmp_path / "next").symlink_to("v2")
        os.replace(tmp_path / "next", data)  # as the volumes of Kubernetes are changed
        await soon(lambda: bench.names("p") == ["10.0.0.2:80"], "the link is followed")
        file.write_text('[{"targets": ["10.0.0.3:80", "10.0', encoding="utf-8")
        await soon(fails, "half a file is refused")
        assert bench.names("p") == ["10.0.0.2:80"]
        file.write_text('[{"targets": ["10.0.0.3:80", "10.0.0.4:80"]}]', encoding="utf-8")
        await soon(lambda: bench.names("p") == ["10.0.0.3:80", "10.0.0.4:80"], "the whole file is read")
        assert not fails()
        file.unlink()
        await soon(fails, "the file is missed")
        assert bench.names("p") == ["10.0.0.3:80", "10.0.0.4:80"]
        assert bench.discoverer.problems() == [f"file {file}: No such file or directory"]
        file.write_text("[]", encoding="utf-8")
        await soon(lambda: bench.names("p") == [], "an empty list is no servers")
        assert bench.control.kinds() == ["discovery-failed", "discovered"] * 2

    run(test)


@pytest.fixture
def disk_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers files are read by a call that waits, for a named pipe until somebody writes to it."""
    monkeypatch.setattr(
        files, "read_servers_file", lambda path: parse_servers(path.read_bytes(), as_json=True)
    )


@pytest.mark.usefixtures("disk_that_hangs")
def test_a_disk_that_hangs_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.control.discovery.source.PATIENCE", 0.2)
    stuck, file = tmp_path / "stuck", tmp_path / "servers.json"
    os.mkfifo(stuck)  # opening it waits for a writer
    file.write_text('[{"targets": ["10.0.0.1:80"]}]', encoding="utf-8")

    async def test(bench: Bench) -> None:
        bench.ask(
            discover=(
                DiscoverSpec(pool="stuck", file=str(stuck), refresh=0.05),
                DiscoverSpec(pool="p", file=str(file), refresh=0.05),
            )
        )
        await soon(lambda: bench.names("p") == ["10.0.0.1:80"], "the other file is read")
        await soon(lambda: bench.fails(f"file {stuck}"), "the failure is told")
        with stuck.open("w", encoding="utf-8") as writer:
            writer.write('[{"targets": ["10.0.0.2:80"]}]')
        await soon(lambda: bench.names("stuck") == ["10.0.0.2:80"], "the late answer counts")

    run(test)


@pytest.mark.usefixtures("disk_that_hangs")
def test_what_hangs_is_given_up_and_looked_at_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.control.discovery.source.PATIENCE", 0.02)
    monkeypatch.setattr("lb.control.discovery.source.GIVE_UP", 0.02)
    stuck, pipe = tmp_path / "stuck", tmp_path / "pipe"
    os.mkfifo(pipe)
    os.link(pipe, stuck)

    def looks() -> int:
        return sum(thread.name == f"look at {stuck}" for thread in threading.enumerate())

    async def test(bench: Bench) -> None:
        bench.ask(discover=(DiscoverSpec(pool="p", file=str(stuck), refresh=0.05),))
        told = f"file {stuck}: {files.MAX_HANGING} looks at it hang: is its file system there?"
        await soon(lambda: told in bench.discoverer.problems(), "no more looks are begun")
        assert looks() == files.MAX_HANGING
        stuck.unlink()
        stuck.write_text('[{"targets": ["10.0.0.1:80"]}]', encoding="utf-8")
        pipe.open("w", encoding="utf-8").close()  # the disk is there again: all looks end
        await soon(lambda: bench.names("p") == ["10.0.0.1:80"], "the file is read")

    run(test)


def test_a_named_pipe_is_a_failure_until_a_file_takes_its_place(tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    os.mkfifo(file)

    async def test(bench: Bench) -> None:
        bench.ask(discover=(DiscoverSpec(pool="p", file=str(file), refresh=0.05),))
        await soon(lambda: bench.fails(f"file {file}"), "the failure is told")
        file.unlink()
        file.write_text('[{"targets": ["10.0.0.1:80"]}]', encoding="utf-8")
        await soon(lambda: bench.names("p") == ["10.0.0.1:80"], "the file is read", within=4.0)

    run(test)


def test_another_configuration_keeps_what_is_still_asked_for(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text('[{"targets": ["10.0.0.1:80"]}]', encoding="utf-8")
    two.write_text('[{"targets": ["10.0.0.2:80"]}]', encoding="utf-8")
    first = DiscoverSpec(pool="one", file=str(one), refresh=0.05)
    second = DiscoverSpec(pool="two", file=str(two), refresh=0.05)

    async def test(bench: Bench) -> None:
        bench.ask(discover=(first,))
        await soon(lambda: bench.names("one"), "the file is read")
        bench.ask(discover=(first, second))
        await soon(lambda: bench.names("two"), "the other file is read")
        assert bench.names("one") == ["10.0.0.1:80"]
        told = len(bench.control.discoveries)
        bench.ask(discover=(second,))
        one.write_text("[]", encoding="utf-8")
        two.write_text('[{"targets": ["10.0.0.3:80"]}]', encoding="utf-8")
        await soon(lambda: bench.names("two") == ["10.0.0.3:80"], "the change is read")
        assert set(bench.found.servers) == {"two"}
        assert len(bench.control.discoveries) == told + 1

    run(test)


@needs_dnsmasq
def test_nothing_is_left_open(names: NameServer) -> None:
    names.set_hosts(a="10.0.0.1")

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        with StandInControl() as control:
            gc.collect()  # what other tests left
            before = descriptors()
            made = Bench(control)
            made.ask(nameservers=(names.address,), names=("a.test",))
            await soon(lambda: made.addresses("a.test"), "a.test is found")
            assert descriptors() > before
            await made.discoverer.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            await soon(lambda: descriptors() <= before, "all is closed")

    asyncio.run(main())
