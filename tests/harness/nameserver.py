"""A real DNS server: Debian's dnsmasq, on a free port."""

from __future__ import annotations

import getpass
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType

from tests.harness.ports import free_port
from tests.harness.waiting import eventually

DNSMASQ = shutil.which("dnsmasq") or ("/usr/sbin/dnsmasq" if Path("/usr/sbin/dnsmasq").exists() else None)


class NameServer:
    """Answers for the domain `test` alone. `options` are those of dnsmasq, without the dashes; they may be
    replaced before a restart. Hosts are replaced while it runs, and have a TTL of one second."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.options = options
        self.port = free_port()
        self._hosts = folder / f"hosts-{self.port}"
        self._log = folder / f"dnsmasq-{self.port}.log"
        self._hosts.touch()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """ "host:port", as in the configuration."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> NameServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> NameServer:
        """Starts it, and waits until it answers."""
        assert DNSMASQ is not None
        command = [
            DNSMASQ, "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--local=/test/",
            f"--port={self.port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--local-ttl=1",
            f"--addn-hosts={self._hosts}", "--log-queries", f"--user={getpass.getuser()}", "--pid-file",
            *(f"--{option}" for option in self.options),
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually(self._answers, "dnsmasq answers")
        return self

    def stop(self) -> None:
        """Kills it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def restart(self, *options: str) -> None:
        """Serves other records from now on."""
        self.stop()
        self.options = options
        self.start()

    def set_hosts(self, **hosts: str | list[str]) -> None:
        """Replaces the addresses of all hosts: `a="10.0.0.1"` is what a.test has."""
        lines = [
            f"{address} {name}.test\n"
            for name, addresses in hosts.items()
            for address in ([addresses] if isinstance(addresses, str) else addresses)
        ]
        self._hosts.write_text("".join(lines), encoding="ascii")
        if self._process is not None:
            before = self._times_read()
            self._process.send_signal(signal.SIGHUP)
            eventually(lambda: self._times_read() > before, "dnsmasq has read the hosts")

    def _times_read(self) -> int:
        return self.log.count(f"read {self._hosts} - ")

    def queries(self, what: str) -> int:
        """How often was asked for `what`, "A a.test" for example."""
        kind, name = what.split()
        return self.log.count(f"query[{kind}] {name} from")

    @property
    def log(self) -> str:
        """What dnsmasq wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True
