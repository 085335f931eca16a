"""The project's benchmark: `make bench`, or `make bench ARGS="--only http-small,ws-small --rounds 5"`.

Measures lb side by side with what is installed of nginx and HAProxy: CPU time per operation of the whole
process tree, latency and memory, in rounds of one after the other. docs/performance.md says how to read it.
Exits with 1 where something of lb could not be measured, because an operation failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.bench import machine, report
from tests.bench.limits import raise_file_limit
from tests.bench.run import NAMES, Plan, Run
from tests.harness.balancer import ROOT

_DOCUMENT: Final = ROOT / "docs" / "performance.md"


def _names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(NAMES)}")
    return [name for name in NAMES if name in chosen]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...",
        description=__doc__,
        epilog="workloads: " + ", ".join(NAMES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_names, default=list(NAMES), help="workloads, with commas between")
    parser.add_argument("--rounds", type=int, help="of each workload; default 5, or 2 with --quick")
    parser.add_argument("--seconds", type=float, help="of a round; default 1, or 0.25 with --quick")
    parser.add_argument("--quick", action="store_true", help="two to three minutes, and more noise")
    parser.add_argument(
        "--code", type=Path, default=ROOT, help="folder of the lb to measure; default this one"
    )
    parser.add_argument("--out", type=Path, help="writes the tables here, and the JSON beside them")
    parser.add_argument("--write-docs", action="store_true", help=f"writes the tables into {_DOCUMENT.name}")
    options = parser.parse_args()
    options.code = options.code.resolve()
    if not (options.code / "workers").is_dir():
        parser.error(f"--code {options.code}: no lb there")
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (0.25 if options.quick else 1.0)
    return options


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt


def _write(options: argparse.Namespace, result: dict[str, Any]) -> None:
    text = report.markdown(result)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.write_docs:
        report.write_between(_DOCUMENT, text)


def main() -> int:
    """See the module."""
    options = _parse()
    signal.signal(signal.SIGTERM, _terminated)
    limit = raise_file_limit()
    result: dict[str, Any] = {
        "machine": machine.description(options.code, limit),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    began = time.monotonic()
    plan = Plan(options.only, options.rounds, options.seconds, options.quick, options.code)
    run = Run(plan, limit, _say)
    interrupted = False
    with contextlib.closing(run):
        try:
            run.all()
        except KeyboardInterrupt:
            interrupted = True
            run.setting.note("interrupted: what is missing was not measured")
    result |= {"took": time.monotonic() - began, "rows": run.setting.rows, "notes": run.setting.notes}
    _write(options, result)
    if run.setting.failures:
        _say(f"not measured: {', '.join(dict.fromkeys(run.setting.failures))}; the notes say why")
    return 130 if interrupted else int(bool(run.setting.failures))


if __name__ == "__main__":
    sys.exit(main())
