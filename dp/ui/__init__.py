"""The web app. One module per tab; `build_app` puts them on one page."""

from __future__ import annotations

import gradio as gr

try:
    import mcp
except ImportError:
    mcp = None

from dp.engine import Engine
from dp.ui import api, compare, denoise, load, train
from dp.ui.lent import lender
from dp.ui.watching import Viewers

TITLE = "See a diffusion model work"
INTRO = (
    "# See a diffusion model work\n"
    "Every picture here starts as pure noise. At each step the network guesses the finished picture (**x0**), "
    "takes a small step towards it and guesses again. Watch each guess as it is made, compare what the knobs do, or "
    "train a network on pictures of your own."
)

# System fonts: nothing is fetched from elsewhere. On a phone the pictures and the button fit on one screen.
THEME = gr.themes.Default(
    primary_hue="indigo",
    secondary_hue="indigo",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
).set(  # the theme's own explanations are too pale to read
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_500",
    block_info_text_color_dark="*neutral_400",
)
CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#player .html-container { padding: 0; }
/* Generate and Stop take each other's place: the second click of a double click must not land on the other. */
.denoise:has(#player [aria-busy=true]) #generate, .denoise:has(.clock[aria-busy=true]) #compare,
.denoise:not(:has(#player [aria-busy=true])) #stop,
.denoise:not(:has(.clock[aria-busy=true])) #compare-stop { display: none; }
#generate, #stop, #compare, #compare-stop { animation: arm 0.4s; } @keyframes arm { from, 99% { pointer-events: none } }
.arms { display: grid !important; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: var(--spacing-lg); }
.arms.pairs { grid: auto auto / auto-flow minmax(0, 1fr); }
.arms > :has(.player[hidden]), #compare-hint:has(+ .arms .player:not([hidden])) { display: none; }
@media (max-width: 700px) { .arms:not(.pairs) { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
/* On a phone, what trains stands above what could be trained next. */
@media (max-width: 700px) { .train:has(.board:not([data-runs=""])) > :last-child { order: -1; } }
.about { padding: 0 2px; } .about p { margin: 0; color: var(--body-text-color-subdued); font-size: var(--text-sm); }
"""
LAUNCH = {
    "theme": THEME,
    "css": CSS,
    "max_threads": 200,
    "state_session_capacity": 100,  # of those used last: Gradio keeps a quarter of a megabyte for every visitor
    "run_history": False,
    "enable_monitoring": False,
    "mcp_server": mcp is not None,  # Gradio's extra of that name: the endpoints become tools for language models
    "max_file_size": "16mb",  # a picture of ours to load the settings from; Gradio's route for uploads is open to all
}


def build_app(engine: Engine, on_zero_gpu: bool = False) -> gr.Blocks:
    """The page, ready to launch with `LAUNCH`. on_zero_gpu: the engine's thread is not used, see `dp.ui.lent`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.Markdown(INTRO)
        viewers, lend = Viewers(engine, demo), lender(engine) if on_zero_gpu else None
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Denoise", id="denoise"):
                panels = {"denoise": denoise.build(demo, viewers, lend)}
            with gr.Tab("Compare", id="compare"):
                panels["compare"] = compare.build(demo, viewers, lend)
            load.wire(panels)
            with gr.Tab("Train", id="train"):
                train.build(demo, engine, tabs, panels)
        api.build(viewers, lend)
    demo.queue(max_size=256, api_open=False, default_concurrency_limit=None)
    return demo
