"""A checkpoint as a folder of static files in which a browser runs it: the player, the runner, the model and a recorded
run. Nothing in it needs a server that computes, or another site.

The texts that come with a model (its name, its classes, its card) enter the page as JSON that cannot end its element,
and the page's script makes text nodes of them.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import SpaceCardData

from dp.checkpoints import folder as checkpoint
from dp.checkpoints.classes import classes_of
from dp.checkpoints.model_card import LICENSE_ID
from dp.diffusion.noise import draw, make_streams
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SAMPLER, TIMESTEPS, SampleSettings
from dp.networks.rin import RIN
from dp.system.text import plain
from dp.ui.components.files import read_file, read_scripts
from dp.ui.components.player.parts import CORE, SHARED, STYLES
from dp.ui.web.card import card_blocks
from dp.ui.web.graph import WEIGHTS, export_graph
from dp.ui.web.recording import record_run
from dp.ui.web.update_runtime import BUILDS, RUNTIME

RUNNER = ("shared/plan", "web/noise", "web/sampling", "web/checksum", "web/runtime", "web/worker")
PLAYER = [f"shared/{name}" for name in SHARED if name != "storage"]
PLAYER += ["web/panels", "player/mini", "player/recording", *(f"player/{name}" for name in CORE if name != "variant")]
START = ("shared/drop_zone", "start_image/preview", "start_image/mask", "start_image/start_image")
PAGE = ("shared/canvas", "shared/elements", "shared/format", "shared/plan", "web/noise", "web/sampling", "web/checksum")
PAGE += ("web/png", "web/files", "web/settings", "web/source", "web/controls", "web/props", "web/card", "web/start")
IN_APP = ("shared/elements", "shared/format", "shared/plan", "web/noise", "web/sampling", "web/checksum")
IN_APP += ("web/png", "web/files", "web/settings", "web/source", "web/local_runs")
INSTEAD = (("player/inspectors.html", "web/image_tools.html"),)
LEFT_OUT = ("player/panels.html", "player/animations.html")

MAX_TIMESTEPS, MAX_GUIDANCE = 1000, 10  # on the page
MIN_DRAW = 16  # numbers of one draw: torch makes fewer of them in a way that the page does not know
MAX_WEIGHTS = 512 << 20  # bytes that a page may ask a browser to fetch
CHECKED_TIMES = (0.8, 0.2)  # of the two rows in expected.bin, as in runtime.js
MAX_TITLE = 100  # characters
MARK = "model.onnx"  # a folder with this file may be replaced


def export_page(source: Path, target: Path, name: str) -> int:
    """Write the page of the checkpoint folder `source` to the folder `target`, and return its size in bytes. Raises
    ValueError or CheckpointError where that cannot be done.
    """
    network, config = checkpoint.load(source)
    policy = DiffusionPolicy(network, **config["policy"]).eval()
    check_exportable(policy, source)
    sampling = {"timesteps": TIMESTEPS, "sampler": SAMPLER} | config.get("sampling", {})
    sampling["timesteps"] = min(sampling["timesteps"], MAX_TIMESTEPS)
    sampling["guidance"] = min(sampling.get("guidance", 1), MAX_GUIDANCE)
    (target / "runtime").mkdir(parents=True)
    for path in [*RUNTIME.glob("*.gz"), RUNTIME / "LICENSE"]:
        shutil.copyfile(path, target / "runtime" / path.name)
    shutil.copyfile(source / WEIGHTS, target / WEIGHTS)
    (target / "model.onnx").write_bytes(export_graph(network, target / WEIGHTS))
    (target / "expected.bin").write_bytes(expected_outputs(policy))
    (target / "recording.json").write_bytes(record_run(policy, config, sampling))
    about = describe(policy, config, sampling, name) | {"files": sums(target)}
    about["card"] = card_blocks(read_card(source), name)
    builds = [sum(about["files"][f"runtime/{file}.gz"]["bytes"] for file in build) for build in BUILDS.values()]
    weights = sum(about["files"][file]["bytes"] for file in (WEIGHTS, "model.onnx", "expected.bin"))
    about["first_run_bytes"] = weights + max(builds)
    about["sha256"] = hashlib.sha256((target / WEIGHTS).read_bytes()).hexdigest()
    write_page(target, about)
    (target / "README.md").write_text(space_card(name, config), encoding="utf-8")
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def check_exportable(policy: DiffusionPolicy, source: Path) -> None:
    network, shape = policy.model, policy.sample_shape
    if len(shape) != 3:
        raise ValueError(f"{source.name} cannot be exported: it is a model of sequences, and a page draws images")
    if not isinstance(network, RIN) or shape[0] not in (1, 3, 4):
        raise ValueError(f"{source.name} cannot be exported: a page draws images of 1, 3 or 4 channels, got {shape[0]}")
    if (fewest := min(torch.Size(shape).numel(), network.latents.numel())) < MIN_DRAW:
        raise ValueError(f"{source.name} is too small to be exported: its images or latents have {fewest} numbers each")
    if (size := (source / WEIGHTS).stat().st_size) > MAX_WEIGHTS:
        raise ValueError(f"{source.name} has {size:,} bytes of weights; a page may have at most {MAX_WEIGHTS:,}")


def read_card(source: Path) -> str:
    path = source / "README.md"
    return path.read_text(encoding="utf-8", errors="replace")[:1_000_000] if path.is_file() else ""


@torch.no_grad()
def expected_outputs(policy: DiffusionPolicy) -> bytes:
    """Return what the network makes of random inputs, float32: the page compares its own results with it."""
    network, streams = policy.model, make_streams(SampleSettings(len(CHECKED_TIMES), seed=0))
    x, x0 = (draw(streams, torch.empty(0, *policy.sample_shape)) for _ in range(2))
    latents = draw(streams, torch.empty(0, *network.latents.shape))
    condition = torch.tensor([0, network.num_classes]) if network.num_classes else None
    outputs = network(x, torch.tensor(CHECKED_TIMES), x0.clamp(-1, 1), latents, condition, return_latents=True)
    return b"".join(values.numpy().astype("<f4").tobytes() for values in outputs)


def describe(
    policy: DiffusionPolicy, config: Mapping[str, Any], sampling: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Return what the page knows about the model."""
    network, own = policy.model, policy.config
    sizes = {"channels": policy.channels, "image_size": policy.image_size, "num_classes": policy.num_classes}
    return {
        "name": plain(name),
        "classes": classes_of(config),
        "dataset": config.get("dataset", ""),
        "step": config.get("step", 0),
        "network": sizes | {"latents": list(network.latents.shape)},
        "policy": {key: own[key] for key in ("objective", "scale", "noise_schedule", "schedule_kwargs", "consistency")},
        "sampling": dict(sampling),
    }


def space_card(name: str, config: Mapping[str, Any]) -> str:
    """Return the README.md with which the folder is a static Space."""
    license = config.get("license", "")
    front = {"title": plain(name)[:MAX_TITLE], "sdk": "static", "app_file": "index.html", "pinned": False}
    front |= {"license": license} if LICENSE_ID.fullmatch(license) else {}
    front |= {"short_description": "A diffusion model that runs in your browser", "tags": ["diffusion"]}
    return f"---\n{SpaceCardData(**front).to_yaml()}\n---\n\nMade with `python -m dp export-web`.\n"


def sums(target: Path) -> dict[str, dict[str, int]]:
    """Return the size and the CRC-32 of each file in a folder."""
    paths = [path for path in sorted(target.rglob("*")) if path.is_file()]
    contents = {path.relative_to(target).as_posix(): path.read_bytes() for path in paths}
    return {name: {"bytes": len(content), "crc32": zlib.crc32(content)} for name, content in contents.items()}


# ----------------------------------------------------------------------------
# The page's own files


def write_page(target: Path, about: Mapping[str, Any]) -> None:
    scripts, style = {"runner.js": read_scripts(*RUNNER), "page.js": page_script()}, page_style()
    content = json.dumps([scripts, style, about], sort_keys=True)
    version = f"{zlib.crc32(content.encode()):08x}"
    names = ["./", *(f"{name}?{version}" for name in (*scripts, "page.css"))]
    names.append(f"recording.json?{about['files']['recording.json']['crc32']}")
    values = {"TITLE": html.escape(about["name"]), "ABOUT": embedded(dict(about) | {"version": version})}
    values |= {"VERSION": version, "PAGE_FILES": json.dumps(names)}
    markup = fill_in(read_file("web/page.html", LEFT_OUT, INSTEAD), values)
    offline = fill_in(read_file("web/offline.js"), values)
    for name, text in {**scripts, "page.css": style, "index.html": markup, "offline.js": offline}.items():
        (target / name).write_text(text, encoding="utf-8", newline="\n")


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Return a text with each name in `values` replaced, but no name in a value."""
    return re.sub(rf"\b({'|'.join(values)})\b", lambda match: values[match[0]], text)


def embedded(value: Any) -> str:
    """Return a value as JSON in ASCII that contains no character of markup, so that it cannot end its element."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def read_about(page: Path) -> dict[str, Any]:
    """Return what the page in a folder knows about its model."""
    markup = (page / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="about">(.*?)</script>', markup)[1])


def page_script() -> str:
    """Return page.js. A component's scripts become the body of a function, as on Gradio's page."""
    parts = ["(() => {", '"use strict";', read_scripts(*PAGE)]
    for name, scripts in {"createPlayer": PLAYER, "createStartImage": START}.items():
        parts.append(f"function {name}({{ element, props, server, trigger, watch }}) {{\n{read_scripts(*scripts)}\n}}")
    for name, file in {"COPY_LINK": "page/copy_link", "OPEN_LINK": "page/open_link"}.items():
        parts.append(f"const {name} = {read_file(f'{file}.js').rstrip().rstrip(';')};")
    return "\n".join([*parts, read_scripts("web/main"), "})();\n"])


def page_style() -> str:
    """Return page.css. A component's styles are for its element alone, as on Gradio's page."""
    player, start = "".join(read_file(f"{name}.css") for name in STYLES), read_file("start_image/start_image.css")
    return f"{read_file('web/page.css')}#player {{\n{player}}}\n#start {{\n{start}}}\n"
