"""Puts the page together from its files, once, when this module is imported (and so before any fork).

The browser gets one document without outside assets. The scripts are ES modules of one another on disk, so
that editors and type checkers understand them; in the page they are one module, without import and export.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent
_STYLES: Final = ("base.css", "layout.css", "parts.css", "phone.css")
# In the order of their needs: what a script uses at its top level stands before it.
_SCRIPTS: Final = (
    "dom.js",
    "format.js",
    "rates.js",
    "sparkline.js",
    "api.js",
    "dialogs.js",
    "overview.js",
    "actions.js",
    "pools.js",
    "spread.js",
    "tunnels.js",
    "machine.js",
    "events.js",
    "configuration.js",
    "feed.js",
    "main.js",
)  # fmt: skip
_IMPORT: Final = re.compile(r'^import \{[^}]*\} from "\./\w+\.js";\n', re.MULTILINE)
_EXPORT: Final = re.compile(r"^export (?=async |class |const |function )", re.MULTILINE)


def _read(*path: str) -> str:
    return _HERE.joinpath(*path).read_text(encoding="utf-8")


def _style() -> str:
    return "\n" + "\n".join(_read("style", name) for name in _STYLES)


def _script() -> str:
    """All scripts as one module."""
    joined = "\n".join(_read("script", name) for name in _SCRIPTS)
    script = "\n" + _EXPORT.sub("", _IMPORT.sub("", joined))
    left = re.search(r"^(?:import|export)\b.*|</script", script, re.MULTILINE)
    if left:
        raise ValueError(f"lb/dashboard/script: {left[0]!r} can't be part of the page")
    return script


def _source(content: str) -> str:
    """`content` as the browser allows it: by its hash (Content Security Policy Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


_STYLE: Final = _style()
_SCRIPT: Final = _script()
_PAGE: Final = (
    _read("index.html")
    .replace("<style></style>", f"<style>{_STYLE}</style>")
    .replace('<script type="module"></script>', f'<script type="module">{_SCRIPT}</script>')
    .encode()
)

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        f"style-src {_source(_STYLE)}",
        f"script-src {_source(_SCRIPT)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Goes with the page as `Content-Security-Policy`: no script or style but the page's own runs, and no string
becomes markup."""


def dashboard_page() -> bytes:
    """The page in UTF-8, for `Content-Type: text/html; charset=utf-8`."""
    return _PAGE
