"""Snapshots: what the master encoded is what a worker serves, and anything else is refused."""

from __future__ import annotations

import contextlib
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contract import snapshot
from workers.contract.snapshot import (
    FORMAT,
    CertificateSpec,
    HeaderRules,
    ListenerSpec,
    ListenTls,
    PoolSpec,
    RouteSpec,
    ServerSpec,
    Snapshot,
    SnapshotError,
    StickySpec,
)

_SAMPLE = Snapshot(
    generation=3,
    listeners=(
        ListenerSpec(
            slot=0,
            name="public",
            bind=("[::]:443",),
            tls=ListenTls(certificates=(CertificateSpec(name="a", hosts=("*.example.com",)),)),
        ),
    ),
    routes=(RouteSpec(slot=1, name="all", pool="web", headers=HeaderRules(request_set=(("A", "\xe9"),))),),
    pools=(
        PoolSpec(
            name="web",
            servers=(ServerSpec(slot=2, name="one", host="::1", port=80, max_connections=5),),
            sticky=StickySpec(kind="cookie", name="lb", key=bytes(range(32))),
        ),
    ),
)

LEAVES: dict[object, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    bytes: st.binary(max_size=32),
    float: st.floats(allow_nan=False),
    int: st.integers(-(2**63), 2**64 - 1),  # what MessagePack can say
    str: st.text(max_size=20),
    NoneType: st.none(),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a struct's field, from its annotation: a field that is added is covered by that alone."""
    if kind in LEAVES:
        return LEAVES[kind]
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return st.sampled_from(arguments)
    if get_origin(kind) is UnionType:
        return st.one_of(*map(values, arguments))
    if get_origin(kind) is tuple:
        if arguments[-1] is ...:
            return st.lists(values(arguments[0]), max_size=2).map(tuple)
        return st.tuples(*map(values, arguments))
    return st.builds(kind, **{name: values(hint) for name, hint in get_type_hints(kind).items()})


snapshots = values(Snapshot).map(lambda sent: msgspec.structs.replace(sent, format=FORMAT))


@given(snapshots)
def test_what_was_encoded_is_decoded(sent: Snapshot) -> None:
    data = snapshot.encode(sent)
    assert snapshot.decode(data) == sent
    assert snapshot.decode(memoryview(data)) == sent


def test_defaults_cost_no_bytes_and_come_back() -> None:
    assert len(snapshot.encode(Snapshot(generation=1))) < 20
    assert snapshot.decode(snapshot.encode(Snapshot(generation=1))) == Snapshot(generation=1)


def test_a_snapshot_is_frozen() -> None:
    with pytest.raises(AttributeError):
        _SAMPLE.generation = 4  # type: ignore[misc]
    assert hash(_SAMPLE) == hash(snapshot.decode(snapshot.encode(_SAMPLE)))


@pytest.mark.parametrize("other", [0, FORMAT + 1, -1])
def test_another_format_is_refused(other: int) -> None:
    data = snapshot.encode(msgspec.structs.replace(_SAMPLE, format=other))
    with pytest.raises(SnapshotError, match=f"snapshot has format {other}, this code reads {FORMAT}"):
        snapshot.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode({"generation": "1"}),
        msgspec.msgpack.encode({"generation": 1, "routes": [{"slot": 1}]}),
        msgspec.msgpack.encode({"generation": 1, "access_log": {"format": "xml"}}),
        msgspec.msgpack.encode({"generation": 1, "access_log": {"path": "abc"}}).replace(
            b"abc", b"\xff\xfeb"
        ),
        b"\x81\xa1x" + b"\x91" * 100_000,
        snapshot.encode(_SAMPLE) + b"\x00",
    ],
)
def test_what_is_damaged_is_refused(data: bytes) -> None:
    with pytest.raises(SnapshotError, match="can't be decoded"):
        snapshot.decode(data)


def test_every_truncation_is_refused() -> None:
    data = snapshot.encode(_SAMPLE)
    for end in range(len(data)):
        with pytest.raises(SnapshotError):
            snapshot.decode(data[:end])


@given(st.integers(0, 300), st.binary(min_size=1, max_size=3))
def test_damage_is_another_snapshot_or_refused(where: int, what: bytes) -> None:
    data = snapshot.encode(_SAMPLE)
    where %= len(data)
    with contextlib.suppress(SnapshotError):
        assert isinstance(snapshot.decode(data[:where] + what + data[where + len(what) :]), Snapshot)
