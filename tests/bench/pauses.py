"""The longest turns of the workers' event loops while much goes on: `python -m tests.bench.pauses`.

Many WebSockets are held, requests come all the time, and then: scrapes, reloads of a large configuration in
which everything is another one each time, a list of the WebSockets, a server drained, a worker killed, one
more, and one fewer. Says for each of these what the longest turn was, how much CPU time its worker had used
between the two ticks around it, whether it was at work on a configuration, and how many ticks had a turn of
more than 20 ms. With less CPU time than the turn took, the machine was busy with others: the load, the
clients and the servers run beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from tests.bench.scrape import SPARE, connect, processes
from tests.harness import LoadBalancer, eventually
from tests.harness import websocket as ws
from tests.harness.settings import Tables, settings

NOTES: Final = "LB_BENCH_PAUSES"  # the file that the workers write their turns to
CLIENTS: Final = 8
LET_GO: Final = 7.0  # seconds after a reload by which what it replaced is let go
_ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_REQUEST: Final = b"GET /item/%d HTTP/1.1\r\nHost: bench.example.com\r\nUser-Agent: bench\r\n\r\n"


class Turn(NamedTuple):
    """The longest turn between two ticks of the worker `pid`; `at`, `took` and `cpu` in seconds."""

    at: float
    pid: int
    took: float
    cpu: float
    reloading: bool


# --- the load balancer under test ------------------------------------------------------------------------


def run_noting() -> int:
    """`lb`, whose workers write down what `Turns` sees."""
    from lb.cli import main
    from workers.io.turns import Turns

    look = Turns.look

    def note(self: Turns, now: float, cpu: int, working: bool) -> float:
        took = self._loop.longest
        if took:
            line = f"{now} {os.getpid()} {took} {(cpu - self._cpu) / 1e9} {int(working)}\n"
            with open(os.environ[NOTES], "a") as file:
                file.write(line)
        return look(self, now, cpu, working)

    Turns.look = note  # type: ignore[method-assign]
    return main()


def turns(path: pathlib.Path) -> list[Turn]:
    """What was noted so far."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        at, pid, took, cpu, working = line.split()
        found.append(Turn(float(at), int(pid), float(took), float(cpu), working == "1"))
    return found


# --- load ------------------------------------------------------------------------------------------------


def serve(told: Any) -> None:
    """Answers requests and WebSocket handshakes until it is killed."""
    poll = select.epoll()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    poll.register(listener.fileno(), select.EPOLLIN)
    _raise_limit()
    told.send(listener.getsockname()[1])
    held: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                accepted, _ = listener.accept()
                held[accepted.fileno()] = accepted
                poll.register(accepted.fileno(), select.EPOLLIN)
            elif not _answered(held[fd]):
                held.pop(fd).close()


def _answered(connection: socket.socket) -> bool:
    try:
        request = connection.recv(65536)
        if b"sec-websocket-key:" in request.lower():
            key = request.lower().index(b"sec-websocket-key:") + 18
            token = ws.accept_token(request[key:].split(b"\r\n")[0].strip().decode())
            head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            connection.sendall(f"{head}Sec-WebSocket-Accept: {token}\r\n\r\n".encode())
        elif request:
            connection.sendall(_ANSWER)
    except ConnectionError:
        return False
    return bool(request)


def load(told: Any, port: int) -> None:
    """Requests on a few connections, each when the last was answered, until it is killed."""
    poll = select.epoll()
    held: dict[int, socket.socket] = {}

    def begin() -> None:
        client = socket.create_connection(("127.0.0.1", port))
        held[client.fileno()] = client
        poll.register(client.fileno(), select.EPOLLIN)
        client.sendall(_REQUEST % 0)

    for _ in range(CLIENTS):
        begin()
    told.send(CLIENTS)
    count = 0
    while True:
        for fd, _ in poll.poll():
            count += 1
            try:
                if not held[fd].recv(65536):
                    raise ConnectionResetError
                held[fd].sendall(_REQUEST % count)
            except ConnectionError:  # its worker was killed
                held.pop(fd).close()
                begin()


def _raise_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tables(port: int, workers: int, routes: int, servers: int) -> Tables:
    """A route for the load, and `routes` others with a pool each, over `servers` in all."""
    result = settings([f"127.0.0.1:{port}"], workers=workers, access_log={"path": "off"})
    result["route"][0]["path"] = "/*"
    change(result, routes, servers, 0)
    return result


def change(result: Tables, routes: int, servers: int, number: int) -> None:
    """Has all routes and half of the servers changed."""
    each = max(1, servers // routes)
    first = result["route"][-1]
    result["route"] = [
        {
            "name": f"route-{index}",
            "host": f"host-{index}.example.com",
            "path": f"/path-{index}/*",
            "pool": f"pool-{index}",
            "headers": {"request_set": {"X-Number": str(number)}},
        }
        for index in range(routes)
    ] + [first]
    result["pool"] = {"main": result["pool"]["main"]} | {
        f"pool-{index}": {
            "balance": "least-conn",
            "servers": [
                f"127.{1 + index // 250}.{index % 250}.{1 + place}:{9000 + number % 7 * (place % 2)}"
                for place in range(each)
            ],
        }
        for index in range(routes)
    }


# --- what happens ----------------------------------------------------------------------------------------


class Course:
    """Does one thing after the other, and says what the workers' turns were meanwhile."""

    def __init__(self, lb: LoadBalancer, notes: pathlib.Path) -> None:
        self.lb = lb
        self.notes = notes
        self.worst = 0.0
        print(f"{'':34} {'longest turn':>12} {'cpu':>9} {'over 20 ms':>11}  (at work on a configuration)")

    def stage(self, name: str, work: Callable[[], object], after: float = 1.0) -> None:
        """Does `work`, waits for `after` seconds, and prints a line."""
        began = time.monotonic()
        work()
        time.sleep(after)
        seen = [turn for turn in turns(self.notes) if turn.at >= began]
        longest = max(seen, key=lambda turn: turn.took, default=Turn(0.0, 0, 0.0, 0.0, False))
        over = sum(turn.took > 0.02 for turn in seen)
        working = "  yes" if longest.reloading else ""
        print(f"{name:34} {longest.took * 1e3:9.1f} ms {longest.cpu * 1e3:6.1f} ms {over:11}{working}")
        self.worst = max(self.worst, longest.took)


def _scrape(lb: LoadBalancer) -> None:
    for _ in range(5):
        with urllib.request.urlopen(f"{lb.metrics_url}/metrics", timeout=60) as answer:
            answer.read()


def _command(lb: LoadBalancer, *arguments: str) -> None:
    command = [sys.executable, "-m", "lb", *arguments, "-c", str(lb.file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _scale(lb: LoadBalancer, number: signal.Signals, count: int) -> None:
    os.kill(lb.pid, number)
    eventually(lambda: len(lb.status()["workers"]) == count, f"{count} workers", 120)


def _kill(lb: LoadBalancer) -> None:
    before = lb.kill_worker(0)
    eventually(lambda: before not in lb.worker_pids(), "a successor")
    told = 'event="tunnels of a dead worker are taken over"'
    eventually(lambda: told in lb.stderr, "the tunnels with the successor", 60)


def run(lb: LoadBalancer, notes: pathlib.Path, options: argparse.Namespace) -> None:
    """The whole course."""
    course = Course(lb, notes)
    course.stage("nothing but the tunnels", lambda: time.sleep(3.0))
    with processes(load, [[lb.port]]):
        course.stage("requests", lambda: time.sleep(3.0))
        course.stage("requests and scrapes", lambda: _scrape(lb))
        for number in range(1, options.reloads + 1):
            change(lb.tables, options.routes, options.servers, number)
            course.stage(f"requests and reload {number}", lb.reload)
        course.stage("requests, the old let go", lambda: time.sleep(LET_GO))
        course.stage("requests, a list of all WebSockets", lambda: _command(lb, "tunnels", "--all"))
        server = f"main/{lb.tables['pool']['main']['servers'][0]}"
        course.stage("a server drained", lambda: _command(lb, "server", server, "drain", "--spread", "1h"))
        course.stage("and ready again", lambda: _command(lb, "server", server, "ready"))
        course.stage("requests, a worker killed", lambda: _kill(lb), 2.0)
        more = options.workers + 1
        course.stage("requests, a worker more", lambda: _scale(lb, signal.SIGTTIN, more), 5.0)
        course.stage("requests, a worker less", lambda: _scale(lb, signal.SIGTTOU, options.workers), 2.0)
    print(f"the longest of all: {course.worst * 1e3:.1f} ms")


@contextlib.contextmanager
def balancer(folder: pathlib.Path, options: argparse.Namespace, port: int) -> Iterator[LoadBalancer]:
    """A running `lb` that notes its turns."""
    os.environ[NOTES] = str(folder / "turns")
    made = tables(port, options.workers, options.routes, options.servers)
    lb = LoadBalancer(folder, made, program=(sys.executable, "-m", "tests.bench.pauses"))
    lb.start()
    try:
        lb.wait_control()
        yield lb
    finally:
        lb.stop()
        lb.remove_sockets()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--routes", type=int, default=1000)
    parser.add_argument("--servers", type=int, default=2000)
    parser.add_argument("--reloads", type=int, default=4)
    parser.add_argument("--tunnels", type=int, help="default: half of what the limit of open files lets be")
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    tunnels = options.tunnels or int((limit - SPARE) / 2 * options.workers * 0.5)
    multiprocessing.set_start_method("fork")
    with tempfile.TemporaryDirectory() as name, processes(serve, [[]]) as ports:
        folder = pathlib.Path(name)
        with balancer(folder, options, ports[0]) as lb, processes(connect, [[lb.port, 1, tunnels]]):
            held = [worker["tunnels"] for worker in lb.status()["workers"]]
            print(f"{options.routes} routes, {options.servers} servers; tunnels by worker: {held};")
            print(f"limit of open files {limit}, {os.cpu_count()} cores")
            run(lb, folder / "turns", options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        sys.exit(run_noting())
    main()
