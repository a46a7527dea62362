"""Sanitize text from outside for display: one line, no control characters, limited length."""

from __future__ import annotations

import re

LONGEST = 300  # characters of a person's words


def escape(text: str) -> str:
    """Return one line that Markdown shows literally, without markup, HTML, links, table cells or formulas."""
    return re.sub(r"([\\`*_\[\]<>|~&!:@$]|\.(?=\S))", r"\\\1", plain(text))


def plain(text: str) -> str:
    """Return one line of printable characters, at most LONGEST of them."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def shown(text: str, most: int = 120) -> str:
    """Return a name or reason from outside on one line, with control characters and unencodable ones escaped and the
    middle of a long text cut out.
    """
    ends = text if len(text) <= most else text[:most] + text[-most:]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in ends)
    return safe if len(safe) <= most else f"{safe[: most // 2]}…{safe[-most // 2 :]}"
