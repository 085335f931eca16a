"""A client's connection that speaks TLS: the handshake, what can go wrong in it, and the name it is for."""

from __future__ import annotations

from typing import Final

from workers.contract import errors
from workers.contract.cells import WorkerCell
from workers.contract.errors import ProxyError
from workers.core.responses import refusal_response
from workers.io.downstream import Client, State
from workers.io.tls import Handshake, TlsError

_TLS_12: Final = int(WorkerCell.TLS_12)
_TLS_13: Final = int(WorkerCell.TLS_13)
_TLS_FAILED: Final = int(WorkerCell.TLS_FAILED)
_TLS_TIMEOUT: Final = int(WorkerCell.TLS_TIMEOUT)


class TlsClient(Client):
    """A client connection that speaks TLS. `named` is the host that was checked last."""

    __slots__ = ("named",)

    def begin(self) -> None:
        """Waits for the handshake."""
        self.named = b""
        self.secure = True
        self.state = State.HANDSHAKE
        self.reading = True
        self.worker.loop.add_reader(self.fd, self._shake_hands)
        self.expect(self.listener.spec.timeouts.tls_handshake)

    def _shake_hands(self) -> None:
        try:
            wants = self.tls_stream.handshake()
        except TlsError as error:
            self._handshake_failed(error)
            return
        except OSError:
            self.worker.slab.cells[_TLS_FAILED] += 1
            self.close()
            return
        if wants is Handshake.WANT_WRITE:
            self.writing = True
            self.worker.loop.add_writer(self.fd, self._shake_hands)
            return
        self.unwatch_writing()
        if wants is Handshake.DONE:
            version = self.tls_stream.version
            self.worker.slab.cells[_TLS_13 if version == "TLSv1.3" else _TLS_12] += 1
            self.state = State.OPEN
            self.reading = False  # `resume` puts the real reader in the place of the handshake's
            self.resume()
            self.expect(self.listener.head_timeout)

    def on_deadline(self) -> None:
        if self.state is State.HANDSHAKE:
            self.worker.slab.cells[_TLS_TIMEOUT] += 1
        super().on_deadline()

    def _handshake_failed(self, error: TlsError) -> None:
        self.worker.slab.cells[_TLS_FAILED] += 1
        if error.reason == "plain_http":
            self.listener.reject(errors.PLAIN_ON_TLS)
            answer = refusal_response(
                errors.PLAIN_ON_TLS, date=self.worker.date(), close=True, without_body=False
            )
            try:
                self.tls_stream.send_plain(answer)
            except OSError as failure:
                self.worker.log.info("plain answer not sent", client=self.address, error=failure)
        if error.reason != "closed":
            self.worker.log.info(
                "tls handshake failed", client=self.address, reason=error.reason, detail=error.detail
            )
        self.close()

    def check_name(self, host: bytes) -> None:
        if host == self.named:
            return
        name = self.tls_stream.server_name
        if name is not None and host and self.listener.other_certificate(name, host.decode("ascii")):
            raise ProxyError(errors.MISDIRECTED, detail=f"the connection was made for {name}")
        self.named = host
