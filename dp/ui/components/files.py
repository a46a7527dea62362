"""The files that the components are made of, for Gradio's page and for an exported one."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


@cache
def read_file(name: str, without: tuple[str, ...] = (), instead: tuple[tuple[str, str], ...] = ()) -> str:
    """Return the text of a file in this folder. A comment such as `<!-- shared/x.html -->` is replaced by that file, by
    nothing for those in `without`, or by another file for those in `instead`.
    """

    def include(match: re.Match[str]) -> str:
        included = dict(instead).get(match[1], match[1])
        return "" if included in without else read_file(included, without, instead)

    return re.sub(r"<!-- (\w+/\w+\.html) -->", include, (FOLDER / name).read_text(encoding="utf-8"))


def read_scripts(*names: str) -> str:
    """Return several JavaScript files, given without their suffix, as one text."""
    return "\n".join(read_file(f"{name}.js") for name in names)
