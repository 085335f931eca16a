"""Every refusal is application/problem+json (RFC 9457), whoever noticed it: a handler, the router or aiohttp.

The headers that each answer of the admin API carries are set here too: nothing may keep it, frame it or take
it for something else.
"""

from __future__ import annotations

import http
import traceback
from collections.abc import Mapping
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lb.admin.views import Problem
from lb.control.control import Control, Unanswered
from lb.control.events import TooManyListeners

CONTENT_TYPE: Final = "application/problem+json"

_HEADERS: Final = {
    "Server": "lb",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Nothing in an answer of the API is ever to be run or shown as a page.
_NO_CONTENT_AT_ALL: Final = "default-src 'none'; frame-ancestors 'none'"


class Refused(Exception):
    """A request that is not served; `detail` says to people why, and what to do."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer to a request that is not served."""
    body = Problem(title=http.HTTPStatus(status).phrase, status=status, detail=detail)
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type=CONTENT_TYPE, headers=headers
    )


async def set_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """To be called before any response is sent (`Application.on_response_prepare`)."""
    for name, value in _HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("Content-Security-Policy", _NO_CONTENT_AT_ALL)


def answer_problems(control: Control) -> Middleware:
    """The outermost middleware: turns whatever is raised into a problem."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refused:
            return problem(refused.status, refused.detail, refused.headers)
        except web.HTTPException as error:
            return _of_aiohttp(request, error)
        except TooManyListeners as error:
            return problem(503, f"{error}; close one, or ask for events/recent", {"Retry-After": "5"})
        except Unanswered as error:
            return problem(503, f"{error}; try again", {"Retry-After": "1"})
        except ConnectionError:
            raise  # the client has gone: there is nobody to tell
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            control.log.error(
                "admin request failed",
                error=error,
                method=request.method,
                path=request.path,
                at=f"{where.filename}:{where.lineno}",
            )
            return problem(500, "this is a fault in lb; its error log says more")

    return middleware


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> web.Response:
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return problem(405, f"{request.path} is served for {allowed}", {"Allow": allowed})
        case web.HTTPNotFound():
            return problem(404, f"nothing is at {request.path}; /api/v1/openapi.json says what there is")
        case web.HTTPRequestEntityTooLarge():
            return problem(413, "the body is over 64 KiB")
    return problem(error.status, error.text or error.reason)
