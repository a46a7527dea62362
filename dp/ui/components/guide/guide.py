"""The guided questions as a row of buttons, and the answer to the one that was asked, at the top of the window.

When one is asked, the component triggers `ask` with its `question`; the page then puts the question's settings into the
controls and sends the DOM event "guide-ready", upon which the component starts the run. In two dimensions it asks
nothing of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dp.ui.components.component import Component
from dp.ui.components.data_uri import data_uri
from dp.ui.questions import Question, texts

READY = "() => document.querySelector('.guide').dispatchEvent(new CustomEvent('guide-ready'))"


class Guide(Component):
    """folders: those of the models, by name."""

    def __init__(self, questions: Mapping[str, Question], folders: Mapping[str, Path], **kwargs: Any):
        super().__init__(
            html="guide/guide.html",
            css=["guide/guide.css"],
            js=["guide/guide.js"],
            description="the question that is asked",
            value=None,
            questions={key: in_page(key, question, folders) for key, question in questions.items()},
            **kwargs,
        )


def in_page(key: str, question: Question, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return what the page needs to know of a question."""
    title, text = texts()[key]
    shown = {"title": title, "text": text, "moment": dict(question.moment), "names": question.names}
    picture = folders[question.beside] / "nearest.webp" if question.beside else None
    if picture and picture.exists():
        shown |= {"picture": data_uri("image/webp", picture.read_bytes()), "caption": question.caption}
    return shown | {"tab": question.tab, "point": question.point}
