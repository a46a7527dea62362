"""The trajectory player: a `gr.HTML` component that is fed one frame at a time and draws it on a canvas.

The server sends small JSON values, never markup, and the newest frame only. What a value holds, all of it optional but
`state`:

    state     'idle', 'waiting', 'running', 'done', 'stopped' or 'failed'
    index, timesteps, time, log_snr   of the step that `src` shows
    src       the frame as a data URI: JPEG while running, PNG at the end
    seed      the seed of the first image, when a run begins and when it ends
    run       its id when it begins; kept for this tab, so that a reload finds it again
    beat      any number, new each time, that says no more than that the run goes on
    message   one sentence for the status line, as plain text

A run begins with 'waiting'. Where it goes on but nothing has come for a while (the laptop slept, the network went), the
event `lost` is triggered. A value without `src` keeps the picture that is there, so that nothing ever blanks; after
'stopped' only another run's 'waiting' counts.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import gradio as gr

from dp.images import encode_jpeg, encode_png, grid
from dp.tickets import Frame

HERE = Path(__file__).parent


class Player(gr.HTML):
    def __init__(self, **kwargs: Any):
        super().__init__(
            value={"state": "idle"},
            html_template=(HERE / "player.html").read_text(encoding="utf-8"),
            css_template=(HERE / "player.css").read_text(encoding="utf-8"),
            js_on_load=(HERE / "player.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            **kwargs,
        )

    def api_info(self) -> dict[str, Any]:
        return {
            "type": "object",
            "description": "the newest frame: state, index, timesteps, time, log_snr, src, seed, message",
        }


def show(frame: Frame | None, state: str, message: str | None = None) -> dict[str, Any]:
    """The player's value for a frame: lossless once the run has ended, light while it goes on."""
    value: dict[str, Any] = {"state": state}
    if message:
        value["message"] = message
    if frame:
        picture = grid(frame.x0)
        if state == "running":
            src = "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(picture)).decode()
        else:
            src = "data:image/png;base64," + base64.b64encode(encode_png(picture)).decode()
        value |= {"index": frame.index, "timesteps": frame.timesteps, "time": frame.time, "log_snr": frame.log_snr}
        value["src"] = src
    return value
