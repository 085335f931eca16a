"""The description is whole: every reference leads somewhere, every example is one that is taken."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from lb.admin.openapi import document
from lb.admin.operations import OPERATIONS, PREFIX, Operation

DOCUMENT = document("1.2.3")


def test_every_reference_leads_somewhere() -> None:
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT)))
    assert references
    for reference in references:
        found: Any = DOCUMENT
        for part in reference.split("/"):
            found = found[part]


def test_every_component_is_used() -> None:
    text = json.dumps(DOCUMENT)
    for kind in ("schemas", "responses"):
        for name in DOCUMENT["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, name


@pytest.mark.parametrize("one", OPERATIONS, ids=lambda one: one.name)
def test_every_operation_is_described(one: Operation) -> None:
    described = DOCUMENT["paths"][PREFIX + one.route][one.method.lower()]
    assert described["operationId"] == one.name and described["summary"] and described["tags"]
    assert {"200", "400", "401", "403", "421", "429", "500"} <= described["responses"].keys()
    assert all(parameter["description"] for parameter in described["parameters"])
    assert re.findall(r"{(\w+)}", one.route) == list(one.path)
    if one.body is not None:
        content = described["requestBody"]["content"]["application/json"]
        example = json.dumps(content["example"]).encode()
        assert msgspec.json.decode(example, type=one.body) == one.example
        assert DOCUMENT["components"]["schemas"][one.body.__name__]["additionalProperties"] is False


def test_the_version_is_that_of_the_load_balancer() -> None:
    assert DOCUMENT["openapi"] == "3.1.0" and DOCUMENT["info"]["version"] == "1.2.3"
