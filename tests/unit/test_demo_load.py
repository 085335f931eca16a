"""The load of numbered messages: what it sees, and that it sees what is wrong."""

from __future__ import annotations

import os
import signal

import pytest

from lb.demo import wire
from lb.demo.load import TRAFFIC, Load, LoadError
from lb.demo.messages import END, LARGEST, SIZES, Incoming, Tally, Terms, message, size_of
from tests.harness.waiting import eventually

TERMS = Terms(tunnel=3)


def incoming() -> Incoming:
    return Incoming(TERMS, "s", Tally())


def found(end: Incoming) -> tuple[int, int, int, int]:
    """Received, lost, duplicated, corrupt."""
    tally = end.tally
    return tally.received, tally.lost, tally.duplicated, tally.corrupt


def test_terms_travel_in_the_request() -> None:
    terms = Terms(tunnel=7, profile="flood", rate=2.5, deflate=True, half="c", slow="s", read=100)
    assert Terms.parse(terms.target()) == terms
    assert Terms.parse(Terms().target()) == Terms()


def test_sizes() -> None:
    mixed = [size_of(TERMS, number) for number in range(64)]
    assert set(mixed) == set(SIZES)
    flood = [size_of(Terms(profile="flood"), number) for number in range(200)]
    assert min(flood) < 100
    assert 512 * 1024 < max(flood) <= LARGEST
    assert size_of(Terms(profile="1024"), 5) == 1024
    assert len(message(TERMS, "c", 9)) == size_of(TERMS, 9)


def test_all_in_order_is_right() -> None:
    end = incoming()
    for number in range(100):
        end.take(message(TERMS, "s", number))
    end.take(message(TERMS, "s", 100, END))
    assert found(end) == (100, 0, 0, 0)
    assert end.ended


def test_a_gap_is_lost() -> None:
    end = incoming()
    for number in (0, 1, 4, 5):
        end.take(message(TERMS, "s", number))
    assert found(end) == (4, 2, 0, 0)


def test_the_end_says_what_is_missing() -> None:
    end = incoming()
    end.take(message(TERMS, "s", 0))
    end.take(message(TERMS, "s", 5, END))
    assert found(end) == (1, 4, 0, 0)


def test_a_repeated_message_is_duplicated() -> None:
    end = incoming()
    for number in (0, 1, 1, 0, 2):
        end.take(message(TERMS, "s", number))
    assert found(end) == (3, 0, 2, 0)
    end.take(message(TERMS, "s", 3, END))
    end.take(message(TERMS, "s", 3, END))
    end.take(message(TERMS, "s", 2))
    assert found(end) == (3, 0, 4, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"something else",
        message(TERMS, "s", 0)[:-1],
        message(TERMS, "s", 0) + b"0",
        message(TERMS, "s", 0)[:-1] + b"!",
        message(TERMS, "c", 0),
        message(Terms(tunnel=4), "s", 0),
        b"\xff" * 40,
    ],
)
def test_what_is_altered_or_another_tunnels_is_corrupt(wrong: bytes) -> None:
    end = incoming()
    end.take(wrong)
    end.take(message(TERMS, "s", 1))
    assert found(end) == (1, 0, 0, 1)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300_000])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
def test_frames_come_back(size: int, masked: bool, compressed: bool, pieces: int) -> None:
    payload = os.urandom(size // 2).hex().encode()[:size].ljust(size, b"x")
    ping = wire.frame(wire.FIN | wire.PING, b"p", masked)
    frames = wire.fragments(wire.TEXT, payload, masked, compressed, pieces)
    stream = ping.join([*frames, b""])
    whole = [(wire.PING, b"p")] * len(frames)
    whole.insert(len(frames) - 1, (wire.TEXT, payload))
    assert list(wire.FrameReader(masked).feed(stream)) == whole
    reader, step = wire.FrameReader(masked), max(1, len(stream) // 97)
    pieced = [item for at in range(0, len(stream), step) for item in reader.feed(stream[at : at + step])]
    assert pieced == whole


@pytest.mark.parametrize(
    "data",
    [
        wire.frame(wire.FIN | wire.TEXT, b"x", masked=True),
        wire.frame(0x90 | wire.TEXT, b"x", masked=False),
        wire.frame(wire.PING, b"x", masked=False),
        wire.frame(wire.FIN | wire.PING, b"x" * 126, masked=False),
        wire.frame(wire.FIN, b"x", masked=False),
        wire.frame(wire.TEXT, b"x", masked=False) * 2,
        wire.frame(wire.FIN | wire.COMPRESSED | wire.TEXT, b"\xff" * 9, masked=False),
        b"\x82\x7f\x00\x00\x00\x01\x00\x00\x00\x00",
    ],
    ids=["masked", "reserved", "cut", "control", "continued", "begun-twice", "deflated", "long"],
)
def test_what_no_peer_may_send_is_an_error(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        list(wire.FrameReader(masked=False).feed(data))


def test_a_load_ends_exactly() -> None:
    with Load() as load:
        for terms in (
            Terms(rate=20),
            Terms(rate=20, deflate=True),
            Terms(rate=20, half="c"),
            Terms(rate=20, half="s"),
            Terms(profile="flood"),
            Terms(profile="flood", slow="c", read=300_000),
            Terms(profile="flood", slow="s", read=300_000),
        ):
            load.open(load.ports[load.tunnels % 2], 3, terms)
        eventually(lambda: load.account().received > 2000, "messages come", 10)
        account = load.stop()
    assert account.whole, account
    assert (account.tunnels, account.finished, account.sent) == (21, 21, account.received)
    assert str(account).startswith("21 tunnels (0 open, 21 ended when told, 0 closed early, 0 refused")


def test_a_tunnel_that_breaks_is_counted_and_not_opened_anew() -> None:
    with Load() as load:
        load.open(load.ports[0], 5, Terms(rate=20))
        os.kill(load.servers.pid, signal.SIGSTOP)
        os.kill(load.servers.pid, signal.SIGKILL)
        eventually(lambda: sum(load.clients.ask("report")["closed"].values()) == 5, "clients notice")
        with pytest.raises(LoadError, match=r"ended|did not answer"):
            load.account()


def test_a_refused_tunnel_is_an_error() -> None:
    with Load() as load, Load() as other:
        other.close()
        with pytest.raises(LoadError, match=r"not all tunnels could be opened: .* 3 refused"):
            load.open(other.ports[0], 3)
        assert not load.account().whole


def test_a_pause_is_seen() -> None:
    with Load() as load:
        load.open(load.ports[0], 5, Terms(rate=20))
        eventually(lambda: load.account().received > 20, "messages come", 10)
        os.kill(load.servers.pid, signal.SIGSTOP)
        eventually(lambda: load.clients.ask("report")["longest"] > 0.3, "the pause is seen", 10)
        os.kill(load.servers.pid, signal.SIGCONT)
        assert load.stop().whole


LIBRARY = "tests.harness.library_traffic"


@pytest.mark.parametrize(("clients", "serving"), [(LIBRARY, TRAFFIC), (TRAFFIC, LIBRARY), (LIBRARY, LIBRARY)])
def test_it_speaks_websocket_as_others_do(clients: str, serving: str) -> None:
    with Load(1, clients=clients, serving=serving) as load:
        load.open(load.ports[0], 5, Terms(rate=20))
        load.open(load.ports[0], 5, Terms(rate=20, deflate=True))
        load.open(load.ports[0], 1, Terms(profile="flood"))
        eventually(lambda: load.account().received > 500, "messages come", 10)
        account = load.stop()
    assert account.whole, account
