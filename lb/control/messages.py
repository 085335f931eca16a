"""What the master and the control process say to each other; the channel is that of the workers
(`workers.contract.messages`: datagrams under 64 KiB, larger things in sealed memfds)."""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from lb.master.report import Outcome, StatusReport
from workers.contract.messages import (
    CloseTunnels,
    ListTunnels,
    Message,
    MoveTunnels,
    Tunnels,
    TunnelsClosed,
    receive_any,
)

MAX_EVENT_TEXT: Final = 1024
MAX_EVENT_FIELDS: Final = 16
MAX_EVENT_FIELD: Final = 200  # characters of a value
_MAX_WORD: Final = 64  # of an event's kind, and of a field's name
_MAX_NUMBER: Final = 2**63 - 1


class Event(Message, frozen=True, kw_only=True):
    """Something that happened, for the event stream. `kind` is a stable word: "reload", "reload-failed",
    "worker-ended", "worker-serves", "server-up", "server-down", "server-ejected", "server-returned",
    "server-admin", "discovered", "discovery-failed", "tunnels-closed", "tunnels-restored", "tunnels-moved",
    "keeper-ended", "control-ended", "upgrade", "upgrade-failed". docs/admin-api.md lists them."""

    kind: str
    text: str  # one line for people
    at: float  # Unix time
    fields: dict[str, str | int | float] = {}  # noqa: RUF012  (msgspec copies it)
    number: int = 0  # set by who keeps them

    def bounded(self) -> Event:
        """The same in what can be sent and kept in any number: cut, and without surrogates."""
        fields: dict[str, str | int | float] = {}
        for key, value in list(self.fields.items())[:MAX_EVENT_FIELDS]:
            if isinstance(value, str):
                value = clean(value, MAX_EVENT_FIELD)
            elif isinstance(value, int):
                value = min(max(value, -_MAX_NUMBER), _MAX_NUMBER)
            fields[clean(key, _MAX_WORD)] = value
        return msgspec.structs.replace(
            self, kind=clean(self.kind, _MAX_WORD), text=clean(self.text, MAX_EVENT_TEXT), fields=fields
        )


def clean(text: str, most: int) -> str:
    """`text` cut to `most` characters, and without surrogates, which can't be sent."""
    return text[:most].encode("utf-8", "replace").decode("utf-8")


# --- master to control ---------------------------------------------------------------------------------


class Configured(Message, frozen=True, kw_only=True):
    """This configuration is served from now on. Two descriptors come with it: memfds with the encoded
    snapshot and the encoded `ControlSpec`."""

    generation: int


class MasterStatus(Message, frozen=True, kw_only=True):
    """How the master and its workers stand: sent at the start and after every change. Figures of workers
    are as of then; those of the moment are on the scoreboard."""

    report: StatusReport


class Reloaded(Message, frozen=True, kw_only=True):
    """The reload that `request` asked for is over."""

    request: int
    outcome: Outcome


class WorkerAnswer(Message, frozen=True, kw_only=True):
    """What a worker answered to `AskWorker`, or why there is no answer (`error`)."""

    request: int
    slot: int
    tunnels: Tunnels | None = None
    closed: TunnelsClosed | None = None
    error: str = ""


class Leave(Message, frozen=True, kw_only=True):
    """Close everything and exit."""


# --- control to master ---------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True):
    """The event loop runs: answered by `Configured`, `MasterStatus` and the last `Event`s."""

    pid: int


class AskReload(Message, frozen=True, kw_only=True):
    """Reload the configuration; answered by `Reloaded`."""

    request: int


class AskWorker(Message, frozen=True, kw_only=True):
    """Pass this on to the worker in `slot`; answered by `WorkerAnswer`."""

    request: int
    slot: int
    what: ListTunnels | CloseTunnels | MoveTunnels


class Discovered(Message, frozen=True, kw_only=True):
    """Servers or addresses changed. One descriptor comes with it: a memfd with the encoded `Discovery`."""


ToControl = Configured | MasterStatus | Event | Reloaded | WorkerAnswer | Leave
ToMaster = Hello | AskReload | AskWorker | Discovered | Event

_to_control: msgspec.msgpack.Decoder[ToControl] = msgspec.msgpack.Decoder(ToControl)
_to_master: msgspec.msgpack.Decoder[ToMaster] = msgspec.msgpack.Decoder(ToMaster)


def receive_in_control(channel: socket.socket) -> tuple[ToControl, list[int]] | None:
    """The next message of the master; see `receive_any`."""
    return receive_any(channel, _to_control)


def receive_in_master(channel: socket.socket) -> tuple[ToMaster, list[int]] | None:
    """The next message of the control process; see `receive_any`."""
    return receive_any(channel, _to_master)
