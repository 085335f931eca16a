"""What a scrape costs at many open tunnels: `python -m tests.bench.scrape [--workers 4] [--servers 200]`.

Opens as many WebSocket tunnels as the limit of open files lets workers, clients and servers hold (each tunnel
is two descriptors in its worker, one in its client and one in its server; clients and servers are spread
over as many processes as there are workers), then scrapes /metrics and says how much CPU time that took in
the control process, and in the workers. Their own ticks go on: those of an equally long rest stand beside.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import resource
import select
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, Final

from tests.harness import LoadBalancer, eventually
from tests.harness import websocket as ws
from tests.harness.settings import settings

SPARE: Final = 300  # descriptors of a worker that belong to no tunnel
ROUNDS: Final = 10


def cpu(pid: int) -> float:
    """Seconds of CPU time that process `pid` has used (clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | 2)


def serve(ports: multiprocessing.connection.Connection, count: int) -> None:
    """Accepts WebSockets on `count` ports, tells these, and holds what comes until it is killed."""
    _raise_limit()
    poll = select.epoll()
    listening: dict[int, socket.socket] = {}
    open_now: dict[int, socket.socket] = {}
    for _ in range(count):
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        listening[listener.fileno()] = listener
        poll.register(listener.fileno(), select.EPOLLIN)
    ports.send([listener.getsockname()[1] for listener in listening.values()])
    while True:
        for fd, _ in poll.poll():
            if fd in listening:
                accepted, _ = listening[fd].accept()
                open_now[accepted.fileno()] = accepted
                poll.register(accepted.fileno(), select.EPOLLIN)
            else:
                _answer(open_now, fd)


def _answer(open_now: dict[int, socket.socket], fd: int) -> None:
    request = open_now[fd].recv(4096)
    if not request:
        open_now.pop(fd).close()
        return
    lines = dict(line.split(": ", 1) for line in request.decode("latin-1").split("\r\n")[1:] if ": " in line)
    fields = {name.lower(): value for name, value in lines.items()}
    token = ws.accept_token(fields["sec-websocket-key"])
    answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    open_now[fd].sendall(f"{answer}Sec-WebSocket-Accept: {token}\r\n\r\n".encode())


def connect(told: multiprocessing.connection.Connection, port: int, first: int, count: int) -> None:
    """Opens `count` tunnels from addresses of loopback that begin at `first`, tells so, and holds them."""
    _raise_limit()
    request, _ = ws.handshake_bytes()
    held = []
    for number in range(count):
        client = socket.socket()
        # One source address has 28,000 ports at the most.
        client.bind((f"127.0.{first + number // 10_000}.1", 0))
        client.connect(("127.0.0.1", port))
        client.sendall(request)
        if not client.recv(4096).startswith(b"HTTP/1.1 101"):
            raise SystemExit("a handshake was refused")
        held.append(client)
    told.send(len(held))
    told.recv()


def _raise_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def processes(target: Any, arguments: Sequence[Sequence[Any]]) -> Iterator[list[Any]]:
    """Runs `target` once for each of `arguments`; yields what each said first."""
    started = []
    try:
        for some in arguments:
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=target, args=(theirs, *some), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        yield [ours.recv() for _, ours in started]
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def measure(url: str, control: int, workers: Sequence[int]) -> None:
    """Prints what scrapes of `url` cost."""
    spent, theirs, rest, sizes = [], [], [], []
    for _ in range(ROUNDS):
        before, workers_before, began = cpu(control), sum(map(cpu, workers)), time.monotonic()
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            sizes.append(len(answer.read()))
        took = time.monotonic() - began
        spent.append(cpu(control) - before)
        theirs.append(sum(map(cpu, workers)) - workers_before)
        idle = sum(map(cpu, workers))
        time.sleep(took)
        rest.append(sum(map(cpu, workers)) - idle)
    print(f"a scrape: {sizes[-1] / 1024:.0f} KiB; CPU of the control process, ms: {summary(spent)}")
    print(f"CPU of the workers meanwhile, ms: {summary(theirs)}; in an equally long rest: {summary(rest)}")


def summary(seconds: Sequence[float]) -> str:
    """Median and range in milliseconds."""
    values = [second * 1000 for second in seconds]
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--servers", type=int, default=200)
    parser.add_argument("--tunnels", type=int, help="default: as many as the limit of open files lets be")
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # The kernel spreads connections by hash, so no worker may be planned to its very limit.
    most = int((limit - SPARE) / 2 * options.workers * 0.97)
    tunnels = options.tunnels or most
    share = -(-tunnels // options.workers)
    multiprocessing.set_start_method("fork")
    with (
        tempfile.TemporaryDirectory() as folder,
        processes(serve, [[options.servers // options.workers]] * options.workers) as ports,
    ):
        addresses = [f"127.0.0.1:{port}" for some in ports for port in some]
        tables = settings(addresses, workers=options.workers, access_log={"path": "off"})
        tables["pool"]["main"]["balance"] = "least-conn"
        lb = LoadBalancer(pathlib.Path(folder), tables)
        lb.start()
        try:
            lb.wait_control()
            arguments = [[lb.port, 1 + 4 * index, share] for index in range(options.workers)]
            with processes(connect, arguments) as opened:
                held = [worker["tunnels"] for worker in lb.status()["workers"]]
                print(f"{sum(opened)} tunnels, {held} by worker, to {len(addresses)} servers;")
                print(f"limit of open files {limit}, {os.cpu_count()} cores")
                measure(lb.metrics_url, lb.control_pid, lb.worker_pids())
            eventually(lambda: not sum(w["tunnels"] for w in lb.status()["workers"]), "all are closed", 60)
        finally:
            lb.stop()
            lb.remove_sockets()


if __name__ == "__main__":
    main()
