"""Sanitize text from outside for display: one line, no control characters, limited length."""

from __future__ import annotations

import re

MAX_LENGTH = 300  # length limit of text from users


def escape(text: str) -> str:
    """Return one line that Markdown shows literally, without markup, HTML, links, table cells or formulas."""
    return re.sub(r"([\\`*_\[\]<>|~&!:@$]|\.(?=\S))", r"\\\1", plain(text))


def plain(text: str) -> str:
    """Return one line of printable characters, at most MAX_LENGTH of them."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= MAX_LENGTH else f"{line[:MAX_LENGTH]}…"


def shown(text: str, most: int = 120) -> str:
    """Return a name or reason from outside on one line. Control characters and invalid ones are escaped, and the middle
    of a text of more than `most` characters is replaced by "…".
    """
    ends = text if len(text) <= most else text[:most] + text[-most:]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in ends)
    return safe if len(safe) <= most else f"{safe[: most // 2]}…{safe[-most // 2 :]}"
