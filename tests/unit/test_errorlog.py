"""The error log's lines, its rate, and what happens when nobody reads standard error."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.contract.errorlog import BURST, MAX_EVENTS, ErrorLog, quote
from workers.contract.sink import ATOMIC, Sink

LINE = re.compile(
    r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=(info|warning|error) component="[^"]*" event="[^"]*".*\n'
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError as error:
            assert error.errno == errno.EBADF


def fill(fd: int) -> int:
    """Fills a pipe to the last page; says how much that was."""
    sink, total = Sink(fd), 0
    try:
        while True:
            total += sink.write(b"x" * ATOMIC)
    except BlockingIOError:
        return total


def drain(fd: int, size: int) -> None:
    while size:
        size -= len(os.read(fd, size))


def lines(fd: int) -> list[str]:
    return os.read(fd, 1 << 20).decode().splitlines(keepends=True)


def test_a_line_has_time_level_component_event_and_fields(pipe: tuple[int, int]) -> None:
    log = ErrorLog("worker 0", pipe[1])
    log.info("server answers again", server="a:9000", after=1.5, tries=3, ok=True, code=None)
    [line] = lines(pipe[0])
    assert LINE.fullmatch(line)
    assert line.endswith(
        'level=info component="worker 0" event="server answers again"'
        " server=a:9000 after=1.5 tries=3 ok=true code=null\n"
    )


def test_levels(pipe: tuple[int, int]) -> None:
    log = ErrorLog("master", pipe[1])
    log.warning("a")
    log.error("b", error=OSError(2, "No such file"))
    first, second = lines(pipe[0])
    assert "level=warning" in first
    assert (
        'level=error component="master" event="b" error="FileNotFoundError: [Errno 2] No such file"' in second
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("", '""'),
        ('say "hi" \\', '"say \\"hi\\" \\\\"'),
        ("a\nb\r\tc", '"a\\nb\\r\\tc"'),
        ("\x1b[31mred\x00\x7f", '"\\x1b[31mred\\x00\\x7f"'),
        ("\x9b31m", '"\\x9b31m"'),  # the eight-bit CSI
        ("\u2028\u202e", '"\\u2028\\u202e"'),
        ("\udc80", '"\\udc80"'),
        ("\U000e0001", '"\\U000e0001"'),
        ("grüße", '"grüße"'),
        (b"raw \xff\x1b", '"raw \\\\xff\\x1b"'),
        (ValueError(), "ValueError"),
        (["a", 1], "\"['a', 1]\""),
    ],
)
def test_values_stay_on_the_line_and_print_nothing_odd(
    pipe: tuple[int, int], value: object, expected: str
) -> None:
    ErrorLog("master", pipe[1]).info("seen", value=value)
    [line] = lines(pipe[0])
    assert line.endswith(f'event="seen" value={expected}\n')


def test_component_and_event_are_quoted_too() -> None:
    assert quote('a"\n') == '"a\\"\\n"'


@pytest.mark.parametrize("value", ["x" * 100_000, "\x1b" * 100_000, "\U0001f600" * 100_000, "\udc80" * 5000])
def test_a_long_line_is_cut_below_the_atomic_size(pipe: tuple[int, int], value: str) -> None:
    log = ErrorLog("master", pipe[1])
    log.error("long", **{f"field{number}": value for number in range(10)})
    data = os.read(pipe[0], 1 << 20)
    assert len(data) <= ATOMIC
    assert data.count(b"\n") == 1
    assert data.endswith(b" truncated=true\n")
    assert b"..." in data


def test_a_full_pipe_costs_lines_not_time_and_is_told(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    filled = fill(writer)
    log = ErrorLog("master", writer)
    started = time.monotonic()
    for number in range(5):
        log.info(f"event {number}")
    assert time.monotonic() - started < 1
    assert log.dropped == 5
    drain(reader, filled)
    log.info("after")
    [line] = lines(reader)
    assert line.endswith('event="after" dropped=5\n')
    assert log.dropped == 0


def test_the_shared_descriptor_stays_blocking(pipe: tuple[int, int]) -> None:
    before = fcntl.fcntl(pipe[1], fcntl.F_GETFL)
    fill(pipe[1])
    ErrorLog("master", pipe[1]).info("x")
    assert fcntl.fcntl(pipe[1], fcntl.F_GETFL) == before
    assert not before & os.O_NONBLOCK


def test_a_closed_reader_or_descriptor_raises_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = ErrorLog("master", writer)
    os.close(reader)
    log.error("nobody reads")
    assert log.dropped == 1
    os.close(writer)
    log.error("nobody is there")
    ErrorLog("master", writer).error("nobody was ever there")
    assert log.dropped == 2


def test_a_full_disk_raises_nothing() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        log = ErrorLog("master", fd)
        log.error("no room")
        assert log.dropped == 1
    finally:
        os.close(fd)


def test_an_event_has_a_burst_and_then_a_rate(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("workers.contract.errorlog.time.monotonic", lambda: clock[0])
    log = ErrorLog("worker 1", pipe[1])
    for _ in range(BURST + 7):
        log.error("accept failed")
    log.error("another")
    assert len(lines(pipe[0])) == BURST + 1
    clock[0] += 1.0
    log.error("accept failed")
    log.error("accept failed")
    [line] = lines(pipe[0])
    assert line.endswith('event="accept failed" suppressed=7\n')


def test_flush_tells_what_was_left_out(pipe: tuple[int, int]) -> None:
    log = ErrorLog("worker 1", pipe[1])
    for _ in range(BURST + 3):
        log.error("accept failed")
    lines(pipe[0])
    log.flush()
    [line] = lines(pipe[0])
    assert line.endswith('level=warning component="worker 1" event="accept failed" suppressed=3\n')


def test_the_table_of_events_is_bounded(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        log = ErrorLog("master", fd)
        for number in range(MAX_EVENTS * 3):
            log.info(f"event {number}")
        assert len(log._rates) <= MAX_EVENTS + 1
    finally:
        os.close(fd)
    # The events beyond the table share one rate, rather than having none.
    written = (tmp_path / "log").read_text().count("\n")
    assert MAX_EVENTS <= written <= MAX_EVENTS + BURST + 1


def _write_many(fd: int, component: str) -> None:
    log = ErrorLog(component, fd)
    for number in range(200):
        log.info(f"event {number % 50}", filler="y z" * 300, number=number)


def test_lines_of_several_processes_and_threads_never_tear(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_many, args=(writer, f"worker {slot}")) for slot in range(4)]
    for process in processes:
        process.start()
    collected: list[bytes] = []

    def collect() -> None:
        while chunk := os.read(reader, 1 << 16):
            collected.append(chunk)

    collector = threading.Thread(target=collect)
    collector.start()
    threads = [threading.Thread(target=_write_many, args=(writer, f"thread {slot}")) for slot in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join()
    os.close(writer)
    collector.join()
    seen = b"".join(collected).decode().splitlines(keepends=True)
    assert len(seen) > 100
    for line in seen:
        assert LINE.fullmatch(line), line
        assert line.count("level=") == 1


def test_many_threads_share_a_terminal_like_file(tmp_path: Path) -> None:
    """What is neither pipe nor socket is polled, and several threads may do so at once."""
    fd = os.open(tmp_path / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(300):
                shared.write(b"line\n")
        except (OSError, RuntimeError) as error:
            failures.append(error)

    shared = Sink(fd)
    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    assert not failures
    assert (tmp_path / "log").read_text() == "line\n" * 1800
