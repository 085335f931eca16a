"""Accepting: a listener's sockets as this worker serves them."""

from __future__ import annotations

import errno
import resource
from _socket import socket as RawSocket
from typing import TYPE_CHECKING, Final

from workers.contract import errors
from workers.contract.cells import ListenerCell, WorkerCell
from workers.contract.errors import Refusal
from workers.contract.native import add
from workers.contract.series import Kind
from workers.contract.snapshot import ListenerSpec
from workers.core.descriptors import connection_cap
from workers.core.forwarded import TrustedProxies, plain_address
from workers.io.downstream import Client
from workers.io.sockets import Socket, acceptor
from workers.io.tls import TlsStream
from workers.io.tls_client import TlsClient
from workers.io.tls_context import ServerContexts

if TYPE_CHECKING:
    from workers.io.worker import Worker

# Connections accepted in one turn of the loop, so that a storm does not starve those that are there.
BATCH: Final = 64
# How long accepting rests when descriptors or memory are short: the socket stays readable, so it would spin.
REST: Final = 0.25
_SHORTAGE: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))

_CONNECTIONS: Final = int(ListenerCell.CONNECTIONS)
_add: Final = add
_ACCEPTED: Final = int(ListenerCell.ACCEPTED)
_REJECTED: Final = int(ListenerCell.REJECTED)
_OTHER_REJECTED: Final = int(ListenerCell.OTHER_REJECTED)
_WORKER_CONNECTIONS: Final = int(WorkerCell.CONNECTIONS)
_WORKER_ACCEPTED: Final = int(WorkerCell.ACCEPTED)
_PAUSED: Final = int(WorkerCell.ACCEPT_PAUSED)


class Listener:
    """One `[listen.NAME]`: its settings of the moment, and its connections. A reload puts new settings in;
    `version` tells a connection that what it remembered of the old ones is stale."""

    __slots__ = (
        "base", "connections", "head_bytes", "head_timeout", "headers", "keep_alive", "limit", "most",
        "others", "port", "redirects", "spec", "tls", "trusted", "version", "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, spec: ListenerSpec, tls: ServerContexts | None) -> None:
        self.worker = worker
        self.connections = 0
        self.others = 0  # connections of the other workers, as of the last tick
        # Of all listeners of this worker, beyond which it might have no descriptor for a server.
        self.most = connection_cap(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.version = 0
        self.base = worker.slab.listener_base(spec.slot)
        self.port = _port(spec)
        self.configure(spec, tls)

    def configure(self, spec: ListenerSpec, tls: ServerContexts | None) -> None:
        """Serves `spec` from now on; connections keep what they negotiated."""
        self.spec: ListenerSpec = spec
        # What is asked for with each connection or request, at hand.
        self.limit = spec.limits.connections
        self.head_bytes = spec.limits.head_bytes
        self.headers = spec.limits.headers
        self.head_timeout = spec.timeouts.request_head
        self.keep_alive = spec.timeouts.keep_alive
        self.redirects = spec.redirect_https
        self.tls = tls
        self.port = _port(spec)
        self.trusted = TrustedProxies(spec.trusted_proxies)
        self.version += 1

    def trusts(self, address: str) -> bool:
        """Whether the forwarding fields of `address` are believed."""
        return self.trusted.trusts(address)

    def accepted(self, sock: Socket, address: str) -> None:
        """Takes a new connection, or turns it away when there are too many."""
        cells = self.worker.slab.cells
        base = self.base
        _add(cells, 1, base + _ACCEPTED, _WORKER_ACCEPTED)
        if self.connections + self.others >= self.limit:
            cells[base + _REJECTED] += 1
            self.reject(errors.CONNECTION_LIMIT)
            self.worker.log.warning(
                "connection refused: limits.connections is reached",
                listener=self.spec.name,
                limit=self.limit,
            )
            sock.close()
            return
        # What a predecessor left needs its descriptors in a moment.
        if cells[_WORKER_CONNECTIONS] + len(self.worker.keeping.inherited) >= self.most:
            self._refuse_beyond_files(sock)
            return
        self.connections += 1
        _add(cells, 1, base, _WORKER_CONNECTIONS)
        peer = plain_address(address)
        if self.tls is None:
            client = Client(self, sock, sock.fileno(), peer)
            self.worker.clients.add(client)
            client.resume()
            client.expect(self.head_timeout)
        else:
            self._accepted_tls(self.tls, sock, peer)

    def _accepted_tls(self, contexts: ServerContexts, sock: Socket, peer: str) -> None:
        try:
            stream = TlsStream(sock, contexts.default, server_side=True)
        except OSError:  # it left before it began
            sock.close()
            self.closed()
            return
        client = TlsClient(self, stream, stream.fileno(), peer)
        self.worker.clients.add(client)
        client.begin()

    def _refuse_beyond_files(self, sock: Socket) -> None:
        """Turns away a connection that this worker might have no descriptor for to a server."""
        self.worker.slab.cells[self.base + _REJECTED] += 1
        self.reject(errors.CONNECTION_LIMIT)
        self.worker.log.warning(
            "connection refused: open files are short; raise the limit (LimitNOFILE=, ulimit -Hn)",
            listener=self.spec.name,
            limit=self.most,
        )
        sock.close()

    def reject(self, refusal: Refusal) -> None:
        """Counts a connection or request that was turned away before it had a route."""
        spec = self.spec
        other = self.base + _OTHER_REJECTED
        self.worker.series.count(Kind.REJECTED, spec.slot, errors.REASON_INDEX[refusal], spec.owner, other)

    def joined(self) -> None:
        """A tunnel came that another worker accepted as a connection: counted beyond all limits."""
        self.connections += 1
        _add(self.worker.slab.cells, 1, self.base, _WORKER_CONNECTIONS)

    def closed(self) -> None:
        """A connection of this listener, or the tunnel that it became, has ended."""
        self.connections -= 1
        _add(self.worker.slab.cells, -1, self.base, _WORKER_CONNECTIONS)

    def other_certificate(self, name: str, host: str) -> bool:
        """Whether a TLS connection made for `name` should not be used for `host`: the certificate that it
        got does not cover `host`, and another one of this listener does."""
        tls = self.spec.tls
        if tls is None or name == host:
            return False
        chosen = next((c for c in tls.certificates if covers(c.hosts, name)), tls.certificates[0])
        if covers(chosen.hosts, host):
            return False
        return any(covers(certificate.hosts, host) for certificate in tls.certificates)


def covers(hosts: tuple[str, ...], name: str) -> bool:
    """Whether a certificate for `hosts` is good for `name`; a wildcard stands for exactly one label (RFC
    9525 section 6.3)."""
    return name in hosts or f"*.{name.partition('.')[2]}" in hosts


def _port(spec: ListenerSpec) -> int:
    for address in spec.bind:
        if not address.startswith("unix:"):
            return int(address.rpartition(":")[2])
    return 0


def _closed() -> None:
    """Accepts nothing."""


class Acceptor:
    """One listening socket. `home` is the worker slot that it was made for."""

    __slots__ = ("accept", "fd", "listener", "sock", "worker")

    def __init__(self, listener: Listener, fd: int) -> None:
        self.listener = listener
        self.worker = listener.worker
        self.fd = fd
        self.sock = RawSocket(fileno=fd)
        self.sock.setblocking(False)
        self.accept = acceptor(self.sock)

    def start(self) -> None:
        """Accepts from now on."""
        self.worker.loop.add_reader(self.fd, self.on_readable)

    def on_readable(self) -> None:
        """Accepts what waits, a batch at the most."""
        self._accept(BATCH)

    def _accept(self, most: int) -> bool:
        """Accepts up to `most` connections; whether the queue was emptied."""
        accepted = self.listener.accepted
        accept = self.accept
        for _ in range(most):
            try:
                connection = accept()
            except OSError as error:
                if error.errno in _SHORTAGE:
                    self._rest(error)
                    return True
                # man 2 accept: network errors of the new connection come here; the next one may be fine.
                self.worker.log.warning("accept failed", listener=self.listener.spec.name, error=error)
                return True
            if connection is None:
                return True
            accepted(*connection)
        return False

    def _rest(self, error: OSError) -> None:
        self.worker.slab.cells[_PAUSED] += 1
        self.worker.log.error(
            "accepting paused: descriptors or memory are short; raise the limit of open files",
            listener=self.listener.spec.name,
            error=error,
        )
        self.worker.loop.remove_reader(self.fd)
        self.worker.loop.call_later(REST, self._wake)

    def _wake(self) -> None:
        if self.fd >= 0:
            self.start()

    def close(self) -> None:
        """Serves what is queued already, as far as it goes, and closes this worker's copy."""
        if self.fd < 0:
            return
        self.worker.loop.remove_reader(self.fd)
        for _ in range(64):
            if self._accept(BATCH):
                break
        self.fd = -1
        self.accept = _closed  # what it was may know the descriptor by its number
        self.sock.close()
