"""The access log's writer: nothing torn, nothing waited for, and what is lost is counted and told."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workers.contract.errorlog import ErrorLog
from workers.contract.sink import Sink
from workers.io import accesslog
from workers.io.accesslog import AccessLog

LINE = b'{"n":1}\n'


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


class Errors:
    """An error log into a file, to be read by the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.log = ErrorLog("worker 0", self.fd)

    def text(self) -> str:
        return self.path.read_text()


@pytest.fixture
def errors(tmp_path: Path) -> Iterator[Errors]:
    value = Errors(tmp_path / "errors")
    yield value
    os.close(value.fd)


def appending(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def test_lines_reach_the_file_in_order_soon_and_at_the_end(tmp_path: Path, errors: Errors) -> None:
    path, fd = tmp_path / "access", appending(tmp_path / "access")
    log = AccessLog(fd, errors.log)
    log.write(b"first\n")
    until(lambda: path.read_bytes() == b"first\n")
    lines = [b"line %d\n" % number for number in range(20_000)]
    for line in lines:
        log.write(line)
    log.close()
    assert path.read_bytes() == b"first\n" + b"".join(lines)
    assert log.dropped == 0
    assert errors.text() == ""
    assert not is_open(fd)
    assert not log._thread.is_alive()


def test_standard_descriptors_are_left_open(errors: Errors) -> None:
    before = fcntl.fcntl(1, fcntl.F_GETFL)
    log = AccessLog(1, errors.log)
    log.close()
    assert fcntl.fcntl(1, fcntl.F_GETFL) == before


def test_a_blocked_pipe_costs_lines_and_no_time(errors: Errors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "MAX_LINES", 1000)
    monkeypatch.setattr(accesslog, "REPORT", 0.05)
    monkeypatch.setattr(accesslog, "RETRY", 0.05)
    reader, writer = os.pipe()
    flags = fcntl.fcntl(writer, fcntl.F_GETFL)
    log = AccessLog(writer, errors.log)
    line = b"x" * 999 + b"\n"
    slowest = 0.0
    for _ in range(3000):
        started = time.perf_counter()
        log.write(line)
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < 0.5
    assert log.dropped >= 3000 - 1000 - 64 - 4 - 4
    until(lambda: 'event="access log lines were lost"' in errors.text())
    assert 'reason="the queue is full"' in errors.text()
    assert fcntl.fcntl(writer, fcntl.F_GETFL) == flags
    # When somebody reads again, what was kept comes, whole, and the log goes on.
    received = bytearray()

    def collect() -> None:
        while chunk := os.read(reader, 1 << 16):
            received.extend(chunk)

    collector = threading.Thread(target=collect)
    collector.start()
    until(lambda: not log._queue)
    log.write(b"the last\n")
    log.close()
    collector.join(5)
    os.close(reader)
    assert received.count(b"\n") + log.dropped == 3001
    assert received.endswith(b"x\nthe last\n")


def test_closing_a_blocked_log_is_bounded_and_counts(errors: Errors) -> None:
    reader, writer = os.pipe()
    log = AccessLog(writer, errors.log)
    for _ in range(200):
        log.write(b"y" * 999 + b"\n")
    started = time.monotonic()
    log.close(0.2)
    assert time.monotonic() - started < 2
    assert not log._thread.is_alive()
    kept = os.read(reader, 1 << 20).count(b"\n")
    assert 0 < kept < 200
    assert log.dropped == 200 - kept
    assert sum(map(int, re.findall(r" lines=(\d+)", errors.text()))) == log.dropped
    assert 'reason="no time was left"' in errors.text()
    log.write(LINE)
    assert log.dropped == 201 - kept
    assert not log._queue
    assert not is_open(writer)
    os.close(reader)


def test_a_closed_reader_costs_lines(errors: Errors) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = AccessLog(writer, errors.log)
    for _ in range(10):
        log.write(LINE)
    until(lambda: log.dropped == 10)
    log.close()
    assert 'reason="Broken pipe"' in errors.text()
    assert "lines=10" in errors.text()


def test_a_full_disk_costs_lines_at_a_bounded_rate(errors: Errors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "RETRY", 0.01)
    log = AccessLog(os.open("/dev/full", os.O_WRONLY), errors.log)
    written = 0
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        log.write(LINE)
        written += 1
        time.sleep(0.001)
    log.close()
    assert log.dropped == written
    assert 'reason="No space left on device"' in errors.text()
    assert errors.text().count("\n") <= 3


SHORT_DISK = """
import os, resource, signal, sys
from workers.contract.errorlog import ErrorLog
from workers.io.accesslog import AccessLog
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
log = AccessLog(fd, ErrorLog("worker 0"))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1005, hard))
lines = [b"%09d\\n" % number for number in range(200)]
for line in lines:
    log.write(line)
while log.dropped != 100:
    os.sched_yield()
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
log.write(b"room again\\n")
log.close()
sys.exit(log.dropped != 100)
"""


def test_a_line_cut_off_by_a_full_disk_does_not_swallow_the_next(tmp_path: Path) -> None:
    """The file takes 100 lines and half of one; then there is room again."""
    path = tmp_path / "access"
    done = subprocess.run(
        [sys.executable, "-c", SHORT_DISK, str(path)], timeout=30, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = path.read_bytes().splitlines()
    assert lines[:100] == [b"%09d" % number for number in range(100)]
    assert lines[100:] == [b"00000", b"room again"]
    assert 'reason="File too large"' in done.stderr


PUMP = """
import sys
from workers.contract.errorlog import ErrorLog
from workers.io.accesslog import AccessLog
log = AccessLog(1, ErrorLog("worker"))
mark = sys.argv[1].encode()
for number in range(3000):
    log.write(mark + b" %d " % number + mark * (number % 300 if number % 50 else 4050) + b" end\\n")
log.close(20)
sys.exit(log.dropped)
"""


def test_lines_of_four_processes_on_one_pipe_never_tear() -> None:
    reader, writer = os.pipe()
    processes = [subprocess.Popen([sys.executable, "-c", PUMP, mark], stdout=writer) for mark in "abcd"]
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        lines = stream.read().splitlines()
    assert [process.wait(20) for process in processes] == [0, 0, 0, 0]
    following = dict.fromkeys((b"a", b"b", b"c", b"d"), 0)
    for line in lines:
        mark, number, filler, end = line.split(b" ")
        assert int(number) == following[mark]
        assert filler == mark * (int(number) % 300 if int(number) % 50 else 4050)
        assert end == b"end"
        following[mark] += 1
    assert set(following.values()) == {3000}


def test_reopening_under_load_loses_nothing_and_closes_the_old(tmp_path: Path, errors: Errors) -> None:
    paths = [tmp_path / f"access.{number}" for number in range(20)]
    fds = [appending(paths[0])]
    log = AccessLog(fds[0], errors.log)
    count = 0
    for path in paths[1:]:
        for _ in range(500):
            log.write(b"%d\n" % count)
            count += 1
        fds.append(appending(path))
        log.reopen(fds[-1])
        if len(fds) % 3 == 0:  # some swaps come before the writer saw the one before
            until(lambda: log._swap is None)
    log.write(b"%d\n" % count)
    log.close()
    lines = b"".join(path.read_bytes() for path in paths).splitlines()
    assert lines == [b"%d" % number for number in range(count + 1)]
    assert paths[-1].read_bytes().endswith(b"%d\n" % count)
    assert log.dropped == 0
    assert not any(is_open(fd) for fd in fds)


def test_reopening_frees_a_log_whose_pipe_is_blocked(tmp_path: Path, errors: Errors) -> None:
    reader, writer = os.pipe()
    log = AccessLog(writer, errors.log)
    for _ in range(100):
        log.write(b"z" * 999 + b"\n")
    until(lambda: not Sink(writer).wait(0))
    path = tmp_path / "access"
    log.reopen(appending(path))
    log.write(LINE)
    until(lambda: path.exists() and path.read_bytes().endswith(LINE))
    log.close()
    assert not is_open(writer)
    kept = os.read(reader, 1 << 20).count(b"\n") + path.read_bytes().count(b"\n")
    assert kept + log.dropped == 101
    os.close(reader)


def test_reopening_with_a_bad_descriptor_keeps_the_old(tmp_path: Path, errors: Errors) -> None:
    path = tmp_path / "access"
    log = AccessLog(appending(path), errors.log)
    with pytest.raises(OSError, match="Bad file descriptor"):
        log.reopen(resource.getrlimit(resource.RLIMIT_NOFILE)[0] + 1)
    log.write(LINE)
    log.close()
    assert path.read_bytes() == LINE


def test_a_line_that_could_tear_is_refused(tmp_path: Path, errors: Errors) -> None:
    path = tmp_path / "access"
    log = AccessLog(appending(path), errors.log)
    log.write(b"x" * 4096 + b"\n")
    log.write(LINE)
    log.close()
    assert (path.read_bytes(), log.dropped) == (LINE, 1)


@pytest.mark.parametrize(("sample", "expected"), [(1.0, 1000), (0.25, 250), (0.0, 0)])
def test_sampling_is_even(tmp_path: Path, errors: Errors, sample: float, expected: int) -> None:
    log = AccessLog(appending(tmp_path / "access"), errors.log, "combined", sample)
    assert sum(log.wanted() for _ in range(1000)) == expected
    log.reconfigure("json", 1.0)
    assert log.wanted()
    log.close()


def test_an_idle_log_sleeps(tmp_path: Path, errors: Errors) -> None:
    log = AccessLog(appending(tmp_path / "access"), errors.log)
    log.write(LINE)
    until(lambda: log._sleeping)
    before = time.process_time()
    until(lambda: log._sleeping)
    time.sleep(0.3)
    assert time.process_time() - before < 0.05
    log.close()
