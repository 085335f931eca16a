"""The keys that sign sticky cookies, and the files that they are kept in."""

from __future__ import annotations

import hashlib
import pathlib
import secrets
from typing import Final

from lb.config.files import create_secret, read_regular

KEY_BYTES: Final = 32
# A file of another kind, named by mistake.
_MOST_BYTES: Final = 4096


class KeyFileError(ValueError):
    """A key file that can't be used; the text says why and what to do."""


def random_key() -> bytes:
    """A fresh key."""
    return secrets.token_bytes(KEY_BYTES)


def read_key(path: pathlib.Path) -> bytes | None:
    """The key in the file `path`; `None` where there is no such file.

    Any file of 32 to 4096 bytes will do, such as the text of `openssl rand -hex 32`. Raises
    `KeyFileError`.
    """
    try:
        content, _ = read_regular(path, _MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFileError(f"can't be read: {error.strerror}") from error
    if not KEY_BYTES <= len(content) <= _MOST_BYTES:
        raise KeyFileError(f"a key file has {KEY_BYTES} to {_MOST_BYTES} bytes: remove it, and one is made")
    # Text has fewer random bits than bytes: the whole of it counts.
    return hashlib.sha256(content).digest()


def create_key(path: pathlib.Path) -> bytes:
    """The key in the file `path`, which is made (readable by its owner alone) where there is none.

    Two that start at once get the same key. Raises `KeyFileError`.
    """
    try:
        create_secret(path, random_key())
    except OSError as error:
        raise KeyFileError(f"can't be made: {error.strerror}") from error
    key = read_key(path)
    if key is None:
        raise KeyFileError("was removed while it was made")
    return key
