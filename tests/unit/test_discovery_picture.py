"""The answers of all sources, put together."""

from __future__ import annotations

import pytest

from lb.control.discovery.picture import hosts_of, is_news, merged, name_to_resolve, sources_of
from lb.control.spec import ControlSpec, DiscoverSpec, Discovery, FoundServer


def server(name: str, address: str = "10.0.0.1:80", weight: int = 1) -> FoundServer:
    return FoundServer(name=name, address=address, weight=weight)


def test_the_first_of_a_name_counts() -> None:
    assert merged([(server("b"), server("a", weight=2)), (server("a", weight=3), server("c"))]) == (
        server("b"),
        server("a", weight=2),
        server("c"),
    )


def test_files_come_before_services() -> None:
    spec = DiscoverSpec(pool="p", file="/f", refresh=2.0, srv=("_b", "_a"))
    assert sources_of(spec) == [("file", "/f", 2.0), ("srv", "_b", 0.0), ("srv", "_a", 0.0)]
    assert sources_of(DiscoverSpec(pool="p")) == []


@pytest.mark.parametrize(
    ("host", "name"),
    [("a.test", "a.test"), ("10.0.0.1", None), ("[fd00::1]", None), ("fd00::1", None), ("1234", "1234")],
)
def test_only_names_are_resolved(host: str, name: str | None) -> None:
    assert name_to_resolve(host) == name


def test_names_of_the_configuration_and_of_what_was_found_are_resolved() -> None:
    spec = ControlSpec(generation=1, config_path="", config_text="", names=("a.test", "10.0.0.1"))
    found = (server("x", "b.test:80"), server("y", "[fd00::1]:80"), server("z", "unix:/run/z"))
    assert hosts_of(spec, [found]) == {"a.test", "b.test"}


def test_what_is_new_is_news_and_what_only_went_away_is_none() -> None:
    old = Discovery(servers={"p": (server("a"),)}, addresses={"a": ("10.0.0.1",), "b": ("10.0.0.2",)})
    assert not is_news(old, old)
    assert not is_news(old, Discovery(servers=old.servers, addresses={"a": ("10.0.0.1",)}))
    assert not is_news(old, Discovery())
    assert is_news(Discovery(), old)
    assert is_news(old, Discovery(servers={"p": ()}, addresses=old.addresses))
    assert is_news(old, Discovery(servers=old.servers, addresses={"a": ("10.0.0.3",)}))
