"""The event stream: server-sent events (HTML living standard, section 9.2).

A listener is woken by the `EventLog` and takes from it what has a higher number than it has sent. So who
comes back (`Last-Event-ID`), who is slow and who begins in the past are served the same way, and what the log
does not keep any more is told as an event "lost".
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec
from aiohttp import web
from msgspec import UnsetType

from lb.admin import requests
from lb.admin.answers import json
from lb.admin.problems import Refused
from lb.admin.views import EventView
from lb.control.control import Control
from lb.control.events import EventLog, Listener
from lb.control.messages import Event

HEARTBEAT: Final = 15.0  # seconds of silence after which a comment is sent
LOOK: Final = 1.0  # seconds after which it is looked whether the client is still there
SLOW: Final = 10.0  # seconds that a client may take for what is sent to it
RECONNECT: Final = 2000  # milliseconds that a browser waits before it comes back
_WAKE: Final = Event(kind="", text="", at=0.0)


def view(event: Event) -> EventView:
    """`event` as it is answered."""
    return EventView(id=event.number, kind=event.kind, text=event.text, at=event.at, fields=event.fields)


class Events:
    """The routes; they know all streams, to end them."""

    def __init__(self, control: Control) -> None:
        self._log = control.events
        self._listeners: set[Listener] = set()
        self._closed = False

    async def close(self) -> None:
        """Ends every stream; a client that is still there sees its end, not a reset."""
        self._closed = True
        for listener in self._listeners:
            listener.put(_WAKE)

    async def recent(self, request: web.Request) -> web.Response:
        """The last events, oldest first."""
        asked = requests.query(request, requests.RecentQuery)
        return json([view(event) for event in self._log.after(asked.after, asked.limit)])

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Events as they happen, until the client leaves."""
        begin = _begin(request, self._log)
        listener = self._log.listen()
        self._listeners.add(listener)
        try:
            return await self._send(request, listener, begin)
        finally:
            self._listeners.discard(listener)
            self._log.forget(listener)

    async def _send(self, request: web.Request, listener: Listener, sent: int) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        data = f"retry: {RECONNECT}\n\n".encode()
        silent_since = time.monotonic()
        while not self._closed:
            new, sent = _after(self._log, sent)
            data += new
            if not data and time.monotonic() - silent_since >= HEARTBEAT:
                data = b": still here\n\n"
            if data:
                if not await _write(request, response, data):
                    return response
                silent_since = time.monotonic()
                data = b""
            if self._log.last <= sent:
                await _woken(listener, sent)
            if request.transport is None or request.transport.is_closing():
                return response
        await response.write_eof()
        return response


def _begin(request: web.Request, log: EventLog) -> int:
    """The number of the last event that the client has. What a browser says when it comes back counts more
    than the address that it began with."""
    asked = requests.query(request, requests.EventsQuery).after
    given = request.headers.get("Last-Event-ID", "")
    if given:
        if not (given.isascii() and given.isdigit() and len(given) < 19):
            raise Refused(400, "Last-Event-ID is the number of an event")
        return int(given)
    return log.last if isinstance(asked, UnsetType) else asked


def _after(log: EventLog, sent: int) -> tuple[bytes, int]:
    """What follows the event `sent`, and the number of the last of it."""
    restarted = sent > log.last  # the control process is another one, and counts from 1 again
    events = log.after(0 if restarted else sent)
    lost = restarted or bool(events and events[0].number > sent + 1)
    data = _lost(sent) if lost else b""
    data += b"".join(_encode(event) for event in events)
    return data, events[-1].number if events else log.last if restarted else sent


def _lost(sent: int) -> bytes:
    # It has no id: whoever comes back after it asks for what follows the last real event.
    event = Event(kind="lost", text=f"events after {sent} are not known any more; look again", at=time.time())
    return b"event: lost\ndata: " + msgspec.json.encode(view(event)) + b"\n\n"


def _encode(event: Event) -> bytes:
    kind = "".join(event.kind.split())  # a line break would begin another field
    return f"id: {event.number}\nevent: {kind}\ndata: ".encode() + msgspec.json.encode(view(event)) + b"\n\n"


async def _woken(listener: Listener, sent: int) -> None:
    """Returns when there is something new, and in any case after a while."""
    deadline = time.monotonic() + LOOK
    while (left := deadline - time.monotonic()) > 0:
        try:
            event = await asyncio.wait_for(listener.next(), left)
        except TimeoutError:
            return
        if event is _WAKE or event.number > sent:
            return


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> bool:
    """Sends `data`; `False` where the client has gone, or does not take it."""
    try:
        await asyncio.wait_for(response.write(data), SLOW)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        return False
    except ConnectionError:
        return False
    return True
