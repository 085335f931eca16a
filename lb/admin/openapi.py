"""The OpenAPI 3.1 description. What is said of data comes from the structs that decode and encode it, so the
description can't differ from what is done."""

from __future__ import annotations


def document() -> dict[str, object]:
    return {}
