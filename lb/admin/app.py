"""The admin API's application: which handler answers what."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from lb.admin import requests
from lb.admin.answers import json
from lb.admin.auth import authenticate, caller
from lb.admin.events import Events
from lb.admin.moves import Moves
from lb.admin.openapi import document
from lb.admin.operations import EVENT_STREAM, OPERATIONS, PREFIX
from lb.admin.pools import Pools
from lb.admin.problems import answer_problems, set_headers
from lb.admin.requests import MAX_BODY, Query
from lb.admin.status import Status, reload_view
from lb.admin.tunnels import Tunnels
from lb.admin.views import ConfigView, Nothing
from lb.control.control import Control
from lb.dashboard import CONTENT_SECURITY_POLICY, dashboard_page


def admin_app(control: Control) -> web.Application:
    """The application. It holds no state but its event streams, which end when it is shut down."""
    app = web.Application(
        middlewares=[answer_problems(control), authenticate(control)], client_max_size=MAX_BODY
    )
    events = Events(control)
    handlers = _handlers(control, events)
    for one in OPERATIONS:
        route = PREFIX + one.route.replace("}", ":[^/]+}")  # a name may hold braces
        app.router.add_route(one.method, route, handlers[one.name])
        if one.method == "GET" and one.content != EVENT_STREAM:
            app.router.add_route("HEAD", route, handlers[one.name])
    app.router.add_get("/", _page)
    app.on_response_prepare.append(set_headers)

    async def close_streams(_app: web.Application) -> None:
        await events.close()

    app.on_shutdown.append(close_streams)
    return app


def _handlers(control: Control, events: Events) -> dict[str, Handler]:
    """What answers each of `OPERATIONS`."""
    status, pools, tunnels, general = Status(control), Pools(control), Tunnels(control), _General(control)
    return {
        "status": status.status,
        "workers": status.workers,
        "listeners": status.listeners,
        "routes": status.routes,
        "pools": pools.list,
        "pool": pools.one,
        "server": pools.server,
        "change_server": pools.change,
        "tunnels": tunnels.page,
        "close_tunnels": tunnels.close,
        "move_tunnels": Moves(control).move,
        "reload": general.reload,
        "config": general.config,
        "events": events.stream,
        "recent_events": events.recent,
        "openapi": general.openapi,
    }


async def _page(_request: web.Request) -> web.Response:
    """The dashboard."""
    return web.Response(
        body=dashboard_page(),
        content_type="text/html",
        charset="utf-8",
        headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY},
    )


class _General:
    """What fits into one handler each."""

    def __init__(self, control: Control) -> None:
        self._control = control

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
        return json(document(self._control.status.version))
