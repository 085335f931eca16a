"""SRV records to servers (RFC 2782)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lb.control.discovery.services import found_servers, scaled
from lb.control.discovery.source import Failed
from lb.control.spec import FoundServer


@dataclass
class Srv:
    priority: int
    weight: int
    port: int
    target: str


def test_the_lowest_priority_value_is_used_first() -> None:
    servers = found_servers([Srv(30, 1, 80, "c"), Srv(10, 1, 80, "a"), Srv(20, 1, 80, "b")])
    assert [(server.name, server.backup) for server in servers] == [
        ("a:80", False),
        ("b:80", True),
        ("c:80", True),
    ]


def test_records_that_come_in_another_order_are_the_same_servers() -> None:
    records = [Srv(1, 5, 80, "b"), Srv(1, 5, 80, "a"), Srv(2, 5, 80, "c")]
    assert found_servers(records) == found_servers(reversed(records))


def test_names_are_canonical() -> None:
    assert found_servers([Srv(0, 2, 443, "WWW.Example.COM.")]) == (
        FoundServer(name="www.example.com:443", address="www.example.com:443", weight=2),
    )


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0, 0], [1, 1]),
        ([0, 10], [1, 10]),
        ([1, 1000], [1, 1000]),
        ([65535, 6554, 1, 0], [1000, 100, 1, 1]),
    ],
)
def test_weights_keep_their_proportions(weights: list[int], expected: list[int]) -> None:
    assert [scaled(weight, max(weights)) for weight in weights] == expected


def test_one_target_twice_is_one_server() -> None:
    assert found_servers([Srv(2, 9, 80, "a"), Srv(1, 3, 80, "a"), Srv(1, 3, 81, "a")]) == (
        FoundServer(name="a:80", address="a:80", weight=3),
        FoundServer(name="a:81", address="a:81", weight=3),
    )


@pytest.mark.parametrize("target", [".", ""])
def test_the_root_as_the_target_is_no_service(target: str) -> None:
    assert found_servers([Srv(0, 0, 0, target)]) == ()


@pytest.mark.parametrize(("record", "shown"), [(Srv(0, 0, 0, "a"), "a:0"), (Srv(0, 0, 80, "a b"), "a b:80")])
def test_what_is_no_address_is_refused(record: Srv, shown: str) -> None:
    with pytest.raises(Failed, match=f'names "{shown}"'):
        found_servers([Srv(0, 0, 80, "good"), record])
