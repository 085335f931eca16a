"""Which worker serves which socket, and what binding, staging and aborting leave behind."""

from __future__ import annotations

import pathlib
import re
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.master import sockets
from lb.master.failures import BindError
from lb.master.listeners import SHARED, Listeners, share_out
from tests.harness.processes import own_descriptors

slots = st.sets(st.integers(0, 63), min_size=1, max_size=12)


@given(homes=slots, active=slots)
def test_every_home_has_one_active_owner_and_nobody_starves(homes: set[int], active: set[int]) -> None:
    owners = share_out(homes, sorted(active))
    assert owners.keys() == homes
    assert set(owners.values()) <= active
    assert all(owners[home] == home for home in homes & active)
    if len(homes) >= len(active):
        assert set(owners.values()) == active
        counts = [list(owners.values()).count(slot) for slot in active]
        assert max(counts) <= -(-len(homes) // len(active)) + 1


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    made = Listeners()
    yield made
    made.close()


@pytest.fixture
def address() -> str:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{trial.getsockname()[1]}"


def listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 1).close()
    except ConnectionRefusedError:
        return False
    return True


def test_nobody_connects_before_listen(listeners: Listeners, address: str) -> None:
    staged = listeners.stage([address], (0, 1))
    assert not listening(address)
    listeners.listen(staged, 0, (0, 1))
    assert listening(address)
    listeners.commit(staged)


def test_a_socket_per_slot_with_the_options_that_accepted_ones_inherit(
    listeners: Listeners, address: str
) -> None:
    listeners.commit(listeners.stage([address], (0, 1, 2)))
    for slot in range(3):
        (served,) = listeners.served_by(slot, (0, 1, 2))
        assert served.home == slot
        listeners.listen(listeners.current(), slot, (0, 1, 2))
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):
        accepted = next(filter(None, (accept(listeners, slot) for slot in range(3))))
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
        accepted.close()


def accept(listeners: Listeners, slot: int) -> socket.socket | None:
    try:
        return listeners.served_by(slot, (0, 1, 2))[0].socket.accept()[0]
    except BlockingIOError:
        return None


def test_an_abort_leaves_nothing(listeners: Listeners, address: str, tmp_path: pathlib.Path) -> None:
    before = len(own_descriptors())
    staged = listeners.stage([address, f"unix:{tmp_path}/front"], (0, 1))
    listeners.abort(staged)
    assert len(own_descriptors()) == before
    assert not (tmp_path / "front").exists()
    assert listeners.addresses == ()


def test_a_failure_in_the_middle_leaves_nothing(
    listeners: Listeners, address: str, tmp_path: pathlib.Path
) -> None:
    before = len(own_descriptors())
    with pytest.raises(BindError, match="no interface"):
        listeners.stage([address, f"unix:{tmp_path}/front", "192.0.2.1:80"], (0,))
    assert len(own_descriptors()) == before
    assert not (tmp_path / "front").exists()


def test_retired_homes_are_kept_and_given_back(listeners: Listeners, address: str) -> None:
    listeners.commit(listeners.stage([address], (0, 1, 2)))
    made: dict[int, socket.socket] = {}
    for slot in range(3):
        made |= {one.home: one.socket for one in listeners.served_by(slot, (0, 1, 2))}
    listeners.commit(listeners.stage([address], (0,)))
    assert {served.home for served in listeners.served_by(0, (0,))} == {0, 1, 2}
    # Slot 3 instead of 1 and 2: it takes over a home, and no socket is made.
    listeners.commit(listeners.stage([address], (0, 3)))
    (taken,) = listeners.served_by(3, (0, 3))
    assert taken.socket is made[taken.home]


def test_a_unix_address_has_one_socket_for_all(listeners: Listeners, tmp_path: pathlib.Path) -> None:
    address = f"unix:{tmp_path}/front"
    staged = listeners.stage([address], (0, 1))
    assert staged.layout[address].keys() == {SHARED}
    listeners.commit(staged)
    assert listeners.served_by(0, (0, 1))[0].socket is listeners.served_by(1, (0, 1))[0].socket
    assert (tmp_path / "front").stat().st_mode & 0o777 == 0o666
    listeners.close()
    assert not (tmp_path / "front").exists()


def test_a_socket_file_of_somebody_else_is_not_removed(listeners: Listeners, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "front"
    listeners.commit(listeners.stage([f"unix:{path}"], (0,)))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listeners.close()
        assert path.exists()


def test_a_stale_socket_file_is_replaced(listeners: Listeners, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "front"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    staged = listeners.stage([f"unix:{path}"], (0,))
    listeners.listen(staged, 0, (0,))
    assert sockets.answers(str(path))
    listeners.commit(staged)


def test_any_ipv6_address_takes_ipv4_too(listeners: Listeners, address: str) -> None:
    port = address.rpartition(":")[2]
    staged = listeners.stage([f"[::]:{port}"], (0,))
    listeners.listen(staged, 0, (0,))
    assert listening(address)
    assert listening(f"[::1]:{port}")
    listeners.commit(staged)


def test_any_address_of_both_families_may_be_listed(listeners: Listeners, address: str) -> None:
    port = address.rpartition(":")[2]
    staged = listeners.stage([f"0.0.0.0:{port}", f"[::]:{port}"], (0,))
    listeners.listen(staged, 0, (0,))
    assert listening(f"127.0.0.1:{port}")
    listeners.commit(staged)


def test_without_ipv6_any_address_means_ipv4(
    monkeypatch: pytest.MonkeyPatch, listeners: Listeners, address: str
) -> None:
    real = socket.socket

    def without_ipv6(family: int = -1, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *rest)

    # No kernel here can be told to do without; its error is what is replaced.
    monkeypatch.setattr("lb.master.sockets.socket.socket", without_ipv6)
    staged = listeners.stage([f"[::]:{address.rpartition(':')[2]}"], (0,))
    monkeypatch.undo()
    listeners.listen(staged, 0, (0,))
    assert listening(address)
    listeners.commit(staged)


def test_a_shared_port_of_the_same_user_is_found(listeners: Listeners, address: str) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        other.listen()
        with pytest.raises(BindError, match="in use by another process"):
            listeners.stage([address], (0,))


def test_a_long_unix_path_is_refused(listeners: Listeners) -> None:
    with pytest.raises(BindError, match="longer than 107 bytes"):
        listeners.stage([f"unix:/tmp/{'x' * 110}"], (0,))


def wrong_addresses(folder: pathlib.Path, port: int) -> dict[str, str]:
    """Addresses that can't be had, and why."""
    (folder / "file").write_text("")
    return {
        f"unix:{folder}/none/x.sock": "no such file or directory",
        f"unix:{folder}/file": "a file that is no socket is there already",
        f"unix:{folder}/served": "another process listens there",
        f"unix:{folder}/file/x": "not a directory",
        "unix:/proc/x.sock": "can't listen on unix:/proc/x.sock",
        f"unix:/tmp/{'x' * 200}": "the path is longer than",
        f"192.0.2.77:{port}": "no interface of this machine has the address 192.0.2.77",
    }


def test_a_rehearsal_finds_what_binding_would(
    listeners: Listeners, address: str, tmp_path: pathlib.Path
) -> None:
    listeners.commit(listeners.stage([address, f"unix:{tmp_path}/served"], (0,)))
    listeners.listen(listeners.current(), 0, (0,))
    wrong = wrong_addresses(tmp_path, sockets.parse(address).port)
    files, descriptors = sorted(tmp_path.iterdir()), own_descriptors()
    for text, why in wrong.items():
        for act in (sockets.rehearse, lambda one: Listeners().stage([one.text], (0,))):
            with pytest.raises(BindError, match=re.escape(why)):
                act(sockets.parse(text))
    assert (sorted(tmp_path.iterdir()), own_descriptors()) == (files, descriptors)


def test_a_rehearsal_leaves_everything_as_it_was(address: str, tmp_path: pathlib.Path) -> None:
    stale = tmp_path / ("s" * (105 - len(str(tmp_path))))
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(stale))
    before, descriptors = stale.lstat(), own_descriptors()
    for text in (address, f"unix:{stale}", f"unix:{tmp_path}/fresh"):
        sockets.rehearse(sockets.parse(text))
    assert (list(tmp_path.iterdir()), own_descriptors()) == ([stale], descriptors)
    assert stale.lstat() == before
    with socket.socket() as other:  # nobody holds it
        other.bind(("127.0.0.1", sockets.parse(address).port))
