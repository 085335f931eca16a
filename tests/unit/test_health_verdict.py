"""When checks change the mind about a server."""

from __future__ import annotations

import pytest

from lb.control.health import Verdict
from workers.contract.cells import CheckResult, Health

LETTERS = {"+": CheckResult.OK, "-": CheckResult.CONNECT, "s": CheckResult.STATUS, "t": CheckResult.TIMEOUT}


def flips(verdict: Verdict, checks: str) -> str:
    """What each check of the row flipped: U, D, or . for nothing."""
    words = {None: ".", Health.UP: "U", Health.DOWN: "D"}
    return "".join(words[verdict.observe(LETTERS[letter])] for letter in checks)


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ("+++", "U.."),  # the first check decides
        ("--", "D."),
        ("+---+", "U..D."),
        ("+--+--+", "U......"),  # flapping, never three in a row
        ("+-st", "U..D"),  # whatever went wrong counts the same
        ("-+-+-+", "D....."),
        ("-++", "D.U"),
        ("+---++--+---", "U..D.U.....D"),
    ],
)
def test_three_to_fall_two_to_rise(checks: str, expected: str) -> None:
    verdict = Verdict(fall=3, rise=2)
    assert flips(verdict, checks) == expected


def test_one_and_one() -> None:
    assert flips(Verdict(1, 1), "+-+-") == "UDUD"


@pytest.mark.parametrize(
    ("known", "checks", "expected"),
    [(Health.UP, "--", ".D"), (Health.UP, "++", ".."), (Health.DOWN, "++", ".U"), (Health.DOWN, "--", "..")],
)
def test_what_was_known_before_stays_until_checks_say_otherwise(
    known: Health, checks: str, expected: str
) -> None:
    verdict = Verdict(2, 2, known)
    assert verdict.health is known
    assert flips(verdict, checks) == expected
