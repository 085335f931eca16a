"""Compiles what the control process alone is told."""

from __future__ import annotations

import ipaddress
import os
import pathlib
import re
import secrets
from typing import Final

from lb.config.files import create_secret, read_regular
from lb.config.problems import ConfigErrors, Report
from lb.config.schema import Config
from lb.control.spec import ControlSpec, DiscoverSpec
from workers.contract.snapshot import Snapshot

_TOKEN_BYTES: Final = 32  # random ones in a token that is made here
_LEAST_TOKEN: Final = 16
_MOST_TOKEN: Final = 4096
# RFC 6750, 2.1 has fewer characters; these pass through a header unharmed just as well.
_TOKEN: Final = re.compile(r"[!-~]+\Z")


def control_spec(
    config: Config, snapshot: Snapshot, errors: Report, warnings: Report, *, make_token: bool
) -> ControlSpec:
    """The control process's part of `config`, compiled to `snapshot`. Reads the token, for which it makes a
    file where there is none and `make_token` says so."""
    listen = config.admin.listen
    return ControlSpec(
        generation=snapshot.generation,
        config_path=str(pathlib.Path(config.source.file).absolute()),
        config_text=config.source.text,
        metrics=None if config.metrics is None else config.metrics.listen,
        admin=None if listen == "off" else listen,
        admin_token=read_token(config, errors, warnings, make=make_token),
        nameservers=config.dns.nameservers,
        names=names_of(snapshot),
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


def names_of(snapshot: Snapshot) -> tuple[str, ...]:
    """The host names of the servers in `snapshot`: what is to be resolved."""
    hosts = {server.host for pool in snapshot.pools for server in pool.servers if server.host is not None}
    return tuple(sorted(host for host in hosts if not _is_address(host)))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def admin_token(config: Config) -> str:
    """The token that callers over TCP must show, made where there is none; empty where none is wanted. Raises
    `ConfigErrors`."""
    errors = Report(config.source)
    token = read_token(config, errors, Report(config.source), make=True)
    if errors.problems:
        raise ConfigErrors(errors.problems)
    return token


def read_token(config: Config, errors: Report, warnings: Report, *, make: bool) -> str:
    """The token in `admin.token_file`, which `make` makes where there is no such file; empty where there is
    none, or after reporting what is wrong."""
    if config.admin.token_file is None:
        return ""
    at = ("admin", "token_file")
    path = config.resolve(config.admin.token_file)
    if not os.path.lexists(path):
        if not make:
            return ""
        try:
            create_secret(path, secrets.token_hex(_TOKEN_BYTES).encode() + b"\n")
        except OSError as error:
            errors.add(at, f"{path}: can't be made: {error.strerror}")
            return ""
    try:
        content, status = read_regular(path, _MOST_TOKEN + 1)
    except OSError as error:
        errors.add(at, f"{path}: can't be read: {error.strerror}")
        return ""
    token = content.decode("latin-1").strip()
    if len(token) < _LEAST_TOKEN or len(content) > _MOST_TOKEN or not _TOKEN.match(token):
        message = f"a token has {_LEAST_TOKEN} to {_MOST_TOKEN} visible ASCII characters, and no space"
        errors.add(at, f"{path}: {message}", hint="remove it, and one is made")
        return ""
    if status.st_mode & 0o077:
        hint = f"chmod 600 {path}"
        warnings.add(at, f"{path}: others than its owner can read or write it", hint=hint)
    return token
