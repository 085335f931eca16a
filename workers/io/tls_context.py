"""TLS of listeners: which certificate a client gets. (Towards servers: `workers.contract.trust`.)"""

from __future__ import annotations

import ssl
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Final

from workers.contract.snapshot import ListenTls
from workers.contract.trust import TlsSetupError, harden
from workers.io.tls_engine import TlsSocket

# TLS 1.2 with forward secrecy and authenticated encryption only (RFC 9325 section 4.2); the suites of
# TLS 1.3 are all of that kind and not set here. No finite-field DH: it is slow and needs parameters.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


def _server_context(name: str, descriptor: int) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    harden(context)
    context.set_ciphers(_CIPHERS)
    # Each is sealed and sent on its own, a twentieth of a handshake. OpenSSL's two are for clients that open
    # several connections after one; those that open them at once have a ticket from each.
    context.num_tickets = 1
    # All suites are strong: let a phone without AES instructions have ChaCha20.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        # OpenSSL takes paths only. Without a password callback it would ask on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    except OSError as error:
        raise TlsSetupError(f"certificate {name} can't be used: {error}") from error
    return context


class ServerContexts:
    """The certificates of one listener, chosen by the name that a client asks for (SNI, RFC 6066).

    `default` is the context to open each stream with: it moves a connection to another one where the name
    says so. An exact name wins over a wildcard, the earlier certificate over a later one; an unknown name
    gets the first certificate, as a client without SNI does.

    Connections keep the context that they began with, so a reload just builds a new object.
    """

    __slots__ = ("default",)

    def __init__(self, tls: ListenTls, descriptors: Mapping[str, int]) -> None:
        """`descriptors[name]` holds chain and key in PEM; they are read here, and stay open. Raises
        `TlsSetupError`."""
        for _ in self._load(tls, descriptors):
            pass

    @classmethod
    def in_steps(
        cls, tls: ListenTls, descriptors: Mapping[str, int]
    ) -> Generator[None, None, ServerContexts]:
        """The same, a certificate a step."""
        made = cls.__new__(cls)
        yield from made._load(tls, descriptors)
        return made

    def _load(self, tls: ListenTls, descriptors: Mapping[str, int]) -> Iterator[None]:
        # `None` stands for the default: with the context itself the callback would keep it alive in a
        # cycle, and every reload would leave that for the collector.
        by_host: dict[str, ssl.SSLContext | None] = {}
        self.default: ssl.SSLContext
        for index, certificate in enumerate(tls.certificates):
            if certificate.name not in descriptors:
                raise TlsSetupError(f"certificate {certificate.name} came without its content")
            context = _server_context(certificate.name, descriptors[certificate.name])
            if index == 0:
                self.default = context
            for host in certificate.hosts:
                by_host.setdefault(host, context if index else None)
            yield
        if not tls.certificates:
            raise TlsSetupError("a TLS listener needs at least one certificate")
        self.default.sni_callback = _chooser(by_host)


def _chooser(by_host: Mapping[str, ssl.SSLContext | None]) -> Any:
    # (`sni_callback`'s stub knows only the objects that `SSLContext.wrap_bio` makes.)
    def choose(connection: TlsSocket, name: str | None, _: ssl.SSLContext) -> None:
        if name is None:
            return
        name = name.lower()
        connection.server_name = name
        # RFC 9525 section 6.3: a wildcard stands for exactly one label.
        context = by_host.get(name if name in by_host else f"*.{name.partition('.')[2]}")
        if context is not None:
            connection.context = context

    return choose
