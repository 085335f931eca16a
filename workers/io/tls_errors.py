"""How TLS fails, in words that stay the same whatever OpenSSL calls it."""

from __future__ import annotations

import errno
import ssl
from typing import Final


class TlsError(OSError):
    """TLS failed and the connection is of no use any more: `abort()` it. `reason` is a stable word, for
    the log and as a metric label; `detail` is OpenSSL's own text, for the log alone."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(errno.EPROTO, f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class TlsTruncated(TlsError):
    """The TCP connection ended without close_notify (RFC 8446 section 6.1): what was received may be cut
    short by anybody on the way. Fine where the message's own framing says that it is complete."""


# OpenSSL's words to ours. An alert is what the peer told us, so `certificate_rejected` is its verdict on
# our certificate, and `verify_failed` our verdict on its.
_REASONS: Final = {
    "HTTP_REQUEST": "plain_http",
    "HTTPS_PROXY_REQUEST": "plain_http",
    "WRONG_VERSION_NUMBER": "not_tls",
    "UNSUPPORTED_PROTOCOL": "version",
    "VERSION_TOO_LOW": "version",
    "WRONG_SSL_VERSION": "version",
    "TLSV1_ALERT_PROTOCOL_VERSION": "version",
    "NO_SHARED_CIPHER": "no_shared_cipher",
    "NO_SUITABLE_KEY_SHARE": "no_shared_cipher",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "no_shared_cipher",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "no_shared_cipher",
    "CERTIFICATE_VERIFY_FAILED": "verify_failed",
    "SSLV3_ALERT_BAD_CERTIFICATE": "certificate_rejected",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "certificate_rejected",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "certificate_rejected",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "certificate_rejected",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "certificate_rejected",
    "TLSV1_ALERT_UNKNOWN_CA": "certificate_rejected",
    "TLSV1_UNRECOGNIZED_NAME": "name_rejected",
}


def failure(error: OSError) -> TlsError:
    """`error` as a `TlsError` with a stable reason: "closed", "reset", "protocol" or one of `_REASONS`."""
    if not isinstance(error, ssl.SSLError):
        return TlsError("reset", error.strerror or str(error))
    word = error.reason or ""
    if word == "UNEXPECTED_EOF_WHILE_READING":
        return TlsTruncated("closed", "the peer closed the connection without close_notify")
    # What Python calls an EOF without OpenSSL's word for it is a failed system call.
    if isinstance(error, ssl.SSLEOFError) and not word:
        return TlsError("reset", "the peer reset the connection")
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError("verify_failed", error.verify_message)
    return TlsError(_REASONS.get(word, "protocol"), word or str(error))
