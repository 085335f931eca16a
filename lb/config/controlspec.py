"""Compiles what the control process alone is told."""

from __future__ import annotations

import ipaddress
import os
import pathlib
import re
from typing import Final

from lb.config.files import read_regular
from lb.config.problems import Report
from lb.config.schema import Config
from lb.control.spec import ControlSpec, DiscoverSpec
from workers.contract.snapshot import Snapshot

_LEAST_TOKEN: Final = 16
_MOST_TOKEN: Final = 4096
# RFC 6750, 2.1 has fewer characters; these pass through a header unharmed just as well.
_TOKEN: Final = re.compile(r"[!-~]+\Z")


def control_spec(config: Config, snapshot: Snapshot, errors: Report, warnings: Report) -> ControlSpec:
    """The control process's part of `config`, compiled to `snapshot`. Reads the token."""
    listen = config.admin.listen
    return ControlSpec(
        generation=snapshot.generation,
        config_path=str(pathlib.Path(config.source.file).absolute()),
        config_text=config.source.text,
        metrics=None if config.metrics is None else config.metrics.listen,
        admin=None if listen == "off" else listen,
        admin_token=read_token(config, errors, warnings),
        nameservers=config.dns.nameservers,
        names=_names(snapshot),
        discover=tuple(
            DiscoverSpec(pool=pool.name, srv=pool.srv)
            if pool.discover is None
            else DiscoverSpec(
                pool=pool.name,
                file=os.path.normpath(config.resolve(pool.discover.file)),
                refresh=pool.discover.refresh,
                srv=pool.srv,
            )
            for pool in config.pool
            if pool.discovers
        ),
    )


def _names(snapshot: Snapshot) -> tuple[str, ...]:
    hosts = {server.host for pool in snapshot.pools for server in pool.servers if server.host is not None}
    return tuple(sorted(host for host in hosts if not _is_address(host)))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def read_token(config: Config, errors: Report, warnings: Report) -> str:
    """The token in `admin.token_file`; empty where there is none, or after reporting what is wrong."""
    if config.admin.token_file is None:
        return ""
    at = ("admin", "token_file")
    path = config.resolve(config.admin.token_file)
    try:
        content, status = read_regular(path, _MOST_TOKEN + 1)
    except OSError as error:
        hint = "openssl rand -hex 32 makes a token"
        errors.add(at, f"{path}: can't be read: {error.strerror}", hint=hint)
        return ""
    token = content.decode("latin-1").strip()
    if len(token) < _LEAST_TOKEN or len(content) > _MOST_TOKEN or not _TOKEN.match(token):
        message = f"a token has {_LEAST_TOKEN} to {_MOST_TOKEN} visible ASCII characters, and no space"
        errors.add(at, f"{path}: {message}", hint="openssl rand -hex 32 makes one")
        return ""
    if status.st_mode & 0o077:
        hint = f"chmod 600 {path}"
        warnings.add(at, f"{path}: others than its owner can read or write it", hint=hint)
    return token
