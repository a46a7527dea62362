"""Build the page: one module per tab, all on one page."""

from __future__ import annotations

import gradio as gr

from dp.serving.engine import Engine
from dp.ui import api, guided, hub_models, words
from dp.ui.components.guide.guide import Guide
from dp.ui.questions import available
from dp.ui.sampling.page_values import usable_checkpoints
from dp.ui.server import Page
from dp.ui.streaming import Sessions
from dp.ui.tabs import compare, denoise, plane, train
from dp.ui.zero_gpu import GpuRunner

TITLE = "Watch a diffusion model at work"


def build_app(engine: Engine, on_zero_gpu: bool = False) -> gr.Blocks:
    """Return the page, ready to launch. on_zero_gpu: sample on lent GPUs, see `dp.ui.zero_gpu`."""
    with Page(title=TITLE) as demo:
        gr.Markdown(words.INTRO, elem_id="intro")
        sessions = Sessions(GpuRunner(engine) if on_zero_gpu else engine, demo)
        questions = available(usable_checkpoints(engine), sessions.runner.can_replay)
        folders = {entry.name: entry.path for entry in engine.checkpoints()}
        guide = Guide(questions, folders, elem_id="guide", padding=False)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Denoise", id="denoise"):
                denoising = denoise.build(demo, engine, sessions)
            with gr.Tab("Compare", id="compare"):
                comparison = compare.build(demo, engine, sessions)
            hub_models.wire({"denoise": denoising.panel, "compare": comparison.panel})
            guided.wire(guide, questions, denoising, comparison)
            with gr.Tab("In 2D", id="plane"):
                plane.build()
            with gr.Tab("Train", id="train"):
                train.build(demo, engine, tabs, {"denoise": denoising.panel.opening, "compare": comparison.opening})
        api.build(engine, sessions)
    demo.queue(max_size=256, api_open=False, default_concurrency_limit=None)
    return demo
