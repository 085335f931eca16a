"""Two answers, A and AAAA, to the addresses of a name."""

from __future__ import annotations

import pytest

from lb.control.discovery.hosts import Half, combine, in_order
from lb.control.discovery.resolver import Empty
from lb.control.discovery.source import Answer, Failed

NONE = Half(failed=Empty("no such record"))
BROKEN = Half(failed=Failed("timed out"))


def test_addresses_are_in_order_however_they_come() -> None:
    assert in_order({"fd00::2", "10.0.0.10", "10.0.0.9", "FD00::1"}) == (
        "10.0.0.9",
        "10.0.0.10",
        "fd00::1",
        "fd00::2",
    )


def test_the_shorter_ttl_counts() -> None:
    answer = combine(Half(("10.0.0.1",), 60), Half(("fd00::1",), 20), ())
    assert answer == Answer(("10.0.0.1", "fd00::1"), 20.0)


@pytest.mark.parametrize(("ttl", "again"), [(0, 1.0), (300, 300.0), (86400, 3600.0)])
def test_a_name_of_one_family_is_asked_for_by_its_ttl(ttl: int, again: float) -> None:
    assert combine(Half(("10.0.0.1",), ttl), NONE, ("10.0.0.1", "fd00::1")) == Answer(("10.0.0.1",), again)


def test_a_family_that_fails_keeps_its_addresses_and_is_asked_for_soon() -> None:
    answer = combine(Half(("10.0.0.2",), 600), BROKEN, ("10.0.0.1", "fd00::1"))
    assert answer == Answer(("10.0.0.2", "fd00::1"), 30.0)


def test_a_family_that_never_had_addresses_may_fail() -> None:
    assert combine(Half(("10.0.0.2",), 600), BROKEN, ("10.0.0.1",)) == Answer(("10.0.0.2",), 600.0)


@pytest.mark.parametrize(
    ("four", "six", "reason"),
    [(NONE, NONE, "no such record"), (NONE, BROKEN, "timed out"), (BROKEN, NONE, "timed out")],
)
def test_no_address_at_all_is_a_failure(four: Half, six: Half, reason: str) -> None:
    with pytest.raises(Failed, match=reason):
        combine(four, six, ("10.0.0.1",))


def test_a_name_has_no_more_addresses_than_are_of_use() -> None:
    many = tuple(f"10.0.{number >> 8}.{number & 255}" for number in range(3500))
    answer = combine(Half(many[::-1], 60), NONE, ())
    assert answer.value == many[:256]
    assert answer.warning == "has more than 256 addresses, the others are not used"
    assert combine(Half(many[:256], 60), NONE, ()).warning == ""
