"""The part of the schema that says which servers of a pool are used: health checks, ejection, discovery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from lb.config import text
from lb.config.kinds import Boolean, Choice, Duration, Integer, Text
from lb.config.tables import Conflict, Key, Partial, Table
from lb.config.units import format_duration


class Health(Partial, frozen=True, kw_only=True):
    """Active checks, made by the control process. `health = {}` switches them on. A server's own `health`
    overrides these keys one by one."""

    type: Annotated[
        Literal["http", "tcp", "websocket"],
        Key(
            Choice("http", "tcp", "websocket"),
            "http asks for a page; tcp connects, no more; websocket makes a whole handshake, and waits for "
            "the answer to a ping.",
        ),
    ] = "http"
    path: Annotated[str, Key(Text(text.check_path, '"/path" or "/path?query"'), "What is asked for.")] = "/"
    every: Annotated[
        float, Key(Duration("100ms", "1h"), "Time from check to check; some jitter keeps checks apart.")
    ] = 2.0
    timeout: Annotated[
        float, Key(Duration("10ms", "1h"), "A check that takes longer has failed; at most every.")
    ] = 1.0
    fall: Annotated[int, Key(Integer(1, 100), "Failed checks in a row that take a server out.")] = 3
    rise: Annotated[int, Key(Integer(1, 100), "Good checks in a row that bring it back.")] = 2
    port: Annotated[
        int | None, Key(Integer(1, 65535), "Port to check; absent: the one that gets the requests.")
    ] = None
    host: Annotated[
        str | None,
        Key(
            Text(text.host_name, "host name"),
            "Host header, and the name to ask for and to verify with TLS; absent: the server's.",
        ),
    ] = None
    status: Annotated[
        str,
        Key(
            Text(text.statuses, 'such as "200-299" or "200,204,300-399"'),
            "Status codes that are good, for type http.",
        ),
    ] = "200-299"
    body: Annotated[
        str | None,
        Key(
            Text(text.check_body, "text"),
            "What the first 64 KiB of the body must hold, for type http; absent: anything.",
        ),
    ] = None
    tls: Annotated[bool | None, Key(Boolean(), "Whether the check speaks TLS; absent: as the pool does.")] = (
        None
    )

    def conflicts(self) -> Iterator[Conflict]:
        if self.given:
            return  # what it says is judged together with the pool's, see `rules`
        yield from self.mismatches()

    def mismatches(self) -> Iterator[Conflict]:
        """What is wrong with the whole of the keys."""
        if self.timeout > self.every:
            message = (
                f'{format_duration(self.timeout)} is longer than every = "{format_duration(self.every)}"'
            )
            yield Conflict(("timeout", "every"), message, "a check ends before the next one starts")
        unused = {"http": (), "tcp": ("path", "status", "body"), "websocket": ("status", "body")}[self.type]
        for key in unused:
            if getattr(self, key) != getattr(_HEALTH_DEFAULTS, key):
                yield Conflict((key, "type"), f'is not used by type = "{self.type}"', f"remove {key}")

    def overridden(self, own: Health) -> Health:
        """These checks with the keys that a server's `own` table gives."""
        return msgspec.structs.replace(self, **{key: getattr(own, key) for key in own.given})


_HEALTH_DEFAULTS = Health()


def checks_of(pool: Health | None, own: Health | Literal["off"] | None) -> Health | None:
    """The checks of a server whose pool has `pool` and whose own table is `own`."""
    if own is None:
        return pool
    return None if own == "off" else (pool or _HEALTH_DEFAULTS).overridden(own)


def _count(meaning: str) -> Any:
    return Key(Integer(1, 10_000, word="off"), meaning)


class Eject(Table, frozen=True, kw_only=True):
    """Takes servers out that fail in real traffic. `eject = {}` switches it on. The counts are in a row and
    as one worker sees them."""

    consecutive_errors: Annotated[
        int | None, _count("Errors of any kind that eject a server, answers with 5xx among them.")
    ] = 5
    gateway_failures: Annotated[
        int | None, _count("Answers with 502, 503 or 504, resets, timeouts and malformed answers that do.")
    ] = None
    connect_failures: Annotated[int | None, _count("Failures to connect that do.")] = None
    for_: Annotated[
        float,
        Key(Duration("100ms", "24h"), "How long the first ejection lasts; each one in a row adds as much."),
    ] = 30.0
    max_for: Annotated[float, Key(Duration("100ms", "24h"), "The longest that an ejection lasts.")] = 300.0
    max_percent: Annotated[int, Key(Integer(1, 100), "Share of the pool that may be ejected at a time.")] = 50
    panic_percent: Annotated[
        int,
        Key(
            Integer(0, 100),
            "While a smaller share of the pool can be used, all servers are that the operator has not taken "
            "out; 0: never.",
        ),
    ] = 0

    def conflicts(self) -> Iterator[Conflict]:
        reasons = ("consecutive_errors", "gateway_failures", "connect_failures")
        if all(getattr(self, reason) is None for reason in reasons):
            hint = 'write eject = "off" to eject no server'
            yield Conflict(reasons, f"one of {', '.join(reasons)} is needed", hint)
        if self.max_for < self.for_:
            yield Conflict(("max_for", "for"), "is shorter than for")


class Discover(Table, frozen=True, kw_only=True):
    """Servers from a file that other programs write: JSON or YAML in the format of Prometheus's file_sd,
    `[{"targets": ["10.0.0.1:9000"], "labels": {"weight": "2"}}]`. Labels that count are weight, backup and,
    for a single target, name."""

    file: Annotated[
        str,
        Key(Text(text.servers_file, "path of a .json, .yaml or .yml file"), "The file; it must be there."),
    ]
    refresh: Annotated[float, Key(Duration("100ms", "1h"), "How often it is looked at for changes.")] = 1.0
