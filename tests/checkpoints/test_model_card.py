"""dp.checkpoints.model_card: text from users is shown literally, never as YAML, Markdown or HTML."""

import pytest
import yaml
from huggingface_hub import ModelCard

from dp.checkpoints.model_card import model_card
from dp.system.text import MAX_LENGTH, escape, plain

CONFIG = {
    "network": {"type": "rin", "image_size": 32, "channels": 3, "dim": 8},
    "policy": {"objective": "eps", "noise_schedule": "cosine", "timesteps": 50, "scale": 1.0},
    "step": 1234,
}
# What somebody may call a folder, a license or a fact.
WORDS = [
    "mit\nevil: true",
    "x\n---\n# A title",
    "[click](http://evil.example)",
    "http://evil.example www.evil.example a@evil.example",
    "![](http://evil.example/pixel.png)",
    "<script>alert(1)</script><img src=x>",
    "a | b\n| --- | c",
    "`code` **bold** _it_ ~~no~~ $x$ &lt; \\",
    "'\"{}[]!&*#?|->%@: no",
    "{source} %s {0}",
    "\0\x1b[31m\u202e\ud800\x85\u2028",
    "null",
    "日本語 🔬",
    "x" * 5000,
]


@pytest.mark.parametrize("words", WORDS)
def test_user_text_adds_no_fields_to_the_front_matter(words):
    card = model_card(CONFIG | {"license": words, "dataset": words}, 10, "a/b", {words: words})
    card.encode()  # what cannot be written to a file is not in it
    data = yaml.safe_load(card.split("---\n")[1])
    known = {"license", "license_name", "library_name", "pipeline_tag", "tags"}
    assert set(data) <= known and data["library_name"] == "dp"
    assert data["license"] == (words if words == "null" else "other")
    assert words == "null" or data["license_name"] == plain(words)
    assert ModelCard(card).data.pipeline_tag == "unconditional-image-generation"


@pytest.mark.parametrize("words", WORDS)
def test_user_text_is_one_table_cell_without_markup(words):
    card = model_card(CONFIG | {"license": words, "dataset": words}, 10, "a/b", {"fact": words})
    plain_card = model_card(CONFIG | {"license": "mit", "dataset": "x"}, 10, "a/b", {"fact": "x"})
    body, expected = (text.split("\n---\n", 1)[1].splitlines() for text in (card, plain_card))
    assert len(body) == len(expected)  # no line more
    # Once what is escaped is taken away, nothing is left that Markdown or HTML would act upon.
    bare = escape(words)
    for pair in ("\\" + c for c in "\\`*_[]<>|~&!:@$."):
        bare = bare.replace(pair, "")
    assert not set(bare) & set("\\`*_[]<>|~&!:@$\n\r")
    assert "www." not in escape(words) and len(plain(words)) <= MAX_LENGTH + 1


def test_a_known_license_keeps_the_hubs_identifier():
    for name in ("mit", "cc-by-4.0", "ofl-1.1", "unknown"):
        assert ModelCard(model_card(CONFIG | {"license": name}, 10, "a/b")).data.license == name
    assert ModelCard(model_card(CONFIG, 10, "a/b")).data.license == "unknown"


def test_an_image_is_shown_only_if_there_is_one():
    assert "![" not in model_card(CONFIG, 10, "a/b")
    assert "![Samples](samples.png)" in model_card(CONFIG, 10, "a/b", image="samples.png")
