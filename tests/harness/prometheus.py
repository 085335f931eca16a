"""A real Prometheus that scrapes one target every second, with this project's rules."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.harness.ports import free_port
from tests.harness.waiting import eventually

Labels = tuple[str, ...]

_CONFIGURATION = """
global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}
rule_files: {rules}
scrape_configs:
  - job_name: lb
    static_configs: [{{ targets: ["{target}"] }}]
"""


class Prometheus:
    """Started by `with`; its data and log are in `folder`."""

    def __init__(self, program: str, folder: Path, target: str, rules: Sequence[Path]) -> None:
        self._log = folder / "prometheus.log"
        self._port = free_port()
        configuration = folder / "prometheus.yml"
        names = json.dumps([str(path) for path in rules])
        configuration.write_text(_CONFIGURATION.format(rules=names, target=target), encoding="utf-8")
        self._command = [
            program,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.started = 0.0

    def __enter__(self) -> Prometheus:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        try:
            eventually(self._ready, "Prometheus is ready", 20)
        except BaseException:
            self.__exit__()
            raise
        self.started = time.time()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5) as answer:
                return int(answer.status) == 200
        except OSError:  # it does not listen yet, or says 503
            return False

    def api(self, path: str, **parameters: object) -> Any:
        """The `data` of what the HTTP API answers; raises `AssertionError` with what it says is wrong."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def values(self, query: str, *labels: str) -> dict[Labels, float]:
        """What `query` is now, by the values of `labels`."""
        found: dict[Labels, float] = {}
        for series in self.api("query", query=query)["result"]:
            key = tuple(series["metric"].get(label, "") for label in labels)
            assert key not in found, f"{query} has more labels than {labels}"
            found[key] = float(series["value"][1])
        return found

    def value(self, query: str) -> float | None:
        """The only value of `query` now; None where there is none."""
        return self.values(query).get(())

    def has_data(self, query: str) -> bool:
        """Whether `query` had a finite value in any second since the start."""
        data = self.api("query_range", query=query, start=self.started, end=time.time(), step=1)
        return any(math.isfinite(float(value)) for series in data["result"] for _, value in series["values"])
