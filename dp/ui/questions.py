"""The guided questions: each sets the controls, draws with a fixed seed, goes to the moment that answers it, and points
at one thing. Their words are in help/questions.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from dp.ui.words import help_text

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Question(NamedTuple):
    """tab: the name of the tab where it is answered. settings: of the run, named as in `SampleSettings`, with its
    checkpoint. axis, values: of a comparison. moment: what the page then shows; in Denoise the `step`, the `image`
    (from 0, None for all) and the `panel` that is opened, in 2D the `example` and which particle to `follow`.
    point: a CSS selector of what the page points at. names: of its parts, in order. beside, caption: a model whose
    samples, each above its nearest training image, the page shows there too, from the model's folder; and the words
    above them. models: the checkpoints that it needs. needs_replay: whether the server makes images again for it.
    """

    tab: str
    settings: Mapping[str, Any] = NOTHING
    axis: str = ""
    values: tuple[Any, ...] = ()
    moment: Mapping[str, Any] = NOTHING
    point: str = "#player .player"
    names: tuple[str, ...] = ()
    beside: str = ""
    caption: str = ""
    models: tuple[str, ...] = ()
    needs_replay: bool = False


RUN = {"batch_size": 4, "timesteps": 20, "sampler": "dpmpp_2m", "seed": 5}
FACES = RUN | {"checkpoint": "faces-32", "batch_size": 16}
LETTERS = RUN | {"checkpoint": "letters-32", "guidance": 2.0}
QUESTIONS = {
    "step": Question(
        # Large steps, of two terms.
        "Denoise",
        RUN | {"checkpoint": "creatures-32", "label": 6, "guidance": 1, "sampler": "ddim", "timesteps": 4},
        moment={"step": 3, "image": 0, "panel": "apart"},
        point="#player .inspector.apart",
        models=("creatures-32",),
        needs_replay=True,
    ),
    "more": Question("In 2D", moment={"example": "Five steps cut corners"}, point="#plane .sides"),
    "wander": Question("In 2D", moment={"example": "Smooth or jagged", "follow": 3}, point="#plane .sides"),
    "schedule": Question("In 2D", moment={"example": "Wasted steps"}, point="#plane .sides"),
    "decided": Question(
        "Denoise",
        FACES,
        moment={"step": 12, "image": 3, "panel": "candidates"},
        point="#player .possible-each",
        models=("faces-32", "faces-32, exact"),
        needs_replay=True,
    ),
    "latents": Question(
        "Denoise",
        RUN | {"checkpoint": "creatures-32", "label": 2, "guidance": 1},  # one eye, on a plain ground
        moment={"step": 18, "image": 0, "panel": "attention"},
        point="#player .groups:not(.stale)",
        names=("background", "eye", "body", "hair"),
        models=("creatures-32",),
        needs_replay=True,
    ),
    "memorize": Question(
        "Denoise",
        FACES,
        moment={"step": 20, "image": None, "panel": "candidates"},
        point="#player .part:has(.pairs)",
        beside="creatures-32",
        caption="For comparison: results of creatures-32, which has seen 40,000 images, above the nearest of these. "
        "They are from 0.044 to 0.171 apart.",
        models=("faces-32", "faces-32, exact", "creatures-32"),
        needs_replay=True,
    ),
    "guidance": Question(
        "Compare",
        LETTERS | {"label": 18},
        "guidance",
        ("0", "1", "2", "3", "5", "10"),
        point=".variants",
        models=("letters-32",),
    ),
}


def available(names: Iterable[str], can_replay: bool) -> dict[str, Question]:
    """Return the questions that can be answered with the checkpoints of these names, in their order on the page."""
    names = set(names)
    return {
        key: QUESTIONS[key]
        for key in texts()
        if key in QUESTIONS
        and names.issuperset(QUESTIONS[key].models)
        and (can_replay or not QUESTIONS[key].needs_replay)
    }


def texts() -> dict[str, tuple[str, str]]:
    """Return the title and the answer of each question, in their order on the page."""
    parts = [part.partition("\n") for part in help_text("questions").split("## ")[1:]]
    heads = [head.split(": ", 1) for head, _, _ in parts]
    return {
        key: (title.strip(), " ".join(body.split())) for (key, title), (_, _, body) in zip(heads, parts, strict=True)
    }
