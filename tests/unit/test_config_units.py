"""Durations and sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.config.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("10s", 10.0),
        ("1.5s", 1.5),
        ("1h30m", 5400.0),
        ("2d", 172800.0),
        ("0s", 0.0),
        ("0ms", 0.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a duration"),
        ("soon", "expected a duration"),
        ("-1s", "expected a duration"),
        ("1 s", "expected a duration"),
        ("\u0661s", "expected a duration"),
        ("9" * 40 + "s", "expected a duration"),
        ("10", 'needs a unit: "10s"'),
        ("10sec", "unknown unit 'sec'"),
        ("1S", "unknown unit 'S'"),
        ("1m1h", "from large to small"),
        ("1s1s", "from large to small"),
        ("1.5ms", "whole number of milliseconds"),
    ],
)
def test_wrong_durations(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("32KiB", 32768), ("100MiB", 104857600), ("1.5KiB", 1536), ("1TiB", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a size"),
        ("big", "expected a size"),
        ("1KiB2B", "expected a size"),
        ("32", 'needs a unit: "32B"'),
        ("32KB", "unknown unit 'KB'"),
        ("0.5B", "whole number of bytes"),
    ],
)
def test_wrong_sizes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_size(text)


@given(st.integers(0, 10**12))
def test_durations_survive_the_round_trip(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(0, 1 << 62))
def test_sizes_survive_the_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert str(error)


def test_what_is_printed_is_short() -> None:
    assert [format_duration(seconds) for seconds in (0, 0.25, 75, 600, 86400)] == [
        "0s",
        "250ms",
        "75s",
        "10m",
        "1d",
    ]
    assert [format_size(size) for size in (0, 1000, 32768, 1 << 30)] == ["0B", "1000B", "32KiB", "1GiB"]
