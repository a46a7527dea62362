"""Files of a run to take away, and back: every one carries what it was made with, and a picture's settings can be
loaded again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dp.data.animation import encode_gif, encode_mp4, film_strip, make_zip, upscale_nearest
from dp.data.codec import encode_png, make_grid, read_png_text
from dp.serving.frames import Frame, evenly
from dp.system.validation import quote

VERSION = "0.1"  # of what `made_with` says, for those who read it later
SIDE = 512  # pixels, about, of what is made to be looked at elsewhere
MOMENTS = 10  # on a film strip
FPS = 20
KINDS = {"png": ".png", "images": ".zip", "strip": ".png", "gif": ".gif", "mp4": ".mp4", "zip": ".zip"}
KEY = "dp"  # under which a PNG carries the JSON; "parameters" holds the readable line


def export(frames: Sequence[Frame], made_with: Mapping[str, Any], kind: Any) -> tuple[str, bytes]:
    """Return a file's name and content, made of a run's kept frames and `RunHandle.provenance`. kind: 'png', all final
    images in one; 'images', each in a ZIP; 'strip', ten moments of the first image; 'gif' and 'mp4', x_t and x0
    side by side; 'zip', every kept frame. Raises ValueError where there is nothing yet.
    """
    if kind not in list(KINDS):
        raise ValueError(f"there is no such kind of file as {quote(kind)}; choose one of: {', '.join(KINDS)}")
    if not frames:
        raise ValueError("there is nothing to save yet")
    made_with = {"app": f"dp {VERSION}", **made_with, "steps_taken": frames[-1].index}
    text = {"parameters": readable(made_with), KEY: json.dumps(made_with)}
    model = made_with["checkpoint"].replace("/", "-")  # of a run's milestone or the Hub's model
    name = f"{model}-{made_with['seed']}"
    final = frames[-1].x0
    if kind == "png":
        return f"{name}.png", encode_png(make_grid(final), text)
    if kind == "images":
        singles = {
            f"{model}-{made_with['seed'] + i}.png": encode_png(
                image, text | {KEY: json.dumps(made_with | {"seed": made_with["seed"] + i, "batch_size": 1})}
            )
            for i, image in enumerate(final)
        }
        return f"{name}-images.zip", make_zip(singles)
    if kind == "strip":
        chosen = [frames[i - 1].x0[0] for i in evenly(len(frames), MOMENTS)]
        return f"{name}-strip.png", encode_png(film_strip(upscale_nearest(np.stack(chosen), SIDE // 4)), text)
    if kind == "zip":
        files = {
            f"{key}/{frame.index:06d}.png": encode_png(make_grid(getattr(frame, key)))
            for frame in frames
            for key in ("x_t", "x0")
        }
        return f"{name}-steps.zip", make_zip(files | {"settings.json": json.dumps(made_with, indent=2).encode()})
    side = SIDE if kind == "gif" else 2 * SIDE
    pairs = (np.stack([make_grid(frame.x_t), make_grid(frame.x0)]) for frame in frames)
    film = (upscale_nearest(film_strip(pair, gap=4), side) for pair in pairs)  # one at a time: together they are large
    if kind == "gif":
        return f"{name}.gif", encode_gif(film, len(frames), 1 / FPS, text[KEY])
    return f"{name}.mp4", encode_mp4(film, FPS, text[KEY])


def readable(made_with: Mapping[str, Any]) -> str:
    """One line for a person."""
    keywords = ", ".join(f"{key} {value:g}" for key, value in (made_with["schedule_kwargs"] or {}).items())
    schedule = f"{made_with['noise_schedule']} schedule" + (f" ({keywords})" if keywords else "")
    return (
        f"{made_with['checkpoint']} ({made_with['sha256'][:12]}), {made_with['batch_size']} images from seed "
        f"{made_with['seed']}, {made_with['sampler']}, {made_with['timesteps']} steps, {schedule}, time difference "
        f"{made_with['time_difference']:g}, eta {made_with['eta']:g}, {made_with['device']}, {made_with['app']}"
    )


def read_settings(data: bytes) -> dict[str, Any]:
    """Return the settings stored in a saved PNG, unchecked. Raises ValueError if there are none."""
    text = read_png_text(data).get(KEY)
    if text is None:
        raise ValueError("this PNG carries no settings: only pictures saved here do, and many programs drop them")
    try:
        made_with = json.loads(text)
    except (ValueError, RecursionError) as error:  # also for a number of more digits than Python reads
        raise ValueError(f"the settings in this PNG are damaged: {error}") from None
    if not isinstance(made_with, dict):
        raise ValueError("the settings in this PNG are damaged")
    return made_with
