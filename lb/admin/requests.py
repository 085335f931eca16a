"""What a request says, strictly decoded: an unknown parameter, field or value is refused by name, so that a
misspelt filter never closes everything."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final, TypeVar

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from lb.admin.problems import Refused
from lb.admin.views import MAX_SECONDS, Word

MAX_BODY: Final = 64 * 1024
BODY_WITHIN: Final = 10.0  # seconds from the head on
CURSOR: Final = r"^([0-9]{1,4}-[0-9]{1,10}-[0-9]{1,18}-[0-9]{1,12}-[0-9a-f]{16})?$"
Asked = TypeVar("Asked")

Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters of a route that takes none, and the base of the others."""


class TunnelQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tunnels to list."""

    route: Annotated[Word, Meta(description="Only tunnels of this route.")] = ""
    pool: Annotated[Word, Meta(description="Only tunnels of this pool.")] = ""
    server: Annotated[Word, Meta(description="Only tunnels of the server with this name.")] = ""
    client: Annotated[
        Word, Meta(description="Only tunnels of this client address, or of those that start so.")
    ] = ""
    older: Annotated[Seconds, Meta(description="Only tunnels that are at least so many seconds old.")] = 0.0
    idle: Annotated[Seconds, Meta(description="Only tunnels that were silent for so many seconds.")] = 0.0
    worker: (
        Annotated[int, Meta(ge=0, le=9999, description="Only of the worker in this slot.")] | UnsetType
    ) = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000, description="Tunnels on a page, at most.")] = 100
    cursor: Annotated[str, Meta(pattern=CURSOR, description="`cursor` of the page before.")] = ""


class EventsQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the event stream begins."""

    after: (
        Annotated[int, Meta(ge=0, description="Begin behind this number; 0: with the oldest kept.")]
        | UnsetType
    ) = UNSET


class RecentQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events to list."""

    limit: Annotated[int, Meta(ge=1, le=1000, description="Events at most, the latest.")] = 100
    after: Annotated[int, Meta(ge=0, description="Only events with a higher number.")] = 0


def query(request: web.Request, kind: type[Asked]) -> Asked:
    """The query parameters of `request`. Raises `Refused`."""
    given: dict[str, str] = {}
    for name, value in request.query.items():
        if name in given:
            raise Refused(400, f"the parameter {name} is given twice")
        given[name] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        detail = str(error).replace("Object contains unknown field", "there is no parameter")
        raise Refused(400, f"query parameters: {detail}") from error


async def body(request: web.Request, kind: type[Asked]) -> Asked:
    """The JSON body of `request`. Raises `Refused`: 400 where it is no JSON, 422 where it says something
    else than `kind`, 408 where it does not come."""
    try:
        async with asyncio.timeout(BODY_WITHIN):
            data = await request.read()
    except TimeoutError:
        raise Refused(
            408, f"the body did not come within {BODY_WITHIN:g}s", {"Connection": "close"}
        ) from None
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise Refused(422, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from error
