"""Export a run to files that store its settings, and read the settings of a saved PNG back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dp.data.animation import encode_gif, encode_mp4, film_strip, make_zip, upscale_nearest
from dp.data.codec import encode_png, make_grid, read_png_text
from dp.serving.frames import Frame, evenly
from dp.system.validation import quote

VERSION = "0.1"  # of the stored settings
SIDE = 512  # approximate size of strips and animations in pixels
STRIP_STEPS = 10
RUN_S, MIN_FPS, MAX_FPS = 4, 5, 50  # of an animation: the page's pace, as far as a GIF can follow
KINDS = {"png": ".png", "png4": ".png", "png8": ".png", "images": ".zip", "strip": ".png"}
KINDS |= {"gif": ".gif", "mp4": ".mp4", "zip": ".zip"}
ENLARGED = {"png": 1, "png4": 4, "png8": 8}
MAX_PNG_SIDE = 4096  # pixels
KEY = "dp"  # the PNG text chunk with the settings as JSON; the chunk "parameters" has them in a readable line


def export(frames: Sequence[Frame], provenance: Mapping[str, Any], kind: Any, row: int = 0) -> tuple[str, bytes]:
    """Return the name and the content of a file of a run, given its kept frames and `RunHandle.provenance`.

    kind: 'png', all final images in one PNG, and 'png4' and 'png8', four and eight times as large; 'images', a ZIP with
    one PNG each; 'strip', ten steps of image `row`; 'gif' and 'mp4', x_t and x0 side by side; 'zip', every kept frame.
    Raises ValueError for an unknown kind, for a PNG that is too large, and if there are no frames yet.
    """
    if kind not in list(KINDS):
        raise ValueError(f"unknown kind of file {quote(kind)}; choose one of: {', '.join(KINDS)}")
    if not frames:
        raise ValueError("there is nothing to save yet")
    provenance = {"app": f"dp {VERSION}", **provenance, "steps_taken": frames[-1].index}
    text = {"parameters": readable(provenance), KEY: json.dumps(provenance)}
    model = provenance["checkpoint"].replace("/", "-")  # checkpoints of runs and of the Hub have a slash
    name = f"{model}-{provenance['seed']}"
    final = frames[-1].x0
    if kind in ENLARGED:
        return f"{name}.png", encode_png(enlarged(make_grid(final), ENLARGED[kind]), text)
    if kind == "images":
        singles = {}
        for i, image in enumerate(final):
            own = provenance | own_settings(provenance, i)
            singles[f"{model}-{own['seed']}.png"] = encode_png(image, text | {KEY: json.dumps(own)})
        return f"{name}-images.zip", make_zip(singles)
    if kind == "strip":
        chosen = [frames[i - 1].x0[row] for i in evenly(len(frames), STRIP_STEPS)]
        own = provenance | own_settings(provenance, row)
        strip = film_strip(upscale_nearest(np.stack(chosen), SIDE // 4))
        return f"{model}-{own['seed']}-strip.png", encode_png(strip, text | {KEY: json.dumps(own)})
    if kind == "zip":
        files = {
            f"{key}/{frame.index:06d}.png": encode_png(make_grid(getattr(frame, key)))
            for frame in frames
            for key in ("x_t", "x0")
        }
        return f"{name}-steps.zip", make_zip(files | {"settings.json": json.dumps(provenance, indent=2).encode()})
    side = SIDE if kind == "gif" else 2 * SIDE
    pairs = (np.stack([make_grid(frame.x_t), make_grid(frame.x0)]) for frame in frames)
    film = (upscale_nearest(film_strip(pair, gap=4), side) for pair in pairs)  # a generator, as all of them are large
    fps = min(max(round(len(frames) / RUN_S), MIN_FPS), MAX_FPS)
    if kind == "gif":
        return f"{name}.gif", encode_gif(film, len(frames), 1 / fps, text[KEY])
    return f"{name}.mp4", encode_mp4(film, fps, text[KEY])


def enlarged(image: np.ndarray, times: int) -> np.ndarray:
    if max(image.shape[:2]) * times > MAX_PNG_SIDE and times > 1:
        height, width = image.shape[:2]
        raise ValueError(f"{width}×{height} pixels {times} times as large are more than {MAX_PNG_SIDE} on a side")
    return image.repeat(times, 0).repeat(times, 1)


def own_settings(provenance: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return the settings in which one image of a run differs from the whole run."""
    own: dict[str, Any] = {"seed": provenance["seed"] + row, "batch_size": 1}
    label = provenance.get("label")
    if isinstance(label, (list, tuple)):
        own["label"] = label[row]
        own |= {} if label[row] else {"guidance": 1.0}  # without a class there is nothing to guide to
    return own


def readable(provenance: Mapping[str, Any]) -> str:
    """Return the settings in one readable line."""
    keywords = ", ".join(f"{key} {value:g}" for key, value in (provenance["schedule_kwargs"] or {}).items())
    schedule = f"{provenance['noise_schedule']} schedule" + (f" ({keywords})" if keywords else "")
    classes = ""
    if label := provenance.get("label"):
        low, high = provenance["guidance_interval"]
        span = "" if (low, high) == (0, 1) else f" from {low:g} to {high:g}"
        classes = f"class {label}, guidance {provenance['guidance']:g}{span}, "
    return (
        f"{provenance['checkpoint']} ({provenance['sha256'][:12]}), {provenance['batch_size']} images from seed "
        f"{provenance['seed']}, {provenance['sampler']}, {provenance['timesteps']} steps, {classes}{schedule}, "
        f"time difference {provenance['time_difference']:g}, eta {provenance['eta']:g}, {provenance['device']}, "
        f"{provenance['app']}"
    )


def read_settings(data: bytes) -> dict[str, Any]:
    """Return the settings stored in a saved PNG, unchecked. Raises ValueError if there are none."""
    text = read_png_text(data).get(KEY)
    if text is None:
        raise ValueError("this PNG has no settings: only images saved by this app do, and many programs remove them")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for a number with too many digits
        raise ValueError(f"the settings in this PNG are damaged: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError("the settings in this PNG are damaged")
    return settings
