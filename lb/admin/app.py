"""The admin API's application: which handler answers what."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from lb.admin import requests
from lb.admin.answers import json
from lb.admin.auth import authenticate, caller
from lb.admin.events import Events
from lb.admin.openapi import document
from lb.admin.pools import Pools
from lb.admin.problems import answer_problems, set_headers
from lb.admin.requests import MAX_BODY, Query
from lb.admin.status import Status, reload_view
from lb.admin.tunnels import Tunnels
from lb.admin.views import ConfigView, Nothing
from lb.control.control import Control
from lb.dashboard import CONTENT_SECURITY_POLICY, dashboard_page

PREFIX: Final = "/api/v1"


def admin_app(control: Control) -> web.Application:
    """The application. It holds no state but its event streams, which end when it is shut down."""
    app = web.Application(
        middlewares=[answer_problems(control), authenticate(control)], client_max_size=MAX_BODY
    )
    status, pools, tunnels = Status(control), Pools(control), Tunnels(control)
    events, general = Events(control), _General(control)
    app.add_routes(
        [
            web.get("/", general.page),
            web.get(f"{PREFIX}/status", status.status),
            web.get(f"{PREFIX}/workers", status.workers),
            web.get(f"{PREFIX}/listeners", status.listeners),
            web.get(f"{PREFIX}/routes", status.routes),
            web.get(f"{PREFIX}/pools", pools.list),
            web.get(f"{PREFIX}/pools/{{pool}}", pools.one),
            web.get(f"{PREFIX}/pools/{{pool}}/servers/{{server}}", pools.server),
            web.patch(f"{PREFIX}/pools/{{pool}}/servers/{{server}}", pools.change),
            web.get(f"{PREFIX}/tunnels", tunnels.page),
            web.post(f"{PREFIX}/tunnels/close", tunnels.close),
            web.post(f"{PREFIX}/reload", general.reload),
            web.get(f"{PREFIX}/config", general.config),
            web.get(f"{PREFIX}/events", events.stream, allow_head=False),
            web.get(f"{PREFIX}/events/recent", events.recent),
            web.get(f"{PREFIX}/openapi.json", general.openapi),
        ]
    )
    app.on_response_prepare.append(set_headers)

    async def close_streams(_app: web.Application) -> None:
        await events.close()

    app.on_shutdown.append(close_streams)
    return app


class _General:
    """What fits into one handler each."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def page(self, _request: web.Request) -> web.Response:
        """The dashboard."""
        return web.Response(
            body=dashboard_page(),
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY},
        )

    async def reload(self, request: web.Request) -> web.Response:
        """Reloads and waits for the outcome, good or bad."""
        requests.query(request, Query)
        if request.can_read_body:
            await requests.body(request, Nothing)
        self._control.log.info("reload asked for", by=caller(request))
        return json(reload_view(await self._control.reload()))

    async def config(self, request: web.Request) -> web.Response:
        """The active configuration."""
        requests.query(request, Query)
        spec = self._control.spec
        return json(ConfigView(path=spec.config_path, generation=spec.generation, text=spec.config_text))

    async def openapi(self, request: web.Request) -> web.Response:
        """What there is, for programs."""
        requests.query(request, Query)
        return json(document())
