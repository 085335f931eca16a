"""Whose check may run: a pool's own places, the shared ones, and who is next."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable

import pytest

from lb.control.health.places import MOST, OWN, Places, most_at_once


class Checks:
    """Checks that run until the test ends them."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.running: list[str] = []
        self._ends: dict[str, list[asyncio.Event]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self, pool: str, count: int = 1) -> None:
        for _ in range(count):
            self.tasks.append(asyncio.get_running_loop().create_task(self._run(pool)))
        await turns()

    async def end(self, pool: str) -> None:
        self._ends[pool].pop(0).set()
        await turns()

    async def _run(self, pool: str) -> None:
        async with self.places.place(pool):
            over = asyncio.Event()
            self._ends.setdefault(pool, []).append(over)
            self.running.append(pool)
            await over.wait()
            self.running.remove(pool)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(most: int, pools: set[str], scenario: Callable[[Checks], Awaitable[None]]) -> None:
    async def main() -> None:
        checks = Checks(Places(most))
        checks.places.share(pools)
        await scenario(checks)
        for task in checks.tasks:
            task.cancel()
        await asyncio.gather(*checks.tasks, return_exceptions=True)

    asyncio.run(main())


def test_one_pool_may_have_all_places_but_those_of_others() -> None:
    async def scenario(checks: Checks) -> None:
        await checks.begin("a", 30)
        assert checks.running == ["a"] * 15
        await checks.begin("b", 30)
        assert checks.running.count("b") == 5
        await checks.end("a")
        assert (checks.running.count("a"), checks.running.count("b")) == (14, 6)  # who has fewer is next

    run(20, {"a", "b"}, scenario)


def test_a_pool_alone_has_all() -> None:
    async def scenario(checks: Checks) -> None:
        await checks.begin("a", 30)
        assert checks.running == ["a"] * 20
        await checks.end("a")
        assert checks.running == ["a"] * 20

    run(20, {"a"}, scenario)


def test_every_pool_has_one_however_many_they_are() -> None:
    pools = [f"p{number}" for number in range(10)]

    async def scenario(checks: Checks) -> None:
        for pool in pools:
            await checks.begin(pool, 3)
        assert sorted(checks.running) == pools

    run(4, set(pools), scenario)


def test_who_leaves_the_line_takes_no_place() -> None:
    async def scenario(checks: Checks) -> None:
        await checks.begin("a", 4)
        assert len(checks.running) == 2
        checks.tasks[2].cancel()
        await turns()
        await checks.end("a")
        await checks.end("a")
        assert checks.running == ["a"]
        await checks.begin("a", 2)
        assert checks.running == ["a", "a"]

    run(2, {"a"}, scenario)


def test_who_is_stopped_at_its_turn_gives_the_place_on() -> None:
    async def scenario(checks: Checks) -> None:
        await checks.begin("a", 3)
        checks._ends["a"].pop(0).set()
        await asyncio.sleep(0)  # the first ends, and the place is the second's
        checks.tasks[1].cancel()
        await turns()
        assert checks.running == ["a"]
        assert checks.tasks[1].cancelled()

    run(1, {"a"}, scenario)


def test_the_limit_follows_the_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((1024, 256), (10**6, MOST), (resource.RLIM_INFINITY, MOST), (3, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _what, files=files: (files, files))
        assert most_at_once() == most
    assert OWN * 2 <= 256
