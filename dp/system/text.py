"""Text from outside, made fit to be shown: on one line, without characters that act, and not too long."""

from __future__ import annotations

import re

LONGEST = 300  # characters of a person's words


def escape(text: str) -> str:
    """One line that Markdown shows as it is: no markup, no HTML, no link, no cell of a table, no formula."""
    return re.sub(r"([\\`*_\[\]<>|~&!:@$]|\.(?=\S))", r"\\\1", plain(text))


def plain(text: str) -> str:
    """One line of printable characters, and no more of them than LONGEST."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def shown(text: str, most: int = 120) -> str:
    """A name or reason from outside, fit to be shown: on one line, without characters that act or that cannot be
    encoded, its middle cut out where it is long.
    """
    ends = text if len(text) <= most else text[:most] + text[-most:]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in ends)
    return safe if len(safe) <= most else f"{safe[: most // 2]}…{safe[-most // 2 :]}"
