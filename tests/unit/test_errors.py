"""Refusals: stable, distinct reasons, and a closed connection wherever the framing is in doubt."""

from __future__ import annotations

import pytest

from workers.contract import errors
from workers.contract.errors import ProxyError, Refusal, Retry

# Reasons of answers that are no refusals; their names say what was done.
RENAMED = {"redirected": "redirect_https", "server_busy": "retried_503"}
REFUSALS = [value for value in vars(errors).values() if isinstance(value, Refusal)]


def test_a_reason_is_the_label_of_one_refusal() -> None:
    named = {name.lower(): value.reason for name, value in vars(errors).items() if isinstance(value, Refusal)}
    assert named == {name: RENAMED.get(name, name) for name in named}
    assert len({refusal.reason for refusal in REFUSALS}) == len(REFUSALS) > 20


def test_every_reason_has_its_place_among_the_metrics() -> None:
    assert sorted(errors.REASONS) == sorted(REFUSALS)
    assert [errors.REASONS[index] for index in errors.REASON_INDEX.values()] == list(errors.REASON_INDEX)
    assert len(errors.REASON_INDEX) == len(REFUSALS)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.reason)
def test_a_text_is_a_sentence_for_the_client(refusal: Refusal) -> None:
    assert refusal.text.isascii() and refusal.text[0].isupper() and refusal.text.endswith(".")
    assert 400 <= refusal.status < 600 or refusal is errors.REDIRECTED


@pytest.mark.parametrize(
    "refusal",
    [
        errors.BAD_REQUEST_LINE,
        errors.BAD_HEADER,
        errors.BAD_HOST,
        errors.BAD_FRAMING,
        errors.BAD_CHUNK,
        errors.BAD_VERSION,
        errors.BAD_TRANSFER_CODING,
        errors.METHOD_REFUSED,
        errors.HEAD_TIMEOUT,
        errors.BODY_TIMEOUT,
        errors.BODY_TOO_LARGE,
        errors.TARGET_TOO_LONG,
        errors.HEAD_TOO_LARGE,
        errors.PLAIN_ON_TLS,
    ],
)
def test_doubtful_framing_closes(refusal: Refusal) -> None:
    assert refusal.close


def test_an_error_is_the_clients_and_not_retried_unless_said() -> None:
    error = ProxyError(errors.BAD_HEADER)
    assert (error.side, error.retry, error.detail) == ("client", Retry.NEVER, "")
    error = ProxyError(errors.CONNECT_FAILED, side="upstream", retry=Retry.SAFE, detail="no route to host")
    assert (error.refusal.status, error.side, error.retry) == (502, "upstream", Retry.SAFE)
    assert str(error) == "('connect_failed', 'no route to host')"
