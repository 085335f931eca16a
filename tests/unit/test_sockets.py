"""What both kinds of sockets promise: CPython's, and those in C where they are compiled."""

from __future__ import annotations

import errno
import fcntl
import gc
import importlib.util
import os
import resource
import select
import signal
import socket
import ssl
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from tests.harness.certificates import Authority, server_context
from tests.harness.waiting import eventually
from tests.unit.lost import lost_blocks
from workers.contract.native import native
from workers.io import sockets
from workers.io.sockets import Socket
from workers.io.tls import Handshake, Stream, TlsStream

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_DEADLINE = 10.0
_ABSTRACT = count()


def twin() -> ModuleType:
    """`workers.io.sockets` as it is where nothing was compiled."""
    spec = importlib.util.spec_from_file_location("sockets_in_python", sockets.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.native = None  # type: ignore[attr-defined]
    module.opened = module._opened  # type: ignore[attr-defined]
    return module


PYTHON = twin()
KINDS = {"python": PYTHON} | ({} if native is None else {"native": sockets})


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Any:
    """A module of sockets."""
    return request.param


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(descriptors())
    yield
    assert len(descriptors()) == before


def wait(sock: Socket | socket.socket | Stream, event: int = select.POLLIN) -> None:
    poll = select.poll()
    poll.register(sock.fileno(), event)
    assert poll.poll(_DEADLINE * 1000), "the socket is not ready in time"


@pytest.fixture
def pair(kind: Any) -> Iterator[tuple[Socket, socket.socket]]:
    """A socket of TCP, and its peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours = kind.adopted(listener.accept()[0].detach())
    with theirs:
        yield ours, theirs
    ours.close()


def accept_one(accept: sockets.Accept, listener: socket.socket) -> tuple[Socket, str]:
    wait(listener)
    connection = accept()
    assert connection is not None
    return connection


# --- coming and going ------------------------------------------------------------------------------------

PLACES = ("v4", "v6", "mapped", "path", "abstract")


def listen(place: str, folder: str, backlog: int = 16) -> tuple[socket.socket, int, Any]:
    """A listening socket, and the family and address to connect to."""
    if place in ("path", "abstract"):
        address = f"{folder}/socket" if place == "path" else f"\0lb-test-{os.getpid()}-{next(_ABSTRACT)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
        return listener, socket.AF_UNIX, address
    if place == "v4":
        listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        target: tuple[object, ...] = listener.getsockname()
        family = socket.AF_INET
    else:
        host = "::1" if place == "v6" else "::"
        try:
            listener = socket.create_server(
                (host, 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=place == "mapped"
            )
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        family = socket.AF_INET6 if place == "v6" else socket.AF_INET
        target = listener.getsockname() if place == "v6" else ("127.0.0.1", listener.getsockname()[1])
    listener.setblocking(False)
    return listener, family, target


@pytest.mark.parametrize("place", PLACES)
def test_connections_are_opened_and_accepted(kind: Any, place: str, socket_folder: str) -> None:
    listener, family, address = listen(place, socket_folder)
    with listener:
        accept = kind.acceptor(listener)
        assert accept() is None
        opened: Socket = kind.opened(family)
        assert (opened.family, opened.type, opened.fileno()) == (family, socket.SOCK_STREAM, opened.fileno())
        if family != socket.AF_UNIX:
            assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        result = opened.connect_ex(kind.packed(family, address))
        assert result in (0, errno.EINPROGRESS), os.strerror(result)
        wait(opened, select.POLLOUT)
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        opened.getpeername()
        accepted, peer = accept_one(accept, listener)
        assert accept() is None
    expected = {"v4": "127.0.0.1", "v6": "::1", "mapped": "::ffff:127.0.0.1"}
    assert peer == expected.get(place, "")
    assert (accepted.family, accepted.type, accepted.proto) == (listener.family, socket.SOCK_STREAM, 0)
    for sock in (opened, accepted):
        assert not os.get_inheritable(sock.fileno())
        assert fcntl.fcntl(sock.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
    accepted.send(b"hello")
    wait(opened)
    assert opened.recv(100) == b"hello"
    opened.close()
    wait(accepted)
    assert accepted.recv(100) == b""
    accepted.close()


def test_a_unix_peer_with_a_name_of_its_own_has_no_address(kind: Any, socket_folder: str) -> None:
    listener, _, address = listen("path", socket_folder)
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.bind(f"{socket_folder}/client")
        client.connect(address)
        accepted, peer = kind.acceptor(listener)()
        assert (peer, accepted.family) == ("", socket.AF_UNIX)
        accepted.close()


@pytest.fixture
def shortage() -> Iterator[Callable[[], None]]:
    """From when it is called on there are no descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def begin() -> None:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))

    yield begin
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_shortage_of_descriptors_is_raised(kind: Any, shortage: Callable[[], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with socket.create_connection(listener.getsockname()):
            shortage()
            for call in (kind.acceptor(listener), lambda: kind.opened(socket.AF_INET)):
                with pytest.raises(OSError, match="Too many open files"):
                    call()


def test_a_bad_family_is_raised(kind: Any) -> None:
    with pytest.raises(OSError, match="not supported"):
        kind.opened(12345)


@pytest.mark.parametrize("place", ["v4", "v6", "path", "abstract"])
def test_nobody_listens(kind: Any, place: str, socket_folder: str) -> None:
    listener, family, address = listen(place, socket_folder)
    listener.close()
    sock = kind.opened(family)
    result = sock.connect_ex(kind.packed(family, address))
    if result == errno.EINPROGRESS:
        wait(sock, select.POLLOUT)
        result = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert result == errno.ECONNREFUSED
    with pytest.raises(OSError, match="not connected"):
        sock.getpeername()
    sock.close()


def test_a_missing_path(kind: Any, socket_folder: str) -> None:
    sock = kind.opened(socket.AF_UNIX)
    assert sock.connect_ex(kind.packed(socket.AF_UNIX, f"{socket_folder}/none")) == errno.ENOENT
    sock.close()


def test_a_connection_that_takes_its_time(kind: Any) -> None:
    """A full queue drops what comes, and TCP tries again."""
    listener, family, address = listen("v4", "", backlog=0)
    with listener, socket.create_connection(address):
        target = kind.packed(family, address)
        sock = kind.opened(family)
        assert sock.connect_ex(target) == errno.EINPROGRESS
        assert sock.connect_ex(target) == errno.EALREADY
        sock.close()


def test_what_is_no_address(kind: Any) -> None:
    sock = kind.opened(socket.AF_INET)
    for address in (None, 1, "127.0.0.1"):
        with pytest.raises(TypeError):
            sock.connect_ex(address)
    sock.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_descriptor_is_adopted(kind: Any, family: int) -> None:
    with socket.socket(family) as plain:
        fd = plain.fileno()
        sock = kind.adopted(plain.detach())
    assert (sock.fileno(), sock.family, sock.type) == (fd, family, socket.SOCK_STREAM)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    sock.close()


def test_what_is_no_socket_stays_with_the_caller(kind: Any) -> None:
    reading, writing = os.pipe()
    with pytest.raises(OSError, match="non-socket"):
        kind.adopted(reading)
    gc.collect()
    os.write(writing, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(writing)
    os.close(reading)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kind.adopted(reading)


# --- bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview, lambda data: memoryview(b"xx" + data)[2:]])
def test_bytes_are_sent(kind: Any, pair: tuple[Socket, socket.socket], form: Callable[[bytes], Any]) -> None:
    ours, theirs = pair
    assert ours.send(form(b"hello")) == 5
    assert theirs.recv(100) == b"hello"
    assert ours.send(form(b"")) == 0


def test_bytes_are_received(pair: tuple[Socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"hello world")
    wait(ours)
    assert ours.recv(5, socket.MSG_PEEK) == b"hello"
    assert (ours.recv(0), ours.recv_into(bytearray())) == (b"", 0)
    assert ours.recv(2) == b"he"
    whole = bytearray(b"-" * 8)
    assert ours.recv_into(memoryview(whole)[2:5]) == 3
    assert whole == b"--llo---"
    assert ours.recv_into(whole) == 6
    assert whole == b" world--"
    with pytest.raises(BlockingIOError):
        ours.recv_into(whole)
    with pytest.raises(BlockingIOError):
        ours.recv(8)
    assert (ours.recv(0), ours.recv_into(bytearray())) == (b"", 0)
    whole.clear()  # nobody holds it
    theirs.close()
    wait(ours)
    assert (ours.recv(8), ours.recv_into(bytearray(8))) == (b"", 0)


@pytest.mark.parametrize("size", [1, 2, 511, 512, 65536, 1 << 20])
def test_what_is_received_has_its_own_size(pair: tuple[Socket, socket.socket], size: int) -> None:
    ours, theirs = pair
    theirs.sendall(b"x" * 300)
    wait(ours)
    data = ours.recv(size)
    assert data == b"x" * min(size, 300)
    assert sys.getsizeof(data) == sys.getsizeof(b"x" * len(data))


def test_a_full_socket_takes_no_more(pair: tuple[Socket, socket.socket]) -> None:
    ours, theirs = pair
    block = bytes(range(256)) * 4096
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += ours.send(memoryview(block)[sent % 256 :])
    with pytest.raises(BlockingIOError):
        ours.send(block)
    ours.close()
    received = 0
    while data := theirs.recv(1 << 20):
        assert data == (block + block)[received % 256 :][: len(data)]
        received += len(data)
    assert received == sent


def test_wrong_arguments(pair: tuple[Socket, socket.socket]) -> None:
    ours = cast(Any, pair[0])
    calls: list[tuple[Callable[..., object], tuple[object, ...], Any]] = [
        (ours.send, ("text",), TypeError),
        (ours.send, (None,), TypeError),
        (ours.send, (memoryview(bytes(8))[::2],), BufferError),
        (ours.recv, (), TypeError),
        (ours.recv, ("1",), TypeError),
        (ours.recv, (1, 2, 3), TypeError),
        (ours.recv, (-1,), ValueError),
        (ours.recv, (1, 2**40), OverflowError),
        (ours.recv_into, (b"fixed",), (TypeError, BufferError)),
        (ours.recv_into, (memoryview(b"fixed"),), (TypeError, BufferError)),
        (ours.recv_into, (None,), TypeError),
        (ours.shutdown, ("1",), TypeError),
        (ours.shutdown, (2**40,), OverflowError),
        (ours.getsockopt, (1,), TypeError),
        (ours.getsockopt, (1, 2, 3, 4), TypeError),
        (ours.getsockopt, (1, 2.0), TypeError),
        (ours.setsockopt, (1, 2), TypeError),
        (ours.setsockopt, (1, 2, "x"), TypeError),
    ]  # fmt: skip
    for call, arguments, error in calls:
        with pytest.raises(error):
            call(*arguments)


def reset_by_peer(kind: Any) -> Socket:
    """A socket of which the peer has reset the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours: Socket = kind.adopted(listener.accept()[0].detach())
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    theirs.close()
    wait(ours)
    return ours


def test_a_reset_is_raised(kind: Any) -> None:
    calls: list[Callable[[Socket], object]] = [
        lambda sock: sock.recv(8),
        lambda sock: sock.recv_into(bytearray(8)),
    ]
    for call in calls:
        ours = reset_by_peer(kind)
        with pytest.raises(ConnectionResetError):
            call(ours)
        with pytest.raises(BrokenPipeError):
            ours.send(b"x")
        ours.close()


def test_a_peer_that_left_breaks_the_pipe(kind: Any) -> None:
    ours, theirs = socket.socketpair()
    sock = kind.adopted(ours.detach())
    theirs.close()
    for data in (b"x", bytearray(b"x")):
        with pytest.raises(BrokenPipeError):
            sock.send(data)
    sock.close()


@pytest.mark.skipif(native is None, reason="CPython's sockets leave SIGPIPE to its being ignored")
def test_no_signal_comes_of_it() -> None:
    ours, theirs = socket.socketpair()
    sock = sockets.adopted(ours.detach())
    theirs.close()
    got: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _frame: got.append(number))
    try:
        for data in (b"x", bytearray(b"x")):
            with pytest.raises(BrokenPipeError):
                sock.send(data)
    finally:
        signal.signal(signal.SIGPIPE, before)
    sock.close()
    assert got == []


def test_one_direction_ends(kind: Any, pair: tuple[Socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.shutdown(socket.SHUT_WR)
    assert theirs.recv(8) == b""
    theirs.sendall(b"still here")
    wait(ours)
    assert ours.recv(100) == b"still here"
    with pytest.raises(BrokenPipeError):
        ours.send(b"x")
    lonely = kind.opened(socket.AF_INET)
    with pytest.raises(OSError, match="not connected"):
        lonely.shutdown(socket.SHUT_WR)
    lonely.close()


def test_options(pair: tuple[Socket, socket.socket]) -> None:
    ours, _ = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == _RESET_ON_CLOSE
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert cast(Any, ours).getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0) == 1
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, False)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    for size in (1, 104, 1024):
        info = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        assert info[0] == 1 and (size == 1024 or len(info) == size)  # TCP_ESTABLISHED
    for size in (-1, 1025):
        with pytest.raises(OSError, match="buflen out of range"):
            ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    with pytest.raises(OSError, match="not available"):
        ours.setsockopt(socket.IPPROTO_TCP, 12345, 1)
    with pytest.raises(OSError, match="not available"):
        ours.setsockopt(socket.IPPROTO_TCP, 12345, struct.pack("i", 1))
    with pytest.raises(OSError, match="not available"):
        ours.getsockopt(socket.IPPROTO_TCP, 12345)


# --- the end ---------------------------------------------------------------------------------------------


def test_a_closed_socket_is_closed(kind: Any, pair: tuple[Socket, socket.socket]) -> None:
    ours, _ = pair
    fd = ours.fileno()
    ours.close()
    assert ours.fileno() == -1
    os.dup2(0, fd)  # the number is somebody else's now
    ours.close()
    os.close(fd)
    calls: list[Callable[[], object]] = [
        lambda: ours.recv(1), lambda: ours.recv_into(bytearray(1)), lambda: ours.send(b"x"),
        lambda: ours.send(bytearray(b"x")), lambda: ours.shutdown(socket.SHUT_WR), ours.getpeername,
        lambda: ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
        lambda: ours.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8),
        lambda: ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        lambda: ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()
    assert ours.connect_ex(kind.packed(socket.AF_INET, ("127.0.0.1", 1))) == errno.EBADF


def test_a_detached_descriptor_stays_open(kind: Any) -> None:
    sock = kind.opened(socket.AF_INET)
    fd = sock.fileno()
    assert (sock.detach(), sock.fileno(), sock.detach()) == (fd, -1, -1)
    sock.close()
    del sock
    os.fstat(fd)
    os.close(fd)


def test_a_close_that_fails_says_so(kind: Any) -> None:
    sock = kind.opened(socket.AF_INET)
    os.close(sock.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        sock.close()
    sock.close()


def test_a_forgotten_socket_is_closed_with_a_warning(kind: Any) -> None:
    sock = kind.opened(socket.AF_INET)
    fd = sock.fileno()
    with pytest.warns(ResourceWarning, match="unclosed <.*fd=") as told:
        del sock
    assert len(told) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    # What a filter keeps of it is alive and closed.
    kept = cast(Any, told[0].source)
    assert kept.fileno() == -1
    kept.close()


def test_a_warning_that_is_an_error_is_not_lost(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: lost.append(about.exc_value))
    before = descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match="has no len"):  # what was raised before is raised still
            len(kind.opened(socket.AF_INET))
    assert [type(error) for error in lost] == [ResourceWarning]
    assert descriptors() == before


def test_closed_sockets_leave_nothing(kind: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        accept = kind.acceptor(listener)
        target = kind.packed(socket.AF_INET, listener.getsockname())

        def use() -> None:
            sock = kind.opened(socket.AF_INET)
            calls = sock.getpeername, lambda: sock.recv(100), lambda: sock.recv_into(bytearray(8))
            for call in calls:
                with pytest.raises(OSError, match="not connected"):
                    call()
            sock.connect_ex(target)
            accepted, _ = accept_one(accept, listener)
            with pytest.raises(BlockingIOError):
                accepted.recv(100)
            accepted.close()
            sock.close()

        assert lost_blocks(use, 200) < 100


@pytest.mark.skipif(native is None, reason="nothing is compiled here")
def test_sockets_in_c_come_from_their_functions_alone() -> None:
    kind = native.Socket
    sock = sockets.opened(socket.AF_INET)
    assert isinstance(sock, kind)
    for call in (
        kind,
        lambda: kind.__new__(kind),
        lambda: object.__new__(kind),
        lambda: type("Sub", (kind,), {}),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(AttributeError):
        cast(Any, sock).family = 1
    sock.close()


# --- TLS -------------------------------------------------------------------------------------------------


def shake_hands(*streams: TlsStream) -> None:
    states = dict.fromkeys(streams, Handshake.WANT_READ)

    def done() -> bool:
        for stream, state in states.items():
            if state is not Handshake.DONE:
                states[stream] = stream.handshake()
        return set(states.values()) == {Handshake.DONE}

    eventually(done, "the handshake is done")


def receive(stream: TlsStream) -> bytes:
    buffer = bytearray(100)
    while True:
        try:
            return bytes(buffer[: stream.recv_into(buffer)])
        except BlockingIOError:
            wait(stream)


def test_tls_takes_them_over(kind: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    contexts: tuple[ssl.SSLContext, ssl.SSLContext] = (
        server_context(authority.issue("server.pem", "a.example")),
        authority.client_context(),
    )
    ends = [kind.adopted(end.detach()) for end in socket.socketpair()]
    numbers = [end.fileno() for end in ends]
    server = TlsStream(ends[0], contexts[0], server_side=True)
    client = TlsStream(ends[1], contexts[1], server_side=False, server_name="a.example")
    assert [end.fileno() for end in ends] == [-1, -1]
    assert [server.fileno(), client.fileno()] == numbers
    shake_hands(server, client)
    assert client.send(b"hello") == 5
    assert receive(server) == b"hello"
    client.close()
    assert receive(server) == b""
    server.close()


def test_tls_refuses_a_peer_that_left(kind: Any, tmp_path: Path) -> None:
    sock = reset_by_peer(kind)
    context = server_context(Authority(tmp_path).issue("server.pem", "a.example"))
    with pytest.raises(OSError, match="not connected"):
        TlsStream(sock, context, server_side=True)
    assert sock.fileno() == -1
