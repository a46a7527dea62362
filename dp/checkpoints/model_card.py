"""Write the model card, the README.md of a checkpoint, as a pure function from values to text.

All text from users is sanitized to one line of printable characters that contains no YAML or Markdown syntax, no links
and no images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from dp.system.text import escape, plain

LIBRARY, TASK = "dp", "unconditional-image-generation"  # the Hub's filters find these models by them
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")  # the Hub's license identifiers: mit, cc-by-4.0, ofl-1.1


def model_card(
    config: Mapping[str, Any], parameters: int, source: str, facts: Mapping[str, str] | None = None, image: str = ""
) -> str:
    """Return the README.md of a checkpoint. config: a checked config.json. source: the argument of `from_pretrained` in
    the example. facts: more rows of the table, each a name and a text. image: the file name of an image of samples
    beside the card.
    """
    network, policy = config["network"], config["policy"]
    is_image, channels = "image_size" in network, network["channels"]
    size = (network["image_size"],) * 2 if is_image else (network["length"],)
    kind = f"{size[0]}x{size[0]} diffusion model" if is_image else f"diffusion model of sequences of length {size[0]}"
    settings = {
        "network": _listed(network, "type", "image_size", "length", "channels"),
        "sampling": _listed(policy, *(name for name in policy if name not in SAMPLING)),
        "training": _listed(policy, *SAMPLING),
        **({"dataset": config["dataset"]} if "dataset" in config else {}),
        **({"classes": ", ".join(config["classes"])} if config.get("classes") else {}),
        "license": config.get("license", "unknown"),
    }
    objective, schedule = policy.get("objective", "v"), policy.get("noise_schedule", "sigmoid")
    return CARD.format(
        front=_front_matter(config.get("license", "unknown"), is_image),
        image=f"![Samples]({image})\n\n" if image else "",
        summary=f"A {kind}: {network['type']}, {parameters:,} parameters, "
        f"objective {objective}, {schedule} schedule,\n{config.get('step', 0):,} training steps.",
        source=source.replace("\\", "/").replace('"', ""),
        samples="images" if is_image else "sequences",
        shape=(16, channels, *size),
        rows="\n".join(f"| {escape(name)} | {escape(text)} |" for name, text in {**settings, **(facts or {})}.items()),
    )


def _front_matter(license: str, is_image: bool) -> str:
    known = {"license": license} if LICENSE_ID.fullmatch(license) else {"license": "other"}
    if known["license"] != license:
        known["license_name"] = plain(license)
    known |= {"pipeline_tag": TASK, "tags": ["diffusion", TASK]} if is_image else {"tags": ["diffusion"]}
    data = ModelCardData(**known, library_name=LIBRARY)
    return data.to_yaml()


def _listed(values: Mapping[str, Any], *excluded: str) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if name not in excluded)


SAMPLING = ("timesteps", "use_ddim", "time_difference")  # the policy fields for sampling; the others are for training

CARD = """---
{front}
---

{image}{summary}

```python
from dp import DiffusionPolicy

policy = DiffusionPolicy.from_pretrained("{source}")
{samples} = policy.sample(16, timesteps=50, seed=0)  # {shape} in [0, 1]
```

| | |
|---|---|
{rows}
"""
