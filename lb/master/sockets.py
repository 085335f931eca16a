"""One socket at a time: parsing canonical addresses, probing, binding, and Unix socket files."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Final, NamedTuple

from lb.master.failures import BindError, reason

_MAX_UNIX_PATH: Final = 107


class Address(NamedTuple):
    """A parsed canonical address: host and port, or the path of a Unix socket."""

    text: str
    host: str
    port: int
    path: str | None = None


def parse(text: str) -> Address:
    """Parses "0.0.0.0:80", "[::]:80" or "unix:/path", as the configuration hands them on."""
    if text.startswith("unix:"):
        return Address(text, "", 0, text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    return Address(text, host.removeprefix("[").removesuffix("]"), int(port))


def probe(address: Address) -> None:
    """Raises `BindError` where anybody listens on `address` already.

    SO_REUSEPORT would let a second process of the same user bind, without an error, and steal half of
    the connections; a bind without it finds every owner.
    """
    with _tcp_socket(address) as (trial, where):
        _bind(trial, where, address)


def bind_tcp(address: Address) -> socket.socket:
    """A bound SO_REUSEPORT socket for `address`; nobody can connect before `listen`. Raises `BindError`."""
    bound, where = _tcp_socket(address)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted sockets inherit these two: no Nagle delay, and urgent data stays in the stream.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        _bind(bound, where, address)
    except BaseException:
        bound.close()
        raise
    return bound


def rehearse(address: Address) -> None:
    """Raises `BindError` where `bind_tcp` or `bind_unix` would. Changes nothing that anybody sees: a socket
    that nobody listens on gets no connection, and a Unix socket has another name for that moment."""
    if address.path is None:
        bind_tcp(address).close()
        return
    _check_length(address, address.path)
    _check_stale(address, address.path)
    try:
        _bind_beside(address.path)
    except OSError as error:
        raise BindError(_bind_message(address, error)) from error


def listen_alone(address: Address, backlog: int, mode: int = 0o666) -> tuple[socket.socket, tuple[int, int]]:
    """A listening socket that shares `address` with nobody, and the identity of its file, which is (0, 0)
    for TCP. `mode` is that of a Unix socket's file. Raises `BindError`."""
    identity = (0, 0)
    if address.path is not None:
        bound, identity = bind_unix(address.path, mode)
    else:
        bound, where = _tcp_socket(address)
    try:
        if address.path is None:
            _bind(bound, where, address)
        bound.listen(backlog)
    except OSError as error:
        bound.close()
        raise BindError(_bind_message(address, error)) from error
    except BindError:
        bound.close()
        raise
    return bound, identity


class _Opened(NamedTuple):
    socket: socket.socket
    where: tuple[str, int]

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def _tcp_socket(address: Address) -> _Opened:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as error:
        if address.host == "::" and error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
            # No IPv6 on this machine: "any address" means any IPv4 address.
            return _tcp_socket(address._replace(host="0.0.0.0"))
        raise BindError(f"can't listen on {address.text}: {reason(error)}") from error
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # "[::]" means every address of both families, whatever net.ipv6.bindv6only says.
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address.host == "::" else 1)
    return _Opened(opened, (address.host, address.port))


def _bind(bound: socket.socket, where: tuple[str, int], address: Address) -> None:
    try:
        bound.bind(where)
    except OSError as error:
        raise BindError(_bind_message(address, error)) from error


def _bind_message(address: Address, error: OSError) -> str:
    start = f"can't listen on {address.text}: "
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"{start}the port is in use by another process (ss -ltnp 'sport = :{address.port}' shows it)"
            )
        case errno.EACCES | errno.EPERM:
            return (
                f"{start}no permission; ports under 1024 need root or CAP_NET_BIND_SERVICE"
                if address.path is None
                else f"{start}no permission to create {address.path}"
            )
        case errno.EADDRNOTAVAIL:
            return f"{start}no interface of this machine has the address {address.host}"
    return start + reason(error)


# --- Unix sockets --------------------------------------------------------------------------------------


def bind_unix(path: str, mode: int = 0o666) -> tuple[socket.socket, tuple[int, int]]:
    """A bound Unix socket and the identity of its file (device, inode). A file that nobody serves any
    more is replaced; one that is served, or is no socket, is not. Raises `BindError`.

    Who may connect is for the folder to say, as with nginx: the file itself is open to all by default.
    """
    address = Address(f"unix:{path}", "", 0, path)
    _check_length(address, path)
    if _check_stale(address, path):
        _remove_stale(address, path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        before = os.umask(0o777 & ~mode)
        try:
            bound.bind(path)
        finally:
            os.umask(before)
        status = os.lstat(path)
    except OSError as error:
        bound.close()
        raise BindError(_bind_message(address, error)) from error
    return bound, (status.st_dev, status.st_ino)


def unlink_if_ours(path: str, identity: tuple[int, int]) -> None:
    """Removes the socket file, unless somebody else's is there by now."""
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == identity:
            os.unlink(path)
    except FileNotFoundError:
        return


def answers(path: str) -> bool:
    """Whether somebody listens on the Unix socket `path`. Raises `OSError` where that can't be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as trial:
        try:
            trial.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True  # its queue is full
        return True


def _check_length(address: Address, path: str) -> None:
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise BindError(f"can't listen on {address.text}: the path is longer than {_MAX_UNIX_PATH} bytes")


def _check_stale(address: Address, path: str) -> bool:
    """Whether the file of a socket that nobody serves any more is there. Raises `BindError` for any other."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise BindError(f"can't listen on {address.text}: a file that is no socket is there already")
        if answers(path):
            raise BindError(f"can't listen on {address.text}: another process listens there")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise BindError(_bind_message(address, error)) from error
    return True


def _remove_stale(address: Address, path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BindError(_bind_message(address, error)) from error


def _bind_beside(path: str) -> None:
    """Binds another name in the folder of `path`, however long that is, and takes it away again."""
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    name = f".lb-trial-{os.getpid()}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            trial.bind(f"/proc/self/fd/{folder}/{name}")
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)
