"""JSON answers."""

from __future__ import annotations

import msgspec
from aiohttp import web

_encoder = msgspec.json.Encoder()


def json(value: object) -> web.Response:
    """`value`, a view or a list of views, as the body of a 200."""
    return web.Response(body=_encoder.encode(value), content_type="application/json", charset="utf-8")
