"""TLS streams over real sockets, against Python's own TLS client: every trap that loses or repeats bytes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import select
import socket
import ssl
import struct
import sys
import termios
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.processes import own_descriptors
from tests.unit.pem import certify, dns, memfd, new_key, pem_key
from workers.contract.snapshot import CertificateSpec, ListenTls
from workers.io.tls import RECORD, Handshake, Stream, TlsError, TlsStream, TlsTruncated
from workers.io.tls_context import ServerContexts

DEADLINE = 10.0
Pair = tuple[TlsStream, ssl.SSLSocket]


@pytest.fixture(scope="module")
def server_context() -> ssl.SSLContext:
    key = new_key()
    fd = memfd(certify(key, dns("a.example.com")) + pem_key(key))
    try:
        spec = ListenTls(certificates=(CertificateSpec(name="a", hosts=("a.example.com",)),))
        return ServerContexts(spec, {"a": fd}).default
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


def sockets(family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """(server's end, client's end)."""
    if family == socket.AF_UNIX:
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    return server, client


def connect(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, family: int = socket.AF_INET
) -> Pair:
    ours, theirs = sockets(family)
    theirs.setblocking(False)
    server = TlsStream(ours, server_context, server_side=True)
    client = client_context.wrap_socket(
        theirs, server_hostname="a.example.com", do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    limit = time.monotonic() + DEADLINE
    state, theirs_done = Handshake.WANT_READ, False
    while state is not Handshake.DONE or not theirs_done:
        assert time.monotonic() < limit, "the handshake does not end"
        if not theirs_done:
            try:
                client.do_handshake()
                theirs_done = True
            except ssl.SSLWantReadError:
                pass
        state = server.handshake()
    server.send(b"!")  # behind the session tickets, which would turn the client's close into a reset
    assert client_receive(client) == b"!"
    return server, client


@pytest.fixture(params=["1.2", "1.3"])
def pair(
    request: pytest.FixtureRequest, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> Iterator[Pair]:
    version = ssl.TLSVersion.TLSv1_2 if request.param == "1.2" else ssl.TLSVersion.TLSv1_3
    client_context.maximum_version = version
    server, client = connect(server_context, client_context)
    client_context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    assert server.version == f"TLSv{request.param}"
    with client:
        yield server, client
    server.abort()


@pytest.fixture
def over_unix(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> Iterator[Pair]:
    server, client = connect(server_context, client_context, socket.AF_UNIX)
    with client:
        yield server, client
    server.abort()


def receive(stream: Stream, size: int = 65536) -> bytes:
    """One successful `recv_into`, waiting for the descriptor where the stream says so."""
    buffer = bytearray(size)
    while True:
        try:
            return bytes(buffer[: stream.recv_into(buffer)])
        except BlockingIOError:
            assert select.select([stream], [], [], DEADLINE)[0], "nothing comes"


def receive_exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = receive(stream)
        assert piece, "ended early"
        data += piece
    return data


def wait_received(sock: Stream, size: int) -> None:
    """Until the kernel holds `size` bytes for `sock`."""
    limit = time.monotonic() + DEADLINE
    while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0] < size:
        assert time.monotonic() < limit, "the bytes do not arrive"
        select.select([sock], [], [], 0.01)


def on_the_wire(client: ssl.SSLSocket, size: int) -> int:
    """Bytes of one record with `size` bytes of plaintext."""
    return size + (29 if client.version() == "TLSv1.2" else 22)


def client_receive(client: ssl.SSLSocket, size: int = 65536) -> bytes:
    while True:
        try:
            return client.recv(size)
        except ssl.SSLWantReadError:
            assert select.select([client], [], [], DEADLINE)[0], "nothing comes"
        except ssl.SSLZeroReturnError:
            return b""


def drop(sock: socket.socket) -> None:
    """Ends the TCP connection without close_notify, as a cut would."""
    os.close(sock.detach())


def fill(server: TlsStream, block: bytes) -> int:
    """Sends until the kernel takes no more: how many bytes were accepted."""
    total = 0
    while True:
        try:
            total += server.send(block)
        except BlockingIOError:
            return total


def test_a_stream_is_used_like_a_socket(pair: Pair) -> None:
    server, client = pair
    client.send(b"ping")
    assert receive(server) == b"ping"
    assert server.send(memoryview(b"pong")) == 4
    assert client_receive(client) == b"pong"
    assert server.send(b"") == 0
    with pytest.raises(BlockingIOError):
        server.recv_into(bytearray(10))
    assert server.pending() == 0
    assert server.server_name == "a.example.com"
    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM


def test_a_connection_gets_one_ticket_and_is_resumed_with_it(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    session: ssl.SSLSession | None = None
    for resumed in (False, True):
        ours, theirs = sockets(socket.AF_UNIX)  # where nothing waits for an acknowledgement
        server = TlsStream(ours, server_context, server_side=True)
        client = client_context.wrap_socket(
            theirs, server_hostname="a.example.com", do_handshake_on_connect=False, session=session
        )
        with client:
            client.settimeout(DEADLINE)
            with ThreadPoolExecutor() as threads:
                shaken = threads.submit(client.do_handshake)
                while server.handshake() is not Handshake.DONE:
                    assert select.select([server], [], [], DEADLINE)[0], "the handshake does not end"
                shaken.result()
            records = socket.socket.recv(client, 65536, socket.MSG_PEEK)
            assert len(records) == 5 + int.from_bytes(records[3:5])  # RFC 8446 section 5.1
            server.send(b"!")
            assert client_receive(client) == b"!"
            assert client.session_reused == resumed
            session = client.session
        server.abort()


def test_the_descriptor_stays_the_same(server_context: ssl.SSLContext) -> None:
    ours, theirs = sockets()
    number = ours.fileno()
    stream = TlsStream(ours, server_context, server_side=True)
    assert stream.fileno() == number
    assert not os.get_blocking(number)
    stream.close()
    stream.close()
    stream.abort()
    assert stream.fileno() == -1
    theirs.close()


def test_what_openssl_holds_is_reported_until_it_is_drained(pair: Pair) -> None:
    server, client = pair
    client.send(bytes(range(250)) * 4)
    data = receive(server, 100)
    while server.pending():
        assert not select.select([server], [], [], 0)[0]  # the kernel knows nothing of it
        data += receive(server, 100)
    assert data == bytes(range(250)) * 4


def test_one_read_takes_many_records(pair: Pair) -> None:
    server, client = pair
    sent = random.Random(1).randbytes(3 * RECORD + 5000)
    for start in range(0, len(sent), RECORD):
        client.send(sent[start : start + RECORD])
    wait_received(server, len(sent))
    buffer = bytearray(65536)
    assert server.recv_into(buffer) == len(sent)
    assert buffer[: len(sent)] == sent


def test_a_blocked_send_survives_the_reuse_of_its_buffer(pair: Pair) -> None:
    server, client = pair
    source = random.Random(2).randbytes(4 * 1024 * 1024)
    shared = bytearray(65536)
    received = bytearray()
    offset, blocked, left = 0, 0, b""
    while offset < len(source) or left:
        if not left:  # as a relay does: read into the shared buffer, send at once
            count = min(len(shared), len(source) - offset)
            shared[:count] = source[offset : offset + count]
            offset += count
            left = bytes(shared[:count])
        try:
            view = memoryview(shared)[: len(left)]
            view[:] = left
            sent = server.send(view)
        except BlockingIOError:
            sent = 0
        left = left[sent:]
        shared[:] = bytes(len(shared))  # another connection uses it now
        if left:
            blocked += 1
            with contextlib.suppress(ssl.SSLWantReadError):
                while True:
                    received += client.recv(65536)
    while len(received) < len(source):
        received += client_receive(client)
    assert blocked > 3
    assert received == source


@pytest.mark.parametrize("records", [1, 3])
def test_a_blocked_send_repeated_with_other_bytes_is_refused(pair: Pair, records: int) -> None:
    server, _ = pair
    fill(server, b"a" * RECORD * records)
    for other in (b"b" * RECORD, b"a" * 100, b"a" * (RECORD - 1) + b"b" + b"a" * 100):
        with pytest.raises(ValueError, match="same bytes"):
            server.send(other)
    with pytest.raises(ValueError, match="in part"):
        server.shutdown_write()
    with pytest.raises(BlockingIOError):
        server.send(b"a" * RECORD * 2)


@pytest.mark.parametrize("partly_read", [False, True])
def test_a_half_close_loses_nothing_that_is_on_its_way(pair: Pair, partly_read: bool) -> None:
    server, client = pair
    client.send(b"a" * 100)
    client.send(b"b" * 100)
    wait_received(server, 2 * on_the_wire(client, 100))
    data = receive(server, 10) if partly_read else b""
    server.shutdown(socket.SHUT_WR)
    server.shutdown_write()
    assert client_receive(client) == b""
    client.send(b"c" * 100)
    data += receive_exactly(server, 300 - len(data))
    assert data == b"a" * 100 + b"b" * 100 + b"c" * 100
    with contextlib.suppress(ssl.SSLWantReadError):
        client.unwrap()
    assert receive(server) == b""
    assert receive(server) == b""


def test_a_half_close_after_the_peers(pair: Pair) -> None:
    server, client = pair
    client.send(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    assert receive(server) == b"last"
    assert receive(server) == b""
    assert server.send(b"answer") == 6
    server.shutdown_write()
    assert receive(server) == b""
    assert server.pending() == 0
    assert client_receive(client) == b"answer"
    assert client_receive(client) == b""


def test_a_half_close_waits_for_room(over_unix: Pair) -> None:
    server, client = over_unix
    fill(server, b"x")
    while True:
        client_receive(client, 1)
        try:
            server.send(b"x")
            break
        except BlockingIOError:
            continue
    with pytest.raises(BlockingIOError):
        server.shutdown_write()
    with pytest.raises(BlockingIOError):
        server.shutdown_write()
    with pytest.raises(ssl.SSLWantReadError):
        while True:
            assert client.recv(65536)
    server.shutdown_write()
    assert client_receive(client) == b""


def test_a_half_close_leaves_the_event_loops_registration(pair: Pair) -> None:
    server, client = pair

    async def relay() -> bytes:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes] = loop.create_future()

        def readable() -> None:
            buffer = bytearray(100)
            done.set_result(bytes(buffer[: server.recv_into(buffer)]))
            loop.remove_reader(server.fileno())

        loop.add_reader(server.fileno(), readable)
        descriptors = len(own_descriptors())
        server.shutdown_write()
        assert len(own_descriptors()) == descriptors
        client.send(b"after")
        return await asyncio.wait_for(done, DEADLINE)

    assert asyncio.run(relay()) == b"after"


def test_close_is_a_clean_end_for_the_peer(pair: Pair) -> None:
    server, client = pair
    server.send(b"bye")
    server.close()
    assert client_receive(client) == b"bye"
    assert client_receive(client) == b""


def test_close_with_a_record_under_way_is_no_clean_end(pair: Pair) -> None:
    server, client = pair
    fill(server, b"x" * RECORD)
    server.close()
    with pytest.raises(ssl.SSLEOFError):
        while client_receive(client):
            pass


@pytest.mark.parametrize("end", [TlsStream.close, TlsStream.abort])
def test_a_closed_stream_leaves_its_number_alone(pair: Pair, end: Callable[[TlsStream], None]) -> None:
    server, _ = pair
    descriptor = server.fileno()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        end(server)
        ours.setblocking(False)
        os.dup2(ours.fileno(), descriptor)  # Somebody else gets the number.
        theirs.send(b"not yours")
        assert (server.fileno(), server.pending(), server.version, server.alpn) == (-1, 0, "", "")
        try:
            for use in (
                lambda: server.recv_into(bytearray(100)),
                lambda: server.send(b"x"),
                server.handshake,
                server.shutdown_write,
            ):
                with pytest.raises(OSError, match="Bad file descriptor"):
                    use()
            server.close()
            assert ours.recv(100) == b"not yours"
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(100)
        finally:
            os.close(descriptor)


def test_a_closed_stream_lets_go_of_openssl(pair: Pair) -> None:
    """At once, whoever still refers to the stream: some KiB hang on it."""
    server, _ = pair
    engine = server._engine
    server.close()
    assert sys.getrefcount(engine) == 2  # `engine`, and the argument


def test_abort_resets(pair: Pair) -> None:
    server, client = pair
    server.abort()
    select.select([client], [], [], DEADLINE)
    with pytest.raises(ConnectionResetError):
        socket.socket.recv(client, 1)  # `ssl` would report a reset as an end


def test_a_reset_is_an_error(pair: Pair) -> None:
    server, client = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    drop(client)
    for _ in range(2):
        with pytest.raises(TlsError) as caught:
            receive(server)
        assert caught.value.reason == "reset"
        assert not isinstance(caught.value, TlsTruncated)
    with pytest.raises(TlsError) as caught:
        server.send(b"x")
    assert caught.value.reason == "reset"


@pytest.mark.parametrize("size", [10, RECORD])
def test_a_cut_connection_is_no_clean_end(pair: Pair, size: int) -> None:
    server, client = pair
    client.send(b"x" * size)
    drop(client)
    wait_received(server, size)
    assert len(receive(server)) == size
    limit = time.monotonic() + DEADLINE
    while not server.pending() and not select.select([server], [], [], 0.01)[0]:
        assert time.monotonic() < limit
    for _ in range(2):
        with pytest.raises(TlsTruncated) as caught:
            receive(server)
    assert caught.value.reason == "closed"
    with pytest.raises(OSError):
        server.shutdown_write()


def test_a_forged_record_is_an_error_after_what_came_before(pair: Pair) -> None:
    server, client = pair
    client.send(b"x" * RECORD)
    raw = socket.socket(fileno=client.detach())
    raw.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    wait_received(server, RECORD + 32)
    assert len(receive(server)) == RECORD
    assert server.pending()
    with pytest.raises(TlsError) as caught:
        receive(server)
    assert not isinstance(caught.value, TlsTruncated)
    assert caught.value.reason == "protocol"
    raw.close()


def fail(server: TlsStream) -> TlsError:
    with pytest.raises(TlsError) as caught:
        while True:
            if server.handshake() is Handshake.WANT_READ:
                assert select.select([server], [], [], DEADLINE)[0]
    return caught.value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "plain_http"),
        (b"CONNECT a:443 HTTP/1.1\r\n\r\n", "plain_http"),
        (b"\x00" * 100, "not_tls"),
        (b"\x16\x03\x01", "closed"),
        (b"", "closed"),
    ],
)
def test_what_is_no_tls_has_a_stable_reason(server_context: ssl.SSLContext, data: bytes, reason: str) -> None:
    ours, theirs = sockets()
    with theirs:
        server = TlsStream(ours, server_context, server_side=True)
        theirs.send(data)
        theirs.shutdown(socket.SHUT_WR)
        assert fail(server).reason == reason
        server.abort()


def test_plain_http_can_be_answered_in_plain(server_context: ssl.SSLContext) -> None:
    ours, theirs = sockets()
    with theirs:
        server = TlsStream(ours, server_context, server_side=True)
        theirs.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert fail(server).reason == "plain_http"
        server.send_plain(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        server.close()
        assert theirs.recv(100) == b"HTTP/1.1 400 Bad Request\r\n\r\n"
        assert theirs.recv(100) == b""


def obsolete(context: ssl.SSLContext) -> None:
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1


def weak(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA")


def distrustful(context: ssl.SSLContext) -> None:
    context.verify_mode = ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("setup", "reason"),
    [(obsolete, "version"), (weak, "no_shared_cipher"), (distrustful, "certificate_rejected")],
)
def test_a_client_that_can_not_be_served_has_a_stable_reason(
    server_context: ssl.SSLContext, setup: Callable[[ssl.SSLContext], None], reason: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    setup(context)
    ours, theirs = sockets()
    theirs.setblocking(False)
    server = TlsStream(ours, server_context, server_side=True)
    client = context.wrap_socket(theirs, do_handshake_on_connect=False)
    with client:
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        if reason == "certificate_rejected":
            assert server.handshake() is Handshake.WANT_READ
            assert select.select([client], [], [], DEADLINE)[0]
            with pytest.raises(ssl.SSLCertVerificationError):
                client.do_handshake()
        assert fail(server).reason == reason
        server.close()


def test_a_peer_that_left_before_the_handshake(server_context: ssl.SSLContext) -> None:
    ours, theirs = sockets()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    assert select.select([ours], [], [], DEADLINE)[0]
    with pytest.raises(OSError):
        TlsStream(ours, server_context, server_side=True)
    assert ours.fileno() == -1
