"""The model card of an exported page: the words of a README.md, without images, links and markup."""

from __future__ import annotations

import re
from typing import Any

MAX_BLOCKS, MAX_CHARACTERS = 200, 20_000
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.S)
CODE = re.compile(r"^```.*?^```[^\n]*$", re.S | re.M)
IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def card_blocks(text: str, name: str) -> list[dict[str, Any]]:
    """Return the blocks of a card in Markdown: `kind` ('heading', 'paragraph' or 'item') and `text`, or the kind
    'table' and `rows` of texts. Code is left out, as are a heading that repeats the model's name or has nothing below
    it, a paragraph that only announces an image, and one about images.zip, which a page does not have.
    """
    text = FRONT_MATTER.sub("", text.replace("\r\n", "\n"))[:MAX_CHARACTERS]
    blocks: list[dict[str, Any]] = []
    for part in re.split(r"\n\s*\n", CODE.sub("\n\n", text)):
        if IMAGE.search(part):
            if blocks and blocks[-1]["kind"] == "paragraph" and blocks[-1]["text"].endswith(":"):
                blocks.pop()
            part = IMAGE.sub("", part)
        blocks += _blocks(part.strip("\n"))
    left_out = {"kind": "heading", "text": name}
    blocks = [b for b in blocks if b != left_out and "images.zip" not in b.get("text", "")][:MAX_BLOCKS]
    following = [*blocks[1:], {"kind": "heading"}]
    return [block for block, after in zip(blocks, following) if {block["kind"], after["kind"]} != {"heading"}]


def _blocks(part: str) -> list[dict[str, Any]]:
    lines = [line for line in part.splitlines() if line.strip()]
    if not lines:
        return []
    if all(line.lstrip().startswith("|") for line in lines):
        rows = [[plain_text(cell) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]
        rows = [row for row in rows if any(row) and not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
        return [{"kind": "table", "rows": rows}]
    if match := re.match(r"#+\s+(.*)", lines[0]):
        return [{"kind": "heading", "text": plain_text(match[1])}, *_blocks("\n".join(lines[1:]))]
    if re.match(r"\s*[-*]\s", lines[0]):
        items = [item for item in re.split(r"(?m)^\s*[-*]\s+", part) if item.strip()]
        return [{"kind": "item", "text": plain_text(item)} for item in items]
    return [{"kind": "paragraph", "text": plain_text(" ".join(lines))}]


def plain_text(markdown: str) -> str:
    """Return one line of Markdown without links, emphasis, HTML and escapes."""
    text = re.sub(r"<[^>]{1,200}>", "", LINK.sub(r"\1", " ".join(markdown.split())))
    text = re.sub(r"(?<!\\)(\*\*|__|`|\*)", "", text)
    return re.sub(r"\\([^\w\s])", r"\1", text).strip()
