"""The load balancers that are measured, each started with an equivalent configuration.

One worker (or as many as asked for), connections to the server kept, X-Forwarded-For and -Proto, no access
log, TLS with the same P-256 certificate, room for as many connections as the limit of open files allows, no
temporary files. Everything else is as each has it by default.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench import machine
from tests.bench.limits import raise_file_limit
from tests.harness import LoadBalancer
from tests.harness.client import fetch
from tests.harness.ports import free_port
from tests.harness.settings import settings

_START: Final = 30.0  # seconds
_NGINX: Final = """
worker_processes {workers};
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
{user}
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {folder}/client; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    proxy_max_temp_file_size 0;
    keepalive_requests 1000000000; keepalive_timeout 600s;
    proxy_read_timeout 3600s; proxy_send_timeout 3600s;
    ssl_certificate {certificate}; ssl_certificate_key {certificate}; ssl_protocols TLSv1.2 TLSv1.3;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream server {{
        server 127.0.0.1:{server};
        keepalive 256; keepalive_requests 1000000000; keepalive_timeout 600s;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        listen 127.0.0.1:{tls_port} ssl backlog=4096;
        location / {{
            proxy_pass http://server;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""
_HAPROXY: Final = """
global
    nbthread {workers}
    maxconn {connections}
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    timeout http-keep-alive 600s
    option forwardfor
frontend public
    bind 127.0.0.1:{port} backlog 4096
    bind 127.0.0.1:{tls_port} ssl crt {certificate} backlog 4096
    http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
    http-request set-header X-Forwarded-Proto http unless {{ ssl_fc }}
    default_backend servers
backend servers
    http-reuse always
    server one 127.0.0.1:{server} pool-max-conn -1
"""


@dataclass(frozen=True)
class Site:
    """What all proxies of a run share."""

    folder: Path
    certificate: Path
    server: int  # port of the server behind them
    code: Path  # the folder of lb's packages


class Proxy(ABC):
    """One load balancer in front of the bench's server, with its files in a folder `place`."""

    name = ""
    program = ""
    reloads = True

    def __init__(self, site: Site, place: str) -> None:
        self.site = site
        self.folder = site.folder / place
        self.port = free_port()
        self.tls_port = free_port()
        self.started_in = 0.0  # seconds until the first answer
        self._state: tuple[set[int], int] | None = None

    def ensure(self, cores: set[int], workers: int = 1) -> None:
        """Starts it where it does not run on these cores with so many workers. Raises `OSError`."""
        if not self.pid or self._state != (cores, workers):
            self.start(cores, workers)

    @property
    @abstractmethod
    def pid(self) -> int:
        """The root of its processes; 0 while it does not run."""

    def start(self, cores: set[int], workers: int = 1) -> None:
        """Starts it on `cores` and waits for its first answer. Raises `OSError` where it does not start."""
        self.stop()
        self._state = (cores, workers)
        began = time.perf_counter()
        with machine.pinned(cores):
            self.launch(workers)
        while True:
            try:
                answer = fetch(("127.0.0.1", self.port), "/s/" + "0" * 80, timeout=5)
                self.started_in = time.perf_counter() - began
                break
            except (OSError, AssertionError) as error:
                if time.perf_counter() > began + _START:
                    self.stop()
                    raise OSError(f"{self.name} does not answer: {error}\n{self.log()}") from error
                time.sleep(0.001)
        if answer.status != 200:
            self.stop()
            raise OSError(f"{self.name} answers {answer.status}\n{self.log()}")

    @abstractmethod
    def launch(self, workers: int) -> None:
        """Starts its processes."""

    @abstractmethod
    def stop(self) -> None:
        """Ends its processes, and waits for that."""

    @abstractmethod
    def log(self) -> str:
        """What it said."""

    def reload(self) -> None:
        """Lets it read its configuration again, where it `reloads`."""
        raise NotImplementedError(self.name)


class Peer(Proxy):
    """A program with a configuration file."""

    template = ""
    end = signal.SIGTERM

    def __init__(self, site: Site, place: str) -> None:
        super().__init__(site, place)
        self.path = machine.program_path(self.program)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The root of its processes; 0 while it does not run."""
        return self._process.pid if self._process is not None else 0

    @abstractmethod
    def command(self, file: Path) -> list[str]:
        """What runs it in the foreground."""

    def launch(self, workers: int) -> None:
        """Starts its processes."""
        self.folder.mkdir(exist_ok=True)
        files = raise_file_limit()
        file = self.folder / f"{self.program}.conf"
        text = self.template.format(
            workers=workers,
            folder=self.folder,
            user="user root;" if os.getuid() == 0 else "",
            files=files,
            # A request needs two; HAProxy wants some for itself.
            connections=(files - 100) // (2 if self.program == "haproxy" else 1),
            certificate=self.site.certificate,
            server=self.site.server,
            port=self.port,
            tls_port=self.tls_port,
        )
        file.write_text(text, encoding="utf-8")
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(file),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ends its processes, and waits for that."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(self.end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def log(self) -> str:
        """What it said."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]


class Nginx(Peer):
    """nginx."""

    name = program = "nginx"
    template = _NGINX

    def reload(self) -> None:
        """Lets it read its configuration again, which starts new workers."""
        os.kill(self.pid, signal.SIGHUP)

    def command(self, file: Path) -> list[str]:
        """What runs it in the foreground."""
        return [self.path, "-e", "stderr", "-p", str(self.folder), "-c", str(file)]


class Haproxy(Peer):
    """HAProxy, whose workers are threads."""

    name = program = "haproxy"
    template = _HAPROXY
    reloads = False  # without a master process; with one it starts another process in its place

    def command(self, file: Path) -> list[str]:
        """What runs it in the foreground."""
        return [self.path, "-db", "-f", str(file)]


class Lb(Proxy):
    """This project."""

    name = program = "lb"

    def __init__(self, site: Site, place: str) -> None:
        super().__init__(site, place)
        self._lb: LoadBalancer | None = None

    def tables(self, workers: int) -> dict[str, Any]:
        """The configuration: defaults, but for what the peers have, too."""
        address = f"127.0.0.1:{self.site.server}"
        tables = settings([address], port=self.port, workers=workers, access_log={"path": "off"})
        tables["listen"]["secure"] = {
            "bind": [f"127.0.0.1:{self.tls_port}"],
            "tls": {"certs": [str(self.site.certificate)]},
        }
        tables["pool"]["main"]["keep_alive"] = {"max_idle": 256}
        return tables

    @property
    def lb(self) -> LoadBalancer:
        """The running load balancer."""
        assert self._lb is not None
        return self._lb

    @property
    def pid(self) -> int:
        """The root of its processes; 0 while it does not run."""
        return self._lb.pid if self._lb is not None else 0

    def reload(self) -> None:
        """Reloads a configuration in which every route has changed. Raises `AssertionError`."""
        for route in self.lb.tables["route"]:
            route["headers"] = {"response_set": {"X-Reloaded": f"{time.monotonic():.6f}"}}
        self.lb.reload()

    def launch(self, workers: int) -> None:
        """Starts its processes."""
        self.folder.mkdir(exist_ok=True)
        # In a session of its own, so that Ctrl-C reaches the bench alone, which ends it in order.
        program = ("setsid", sys.executable, "-m", "lb")
        code = self.site.code
        self._lb = LoadBalancer(self.folder, self.tables(workers), code=code, program=program)
        self._lb.start()

    def stop(self) -> None:
        """Ends its processes, and waits for that."""
        if self._lb is None:
            return
        running, self._lb = self._lb, None
        try:
            running.stop()
        finally:
            running.kill()
            running.remove_sockets()

    def log(self) -> str:
        """What it said."""
        return self.lb.stderr[-2000:] if self._lb is not None else ""


KINDS: Final[tuple[type[Proxy], ...]] = (Lb, Nginx, Haproxy)
