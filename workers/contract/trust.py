"""TLS to the servers: how a server's certificate is checked, the same for the requests of the workers and for
the checks of the control process."""

from __future__ import annotations

import ssl
from typing import Final

from workers.contract.snapshot import UpstreamTls

ALPN: Final = ("http/1.1",)


class TlsSetupError(ValueError):
    """A context can't be built; the message names the certificate and is for the operator."""


def harden(context: ssl.SSLContext) -> None:
    """Settings that hold for both sides: RFC 9325."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Renegotiation lets a peer burn our CPU, and makes reads wait for writes; before OpenSSL 3 it is on.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Compression leaks secrets by length (CRIME); OpenSSL's build may have it.
    context.options |= ssl.OP_NO_COMPRESSION
    # Where a build or its configuration sets this, a cut connection looks like a clean end.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(list(ALPN))


def client_context(tls: UpstreamTls) -> ssl.SSLContext:
    """The context for connections to the servers of one pool; build it once, it reads the system's store.
    `server_name` says what to open a stream with. Raises `TlsSetupError` where `ca` is no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    harden(context)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca:
        # `ca` may be the server's own certificate, or an intermediate, as well as a root.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            # Bundles carry names in comments, and Python takes nothing but ASCII here.
            context.load_verify_locations(cadata=tls.ca.encode("ascii", "replace").decode("ascii"))
        except ssl.SSLError as error:
            raise TlsSetupError(f"tls.ca holds no usable certificate: {error}") from error
    else:
        context.load_default_certs()
    return context


def server_name(tls: UpstreamTls, host: str | None) -> str | None:
    """The name that a server is asked for and checked against: `sni`, else its own host (a name, or an
    address, which is checked but not sent). `None` on a Unix socket without `sni`."""
    return tls.sni or host or None
